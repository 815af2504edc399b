"""Who made a VM, as the record keeps it: checked here, for it ends in a file of the guest's.

Whoever can reach the daemon's socket is its own user, or root: what they say of themselves is taken.
"""

from __future__ import annotations

from banger.api.requests import CreateVM
from banger.errors import BangerError, ErrorCode
from banger.model.records import VMOwner

MAX_UID = 0xFFFF_FFFE
MAX_TEXT = 1000


def owner_of(request: CreateVM) -> VMOwner | None:
    """INVALID_ARGUMENT for a uid that no user has, and for a text of control characters."""
    owner = request.owner
    if owner is None:
        return None
    if owner.uid is not None and not 0 <= owner.uid <= MAX_UID:
        raise BangerError(ErrorCode.INVALID_ARGUMENT, f"owner: uid {owner.uid} is not a user's")
    for field, text in (("git_name", owner.git_name), ("git_email", owner.git_email)):
        if len(text) > MAX_TEXT:
            raise BangerError(
                ErrorCode.INVALID_ARGUMENT, f"owner: {field} is longer than {MAX_TEXT} characters"
            )
        if not all(letter.isprintable() for letter in text):
            raise BangerError(ErrorCode.INVALID_ARGUMENT, f"owner: {field} has a control character")
    return VMOwner(uid=owner.uid, git_name=owner.git_name, git_email=owner.git_email)
