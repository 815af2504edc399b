"""The Python SDK: `from banger import Client`. Its synchronous door; client/aio.py is the other one.

A Client starts the daemon when it is not there. It may be used by several threads at once, and by nobody in
a forked child. Every call may raise BangerError. Standard library only. docs/python.md has examples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from banger.client.calls import CallClient
from banger.client.core import Core, Fields, new_vm_fields, spec_fields
from banger.client.values import Credentials, OnProgress
from banger.client.vm import VM
from banger.config.paths import resolve_paths
from banger.errors import BangerError, ErrorCode

if TYPE_CHECKING:
    from builtins import list as List

    from banger.client import shapes


class Client:
    """One instance of banger's. A context manager; one that is dropped closes itself."""

    def __init__(
        self,
        *,
        home: str | os.PathLike[str] | None = None,
        autostart: bool = True,
        credentials: Credentials | None = None,
        progress: OnProgress | None = None,
    ) -> None:
        """home: the BANGER_HOME of another instance than the environment's. autostart: start the daemon.

        credentials: asked for logins before an image is pulled; without it pulls are anonymous.
        progress: told what the daemon says of long pieces of work, where a call has none of its own.
        """
        environment = dict(os.environ)
        if home is not None:
            environment["BANGER_HOME"] = os.fspath(home)
        paths = resolve_paths(environment)
        self._core = Core(paths, autostart=autostart, credentials=credentials, progress=progress)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the daemon. VMs of run() that are still there are deleted by it within ten seconds."""
        self._core.close()

    def info(self) -> shapes.Info:
        """The daemon's version, process and features."""
        with self._core.calls.client() as client:
            return client.info()

    # VMs

    def run(
        self,
        *,
        image: str = "",
        name: str = "",
        vcpu: int | None = None,
        memory: int | str | None = None,
        disk_size: int | str | None = None,
        system_overlay_size: int | str | None = None,
        nat: bool | None = None,
        publish: Sequence[str | int] = (),
        init: str = "",
        env: Mapping[str, str] | None = None,
        remove: bool = True,
        progress: OnProgress | None = None,
    ) -> VM:
        """Make a VM and boot it, for a with block whose end deletes it.

        image: one that is here, of the catalog, or of a registry, which is pulled. memory, disk_size: "2G",
        "512M", or MiB. publish: 80, "8080:80", "0.0.0.0:8080:80". env: of every command that this object
        starts. remove: delete it at the end of the block; the daemon does when this process dies, Client is
        closed or both are forgotten. What is left out is as configured.
        """
        fields = new_vm_fields(
            image=image,
            name=name,
            system_overlay_size=system_overlay_size,
            init=init,
            publish=publish,
            start=True,
            auto_remove=remove,
            spec=spec_fields(vcpu=vcpu, memory=memory, disk_size=disk_size, nat=nat),
        )
        return VM(self._core, self._core.make(fields, progress, leased=remove), env=env, remove=remove)

    def create(
        self,
        *,
        image: str = "",
        name: str = "",
        vcpu: int | None = None,
        memory: int | str | None = None,
        disk_size: int | str | None = None,
        system_overlay_size: int | str | None = None,
        nat: bool | None = None,
        publish: Sequence[str | int] = (),
        init: str = "",
        env: Mapping[str, str] | None = None,
        start: bool = True,
        progress: OnProgress | None = None,
    ) -> VM:
        """Make a VM that stays, and boot it unless start is false. The rest is as for run()."""
        fields = new_vm_fields(
            image=image,
            name=name,
            system_overlay_size=system_overlay_size,
            init=init,
            publish=publish,
            start=start,
            auto_remove=False,
            spec=spec_fields(vcpu=vcpu, memory=memory, disk_size=disk_size, nat=nat),
        )
        return VM(self._core, self._core.make(fields, progress, leased=False), env=env)

    def get(self, reference: str, *, env: Mapping[str, str] | None = None) -> VM:
        """By full id, exact name or unique id prefix. NOT_FOUND, AMBIGUOUS."""
        if not reference:
            raise BangerError(ErrorCode.INVALID_ARGUMENT, "which VM? a name or an id")
        with self._core.calls.client() as client:
            return VM(self._core, client.show_vm(reference), env=env)

    def list(self) -> List[VM]:
        """Every VM, oldest first."""
        with self._core.calls.client() as client:
            return [VM(self._core, record) for record in client.list_vms()]

    def list_work(self) -> List[shapes.Work]:
        """What is kept of workspaces, of VMs that are there and of those that are gone."""
        with self._core.calls.client() as client:
            return client.list_work()

    def work_patch(self, reference: str, *, base: str = "") -> Iterator[bytes]:
        """VM.patch, also of a VM that is gone. reference: its id, name or unique id prefix."""
        with self._core.calls.client() as client:
            yield from client.work_patch(reference, base=base)

    def daemon(self) -> AbstractContextManager[CallClient]:
        """The daemon's routes themselves (docs/api.md), for what has no method here; this thread's alone."""
        return self._core.calls.client()

    # images and kernels

    def list_images(self) -> List[shapes.Image]:
        """Those that are here: Image of docs/api.md."""
        with self._core.calls.client() as client:
            return client.list_images()

    def image_catalog(self) -> List[shapes.CatalogImage]:
        """Those that can be pulled by name."""
        with self._core.calls.client() as client:
            return client.image_catalog()

    def get_image(self, reference: str) -> shapes.Image:
        """By full id, exact name or unique id prefix. NOT_FOUND."""
        with self._core.calls.client() as client:
            return client.show_image(reference)

    def pull_image(
        self,
        reference: str = "",
        *,
        name: str = "",
        size: int | str | None = None,
        kernel: str = "",
        file: str | os.PathLike[str] | None = None,
        progress: OnProgress | None = None,
    ) -> shapes.Image:
        """Get an image of the catalog, of a registry, or of an archive file, and make it bootable.

        size: of its root file system. What is here already is not brought again.
        """
        from banger.model.sizes import parse_disk_size

        fields: Fields = {
            "reference": reference,
            "name": name,
            "size_bytes": None if size is None else parse_disk_size(str(size), what="size"),
            "kernel": kernel,
            "file": "" if file is None else os.path.abspath(file),
        }
        return self._core.pull_image(fields, progress)

    def delete_image(self, reference: str) -> shapes.Image:
        """What it was. IN_USE when VMs have it."""
        with self._core.calls.client() as client:
            return client.delete_image(reference)

    def list_kernels(self) -> List[shapes.Kernel]:
        """Those that are here: Kernel of docs/api.md."""
        with self._core.calls.client() as client:
            return client.list_kernels()

    def kernel_catalog(self) -> List[shapes.CatalogKernel]:
        """Those that can be pulled."""
        with self._core.calls.client() as client:
            return client.kernel_catalog()

    def pull_kernel(self, name: str, *, progress: OnProgress | None = None) -> shapes.Kernel:
        """Get a kernel of the catalog; one that is here is checked."""
        from typing import cast

        return cast("shapes.Kernel", self._core.operate(lambda client: client.pull_kernel(name), progress))
