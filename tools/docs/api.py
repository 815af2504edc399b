"""Prints docs/api.md, made from the route table. `python tools/docs/api.py > docs/api.md`"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from banger.api.openapi import document as openapi
from banger.api.replies import FEATURES
from banger.api.routes import ROUTES, Kind, Route

INTRO = """\
# API

<!-- Made by tools/docs/api.py: do not edit. -->

HTTP/1.1 with JSON over the daemon's Unix socket (`bangerd.sock`, for its own user and root only), below
`/v1`. `GET /v1/openapi.json` has all of this for programs.

- **result**: 200 and the object named.
- **operation**: 202, an `OperationReply`, and its URL in `Location`. What it comes to is the `result` of its
  last event. A client that goes away cancels nothing.
- **events**: 200 and one JSON object a line (`application/x-ndjson`), with a heartbeat every five seconds.
- **bytes**: 200 and raw bytes. **upgrade**: 101 and raw bytes both ways.
- **error**: a status from 400 on and an `ErrorBody`; docs/errors.md has the codes.

`{vm}` and `{image}` are a full id, an exact name or a unique id prefix, in that order. Each reply carries the
request's id in `Banger-Op`: it is in every record of the daemon's log and, for an operation, is its id. Empty
optional fields are left out; unknown fields in a request are refused. A request with a
`Banger-Client-Version` that is newer than an idle daemon's is answered 426: end that daemon
(`POST /v1/daemon/stop`, `if_idle`), start your own, and ask again.
"""

MEANS = {
    Kind.RESULT: "result",
    Kind.OPERATION: "operation",
    Kind.EVENTS: "events",
    Kind.BYTES: "bytes",
    Kind.UPGRADE: "upgrade",
}


def routes() -> Iterator[str]:
    yield "| route | answers | meaning |"
    yield "|---|---|---|"
    for route in ROUTES:
        yield f"| `{route.method} {route.path}` | {answer(route)} | {meaning(route)} |"


def answer(route: Route) -> str:
    name = f" `{route.reply.__name__}`" if route.reply else ""
    return f"{MEANS[route.kind]}{name}"


def meaning(route: Route) -> str:
    parts = [route.doc]
    if route.request is not None and route.request.__struct_fields__:
        parts.append(f"Body: `{route.request.__name__}`.")
    parts += [f"`?{query.name}`: {query.doc}." for query in route.query]
    return " ".join(parts)


def schemas() -> Iterator[str]:
    components: dict[str, Any] = openapi("")["components"]["schemas"]
    for name in sorted(components):
        schema = components[name]
        yield f"### `{name}`"
        yield ""
        if "enum" in schema:
            yield "One of " + ", ".join(f"`{value}`" for value in schema["enum"]) + "."
            yield ""
            continue
        required = set(schema.get("required", ()))
        if not schema.get("properties"):
            yield "An empty object."
            yield ""
            continue
        yield "| field | type | default |"
        yield "|---|---|---|"
        for field, details in schema["properties"].items():
            default = "required" if field in required else f"`{json.dumps(details.get('default'))}`"
            yield f"| {field} | {type_of(details)} | {default} |"
        yield ""


def type_of(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "anyOf" in schema:
        return " or ".join(type_of(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        items = schema.get("items")
        return f"list of {type_of(items)}" if items else "list"
    return str(schema.get("format") or schema.get("type") or "anything")


def document() -> str:
    lines = [INTRO, "## Routes", "", *routes(), ""]
    lines += [
        "## Features",
        "",
        "As `GET /v1` announces them: " + ", ".join(f"`{name}`" for name in FEATURES),
    ]
    lines += ["", "## Objects", "", *schemas()]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(document(), end="")
