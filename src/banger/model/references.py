"""How a user names a thing: a full id, else an exact name, else a unique id prefix, in that order (SPEC §1).

Used by the daemon, and by the CLI for several references against one listing. Imports nothing but
errors.py (difflib only when there is an error to explain). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from banger.errors import BangerError, ErrorCode

SHOWN_ID_LENGTH = 12
"""As `vm list` shows ids."""

_MAX_SHOWN = 10


def resolve(reference: str, candidates: Iterable[tuple[str, str]], *, what: str = "VM") -> str:
    """The id that `reference` names among `candidates`, pairs of (id, name).

    `what` names the kind in messages ("VM", "image"). BangerError INVALID_ARGUMENT for an empty
    reference; AMBIGUOUS with all candidates in data["candidates"]; NOT_FOUND, where it can be with
    the nearest names in the hint.
    """
    if not reference:
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT, f"the {what} is missing", hint=f"name a {what}, or its id"
        )
    by_name: str | None = None
    prefixed: list[tuple[str, str]] = []
    names: list[str] = []
    for identifier, name in candidates:
        if identifier == reference:
            return identifier
        if name == reference:
            by_name = identifier
        if identifier.startswith(reference):
            prefixed.append((identifier, name))
        names.append(name)
    if by_name is not None:
        return by_name
    if len(prefixed) == 1:
        return prefixed[0][0]
    if prefixed:
        raise _ambiguous(reference, prefixed, what)
    raise _not_found(reference, names, what)


def _ambiguous(reference: str, found: list[tuple[str, str]], what: str) -> BangerError:
    found = sorted(found, key=lambda pair: (pair[1], pair[0]))
    length = _distinct_length([identifier for identifier, _ in found])
    shown = ", ".join(f"{name} ({identifier[:length]})" for identifier, name in found[:_MAX_SHOWN])
    if len(found) > _MAX_SHOWN:
        shown += f" and {len(found) - _MAX_SHOWN} more"
    return BangerError(
        ErrorCode.AMBIGUOUS,
        f"{reference!a} fits {len(found)} {what}s",
        hint=f"it may be {shown}",
        data={
            "reference": reference,
            "candidates": [{"id": identifier, "name": name} for identifier, name in found],
        },
    )


def _distinct_length(identifiers: list[str]) -> int:
    """How many characters tell these ids apart; at least what a listing shows."""
    length = SHOWN_ID_LENGTH
    longest = max(len(identifier) for identifier in identifiers)
    while length < longest and len({identifier[:length] for identifier in identifiers}) < len(identifiers):
        length += 4
    return length


def _not_found(reference: str, names: list[str], what: str) -> BangerError:
    import difflib

    shown = reference if len(reference) <= 80 else reference[:77] + "..."
    near = difflib.get_close_matches(shown, names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else None
    return BangerError(
        ErrorCode.NOT_FOUND,
        f"no {what} is called {shown!a}",
        hint=hint,
        data={"reference": shown, "near": near},
    )
