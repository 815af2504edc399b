"""vim, top, tmux and a shell in `vm shell`, as a person sees them: keys typed, the screen read."""

from __future__ import annotations

import io
import tarfile
import termios
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.artifacts import artifacts
from tests.guest.instance import BANGER, Instance
from tests.guest.screen import Screen, at_a_terminal

pytestmark = pytest.mark.guest
PROMPT = "ready>"


@pytest.fixture(scope="module")
def equipped(banger: Instance, guest: str) -> str:
    """A guest with vim and tmux, unpacked from the artifacts' packages: there is no network here."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(artifacts().guest_debs, arcname="debs")
    script = "tar -xC /tmp && for deb in /tmp/debs/*.deb; do dpkg-deb -x $deb /; done && ldconfig"
    banger.ok("vm", "exec", "-i", guest, "sh", "-ec", script, stdin=packed.getvalue())
    return guest


@contextmanager
def shell(banger: Instance, guest: str, *words: str, term: str = "xterm-256color") -> Iterator[Screen]:
    env = {**banger.environment, "TERM": term, "LANG": "C.UTF-8"}
    with at_a_terminal(banger.argv(BANGER, "vm", "shell", *words, guest), env) as screen:
        before = termios.tcgetattr(screen.fd)
        screen.until(":~#")
        screen.type(f"PS1='{PROMPT} '; clear\r")
        screen.until(lambda: screen.text.strip() == PROMPT)
        yield screen
        screen.type("exit 3\r")
        assert screen.status() == 3
        assert termios.tcgetattr(screen.fd) == before


def test_the_shell_is_the_users_own(banger: Instance, equipped: str) -> None:
    with shell(banger, equipped) as screen:
        screen.type("echo $0 $PWD $SHELL $TERM; shopt login_shell; tty; stty size\r")
        screen.until("\n/bin/bash /root /bin/bash xterm-256color")
        screen.until(lambda: any(line.split() == ["login_shell", "on"] for line in screen.lines))
        screen.until("/dev/pts/")
        screen.until("24 80")
        screen.until(lambda: screen.lines[screen.cursor[0]] == PROMPT)
        # what is typed before a program reads is bash's, or lost: wait for a sign of it
        screen.type("sh -c 'echo read''ing; cat'\r")
        screen.until("\nreading")
        screen.type("typed\r")
        screen.until(lambda: screen.text.count("typed") == 2)
        screen.type("\x03")  # Ctrl-C ends cat and not the shell
        screen.until(lambda: screen.lines[screen.cursor[0]] == PROMPT)
        screen.type("sh -c 'echo as''leep; read line'\r")
        screen.until("\nasleep")
        screen.type("\x1a")  # Ctrl-Z stops in the guest
        screen.until("Stopped")
        screen.type("kill %1; wait; clear\r")
        screen.until(lambda: screen.lines[0] == PROMPT)


def test_vim(banger: Instance, equipped: str) -> None:
    with shell(banger, equipped) as screen:
        screen.type("vim.tiny -u NONE -N /tmp/written\r")
        screen.until('"/tmp/written" [New]')
        screen.until(lambda: screen.lines[1:23] == ["~"] * 22)
        screen.type("ione\rtwo ä€\x1b")
        screen.until(lambda: screen.lines[:3] == ["one", "two ä€", "~"])
        screen.type("gg0")
        screen.until(lambda: screen.cursor == (0, 0))
        screen.resize(40, 100)
        screen.until(lambda: screen.lines[2:39] == ["~"] * 37)
        screen.type(":set columns? lines?\r")
        screen.until("lines=40")
        screen.type("\r:wq\r")
        screen.until(PROMPT)
        assert banger.ok("vm", "exec", equipped, "cat", "/tmp/written").stdout.decode() == "one\ntwo ä€\n"
        screen.type("clear; stty size\r")
        screen.until("40 100")


def test_top(banger: Instance, equipped: str) -> None:
    with shell(banger, equipped) as screen:
        screen.type("top -d 1\r")
        screen.until("PID USER")
        assert screen.lines[0].startswith("top - ")
        assert "load average:" in screen.lines[0]
        screen.until("systemd")
        screen.type("c")  # a key that top acts on at once: command lines in place of names
        screen.until("top -d 1")
        screen.resize(12, 80)
        screen.until(lambda: screen.lines[0].startswith("top - ") and len(screen.lines) == 12)
        screen.type("q")
        screen.until(PROMPT)


def test_tmux(banger: Instance, equipped: str) -> None:
    with shell(banger, equipped) as screen:
        screen.type("tmux -f /dev/null new -s work\r")
        screen.until("[work]")
        screen.type("echo in-the-first; stty size\r")
        screen.until("\nin-the-first")
        screen.until("23 80")  # the last line is tmux's own
        screen.type('\x02"')  # Ctrl-B ": a pane below
        screen.until(lambda: any(line.startswith("─" * 30) for line in screen.lines))
        screen.type("echo in-the-second\r")
        screen.until("\nin-the-second")
        screen.resize(30, 90)
        screen.until(lambda: "[work]" in screen.lines[29])
        screen.type("\x02d")  # detach
        screen.until("[detached (from session work)]")
        screen.type("clear; tmux attach\r")
        screen.until("\nin-the-second")
        screen.until("\nin-the-first")
        screen.type("\x02:")  # tmux takes what comes too fast for a paste
        screen.until(lambda: screen.lines[-1] == ":")
        screen.type("kill-server\r")
        screen.until("[server exited]")


@pytest.mark.parametrize(("term", "becomes"), [("linux", "linux"), ("xterm-of-nobody", "xterm-256color")])
def test_a_terminal_that_the_guest_may_not_know(
    banger: Instance, guest: str, term: str, becomes: str
) -> None:
    with shell(banger, guest, term=term) as screen:
        screen.type("echo it is $TERM; infocmp >/dev/null && echo known\r")
        screen.until(f"it is {becomes}")
        screen.until("\nknown")


def test_a_vm_that_goes_gives_the_terminal_back(banger: Instance, guest: str) -> None:
    banger.ok("vm", "run", "--name", "goes", "-d")
    env = {**banger.environment, "TERM": "xterm"}
    with at_a_terminal(banger.argv(BANGER, "vm", "shell", "goes"), env) as screen:
        before = termios.tcgetattr(screen.fd)
        screen.until(":~#")
        banger.ok("vm", "kill", "--signal", "KILL", "goes")
        assert screen.status() == 125
        assert "the connection to the guest broke" in screen.text
        assert termios.tcgetattr(screen.fd) == before
    banger.ok("vm", "delete", "goes")
