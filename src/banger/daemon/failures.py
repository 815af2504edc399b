"""What a failure is to the daemon: told as api/errors has it, and logged where nobody expected it.

A traceback goes to the log and nowhere else; the operation's id in the reply leads to it.
"""

from __future__ import annotations

import logging

from banger.api.errors import ErrorBody, as_banger_error, error_body
from banger.errors import BangerError, ErrorCode

log = logging.getLogger(__name__)


def logged(failure: BaseException, op_id: str) -> BangerError:
    """As one that a user can be shown; the traceback of an INTERNAL one is in the log then."""
    error = as_banger_error(failure, op_id)
    if error.code is ErrorCode.INTERNAL:
        log.error("unexpected %s", type(failure).__name__, exc_info=failure)
    return error


def failure_body(failure: BaseException, *, op_id: str) -> ErrorBody:
    """What a client is told; logs what was not expected."""
    return error_body(logged(failure, op_id), op_id=op_id)
