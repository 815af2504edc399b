"""Words of `vm exec`: options, the VM, and the guest's command, where docker and ssh users put them.

    exec [OPTIONS] VM CMD...              as docker has it: nothing after CMD's first word is looked at
    exec [OPTIONS] VM [OPTIONS] -- CMD... options after the VM end at `--`

Pure: reads the command line only.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from banger.cli.lazy import GUEST_COMMAND


class VMThenCommand(click.Command):
    """A command whose words are [OPTIONS] VM [OPTIONS] [--] CMD…; see lazy.guest_command for the last."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        leading, rest = split_options(args, self.params)
        if rest and rest[0] == "--":  # no VM: click says so
            ctx.meta[GUEST_COMMAND] = rest[1:]
            return super().parse_args(ctx, leading)
        vm, rest = rest[:1], rest[1:]
        following, command = split_options(rest, self.params)
        if command and command[0] == "--":
            ctx.meta[GUEST_COMMAND] = command[1:]
        elif command:
            ctx.meta[GUEST_COMMAND] = command
        return super().parse_args(ctx, [*leading, *following, *vm])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "CMD..."]


def split_options(words: Sequence[str], params: Sequence[click.Parameter]) -> tuple[list[str], list[str]]:
    """(the options at the front with their values, what follows from the first word that is none)."""
    valued = {
        name
        for param in params
        if isinstance(param, click.Option) and not param.is_flag
        for name in (*param.opts, *param.secondary_opts)
    }
    at = 0
    while at < len(words):
        word = words[at]
        if word in ("-", "--") or not word.startswith("-"):
            break
        at += 2 if _wants_next(word, valued) else 1
    return list(words[:at]), list(words[at:])


def _wants_next(word: str, valued: set[str]) -> bool:
    """Whether the option's value is the next word: `--env`, `-e`, `-ite`; not `--env=A=1`, `-eA=1`."""
    if word.startswith("--"):
        return word in valued
    for place, letter in enumerate(word[1:], 1):
        if f"-{letter}" in valued:
            return place == len(word) - 1
    return False
