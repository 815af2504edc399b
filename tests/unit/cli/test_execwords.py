"""Where the options of `vm exec` end and the guest's command begins."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.cli.execwords import split_options
from banger.cli.lazy import GUEST_COMMAND
from banger.cli.vm_exec import exec_command


def parsed(words: list[str]) -> tuple[dict[str, object], list[str] | None]:
    ctx = exec_command.make_context("exec", list(words))
    command: list[str] | None = ctx.meta.get(GUEST_COMMAND)
    return ctx.params, command


@pytest.mark.parametrize(
    ("line", "expected", "command"),
    [
        ("-d mycontainer touch /tmp/execWorks", {"detach": True}, "touch /tmp/execWorks"),
        ("-it mycontainer sh", {"terminal": True}, "sh"),
        ("-i -t mycontainer sh -c -t", {"terminal": True}, "sh -c -t"),
        ("-e VAR_A=1 -e VAR_B=2 mycontainer env", {"env": ("VAR_A=1", "VAR_B=2")}, "env"),
        ("-it mycontainer pwd", {"terminal": True}, "pwd"),
        ("-it -w /root mycontainer pwd", {"cwd": "/root", "terminal": True}, "pwd"),
        ("-itw /root mycontainer pwd", {"cwd": "/root", "terminal": True}, "pwd"),
        ("--workdir=/root --user=1:2 mycontainer pwd", {"cwd": "/root", "user": "1:2"}, "pwd"),
        ("-eA=1 -unobody --env-file f mycontainer x -w y", {"env": ("A=1",), "user": "nobody"}, "x -w y"),
        ("mycontainer git log -- file", {}, "git log -- file"),
        ("mycontainer -- git log -- file", {}, "git log -- file"),
        ("mycontainer -w /tmp -e A=1 -- ls -w", {"cwd": "/tmp", "env": ("A=1",)}, "ls -w"),
        ("-t mycontainer --user root -- id", {"terminal": True, "user": "root"}, "id"),
        ("mycontainer -", {}, "-"),
    ],
)
def test_words_of_docker_and_of_ssh(line: str, expected: dict[str, object], command: str) -> None:
    params, words = parsed(line.split())
    assert params["vm"] == "mycontainer"
    assert words == command.split()
    assert {name: params[name] for name in expected} == expected


@pytest.mark.parametrize(
    "line", ["", "-it", "-e", "-- true", "--no-such-option vm true", "vm -w", "vm -x -- y"]
)
def test_wrong_usage(line: str) -> None:
    with pytest.raises(click.UsageError):
        parsed(line.split())


def test_no_command_is_told_apart_from_an_empty_one() -> None:
    assert parsed(["vm"])[1] is None
    assert parsed(["vm", "--"])[1] == []


@given(st.lists(st.sampled_from(["-i", "-t", "-it", "-eA=1", "--env=B=2", "-w", "--user", "x", "--", "-"])))
def test_no_word_is_lost_or_moved(words: list[str]) -> None:
    options, rest = split_options(words, exec_command.params)
    assert options + rest == words


@given(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=6))
def test_a_command_is_never_looked_at(command: list[str]) -> None:
    assert parsed(["vm", "--", *command])[1] == command
    if not command[0].startswith("-"):
        assert parsed(["-t", "vm", *command])[1] == command
