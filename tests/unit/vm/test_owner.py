"""Who asks for a VM, checked before it is kept."""

from __future__ import annotations

import pytest

from banger.api.requests import CreateVM, Owner
from banger.errors import BangerError, ErrorCode
from banger.model.records import VMOwner
from banger.vm.owner import owner_of


def test_what_is_said_is_kept() -> None:
    assert owner_of(CreateVM()) is None
    said = Owner(uid=1000, git_name="Änn", git_email="a@example.org")
    assert owner_of(CreateVM(owner=said)) == VMOwner(uid=1000, git_name="Änn", git_email="a@example.org")


@pytest.mark.parametrize(
    ("owner", "part"),
    [
        (Owner(uid=-1), "uid -1"),
        (Owner(uid=0xFFFF_FFFF), "uid 4294967295"),
        (Owner(git_name="a\nb"), "git_name has a control character"),
        (Owner(git_email="a\x1b[0m"), "git_email has a control character"),
        (Owner(git_name="\ud800"), "git_name has a control character"),
        (Owner(git_name="x" * 1001), "longer than 1000"),
    ],
)
def test_what_is_no_owner_is_refused(owner: Owner, part: str) -> None:
    with pytest.raises(BangerError, match=part) as caught:
        owner_of(CreateVM(owner=owner))
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
