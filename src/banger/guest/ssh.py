"""ssh material: banger's own key pair, and a host key per VM made before its first boot.

Owns the files below Paths.ssh_dir and VM_DIR/ssh_host_ed25519_key*; the user's own ~/.ssh is never read
or written. Keys are made by the system's ssh-keygen into a temporary name and renamed into place,
so that a crash leaves either no key or a whole pair.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from banger.system.run import run

HOST_KEY_FILE = "ssh_host_ed25519_key"
_TIMEOUT_S = 10.0


class KeyPair(msgspec.Struct, frozen=True, kw_only=True):
    """private_path: absolute. public_key: one line, `ssh-ed25519 AAAA… comment`."""

    private_path: str
    public_key: str


async def ensure_user_key(private_path: str) -> KeyPair:
    """banger's key pair (settings.ssh_key_path, else SSH_DIR/id_ed25519), made on first use."""
    return await _ensure(private_path, comment="banger")


async def ensure_host_key(vm_dir: str, name: str) -> KeyPair:
    """The VM's ssh host key, made once and kept for the VM's life."""
    return await _ensure(f"{vm_dir}/{HOST_KEY_FILE}", comment=f"{name}.vm")


async def _ensure(private_path: str, *, comment: str) -> KeyPair:
    public_path = f"{private_path}.pub"
    if not (os.path.exists(private_path) and os.path.exists(public_path)):
        os.makedirs(os.path.dirname(private_path), mode=0o700, exist_ok=True)
        temporary = f"{private_path}.{os.getpid()}.new"
        for stale in (temporary, f"{temporary}.pub"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(stale)
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", temporary]
        await run(argv, timeout_s=_TIMEOUT_S)
        os.rename(f"{temporary}.pub", public_path)
        os.rename(temporary, private_path)
    return KeyPair(private_path=private_path, public_key=Path(public_path).read_text("ascii").strip())
