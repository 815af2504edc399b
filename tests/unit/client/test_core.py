"""How the SDK makes a VM whose image is not here, with a daemon that the test plays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from banger.client.calls import CallClient
from banger.client.sdk import Client
from banger.client.values import Login, Progress
from banger.errors import BangerError, ErrorCode

VM: dict[str, Any] = {"id": "0" * 64, "name": "x", "state": "running", "runtime": {}, "spec": {}}


class Done:
    """An operation that says its events and ends."""

    vm_id = ""

    def __init__(self, result: dict[str, Any], *events: dict[str, Any], fail: BaseException | None = None):
        self._result = result
        self._events = events
        self._fail = fail
        self.cancelled = False

    def wait(self, on_event: Callable[[Any], None] = lambda _event: None) -> dict[str, Any]:
        for event in self._events:
            on_event(event)
        if self._fail is not None:
            raise self._fail
        return self._result

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What was asked of the daemon; it has the image `there` and can pull any other."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def create(self: CallClient, **fields: Any) -> Done:
        asked.append(("create", fields))
        if fields.get("image") not in ("there", "pulled"):
            missing = BangerError(ErrorCode.NOT_FOUND, "no image", data={"image": str(fields.get("image"))})
            return Done({}, fail=missing)
        return Done(VM, {"kind": "step", "step": "boot", "message": "booting"}, {"kind": "result"})

    def pull(self: CallClient, **fields: Any) -> Done:
        asked.append(("pull", fields))
        return Done({"id": "pulled"}, {"kind": "progress", "step": "layers", "current": 1, "total": 2})

    monkeypatch.setattr(CallClient, "info", lambda self: {})
    monkeypatch.setattr(CallClient, "create_vm", create)
    monkeypatch.setattr(CallClient, "pull_image", pull)
    return asked


def test_an_image_that_is_not_here_is_pulled_with_the_users_logins(
    asked: list[tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    wanted: list[str] = []
    said: list[Progress] = []

    def logins(reference: str) -> Mapping[str, Login]:
        wanted.append(reference)
        return {"registry.example.org": {"username": "me", "password": "secret"}}

    with Client(home=tmp_path, credentials=logins, progress=said.append) as client:
        vm = client.create(image="registry.example.org/app", name="x")
        assert vm.name == "x"
        client.create(image="there")
    assert wanted == ["registry.example.org/app"]
    assert asked == [
        ("create", {"image": "registry.example.org/app", "name": "x"}),
        (
            "pull",
            {
                "reference": "registry.example.org/app",
                "credentials": {"registry.example.org": {"username": "me", "password": "secret"}},
            },
        ),
        ("create", {"image": "pulled", "name": "x"}),
        ("create", {"image": "there"}),
    ]
    assert [(one.kind, one.step, one.current, one.total) for one in said] == [
        ("progress", "layers", 1, 2),
        ("step", "boot", None, None),
        ("step", "boot", None, None),
    ]


def test_without_credentials_a_pull_is_anonymous(
    asked: list[tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    with Client(home=tmp_path) as client:
        client.create(
            image="registry.example.org/app", memory="2G", nat=True, publish=["0.0.0.0:8080:80", 90]
        )
        client.pull_image(file=tmp_path / "app.tar", name="app", size="2G")
    ports = [
        {"host_address": "0.0.0.0", "host_port": 8080, "guest_port": 80},
        {"host_address": "127.0.0.1", "host_port": 0, "guest_port": 90},
    ]
    spec = {"memory_mib": 2048, "nat": True, "publish": ports}
    assert asked == [
        ("create", {"image": "registry.example.org/app", **spec}),
        ("pull", {"reference": "registry.example.org/app"}),
        ("create", {"image": "pulled", **spec}),
        ("pull", {"file": f"{tmp_path}/app.tar", "name": "app", "size_bytes": 2 << 30}),
    ]


def test_a_callback_that_raises_ends_what_was_begun(
    asked: list[tuple[str, dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = Done(VM, {"kind": "step", "step": "boot", "message": "booting"})
    deleted: list[str] = []

    def create(self: CallClient, **_fields: Any) -> Done:
        operation.vm_id = "0" * 64
        return operation

    def delete(self: CallClient, vm_id: str, *, discard_work: bool = False) -> Done:
        deleted.append(vm_id)
        return Done({})

    monkeypatch.setattr(CallClient, "create_vm", create)
    monkeypatch.setattr(CallClient, "delete_vm", delete)

    def enough(_progress: Progress) -> None:
        raise RuntimeError("enough")

    with Client(home=tmp_path) as client, pytest.raises(RuntimeError, match="enough"):
        client.create(image="there", progress=enough)
    assert deleted == ["0" * 64]
