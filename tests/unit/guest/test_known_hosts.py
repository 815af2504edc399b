"""banger's known_hosts: lines come and go with their VMs; what is not banger's stays."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.guest import known_hosts
from banger.guest.known_hosts import KnownHost
from tests.capabilities import require

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAaEGbZtUyKkyNlgHCCqFVdZjOgwM6yRZpC5cCuRyUWg"


def host(number: int, name: str = "", address: str = "") -> KnownHost:
    return KnownHost(
        f"{number:064x}", name or f"vm-{number}", address or f"172.16.0.{number}", f"{KEY} vm-{number}.vm"
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ssh" / "known_hosts"


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_remember_and_forget(path: Path) -> None:
    known_hosts.remember(str(path), host(1))
    known_hosts.remember(str(path), host(2))
    assert lines(path)[0] == f"vm-1.vm,172.16.0.1 {KEY} banger:{1:064x}"
    assert path.stat().st_mode & 0o7777 == 0o600
    assert path.parent.stat().st_mode & 0o7777 == 0o700
    known_hosts.forget(str(path), host(1).vm_id)
    known_hosts.forget(str(path), host(1).vm_id)
    assert [line.split(",")[0] for line in lines(path)] == ["vm-2.vm"]
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".lock-known_hosts", "known_hosts"]


def test_a_start_changes_nothing_when_the_line_is_there(path: Path) -> None:
    known_hosts.remember(str(path), host(1))
    inode = path.stat().st_ino
    known_hosts.remember(str(path), host(1))
    assert path.stat().st_ino == inode


def test_a_reused_name_or_address_has_one_key(path: Path) -> None:
    """What a crash left of an earlier VM does not make ssh accept its key for the next."""
    known_hosts.remember(str(path), host(1, "web", "172.16.0.2"))
    known_hosts.remember(str(path), host(2, "db", "172.16.0.3"))
    known_hosts.remember(str(path), host(3, "web", "172.16.0.9"))
    known_hosts.remember(str(path), host(4, "new", "172.16.0.3"))
    assert [line.split()[0] for line in lines(path)] == ["web.vm,172.16.0.9", "new.vm,172.16.0.3"]


def test_restore_is_exact(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("mine ssh-rsa AAAA me@here")
    known_hosts.remember(str(path), host(1))
    known_hosts.remember(str(path), host(2))
    unborn = KnownHost(f"{9:064x}", "unborn", "172.16.0.9", "")
    known_hosts.restore(str(path), [host(2), host(3), unborn])
    assert [line.split()[0] for line in lines(path)] == ["mine", "vm-2.vm,172.16.0.2", "vm-3.vm,172.16.0.3"]


@given(st.lists(st.text("ab #|,=+/@\t-", max_size=30)).map(lambda parts: "\n".join(parts).encode()))
def test_what_is_not_bangers_stays(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("known") / "known_hosts"
    path.write_bytes(content)
    known_hosts.remember(str(path), host(1))
    known_hosts.restore(str(path), [])
    ended = content if not content or content.endswith(b"\n") else content + b"\n"
    assert path.read_bytes() == ended


def test_many_at_once_lose_nothing(path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: known_hosts.remember(str(path), host(number)), range(1, 33)))
        list(threads.map(lambda number: known_hosts.forget(str(path), host(number).vm_id), range(1, 33, 2)))
    assert sorted(lines(path)) == sorted(host(n).line().decode().strip() for n in range(2, 33, 2))


@require("ssh")
def test_ssh_finds_the_key_by_name_and_address(path: Path) -> None:
    known_hosts.remember(str(path), host(1))
    for name in ("vm-1.vm", "172.16.0.1"):
        found = subprocess.run(
            ["ssh-keygen", "-F", name, "-f", str(path)],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert KEY in found.stdout
