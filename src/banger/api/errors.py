"""Errors on the wire: the one table of codes, and the body that every failed request and operation carries.

Used by the daemon's routes and operations, and by the OpenAPI document; docs/errors.md is made from
the table here. The client reads the same JSON as a plain dict. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from banger.errors import BangerError, ErrorCode

MAX_DETAILS = 64 << 10
"""Characters of `details` that travel; the rest is in the daemon's log."""
_MAX_LINE = 2000  # of brief and hint; they are one line each


class ErrorMeaning(msgspec.Struct, frozen=True):
    """status: HTTP status of a failed request. meaning: what happened. advice: what to do then."""

    status: int
    meaning: str
    advice: str


_FIX = "Change the request."
_LOOK = "Read the hint, and `details` or the log file that it names."

MEANINGS: dict[ErrorCode, ErrorMeaning] = {
    ErrorCode.INVALID_ARGUMENT: ErrorMeaning(
        400, "The request is not well formed, or a value is out of range.", _FIX
    ),
    ErrorCode.INVALID_CONFIG: ErrorMeaning(
        500, "config.toml does not parse or does not validate.", "Correct the file at the line that is named."
    ),
    ErrorCode.NOT_FOUND: ErrorMeaning(
        404, "There is no such VM, image, kernel or operation.", "`data.near` has similar names."
    ),
    ErrorCode.AMBIGUOUS: ErrorMeaning(
        409, "A reference fits more than one thing.", "`data.candidates` has them all; give more of the id."
    ),
    ErrorCode.ALREADY_EXISTS: ErrorMeaning(
        409, "The name is taken.", "Choose another, or delete what has it."
    ),
    ErrorCode.WRONG_STATE: ErrorMeaning(
        409, "The VM's state does not allow it.", "Bring it into the state that is named, and repeat."
    ),
    ErrorCode.IN_USE: ErrorMeaning(409, "Something still needs it.", "Remove what needs it first."),
    ErrorCode.BUSY: ErrorMeaning(409, "Another operation holds it.", "Repeat when that has ended."),
    ErrorCode.ABORTED: ErrorMeaning(409, "A kill, delete or cancel ended the operation.", "Nothing to do."),
    ErrorCode.HOST_UNSUITABLE: ErrorMeaning(
        412, "A program, device or permission is missing on the host.", "`banger doctor` says what to do."
    ),
    ErrorCode.NO_SPACE: ErrorMeaning(507, "The disk is, or would be, full.", "Make room, and repeat."),
    ErrorCode.NO_ADDRESS: ErrorMeaning(
        507, "The guests' address range is used up.", "Delete a VM, or set a smaller `cidr`."
    ),
    ErrorCode.GUEST_UNREACHABLE: ErrorMeaning(502, "The guest's agent does not answer.", _LOOK),
    ErrorCode.GUEST_ERROR: ErrorMeaning(502, "The guest's agent answered with an error.", _LOOK),
    ErrorCode.MONITOR_FAILED: ErrorMeaning(502, "The machine monitor refused, died or hung.", _LOOK),
    ErrorCode.IMAGE_INVALID: ErrorMeaning(
        422, "An image, layer, kernel or archive is broken or hostile.", "Take another one."
    ),
    ErrorCode.DOWNLOAD_FAILED: ErrorMeaning(
        502, "A registry or archive could not be read.", "Check the network; a repeat resumes."
    ),
    ErrorCode.COMMAND_FAILED: ErrorMeaning(500, "A program of the host failed.", _LOOK),
    ErrorCode.CLEANUP_FAILED: ErrorMeaning(
        500, "Something of banger's could not be removed.", "Repeat the command: it finishes the rest."
    ),
    ErrorCode.STORE_ERROR: ErrorMeaning(500, "The database cannot be used.", _LOOK),
    ErrorCode.DAEMON_UNREACHABLE: ErrorMeaning(
        503, "The daemon is not running or does not answer.", "`banger daemon start`, and its log file."
    ),
    ErrorCode.PERMISSION_DENIED: ErrorMeaning(403, "The caller may not do this.", _LOOK),
    ErrorCode.TIMEOUT: ErrorMeaning(504, "A deadline passed.", "What was begun has been undone; repeat."),
    ErrorCode.WORK_NOT_KEPT: ErrorMeaning(
        409,
        "The work in a VM's workspace, or its history, could not be brought into the host's store; "
        "nothing was removed.",
        "Read the hint and `details`; `banger vm delete --discard-work` deletes it with the VM.",
    ),
    ErrorCode.INTERNAL: ErrorMeaning(
        500, "A bug of banger's.", "Report it with the log's records of the op id."
    ),
}


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong. brief and hint are one line each; op_id finds the records in the daemon's log."""

    code: ErrorCode
    brief: str
    hint: str = ""
    details: str = ""
    data: dict[str, object] = {}
    op_id: str = ""


def http_status(code: ErrorCode) -> int:
    return MEANINGS[code].status


def as_banger_error(error: BaseException, op_id: str = "") -> BangerError:
    """Any exception as one that a user can be shown.

    A BangerError is itself; of an ExceptionGroup the first BangerError inside stands for it, with the
    others joined to its details; anything else is INTERNAL. Its words and traceback (paths, secrets) are
    for the log, which the caller writes: a client is told where to look, by op_id where there is one.
    """
    if isinstance(error, BangerError):
        return error
    leaves = list(_leaves(error))
    known = [leaf for leaf in leaves if isinstance(leaf, BangerError)]
    if not known:
        return BangerError(
            ErrorCode.INTERNAL,
            f"internal error ({type(error).__name__})" + (f" in operation {op_id}" if op_id else ""),
            hint="this is a bug of banger's; the daemon's log has more"
            + (f", in the records with op {op_id}" if op_id else ""),
        )
    first = known[0]
    others = [f"also: {_line(str(leaf) or type(leaf).__name__)}" for leaf in leaves if leaf is not first]
    return BangerError(
        first.code,
        first.brief,
        details="\n".join([*([first.details] if first.details else []), *others]) or None,
        hint=first.hint,
        data=first.data,
    )


def error_body(error: BaseException, op_id: str = "") -> ErrorBody:
    """The wire's form of any exception. Always encodes: lines are cut and joined, data is made JSON-able."""
    known = as_banger_error(error, op_id)
    return ErrorBody(
        code=known.code,
        brief=_line(known.brief),
        hint=_line(known.hint or ""),
        details=_text(known.details or "")[-MAX_DETAILS:],
        data=_plain(known.data),
        op_id=op_id,
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _text(text: str) -> str:
    """Without lone surrogates (undecodable file names), which JSON in UTF-8 cannot carry."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _line(text: str) -> str:
    """One line without control characters: it goes to a terminal."""
    joined = " ".join(_text(text).split())
    printable = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in joined)
    return printable if len(printable) <= _MAX_LINE else printable[: _MAX_LINE - 3] + "..."


def _plain(data: dict[str, object]) -> dict[str, object]:
    """The data as JSON can carry it; a value that JSON cannot is replaced by its text, never an exception."""
    plain: dict[str, object] = {}
    for key, value in data.items():
        try:
            plain[_text(str(key))] = msgspec.json.decode(msgspec.json.encode(value, enc_hook=str))
        except (TypeError, ValueError, msgspec.MsgspecError, RecursionError):
            plain[_text(str(key))] = _text(ascii(value))[:_MAX_LINE]
    return plain
