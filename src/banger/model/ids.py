"""Typed ids, and how they are made. Imports nothing of banger's."""

from __future__ import annotations

import secrets
from typing import NewType

VMId = NewType("VMId", str)
"""64 lower-case hex digits: 32 random bytes."""
ImageId = NewType("ImageId", str)
OperationId = NewType("OperationId", str)
"""16 lower-case hex digits; in every log record and error of the operation."""

SHORT_ID_LENGTH = 8
"""What a tap's or a dm target's name carries of a VM's id; `vm list` shows 12."""


def new_vm_id() -> VMId:
    return VMId(secrets.token_hex(32))


def is_vm_id(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")


def new_image_id() -> ImageId:
    return ImageId(secrets.token_hex(32))


def new_operation_id() -> OperationId:
    return OperationId(secrets.token_hex(8))


def short_id(identifier: str) -> str:
    return identifier[:SHORT_ID_LENGTH]
