"""The user's credentials for registries, as docker and podman keep them.

Files and helper programs are the user's: they are read and run here, in the CLI, never by the daemon. Under
sudo they are those of the user who called it, and helpers run as that user. Nothing is written, and no secret
is printed or put on a command line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import msgspec

from banger.errors import BangerError
from banger.image.oci.auth import (
    MAX_FILE,
    AuthFile,
    Credential,
    Helper,
    parse_auth_file,
    parse_helper_answer,
)
from banger.image.oci.reference import Reference
from banger.local.account import Account, as_user, this_account
from banger.system.run import run

HELPER_TIMEOUT_S = 120.0
"""A helper may ask the user for a passphrase."""
_NOT_FOUND = b"credentials not found"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """credentials: by registry. notes: a line each on what was there but could not be used."""

    credentials: dict[str, Credential]
    notes: tuple[str, ...]


def find(reference: Reference, *, mirrors: Iterable[str] = ()) -> Found:
    """What the user has for a reference's registry, and for its mirrors (host[:port]). Blocking."""
    return asyncio.run(find_credentials(reference, account=this_account(), mirrors=mirrors))


def auth_files(account: Account) -> list[Path]:
    """In the order in which they are asked: the one named by the environment, docker's, podman's."""
    env = account.env
    home = Path(account.home) if account.home.startswith("/") else None
    found: list[Path] = []
    if env.get("REGISTRY_AUTH_FILE"):
        found.append(Path(env["REGISTRY_AUTH_FILE"]))
    if env.get("DOCKER_CONFIG"):
        found.append(Path(env["DOCKER_CONFIG"], "config.json"))
    elif home:
        found.append(home / ".docker/config.json")
    if env.get("XDG_RUNTIME_DIR", "").startswith("/"):
        found.append(Path(env["XDG_RUNTIME_DIR"], "containers/auth.json"))
    config = env.get("XDG_CONFIG_HOME", "")
    if config.startswith("/"):
        found.append(Path(config, "containers/auth.json"))
    elif home:
        found.append(home / ".config/containers/auth.json")
    return found


async def find_credentials(reference: Reference, *, account: Account, mirrors: Iterable[str] = ()) -> Found:
    """As find. The first file that has something for a registry decides for it."""
    notes: list[str] = []
    files = await asyncio.to_thread(_read_files, account, notes)
    credentials: dict[str, Credential] = {}
    for registry in dict.fromkeys([reference.registry, *mirrors]):
        for path, file in files:
            entry = file.lookup(registry, reference.repository)
            if isinstance(entry, Helper):
                entry = await _ask(entry, account, path, notes=notes)
            if entry:
                credentials[registry] = entry
                break
    return Found(credentials=credentials, notes=tuple(notes))


def _read_files(account: Account, notes: list[str]) -> list[tuple[Path, AuthFile]]:
    found: list[tuple[Path, AuthFile]] = []
    for path in auth_files(account):
        try:
            with path.open("rb") as file:
                found.append((path, parse_auth_file(file.read(MAX_FILE + 1), what=str(path))))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            notes.append(f"{path} cannot be read: {error.strerror or error}")
        except BangerError as error:
            notes.append(error.brief)
    return found


async def _ask(helper: Helper, account: Account, path: Path, *, notes: list[str]) -> Credential | None:
    """`docker-credential-X get`: the registry's name on stdin, JSON on stdout."""
    program = f"docker-credential-{helper.name}"
    try:
        done = await run(
            as_user([program, "get"], account),
            timeout_s=HELPER_TIMEOUT_S,
            env=account.env,
            input=helper.address.encode(),
            check=False,
            cwd=account.home or None,
        )
        if done.status:
            if _NOT_FOUND not in done.stdout + done.stderr:
                notes.append(f"{program}, which {path} names, fails with status {done.status}")
            return None
        return parse_helper_answer(done.stdout, what=program)
    except BangerError as error:
        notes.append(f"{path} names {program}: {error.brief}")
    except OSError as error:
        notes.append(f"{path} names {program}, which cannot be run: {error.strerror or error}")
    return None
