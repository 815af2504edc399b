"""Key pairs: made once, whole, whoever asks at the same time."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from banger.guest.ssh import HOST_KEY_FILE, ensure_host_key, ensure_user_key, read_host_key
from tests.capabilities import require

pytestmark = [require("ssh"), pytest.mark.anyio]


def public_half(private: Path) -> list[str]:
    done = subprocess.run(
        ["ssh-keygen", "-y", "-P", "", "-f", str(private)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout.split()[:2]


async def test_a_pair_is_made_once_and_private(tmp_path: Path) -> None:
    private = tmp_path / "ssh" / "id_ed25519"
    first = await ensure_user_key(str(private))
    assert first == await ensure_user_key(str(private))
    assert first.public_key.split()[0] == "ssh-ed25519"
    assert private.stat().st_mode & 0o7777 == 0o600
    assert private.parent.stat().st_mode & 0o7777 == 0o700
    assert sorted(path.name for path in private.parent.iterdir()) == ["id_ed25519", "id_ed25519.pub"]


async def test_several_at_once_have_the_same_pair(tmp_path: Path) -> None:
    """The first VMs of an instance may start together; each must let in the key that is kept."""
    private = tmp_path / "id_ed25519"
    pairs = await asyncio.gather(*(ensure_user_key(str(private)) for _ in range(6)))
    wanted = public_half(private)
    assert [pair.public_key.split()[:2] for pair in pairs] == [wanted] * 6
    assert Path(f"{private}.pub").read_text().split()[:2] == wanted
    assert len(list(tmp_path.iterdir())) == 2


async def test_a_missing_public_half_comes_from_the_private_one(tmp_path: Path) -> None:
    """As a crash between the two leaves it, or a user whose ssh_key_path has none."""
    private = tmp_path / "key"
    made = await ensure_user_key(str(private))
    Path(f"{private}.pub").unlink()
    again = await ensure_user_key(str(private))
    assert again.public_key.split()[:2] == made.public_key.split()[:2]


async def test_a_host_key_names_its_vm(tmp_path: Path) -> None:
    assert read_host_key(str(tmp_path)) == ""
    made = await ensure_host_key(str(tmp_path), "web")
    assert made.private_path == str(tmp_path / HOST_KEY_FILE)
    assert made.public_key.split()[2] == "web.vm"
    assert read_host_key(str(tmp_path)) == made.public_key
