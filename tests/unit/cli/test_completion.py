"""Completion as it is typed: TAB in a real bash, zsh and fish, beside a daemon with names to offer."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from banger.cli.main import banger as banger_command
from tests.unit.cli.conftest import CLI, Instance
from tests.unit.cli.terminals import program_on_a_terminal, read_until

Complete = Callable[..., list[str]]
"""The line up to the cursor → what the word there may become, as the words of a command line."""

SHOW = "show() { printf 'BE''GIN'; printf '<%s>' \"$@\"; printf 'E''ND'; }; PS1= PS2=\n"
ANSWER = re.compile(rb"BEGIN(.*?)END", re.S)
ALL = "\x14"
TO_THE_BEGINNING = b"\x01"
ALL_BASH = "bind '\"\\C-t\": insert-completions'\n"
ALL_ZSH = """\
autoload -Uz compinit; compinit -u -D
everything() { _main_complete; compstate[insert]=all }
zle -C everything complete-word everything
bindkey -e; bindkey '^T' everything
unsetopt prompt_cr prompt_sp
"""


class Shells:
    """Where the three shells find `banger`, their scripts, and some files."""

    def __init__(self, folder: Path, banger: Instance) -> None:
        self.folder = folder
        self.banger = banger
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        program = bin_folder / "banger"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -I {CLI} "$@"\n')
        program.chmod(0o755)
        (folder / "files").mkdir()
        for name in ("vmlinux", "vm notes.txt"):
            (folder / "files" / name).touch()
        (folder / "files" / "vmfolder").mkdir()
        self.env = {
            **banger.env,
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "HOME": str(folder),
            "HISTFILE": "",
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_DATA_HOME": str(folder / "data"),
        }
        for shell, name in (("bash", "banger.bash"), ("zsh", "_banger"), ("fish", "banger.fish")):
            (folder / name).write_bytes(banger("completion", shell).stdout)

    def at_a_prompt(self, shell: str, setup: str, line: str) -> list[str]:
        """The words of the line once its TABs were pressed; without any, with all candidates put into it."""
        if "\t" not in line:
            line += ALL
        with program_on_a_terminal(*shell.split(), env=self.env) as (_, terminal):
            os.write(terminal, f"{SHOW}{setup}cd {self.folder}/files; show ready\n".encode())
            read_until(terminal, b"<ready>END")
            os.write(terminal, line.encode() + TO_THE_BEGINNING + b"show \n")
            answer = ANSWER.search(read_until(terminal, b"END"))
        assert answer
        said = answer[1].decode().replace("\r\n", "")
        assert said.startswith("<"), said
        return said[1:-1].split("><")

    def bash(self, line: str, *, setup: str = "") -> list[str]:
        setup = setup or f". {self.folder}/banger.bash\n"
        return self.at_a_prompt("bash --norc --noprofile -i", ALL_BASH + setup, line)

    def zsh(self, line: str, *, setup: str = "") -> list[str]:
        setup = setup or f"{ALL_ZSH}. {self.folder}/_banger\n"
        return self.at_a_prompt("zsh -f -i", setup, line)

    def fish(self, line: str, *, setup: str = "") -> list[str]:
        setup = setup or f"source {self.folder}/banger.fish\n"
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"{setup}complete -C $argv[1]", line],
            cwd=self.folder / "files",
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stderr == ""
        words = [one.partition("\t")[0] for one in done.stdout.splitlines()]
        return [*re.split(r"(?<!\\) ", line)[:-1], *words]


@pytest.fixture(scope="module")
def shells(tmp_path_factory: pytest.TempPathFactory, banger: Instance) -> Shells:
    banger("vm", "create", "--name", "complete-me")
    banger("vm", "create", "--name", "complete-two")
    return Shells(tmp_path_factory.mktemp("shells"), banger)


@pytest.fixture(params=["bash", "zsh", "fish"])
def complete(request: pytest.FixtureRequest, shells: Shells) -> Complete:
    found: Complete = getattr(shells, request.param)
    return found


OFFERS = {
    "commands": ("banger vm sta", ["start", "stats"]),
    "after global options": ("banger --quiet vm sto", ["stop"]),
    "options": ("banger vm create --system", ["--system-overlay-size"]),
    "VMs": ("banger vm stop comp", ["complete-me", "complete-two"]),
    "a further VM": ("banger vm stop complete-me complete-t", ["complete-two"]),
    "images": ("banger vm create --image deb", ["debian-bookworm"]),
    "images behind =": ("banger vm create --image=deb", ["--image=debian-bookworm"]),
    "kernels": ("banger kernel show deb", ["debian-6.1"]),
    "kernels of the catalog": ("banger image pull x --kernel debian-", ["debian-6.1", "debian-x"]),
    "values of a choice": ("banger vm logs --source=mo", ["--source=monitor"]),
    "values of an option": ("banger vm run --init a", ["auto", "agent"]),
    "signals": ("banger vm kill complete-me -s USR", ["USR1", "USR2"]),
    "nothing for the guest's own words": ("banger vm exec complete-me -- ls --s", ["--s"]),
    "files": ("banger image register mine --rootfs vml", ["vmlinux"]),
    "a repository": ("banger vm run vm", ["vmfolder"]),
    "folders": ("banger kernel import mine --from vm", ["vmfolder"]),
    "files behind =": ("banger image register mine --rootfs=vml", ["--rootfs=vmlinux"]),
    "a guest's side of a copy": ("banger vm cp x complete-t", ["complete-two:"]),
    "what comes after a colon": ("banger vm cp complete-me:/etc vml", ["vmlinux"]),
}


@pytest.mark.parametrize(("line", "last"), OFFERS.values(), ids=OFFERS)
def test_what_a_shell_offers(complete: Complete, line: str, last: list[str]) -> None:
    *before, typed = line.split(" ")
    words = complete(line)
    if typed in last and not words[len(before) :]:
        words.append(typed)  # fish lists candidates, and there are none
    assert sorted(word.rstrip("/") for word in words) == sorted([*before, *last])


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_tab_ends_a_word_with_a_blank_but_after_a_colon(shells: Shells, shell: str) -> None:
    complete: Complete = getattr(shells, shell)
    assert complete("banger vm sto\tcomplete-t\t") == ["banger", "vm", "stop", "complete-two"]
    assert complete("banger vm cp complete-t\t/etc vmlin\t") == [
        *("banger", "vm", "cp", "complete-two:/etc", "vmlinux")
    ]


def test_files_with_blanks(complete: Complete) -> None:
    assert complete("banger image pull --file vm\\ n")[-1] == "vm notes.txt"


def test_a_command_typed_with_its_path(shells: Shells, complete: Complete) -> None:
    """As .venv/bin/banger is."""
    line = "../bin/banger vm stop complete-t"
    assert complete(line) == [*line.split(" ")[:-1], "complete-two"]


def test_where_the_help_says_to_put_the_scripts(shells: Shells) -> None:
    """bash-completion, zsh's compinit and fish find them by themselves."""
    for script, place in (
        ("banger.bash", "data/bash-completion/completions/banger"),
        ("_banger", "functions/_banger"),
        ("banger.fish", "config/fish/completions/banger.fish"),
    ):
        file = shells.folder / place
        file.parent.mkdir(parents=True)
        file.symlink_to(shells.folder / script)
    line, words = "banger vm sto", ["banger", "vm", "stop"]
    assert shells.bash(line, setup=". /usr/share/bash-completion/bash_completion\n") == words
    assert shells.zsh(line, setup=f"fpath=({shells.folder}/functions $fpath)\n{ALL_ZSH}") == words
    assert shells.fish(line, setup="set -p fish_complete_path $XDG_CONFIG_HOME/fish/completions\n") == words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_silent_without_a_daemon_and_none_is_started(shells: Shells, shell: str, tmp_path: Path) -> None:
    lonely = copy.copy(shells)
    lonely.env = {**shells.env, "BANGER_HOME": str(tmp_path / "home")}
    complete: Complete = getattr(lonely, shell)
    words = complete("banger vm stop comp" + ("" if shell == "fish" else "\t"))
    assert words == ["banger", "vm", "stop", *([] if shell == "fish" else ["comp"])]
    assert not (tmp_path / "home").exists()


NAMES = re.compile(r"\b(VM|IMAGE|KERNEL|SESSION)\b")


def parameters(command: click.Command, path: str) -> Iterator[tuple[str, click.Parameter]]:
    context = click.Context(command)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from parameters(below, f"{path} {name}")
        return
    for parameter in command.params:
        yield path, parameter


def test_whatever_takes_a_name_completes_it() -> None:
    silent = [
        f"{path} {parameter.human_readable_name}"
        for path, parameter in parameters(banger_command, "banger")
        if NAMES.search(parameter.metavar or "") and parameter._custom_shell_complete is None
    ]
    assert not silent


def test_whatever_takes_a_file_completes_it() -> None:
    silent = [
        f"{path} {parameter.human_readable_name}"
        for path, parameter in parameters(banger_command, "banger")
        if re.search(r"\b(FILE|FOLDER|PATH)\b", parameter.metavar or "")
        and parameter._custom_shell_complete is None
        and not isinstance(parameter.type, click.Path)
    ]
    assert not silent
