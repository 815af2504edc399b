"""firecracker_bin and qemu_bin: the program that is run is the one that was named."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from banger.config.settings import Settings
from banger.system.kvm import KvmStatus
from banger.vmm.select import choose_monitor
from tests.fakes.installed import install_fake_firecracker
from tests.unit.vmm.test_select import ABSENT, USABLE, Host

pytestmark = pytest.mark.anyio


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with both monitors on PATH, and others in a folder of the user's."""
    on_path, own = tmp_path / "path", tmp_path / "own"
    on_path.mkdir()
    own.mkdir()
    host = Host(on_path, monkeypatch)
    host.qemu().firecracker()
    Host(own, monkeypatch).qemu()
    install_fake_firecracker(own)
    monkeypatch.setattr("banger.system.programs.search_path", lambda: str(on_path))
    return own


async def bridge() -> str:
    return ""


async def test_the_named_qemu(elsewhere: Path) -> None:
    named = str(elsewhere / "qemu-system-x86_64")
    settings = Settings(qemu_bin=named)
    assert (await choose_monitor(settings, bridge, kvm=_answers(ABSENT))).info.path == named


async def test_the_named_firecracker(elsewhere: Path) -> None:
    named = str(elsewhere / "firecracker")
    settings = Settings(firecracker_bin=named)
    assert (await choose_monitor(settings, bridge, kvm=_answers(USABLE))).info.path == named


def _answers(status: KvmStatus) -> Callable[[], Awaitable[KvmStatus]]:
    async def kvm() -> KvmStatus:
        return status

    return kvm
