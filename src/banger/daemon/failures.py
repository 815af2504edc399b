"""What a failure looks like outside: a BangerError as it is, anything else as `internal`.

A traceback goes to the log and nowhere else; the operation's id in the reply leads to it.
"""

from __future__ import annotations

import logging

from banger.api.errors import ErrorBody, error_body
from banger.errors import BangerError, ErrorCode

log = logging.getLogger(__name__)


def as_banger_error(failure: BaseException, op_id: str) -> BangerError:
    """Itself, or an INTERNAL one that says where to look; logs the traceback of what it did not expect."""
    if isinstance(failure, BangerError):
        if failure.code is ErrorCode.INTERNAL:
            log.error("internal error", exc_info=failure)
        return failure
    if isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
        return as_banger_error(failure.exceptions[0], op_id)
    log.error("unexpected %s", type(failure).__name__, exc_info=failure)
    return BangerError(
        ErrorCode.INTERNAL,
        f"internal error ({type(failure).__name__}) in operation {op_id}",
        hint=f"this is a bug of banger's; the daemon's log has the record with op {op_id}",
    )


def failure_body(failure: BaseException, *, op_id: str) -> ErrorBody:
    """What a client is told; logs what was not expected."""
    return error_body(as_banger_error(failure, op_id), op_id=op_id)
