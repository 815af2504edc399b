"""Routes about images and kernels. Listing reads the store only."""

from __future__ import annotations

from aiohttp import web

from banger.api.replies import ImageList, KernelList
from banger.daemon.context import Handler, answer, daemon_of


async def list_images(request: web.Request) -> web.StreamResponse:
    return answer(ImageList(images=tuple(daemon_of(request).services.images.list())))


async def show_image(request: web.Request) -> web.StreamResponse:
    return answer(daemon_of(request).services.images.resolve(request.match_info["image"]))


async def delete_image(request: web.Request) -> web.StreamResponse:
    return answer(await daemon_of(request).services.images.delete(request.match_info["image"]))


async def list_kernels(request: web.Request) -> web.StreamResponse:
    return answer(KernelList(kernels=tuple(daemon_of(request).services.kernels.list())))


HANDLERS: dict[str, Handler] = {
    "image.list": list_images,
    "image.show": show_image,
    "image.delete": delete_image,
    "kernel.list": list_kernels,
}
