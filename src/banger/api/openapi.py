"""The OpenAPI 3.1 document of the route table. Pure; used by the daemon and tools/docs/api.py."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from banger.api.errors import ErrorBody
from banger.api.replies import OperationReply
from banger.api.routes import ROUTES, Kind, Route

_REF = "#/components/schemas/{name}"


def document(version: str) -> dict[str, Any]:
    """JSON-able; version is banger's."""
    structs: list[type[msgspec.Struct]] = [ErrorBody, OperationReply]
    for route in ROUTES:
        structs += [s for s in (route.request, route.reply) if s is not None]
    _, components = msgspec.json.schema_components(
        dict.fromkeys(structs), schema_hook=_anything, ref_template=_REF
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "banger", "version": version},
        "paths": paths,
        "components": {"schemas": components},
    }


def _anything(kind: type) -> dict[str, Any]:
    """`object`: whatever JSON can carry (an error's data, a monitor's raw metrics)."""
    if kind is object:
        return {"description": "Any JSON value"}
    raise NotImplementedError(kind)


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "tags": [route.name.partition(".")[0]],
        "summary": route.doc,
        "responses": _responses(route),
    }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    parameters += [
        {"name": q.name, "in": "query", "required": False, "schema": {"type": q.type}, "description": q.doc}
        for q in route.query
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.request is not None:
        body = {"content": {"application/json": {"schema": _ref(route.request)}}, "required": False}
        operation["requestBody"] = body
    return operation


def _responses(route: Route) -> dict[str, Any]:
    error = {"description": "An error", "content": {"application/json": {"schema": _ref(ErrorBody)}}}
    match route.kind:
        case Kind.RESULT:
            schema = _ref(route.reply) if route.reply else {"type": "object"}
            good = {"200": {"description": "The result", "content": {"application/json": {"schema": schema}}}}
        case Kind.OPERATION:
            content = {"application/json": {"schema": _ref(OperationReply)}}
            good = {"202": {"description": "Under way; Location is the operation", "content": content}}
        case Kind.EVENTS:
            schema = _ref(route.reply) if route.reply else {"type": "object"}
            content = {"application/x-ndjson": {"schema": schema}}
            good = {"200": {"description": "One object a line", "content": content}}
        case Kind.BYTES:
            content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
            good = {"200": {"description": "Raw bytes", "content": content}}
        case Kind.UPGRADE:
            good = {"101": {"description": "Switching protocols; raw bytes both ways from here"}}
    return {**good, "default": error}


def _ref(struct: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=struct.__name__)}
