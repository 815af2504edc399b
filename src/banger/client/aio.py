"""The Python SDK in an event loop: `from banger import AsyncClient`. The asynchronous twin of client/sdk.py.

The same names, as coroutines. A cancelled call is undone: a VM that was being made is deleted, a command is
killed in the guest. Operations on VMs that are there go on in the daemon. asyncio only.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING

from banger.client.aiocalls import in_loop, in_thread, iterate
from banger.client.aioprocess import Opening
from banger.client.aiovm import AsyncVM
from banger.client.sdk import Client
from banger.client.values import Credentials, OnProgress
from banger.client.vm import VM

if TYPE_CHECKING:
    from builtins import list as List

    from banger.client import shapes


class AsyncClient:
    """One instance of banger's; for one event loop at a time. `async with`, or close()."""

    def __init__(
        self,
        *,
        home: str | os.PathLike[str] | None = None,
        autostart: bool = True,
        credentials: Credentials | None = None,
    ) -> None:
        """home: the BANGER_HOME of another instance than the environment's. autostart: start the daemon.

        credentials: asked for logins, in a thread, before an image is pulled; without it pulls are anonymous.
        """
        self._client = Client(home=home, autostart=autostart, credentials=credentials)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the daemon. VMs of run() that are still there are deleted by it within ten seconds."""
        await in_thread(self._client.close)

    @property
    def blocking(self) -> Client:
        """The same client, for what has no asynchronous twin: to be used in a thread."""
        return self._client

    async def info(self) -> shapes.Info:
        """The daemon's version, process and features."""
        return await in_thread(self._client.info)

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
    ) -> Opening[AsyncVM]:
        """Make a VM and boot it, for an `async with` whose end deletes it. The rest is as for Client.run."""

        async def opened() -> AsyncVM:
            tell = in_loop(progress)
            vm = await in_thread(
                lambda: self._client.run(
                    image=image,
                    name=name,
                    vcpu=vcpu,
                    memory=memory,
                    disk_size=disk_size,
                    system_overlay_size=system_overlay_size,
                    nat=nat,
                    publish=publish,
                    init=init,
                    env=env,
                    remove=remove,
                    progress=tell,
                ),
                discard=VM.delete,
            )
            return AsyncVM(vm)

        return Opening(opened)

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
    ) -> Opening[AsyncVM]:
        """Make a VM that stays, and boot it unless start is false; to be awaited."""

        async def opened() -> AsyncVM:
            tell = in_loop(progress)
            vm = await in_thread(
                lambda: self._client.create(
                    image=image,
                    name=name,
                    vcpu=vcpu,
                    memory=memory,
                    disk_size=disk_size,
                    system_overlay_size=system_overlay_size,
                    nat=nat,
                    publish=publish,
                    init=init,
                    env=env,
                    start=start,
                    progress=tell,
                ),
                discard=VM.delete,
            )
            return AsyncVM(vm)

        return Opening(opened)

    async def get(self, reference: str, *, env: Mapping[str, str] | None = None) -> AsyncVM:
        """By full id, exact name or unique id prefix. NOT_FOUND, AMBIGUOUS."""
        return AsyncVM(await in_thread(lambda: self._client.get(reference, env=env)))

    async def list(self) -> List[AsyncVM]:
        """Every VM, oldest first."""
        return [AsyncVM(vm) for vm in await in_thread(self._client.list)]

    async def list_work(self) -> List[shapes.Work]:
        """What is kept of workspaces, of VMs that are there and of those that are gone."""
        return await in_thread(self._client.list_work)

    def work_patch(self, reference: str, *, base: str = "") -> AsyncIterator[bytes]:
        """AsyncVM.patch, also of a VM that is gone. reference: its id, name or unique id prefix."""
        return iterate(lambda: self._client.work_patch(reference, base=base))

    # images and kernels

    async def list_images(self) -> List[shapes.Image]:
        """Those that are here: Image of docs/api.md."""
        return await in_thread(self._client.list_images)

    async def image_catalog(self) -> List[shapes.CatalogImage]:
        """Those that can be pulled by name."""
        return await in_thread(self._client.image_catalog)

    async def get_image(self, reference: str) -> shapes.Image:
        """By full id, exact name or unique id prefix. NOT_FOUND."""
        return await in_thread(lambda: self._client.get_image(reference))

    async def pull_image(
        self,
        reference: str = "",
        *,
        name: str = "",
        size: int | str | None = None,
        kernel: str = "",
        file: str | os.PathLike[str] | None = None,
        progress: OnProgress | None = None,
    ) -> shapes.Image:
        """Get an image of the catalog, of a registry, or of an archive file, and make it bootable."""
        tell = in_loop(progress)
        return await in_thread(
            lambda: self._client.pull_image(
                reference, name=name, size=size, kernel=kernel, file=file, progress=tell
            )
        )

    async def delete_image(self, reference: str) -> shapes.Image:
        """What it was. IN_USE when VMs have it."""
        return await in_thread(lambda: self._client.delete_image(reference))

    async def list_kernels(self) -> List[shapes.Kernel]:
        """Those that are here: Kernel of docs/api.md."""
        return await in_thread(self._client.list_kernels)

    async def kernel_catalog(self) -> List[shapes.CatalogKernel]:
        """Those that can be pulled."""
        return await in_thread(self._client.kernel_catalog)

    async def pull_kernel(self, name: str, *, progress: OnProgress | None = None) -> shapes.Kernel:
        """Get a kernel of the catalog; one that is here is checked."""
        tell = in_loop(progress)
        return await in_thread(lambda: self._client.pull_kernel(name, progress=tell))
