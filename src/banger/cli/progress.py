"""Progress of an operation on stderr: one live line on a terminal, plain lines otherwise, none when quiet."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from banger.cli import state
from banger.cli.escape import safe
from banger.cli.render import colour, is_terminal

if TYPE_CHECKING:
    from banger.client.shapes import Event

STAYING_STEPS = ("spec", "work_kept")
"""Their messages are lines of their own, and stay."""
WORK_STEPS = ("keep", "keep_work", "work_kept")
"""What is said of the work in a VM that goes."""
_MIB = 1 << 20


class Progress:
    """Call it with each event; close() takes the live line away. A context manager."""

    def __init__(self, label: str = "") -> None:
        self._label = f"{label}: " if label else ""
        self._live = is_terminal(2) and os.environ.get("TERM") != "dumb"
        self._shown = False
        self._last = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        kind, message = event["kind"], safe(event.get("message", ""))
        if kind == "warning":
            self.line(f"warning: {message}", always=True)
        elif not message or state.quiet:
            return
        elif event.get("step") in STAYING_STEPS:
            self.line(message)
        elif self._live:
            self._draw(self._label + message + _amount(event))
        elif message != self._last:
            self._last = message
            self._write(f"{self._label}{message}\n")

    def of_work(self, event: Event) -> None:
        """As a call, for a removal that is not what the command is about: warnings and the work alone."""
        if event["kind"] == "warning" or event.get("step") in WORK_STEPS:
            self(event)

    def live(self, text: str) -> None:
        """On a terminal the live line, which the next one takes the place of; elsewhere nothing."""
        if self._live and not state.quiet:
            self._draw(self._label + text)

    def line(self, text: str, *, dim: bool = False, always: bool = False) -> None:
        """A line that stays."""
        if state.quiet and not always:
            return
        self.close()
        self._write((colour(text, "2", descriptor=2) if dim else text) + "\n")

    def close(self) -> None:
        if self._shown:
            self._shown = False
            self._write("\r\x1b[K")

    def _draw(self, text: str) -> None:
        try:
            columns = os.get_terminal_size(2).columns or 80  # 0: it was never told
        except OSError:
            columns = 80
        self._shown = True
        self._write("\r\x1b[K" + colour(text[: max(1, columns - 1)], "2", descriptor=2))

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            state.quiet = True  # stderr is closed


def _amount(event: Event) -> str:
    current, total = event.get("current"), event.get("total")
    if current is None:
        return ""
    if total and total >= _MIB:
        return f" {current / _MIB:.1f} of {total / _MIB:.1f} MiB"
    if not total and current >= _MIB:
        return f" {current / _MIB:.1f} MiB"
    return f" {current} of {total}" if total else f" {current}"
