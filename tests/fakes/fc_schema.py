"""Checks a body against Firecracker's API definition, and complains in Firecracker's words.

Part of the fake Firecracker's process: the standard library only. The definition (tests/data) is
handed over as JSON, since reading YAML would cost more than all the rest.
"""

from __future__ import annotations

from typing import Any

Definition = dict[str, Any]


class Mismatch(ValueError):
    """What serde would say."""


class Schema:
    def __init__(self, api: Definition) -> None:
        self._definitions: dict[str, Definition] = api["definitions"]
        self._paths: dict[str, dict[str, Definition]] = api["paths"]

    def operation(self, method: str, path: str) -> Definition | None:
        """The operation for a request's path; `{drive_id}` and the like stand for one element."""
        parts = path.split("/")
        for template, operations in self._paths.items():
            names = template.split("/")
            if len(names) == len(parts) and all(
                name == part or (name.startswith("{") and part)
                for name, part in zip(names, parts, strict=True)
            ):
                return operations.get(method.lower())
        return None

    def body_of(self, operation: Definition) -> Definition | None:
        for parameter in operation.get("parameters", ()):
            if parameter.get("in") == "body":
                found: Definition = parameter["schema"]
                return found
        return None

    def reply_of(self, operation: Definition, status: int) -> Definition | None:
        responses = operation["responses"]
        answer = responses.get(str(status), responses.get("default", {}))
        found: Definition | None = answer.get("schema")
        return found

    def check(self, value: object, schema: Definition) -> None:
        """Raises Mismatch. Ranges are left to the one who knows the device: serde does not see them."""
        if "$ref" in schema:
            self.check(value, self._definitions[schema["$ref"].rsplit("/", 1)[1]])
            return
        kind = schema.get("type", "object")
        if kind == "object":
            self._check_object(value, schema)
        elif kind == "array":
            if not isinstance(value, list):
                raise Mismatch(f"invalid type: {_word(value)}, expected a sequence")
            for item in value:
                self.check(item, schema["items"])
        elif kind == "string":
            if not isinstance(value, str):
                raise Mismatch(f"invalid type: {_word(value)}, expected a string")
            variants = schema.get("enum")
            # the definition says "2M" and "None" without quotes where YAML lets it
            if variants and value not in variants:
                names = ", ".join(f"`{name}`" for name in variants)
                wanted = f"one of {names}" if len(variants) > 2 else names.replace(", ", " or ")
                raise Mismatch(f"unknown variant `{value}`, expected {wanted}")
        elif kind == "integer":
            if isinstance(value, bool) or not isinstance(value, int):
                raise Mismatch(f"invalid type: {_word(value)}, expected an integer")
            if value < 0:
                raise Mismatch(f"invalid value: integer `{value}`, expected an unsigned integer")
        elif kind == "boolean" and not isinstance(value, bool):
            raise Mismatch(f"invalid type: {_word(value)}, expected a boolean")

    def _check_object(self, value: object, schema: Definition) -> None:
        if not isinstance(value, dict):
            raise Mismatch(f"invalid type: {_word(value)}, expected a map")
        properties: dict[str, Definition] = schema.get("properties", {})
        extra = schema.get("additionalProperties")
        for name, item in value.items():
            if name in properties:
                if item is not None or name in schema.get("required", ()):
                    self.check(item, properties[name])
            elif not extra:
                names = ", ".join(f"`{each}`" for each in properties)
                raise Mismatch(f"unknown field `{name}`, expected one of {names}")
        for name in schema.get("required", ()):
            if name not in value:
                raise Mismatch(f"missing field `{name}`")


def _word(value: object) -> str:
    if isinstance(value, str):
        return f'string "{value}"'
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{value}`"
    return {list: "sequence", dict: "map", float: "floating point"}.get(type(value), "null")
