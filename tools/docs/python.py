"""Prints docs/python-api.md: the SDK's public names, from their signatures and docstrings.

    python tools/docs/python.py > docs/python-api.md

A public name or method without a docstring is an error.
"""

from __future__ import annotations

import enum
import inspect
import sys
import typing
from collections.abc import Callable, Iterator

import banger

HEAD = """\
# The Python SDK, name by name

<!-- Made by tools/docs/python.py: do not edit. -->

Everything here is imported from `banger`; [Python](python.md) has examples. What is not here is banger's own
and changes without notice. `shapes.X` is a typed dict with the fields of the API's object X ([API](api.md)).
"""
ASYNC = "Async"


def main() -> None:
    print(HEAD)
    names = sorted(banger.__all__, key=str.lower)
    classes = [name for name in names if inspect.isclass(getattr(banger, name))]
    plain = [name for name in classes if not name.startswith(ASYNC)]
    for title, group in (
        ("Classes", [name for name in plain if not _is_value(name)]),
        ("Values and errors", [name for name in plain if _is_value(name)]),
        ("Functions", [name for name in names if name not in classes]),
        ("In an event loop", [name for name in classes if name.startswith(ASYNC)]),
    ):
        print(f"## {title}\n")
        for name in group:
            print("\n".join(_described(name)).rstrip() + "\n")


def _is_value(name: str) -> bool:
    kind = getattr(banger, name)
    return issubclass(kind, tuple | Exception | enum.Enum)


def _described(name: str) -> Iterator[str]:
    thing = getattr(banger, name)
    yield f"### {name}\n"
    if not inspect.isclass(thing):
        yield f"`{name}{_signature(thing)}`\n\n{_doc(thing, name)}"
        return
    bases = [base.__name__ for base in thing.__mro__[1:] if base.__name__ in banger.__all__]
    inherited = f" Also what [{bases[0]}](#{bases[0].lower()}) has." if bases else ""
    yield f"{_doc(thing, name)}{inherited}\n"
    if issubclass(thing, enum.Enum):
        yield ", ".join(f"`{member.name}`" for member in thing) + ": [errors](errors.md)."
        return
    if fields := getattr(thing, "_fields", ()):
        types = inspect.get_annotations(thing)
        yield ", ".join(f"`{field}: {_short(types[field])}`" for field in fields) + "."
        return
    if "__init__" in vars(thing) and not issubclass(thing, Exception) and name.endswith("Client"):
        yield f"- `{name}{_signature(thing.__init__)}`: {_doc(thing.__init__, name)}"
    for attribute, value in vars(thing).items():
        if attribute.startswith("_"):
            continue
        where = f"{name}.{attribute}"
        if isinstance(value, property):
            assert value.fget is not None
            returns = _short(inspect.get_annotations(value.fget)["return"])
            yield f"- `{attribute}: {returns}`: {_doc(value, where)}"
        elif inspect.isfunction(value):
            word = "await " if inspect.iscoroutinefunction(value) else ""
            yield f"- `{word}{attribute}{_signature(value)}`: {_doc(value, where)}"
    if "__iter__" in vars(thing) or "__aiter__" in vars(thing):
        word = "async for" if "__aiter__" in vars(thing) else "for"
        method = vars(thing).get("__iter__") or vars(thing)["__aiter__"]
        yield f"- `{word} piece in …`: {_doc(method, f'{name}.__iter__')}"


def _signature(function: Callable[..., object]) -> str:
    signature = inspect.signature(function)
    words: list[str] = []
    for each in signature.parameters.values():
        if each.name == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and "*" not in words and not any(w[:1] == "*" for w in words):
            words.append("*")
        star = "*" if each.kind is each.VAR_POSITIONAL else ""
        default = "" if each.default is each.empty else f" = {each.default!r}"
        words.append(f"{star}{each.name}: {_short(each.annotation)}{default}")
    returns = "" if function.__name__ == "__init__" else f" -> {_short(signature.return_annotation)}"
    return f"({', '.join(words)}){returns}"


def _short(text: object) -> str:
    """An annotation as it is written."""
    plain = text.__forward_arg__ if isinstance(text, typing.ForwardRef) else str(text)
    return plain.replace("List[", "list[").replace("Argv", "Sequence[str | PathLike[str]]")


def _doc(thing: object, where: str) -> str:
    text = inspect.getdoc(thing)
    if not text or not text.strip():
        sys.exit(f"{where} has no docstring")
    return " ".join(text.split())


if __name__ == "__main__":
    main()
