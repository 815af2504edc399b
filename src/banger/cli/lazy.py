"""click groups whose commands are imported when they are run, and commands that end at `--`.

The help of a group comes from its table, so that `banger --help` imports no command either.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem

GUEST_COMMAND = "banger.guest_command"
"""ctx.meta: the words after `--` (a list), or absent when there was no `--`."""


class LazyGroup(click.Group):
    """commands: name → ("module:attribute", one line of help). hidden: names that help does not list."""

    def __init__(
        self,
        name: str,
        *,
        lazy: dict[str, tuple[str, str]],
        help: str,
        hidden: frozenset[str] = frozenset(),
        params: list[click.Parameter] | None = None,
        callback: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(
            name,
            help=help,
            params=params,
            callback=callback,
            no_args_is_help=True,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        )
        self._lazy = lazy
        self._hidden = hidden

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in self._lazy if name not in self._hidden]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._lazy.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry[0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self._lazy and not args[0].startswith("-") and not ctx.resilient_parsing:
            import difflib  # a millisecond, for wrong usage only

            near = difflib.get_close_matches(args[0], self._lazy, n=1)
            meant = f", did you mean {near[0]!r}?" if near else f"; `{ctx.command_path} --help` lists them"
            raise click.UsageError(f"no such command: {args[0]!a}{meant}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """From the table, as help is: a TAB imports no command that it does not need."""
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        items = [CompletionItem(name, help=self._lazy[name][1]) for name in names]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, self._lazy[name][1]) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class GuestCommand(click.Command):
    """A command whose words after the first `--` are the guest's, untouched."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta[GUEST_COMMAND] = args[at + 1 :]
            args = args[:at]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- CMD...]"]


def guest_command(ctx: click.Context) -> list[str] | None:
    """None when there was no `--`; an empty one is wrong usage."""
    words: list[str] | None = ctx.meta.get(GUEST_COMMAND)
    if words is not None and not words:
        raise click.UsageError("there is no command after --", ctx)
    return words
