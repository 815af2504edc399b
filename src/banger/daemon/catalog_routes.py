"""Routes about images and kernels. Listing reads the store only."""

from __future__ import annotations

from aiohttp import web

from banger.api.replies import ImageList, KernelList
from banger.api.requests import ImportKernel, PruneCache, PullImage, RegisterImage
from banger.daemon.context import Handler, accepted, answer, daemon_of, read_body, request_op_id
from banger.daemon.operations import as_result
from banger.model.progress import Progress


async def list_images(request: web.Request) -> web.StreamResponse:
    return answer(ImageList(images=tuple(daemon_of(request).services.images.list())))


async def image_catalog(request: web.Request) -> web.StreamResponse:
    return answer(daemon_of(request).services.images.catalog())


async def show_image(request: web.Request) -> web.StreamResponse:
    return answer(daemon_of(request).services.images.resolve(request.match_info["image"]))


async def pull_image(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, PullImage)
    daemon = daemon_of(request)

    async def work(progress: Progress) -> dict[str, object]:
        return as_result(await daemon.services.images.pull(body, progress))

    return accepted(daemon.operations.start(request_op_id(), "image.pull", work=work))


async def register_image(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, RegisterImage)
    return answer(await daemon_of(request).services.images.register(body))


async def promote_image(request: web.Request) -> web.StreamResponse:
    daemon = daemon_of(request)
    image = daemon.services.images.resolve(request.match_info["image"])

    async def work(progress: Progress) -> dict[str, object]:
        return as_result(await daemon.services.images.promote(image.id, progress))

    return accepted(daemon.operations.start(request_op_id(), "image.promote", work=work))


async def prune_cache(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, PruneCache)
    return answer(await daemon_of(request).services.images.prune_cache(dry_run=body.dry_run))


async def delete_image(request: web.Request) -> web.StreamResponse:
    return answer(await daemon_of(request).services.images.delete(request.match_info["image"]))


async def list_kernels(request: web.Request) -> web.StreamResponse:
    return answer(KernelList(kernels=tuple(daemon_of(request).services.kernels.list())))


async def kernel_catalog(request: web.Request) -> web.StreamResponse:
    return answer(daemon_of(request).services.kernels.catalog())


async def show_kernel(request: web.Request) -> web.StreamResponse:
    return answer(daemon_of(request).services.kernels.get(request.match_info["kernel"]))


async def pull_kernel(request: web.Request) -> web.StreamResponse:
    daemon, name = daemon_of(request), request.match_info["kernel"]

    async def work(progress: Progress) -> dict[str, object]:
        return as_result(await daemon.services.kernels.pull(name, progress))

    return accepted(daemon.operations.start(request_op_id(), "kernel.pull", work=work))


async def import_kernel(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, ImportKernel)
    daemon = daemon_of(request)

    async def work(progress: Progress) -> dict[str, object]:
        return as_result(await daemon.services.kernels.take_in(body, progress))

    return accepted(daemon.operations.start(request_op_id(), "kernel.import", work=work))


async def remove_kernel(request: web.Request) -> web.StreamResponse:
    return answer(await daemon_of(request).services.kernels.remove(request.match_info["kernel"]))


HANDLERS: dict[str, Handler] = {
    "image.list": list_images,
    "image.catalog": image_catalog,
    "image.show": show_image,
    "image.pull": pull_image,
    "image.register": register_image,
    "image.promote": promote_image,
    "image.cache.prune": prune_cache,
    "image.delete": delete_image,
    "kernel.list": list_kernels,
    "kernel.catalog": kernel_catalog,
    "kernel.show": show_kernel,
    "kernel.pull": pull_kernel,
    "kernel.take_in": import_kernel,
    "kernel.remove": remove_kernel,
}
