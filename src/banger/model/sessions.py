"""What is said of guest sessions on both sides of the daemon: tags, signals, what the agent's refusals mean.

Used by the CLI, the client and the daemon, so it imports nothing but errors.py (signal only when a signal is
named). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from banger.errors import BangerError, ErrorCode

FEATURE = "sessions"
"""The agent's name for them in HELLO."""

LIVE = ("starting", "running", "stopping")
"""The statuses of a session whose command is not over."""

STOP_TIMEOUT_S = 10
MAX_STOP_TIMEOUT_S = 3600
MAX_TAGS = 64
MAX_TAG_BYTES = 255
MAX_TAIL_LINES = 1_000_000

REFUSALS: Mapping[str, ErrorCode] = {
    "bad_request": ErrorCode.INVALID_ARGUMENT,
    "busy": ErrorCode.BUSY,
    "closed": ErrorCode.WRONG_STATE,
    "exists": ErrorCode.ALREADY_EXISTS,
    "not_found": ErrorCode.NOT_FOUND,
    "not_running": ErrorCode.WRONG_STATE,
    "running": ErrorCode.IN_USE,
}
"""The agent's ERROR codes as the API's; any other is guest_error."""


def parse_tags(words: Iterable[str]) -> dict[str, str]:
    """`key=value` or `word` each; a later one of the same key wins. INVALID_ARGUMENT says which is none."""
    tags: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        check_tag(key, value)
        tags[key] = value
    check_tag_count(tags)
    return tags


def check_tag(key: str, value: str) -> None:
    shown = f"{key}={value}" if value else key
    if not key or not shown.isprintable() or "=" in key or key != key.strip():
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT,
            f"tag {shown[:80]!a} is not key=value",
            hint="a tag is a word, or key=value, of printable characters",
        )
    length = len(shown.encode())
    if length > MAX_TAG_BYTES:
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT,
            f"tag {shown[:40]!a}… is {length} bytes long, {MAX_TAG_BYTES} are allowed",
        )


def check_tag_count(tags: Mapping[str, str]) -> None:
    if len(tags) > MAX_TAGS:
        raise BangerError(ErrorCode.INVALID_ARGUMENT, f"{len(tags)} tags, {MAX_TAGS} are allowed")


def tag_words(tags: Mapping[str, str]) -> list[str]:
    """The other way: as they are written."""
    return [f"{key}={value}" if value else key for key, value in tags.items()]


def has_tags(tags: Mapping[str, str], filters: Iterable[str]) -> bool:
    """Whether all filters fit: `key=value` that very value, `key` any."""
    for word in filters:
        key, equals, value = word.partition("=")
        if key not in tags or (equals and tags[key] != value):
            return False
    return True


def signal_number(name: str) -> int:
    """`TERM`, `SIGTERM`, `term` or `15` → 15; INVALID_ARGUMENT for what is no signal. 1 to 64."""
    import signal

    plain = name.strip().upper().removeprefix("SIG")
    if plain.isascii() and plain.isdigit() and len(plain) < 3 and 1 <= int(plain) <= 64:
        return int(plain)
    try:
        return int(signal.Signals[f"SIG{plain}"])
    except KeyError:
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT,
            f"unknown signal {name[:40]!a}",
            hint="a name such as TERM, INT, HUP, USR1 or KILL, or a number from 1 to 64",
        ) from None
