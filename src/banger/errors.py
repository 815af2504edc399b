"""Errors as the user and the API see them.

Owns: the error codes (part of the API, documented in docs/errors.md) and the one exception
class every room raises or subclasses. Imports nothing of banger's, so that the CLI may use it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class ErrorCode(StrEnum):
    """Stable names of what went wrong. Values are on the wire; never reuse or rename one."""

    INVALID_ARGUMENT = "invalid_argument"  # the request is not well formed, or a value is out of range
    INVALID_CONFIG = "invalid_config"  # config.toml does not parse or does not validate
    NOT_FOUND = "not_found"  # no such VM, image, kernel, operation, …
    AMBIGUOUS = "ambiguous"  # a reference fits more than one thing
    ALREADY_EXISTS = "already_exists"  # the name is taken
    WRONG_STATE = "wrong_state"  # the VM's state does not allow it
    IN_USE = "in_use"  # something still needs it
    BUSY = "busy"  # another operation holds it
    ABORTED = "aborted"  # kill, delete or cancel ended the operation
    HOST_UNSUITABLE = "host_unsuitable"  # a program, device or permission is missing on the host
    NO_SPACE = "no_space"  # the disk is, or would be, full
    NO_ADDRESS = "no_address"  # the address range is used up
    GUEST_UNREACHABLE = "guest_unreachable"  # the agent does not answer
    GUEST_ERROR = "guest_error"  # the agent answered with an error
    MONITOR_FAILED = "monitor_failed"  # the machine monitor refused, died or hung
    IMAGE_INVALID = "image_invalid"  # an image, layer, kernel or archive is broken or hostile
    DOWNLOAD_FAILED = "download_failed"  # a registry or archive could not be read
    COMMAND_FAILED = "command_failed"  # a host program failed
    CLEANUP_FAILED = "cleanup_failed"  # something of ours could not be removed; a repeat finishes it
    STORE_ERROR = "store_error"  # the database cannot be used
    DAEMON_UNREACHABLE = "daemon_unreachable"  # the daemon is not running or does not answer
    PERMISSION_DENIED = "permission_denied"  # the caller may not
    TIMEOUT = "timeout"  # a deadline passed
    WORK_NOT_KEPT = "work_not_kept"  # a workspace's work could not be brought into the host's store
    INTERNAL = "internal"  # a bug of banger's


class BangerError(Exception):
    """An error with a stable code, one brief line, and where there is one, a hint.

    brief: what failed, one line, no trailing full stop, ready for `banger: <brief>`.
    details: what `--debug` shows besides (causes, tails of logs, cleanup errors).
    hint: what the user can do, one line.
    data: small JSON-able facts for programs (candidates of an ambiguous reference, a step's id).
    """

    def __init__(
        self,
        code: ErrorCode,
        brief: str,
        *,
        details: str | None = None,
        hint: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(brief)
        self.code = code
        self.brief = brief
        self.details = details
        self.hint = hint
        self.data: dict[str, Any] = data or {}

    def __str__(self) -> str:
        return self.brief
