"""What Python programs get of the user's: logins for registries, and their git repositories in guests.

`from banger import prepare_workspace, pull_work, user_credentials`; the SDK's client stands below this room
and cannot have them as methods. All of it is blocking, runs as the user, and raises BangerError. After a
crash the user's repository is as it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from banger.client.sdk import Client
from banger.client.values import Login
from banger.client.vm import VM
from banger.errors import BangerError, ErrorCode

if TYPE_CHECKING:
    from banger.client import shapes
    from banger.local.gitpull import Pulled

GUEST_FOLDER = "/root"
GUEST_PATH = "/root/repo"
MAX_REFS = 10_000
MAX_REF_BYTES = 900_000
"""What one request takes; what the daemon is not told of counts as the guest's own, which loses nothing."""


def user_credentials(reference: str) -> Mapping[str, Login]:
    """The logins of docker and podman, and of their helpers: for Client(credentials=user_credentials)."""
    from banger.config.paths import resolve_paths
    from banger.local.pulling import request_credentials

    return request_credentials(reference, resolve_paths().config_file)[0]


def prepare_workspace(
    vm: VM,
    path: str | os.PathLike[str] = ".",
    *,
    mode: str = "shallow_overlay",
    branch: str = "",
    from_ref: str = "",
    readonly: bool = False,
    include_untracked: bool = False,
    replace: bool = False,
    on_bytes: Callable[[int], None] | None = None,
) -> shapes.Workspace:
    """The git repository at `path` into a running VM, at /root/repo, as `banger workspace prepare` does it.

    The repository is only read: what is refused is refused before anything goes. replace: where there is one
    already, keep the work in it and take its place; else ALREADY_EXISTS. One whose history cannot be kept
    stays beside it, as /root/repo.before-<time>.
    """
    from banger.client.copy import is_there, unpack_from
    from banger.local.gitsource import examine
    from banger.local.gittravel import aside_name, open_travel

    source = examine(
        os.fspath(path),
        mode=mode,
        branch=branch,
        from_ref=from_ref,
        include_untracked=include_untracked,
        readonly=readonly,
    )
    with vm.daemon() as daemon:
        there = is_there(daemon, vm.id, GUEST_PATH)
        if there and not replace:
            raise BangerError(
                ErrorCode.ALREADY_EXISTS,
                f"{vm.name} has a repository already",
                hint="prepare_workspace(…, replace=True) keeps the work in it first",
            )
        with open_travel(source) as travel:
            aside = ""
            if there:
                kept = daemon.keep_work(vm.id).wait() if vm.refresh().workspace is not None else None
                aside = aside_name(kept)
            unpack_from(
                daemon, vm.id, travel.write_tar, GUEST_FOLDER, replace=there, aside=aside, tick=on_bytes
            )
            daemon.set_workspace(vm.id, **travel.workspace, refs=_bounded(travel.refs))
    workspace = vm.refresh().workspace
    assert workspace is not None
    return workspace


def pull_work(
    client: Client,
    reference: str,
    path: str | os.PathLike[str] | None = None,
    *,
    keep: bool = True,
    ignored: bool = False,
    on_bytes: Callable[[int], None] | None = None,
) -> Pulled:
    """The work in a VM, into a repository of yours as refs/banger/VM/…, as `banger workspace pull` does it.

    reference: a VM, also one that is gone. path: the repository that was brought, unless it says another.
    keep: keep what is in the VM now first. Work tree, index and branches there stay as they are.
    """
    from banger.local import gitplaces, gitpull
    from banger.local.kepttips import read_kept

    with client.daemon() as daemon:
        if keep:
            try:
                daemon.keep_work(reference, ignored=ignored).wait()
            except BangerError as error:
                if error.code is not ErrorCode.NOT_FOUND:  # the VM is gone: what was kept is what there is
                    raise
        work = daemon.show_work(reference)
        kept = read_kept(work)

        def pack(have: Sequence[str]) -> Iterator[bytes]:
            return daemon.work_pack(work["vm_id"], have)

        asked = "" if path is None else os.fspath(path)
        where = gitplaces.find_repository(kept, asked, work["workspace"].get("repo_root", ""))
        return gitpull.pull(kept, pack, where, on_bytes=on_bytes or (lambda _count: None))


def _bounded(refs: Mapping[str, str]) -> dict[str, str]:
    """What one request may carry, the shortest names first: HEAD and branches before submodules' tags."""
    kept: dict[str, str] = {}
    size = 0
    for name in sorted(refs, key=lambda name: (len(name), name)):
        size += len(name.encode("utf-8", "replace")) + len(refs[name]) + 8
        if len(kept) == MAX_REFS or size > MAX_REF_BYTES:
            break
        kept[name] = refs[name]
    return kept
