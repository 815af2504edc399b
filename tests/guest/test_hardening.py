"""A guest's agent against the guest itself, and against many and slow connections; its duties as pid 1."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from banger.guest import wire
from tests.guest.instance import Instance, until

pytestmark = [pytest.mark.guest, pytest.mark.limit(600)]
CONNECTIONS = 200
CALL = r"""
    sub call { my ($cid, $port) = @_;
        socket(my $s, 40, 1, 0) or return "socket: $!";
        connect($s, pack("SSLLx4", 40, 0, $port, $cid)) or return "refused";
        syswrite($s, pack("LC", 0, 0x10)); my $got = sysread($s, my $said, 100);
        return $got ? "answered" : "silent" }
"""
"""Of perl, as every Debian has it: whether anybody answers at a vsock address (family 40)."""


@pytest.fixture(scope="module")
def guest(banger: Instance) -> str:
    """One for all of them, with the agent as init."""
    banger.ok("vm", "run", "-d", "--name", "hard", "--init", "agent")
    return "hard"


def run(banger: Instance, guest: str, script: str, *, user: str = "root") -> str:
    return banger.ok("vm", "exec", "-u", user, guest, "sh", "-c", script).text


def perl(banger: Instance, guest: str, script: str, *, user: str = "root") -> str:
    return banger.ok("vm", "exec", "-u", user, guest, "perl", "-e", script).text


def test_no_process_of_the_guest_gets_an_answer(banger: Instance, guest: str) -> None:
    """Not even with the loopback that a guest can load: the agent hears CID 2, and hangs up on others."""
    run(banger, guest, "modprobe vsock_loopback")
    own = perl(
        banger, guest, 'open V, "</dev/vsock"; $b = pack "L", 0; ioctl V, 0x7b9, $b; print unpack "L", $b'
    )
    assert int(own) > 2
    control = rf"""{CALL}
        socket(L, 40, 1, 0); bind(L, pack("SSLLx4", 40, 0, 5000, 0xffffffff)) or die; listen(L, 9) or die;
        my $child = fork;
        unless ($child) {{ accept(my $peer, L); syswrite($peer, "hello"); sysread($peer, my $rest, 9); exit }}
        print call(1, 5000), "\n"; waitpid($child, 0)
    """
    for user in ("nobody", "root"):
        asked = "".join(f'print call({cid}, 1024), "\\n";' for cid in (1, own, 2))
        answers = perl(banger, guest, f"{CALL} {asked}", user=user).split()
        assert answers == ["silent", "silent", "refused"], (user, answers)
    assert perl(banger, guest, control) == "answered\n", "the way there is open"
    banger.ok("vm", "health", guest)


def test_files_and_sockets_are_roots(banger: Instance, guest: str) -> None:
    banger.ok(
        "vm", "session", "start", guest, "--name", "secret", "--", "sh", "-c", "echo 7357; exec sleep 600"
    )
    shown = json.loads(banger.ok("vm", "session", "show", guest, "secret", "--json").text)
    folder = shown["guest_state_dir"]
    listing = f"stat -c '%a %U:%G %n' /var/lib/banger/sessions {folder} {folder}/*"
    modes = run(banger, guest, listing).splitlines()
    assert len(modes) == 7, modes  # two folders, session, status, two logs, the keeper's socket
    assert {line.split()[1] for line in modes} == {"root:root"}
    assert {line.split()[0] for line in modes} == {"700", "600"}
    assert run(banger, guest, "find /var/lib/banger /run/initramfs -not -type l -perm /022") == ""
    pids = run(banger, guest, "grep -lxE 'banger-agent|banger-session' /proc/[0-9]*/comm").split()
    assert len(pids) > 2
    attempts = f"""
        cat {folder}/stdout.log; ls /var/lib/banger/sessions; echo x >{folder}/status
        ln -s /etc/passwd /var/lib/banger/x; ln -s /etc/passwd /var/lib/banger/sessions/x
        ln -s /etc/passwd /run/initramfs/x; echo x >/run/initramfs/shutdown
        for comm in {" ".join(pids)}; do kill -9 $(echo $comm | cut -d/ -f3); cat ${{comm%comm}}mem; done
        for comm in {" ".join(pids)}; do ls ${{comm%comm}}fd; done
        perl -e 'socket(S, 1, 5, 0); connect(S, pack("Sa*", 1, "{folder}/keeper")) and print "connected"'
    """
    assert run(banger, guest, f"{{ {attempts} }} 2>/dev/null; true", user="nobody") == ""
    again = json.loads(banger.ok("vm", "session", "show", guest, "secret", "--json").text)
    assert again["status"] == "running"
    logs = ("vm", "session", "logs", guest, "secret")
    assert until(lambda: banger.ok(*logs).text, timeout_s=60) == "7357\n"
    banger.ok("vm", "session", "rm", "--force", guest, "secret")


@contextmanager
def dialled(banger: Instance, guest: str) -> Iterator[socket.socket]:
    """A connection to the agent, past the monitor's greeting."""
    folder = os.open(next(Path(banger.paths.vms_dir).iterdir()), os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(f"/proc/self/fd/{folder}/v.sock")
            connection.sendall(b"CONNECT 1024\n")
            greeting = b""
            while not greeting.endswith(b"\n"):
                greeting += connection.recv(1)
            assert greeting.startswith(b"OK ")
            yield connection
    finally:
        os.close(folder)


def test_connections_that_stall_stall_nobody_else(banger: Instance, guest: str) -> None:
    """Half-open, half a request, readers that never read: 200 at once, and an exec beside them."""
    count = "grep -lx banger-agent /proc/[0-9]*/comm | wc -l"
    alone = seconds_of_an_exec(banger, guest)
    quiet = int(run(banger, guest, count))
    with ExitStack() as stack:
        stalled = [stack.enter_context(dialled(banger, guest)) for _ in range(CONNECTIONS)]
        for number, connection in enumerate(stalled):
            if number % 20 == 1:
                connection.sendall(wire.encode_exec(["head", "-c", "100000000", "/dev/zero"]))
            elif number % 2:
                connection.sendall(wire.encode_exec(["true"])[: number % 30])
        # first: half a request has half a minute
        assert int(run(banger, guest, count)) >= CONNECTIONS
        until(lambda: run(banger, guest, "pgrep -c head; true") == f"{CONNECTIONS // 20}\n", timeout_s=60)
        took = seconds_of_an_exec(banger, guest)
        assert json.loads(banger.ok("vm", "health", guest, "--json").text)["healthy"]
        for connection in stalled:
            connection.shutdown(socket.SHUT_WR)
        until(lambda: int(run(banger, guest, count)) <= quiet, timeout_s=120)
        until(lambda: run(banger, guest, "pgrep -c head; true") == "0\n", timeout_s=60)
    assert took < 15 + 10 * alone


def seconds_of_an_exec(banger: Instance, guest: str) -> float:
    before = time.monotonic()
    done = banger.ok("vm", "exec", "-i", guest, "wc", "-c", stdin=bytes(1_000_000))
    assert done.text == "1000000\n"
    return time.monotonic() - before


def test_requests_that_are_nonsense_end_alone(banger: Instance, guest: str) -> None:
    for data in (struct.pack("<IB", 0xFFFFFFFF, 0x11), b"\xff" * 4096, wire.encode_frame(0x7E)):
        with dialled(banger, guest) as connection:
            connection.sendall(data)
            said = bytearray()
            with contextlib.suppress(ConnectionResetError):  # with bytes of ours unread
                while piece := connection.recv(65536):
                    said += piece
                    if b"bad_request" in said or b"unsupported" in said:
                        break
            assert b"bad_request" in said or b"unsupported" in said
            assert len(said) < 4096
    banger.ok("vm", "exec", guest, "true")


def test_a_command_whose_reader_is_gone_does_not_stay(banger: Instance, guest: str) -> None:
    """With output on its way: closed with bytes unread, a socket is reset, and QEMU's bridge hides that."""
    for number in (signal.SIGHUP, signal.SIGTERM, None):
        command = banger.start("vm", "exec", guest, "yes")
        assert command.stdout is not None
        assert command.stderr is not None
        with command, command.stdout, command.stderr:
            assert command.stdout.read(2) == b"y\n"
            if number is not None:
                os.killpg(command.pid, number)
            command.stdout.close()
            command.wait(60)
        until(lambda: run(banger, guest, "pgrep -c yes; true") == "0\n", timeout_s=60)


def test_pid_1_reaps_what_nobody_waits_for(banger: Instance, guest: str) -> None:
    orphans = "for i in $(seq 40); do sh -c 'sleep 0.1 & sleep 0.2 & exit 0' & done; wait"
    run(banger, guest, orphans)
    banger.ok("vm", "exec", "-d", guest, "sh", "-c", "sleep 600 & exit 0")
    adopted = "grep ^PPid: /proc/$(pgrep -x sleep -n)/status; true"  # until then there is none, or it is sh's
    until(lambda: run(banger, guest, adopted).split() == ["PPid:", "1"], timeout_s=60)
    zombies = "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null; true"
    until(lambda: run(banger, guest, zombies) == "", timeout_s=60)


def test_the_order_of_a_shutdown(banger: Instance, guest: str) -> None:
    """TERM to all, five seconds, KILL; the disks are clean; then ENDING. HUP is for terminals only."""
    polite = (
        "trap 'date +%s.%N >/root/termed; sleep 1; echo term >>/root/polite; exit 0' TERM;"
        " echo begun >/root/polite;"
        " while :; do sleep 0.1; done"
    )
    deaf = "trap '' TERM HUP; while :; do date +%s.%N >>/root/deaf; sleep 0.2; done"
    for script in (polite, deaf):
        banger.ok("vm", "exec", "-d", guest, "sh", "-c", script)
    there = "grep begun /root/polite && test -s /root/deaf && echo there; true"
    until(lambda: run(banger, guest, there) == "begun\nthere\n", timeout_s=60)
    banger.ok("vm", "stop", guest)
    console = banger.ok("vm", "logs", guest).text
    assert "banger-agent: ending poweroff" in console
    assert "cannot unmount" not in console
    banger.ok("vm", "start", guest)
    assert run(banger, guest, "cat /root/polite") == "begun\nterm\n"
    termed, last = map(float, run(banger, guest, "cat /root/termed; tail -n 1 /root/deaf").split())
    assert 3 < last - termed < 30, "who ignores TERM has five seconds"
    assert "recover" not in banger.ok("vm", "logs", guest).text.rpartition("ending poweroff")[2]
