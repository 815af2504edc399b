"""ssh material: banger's own key pair, and a host key per VM made before its first boot.

Owns the files below Paths.ssh_dir and VM_DIR/ssh_host_ed25519_key*; the user's own ~/.ssh is never read
or written. Keys are made by the system's ssh-keygen under a temporary name and linked into place, so that a
crash leaves no key or a whole one, whose public half can be had from it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import secrets
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


def read_host_key(vm_dir: str) -> str:
    """The public half, one line; "" when the VM has none yet."""
    try:
        return Path(f"{vm_dir}/{HOST_KEY_FILE}.pub").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def fingerprint(public_key: str) -> str:
    """Of a public key's line, as ssh-keygen -l shows it: `SHA256:…`; "" for what is none."""
    words = public_key.split()
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (IndexError, ValueError):
        return ""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


async def _ensure(private_path: str, *, comment: str) -> KeyPair:
    """Several may make the same pair at once: one private key wins by its link, the others take that."""
    public_path = f"{private_path}.pub"
    if not os.path.exists(private_path):
        os.makedirs(os.path.dirname(private_path), mode=0o700, exist_ok=True)
        temporary = f"{private_path}.{secrets.token_hex(8)}.new"
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", temporary]
        try:
            await run(argv, timeout_s=_TIMEOUT_S)
            with contextlib.suppress(FileExistsError):
                os.link(temporary, private_path)
                os.rename(f"{temporary}.pub", public_path)
        finally:
            for made in (temporary, f"{temporary}.pub"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(made)
    return KeyPair(private_path=private_path, public_key=await _public_half(private_path))


async def _public_half(private_path: str) -> str:
    """From beside the private key; from the key itself where a crash, or its owner, left nothing there."""
    try:
        return Path(f"{private_path}.pub").read_text("ascii").strip()
    except FileNotFoundError:
        done = await run(["ssh-keygen", "-y", "-P", "", "-f", private_path], timeout_s=_TIMEOUT_S)
        return done.stdout.decode("ascii").strip()
