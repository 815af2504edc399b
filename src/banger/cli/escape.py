"""Making text that a guest, an image or a file had a say in safe for a terminal. Pure, imports nothing."""

from __future__ import annotations

import codecs


def safe(text: str) -> str:
    """One line: everything that a terminal could act upon is shown as an escape (\\x1b, \\n, \\u202e)."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _shown(letter) for letter in text)


def safe_block(text: str) -> str:
    """Several lines: newlines and tabs stay, the rest as in safe()."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else _shown(letter) for letter in text)


def _shown(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii") if letter.isascii() else ascii(letter)[1:-1]


class LogEscaper:
    """A log's bytes, piece by piece, as text for a terminal; a character cut in two is put together."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
        self._held = ""

    def feed(self, piece: bytes, final: bool = False) -> str:
        text = self._held + self._decoder.decode(piece, final)
        # \r before \n is how a serial console ends its lines; alone it would overwrite what was said
        self._held = "\r" if text.endswith("\r") and not final else ""
        if self._held:
            text = text[:-1]
        return safe_block(text.replace("\r\n", "\n"))
