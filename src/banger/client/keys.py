"""Detach keys, as docker has them, and the terminal's modes in which they are seen.

Used by client/attach.py. Whatever mode is set is put back on leaving; after a crash of ours (kill -9) a
terminal that was being attached from stays as it was, and `reset` mends it, as with any such program.
"""

from __future__ import annotations

import os
import signal
import termios
from typing import Any

from banger.errors import BangerError, ErrorCode

DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"
_OFF = b"\0"
"""_POSIX_VDISABLE: no key has this meaning."""


def parse_detach_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` → the bytes that such keys send; each a letter or ctrl- and one of a-z @ [ \\ ] ^ _.

    INVALID_ARGUMENT names what is no key. "" turns detaching by keys off.
    """
    if not text:
        return b""
    return bytes(_key(word) for word in text.split(","))


def _key(word: str) -> int:
    if len(word) == 1 and word.isascii() and word.isprintable():
        return ord(word)
    prefix, letter = word[:5].lower(), word[5:]
    if (
        prefix == "ctrl-"
        and len(letter) == 1
        and letter.isascii()
        and letter.upper() in "@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_"
    ):
        return ord(letter.upper()) - ord("@")
    raise BangerError(
        ErrorCode.INVALID_ARGUMENT,
        f"detach keys: {word[:40]!a} is no key",
        hint="for example ctrl-p,ctrl-q: letters, and ctrl- with one of a-z @ [ \\ ] ^ _",
    )


class DetachFilter:
    """What is typed, without the detach keys. Keys that may become them are held until that is decided."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0
        self.detached = False

    def feed(self, data: bytes) -> bytes:
        """What goes on to the guest. `detached` is set when the keys are complete; the rest is dropped."""
        keys, passed = self._keys, bytearray()
        if not keys:
            return data
        for byte in data:
            while self._matched and byte != keys[self._matched]:
                # the longest end of what is held (and is let go of from its front) that still begins the keys
                shorter = self._fallback(self._matched)
                passed += keys[: self._matched - shorter]
                self._matched = shorter
            if byte != keys[self._matched]:
                passed.append(byte)
                continue
            self._matched += 1
            if self._matched == len(keys):
                self.detached = True
                self._matched = 0
                break
        return bytes(passed)

    def _fallback(self, matched: int) -> int:
        held = self._keys[:matched]
        return next(length for length in range(matched - 1, -1, -1) if held.endswith(held[:length]))


class KeyTerminal:
    """A terminal from which keys are read though the guest's command has no terminal of ours.

    lines: what is typed goes on by lines, edited and echoed as usual, but the detach keys end a line, too.
    Otherwise keys are seen one by one and not echoed. Ctrl-C stays a signal to us. keep_output: what the
    terminal does to a newline is for streams; a guest's terminal (False) has done it already.
    """

    def __init__(self, descriptor: int, *, lines: bool, keys: bytes, keep_output: bool = True) -> None:
        self._descriptor = descriptor
        self._lines = lines
        self._keys = keys
        self._keep_output = keep_output
        self._before: list[Any] | None = None

    def __enter__(self) -> KeyTerminal:
        self.enter()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.leave()

    def enter(self) -> None:
        if not os.isatty(self._descriptor):
            return
        before = self._before or termios.tcgetattr(self._descriptor)
        mode: list[Any] = termios.tcgetattr(self._descriptor)
        mode[0] &= ~termios.IXON  # ctrl-q is a key, not flow control
        if not self._keep_output:
            mode[1] &= ~termios.OPOST
        if self._lines:
            if self._keys:
                mode[6][termios.VEOL] = self._keys[-1:]
        else:
            mode[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        mode[6][termios.VSUSP] = _OFF  # whoever looks at a stopped one would find a strange terminal
        self._before = before
        self._set(mode)

    def leave(self) -> None:
        before, self._before = self._before, None
        if before is None:
            return
        try:
            # a background process that sets attributes is stopped by SIGTTOU: it must not be, here
            held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
            try:
                self._set(before)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, held)
        except termios.error:
            pass  # the terminal has gone

    def _set(self, mode: list[Any]) -> None:
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, mode)
