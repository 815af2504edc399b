"""An image's config: what it says about how it wants to be run, decoded with bounds.

Pure. The JSON was written by whoever made the image: every size is checked, what is of the wrong type is
refused (IMAGE_INVALID), what banger does not use is not looked at.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from banger.image.errors import invalid
from banger.image.oci.reference import is_digest

MAX_CONFIG = 4 << 20
"""Bytes; the largest seen in the wild have some 100 KiB of history."""
MAX_LAYERS = 256
"""docker stops at 127."""
MAX_WORDS = 4096
MAX_WORD = 128 << 10
"""The kernel's own limit for one argument or variable."""


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """env: `KEY=value`, in the image's order; user: `name`, `uid`, with `:group`; "" where nothing is said.

    diff_ids: the digests of the layers' tars, oldest first. architecture in Go's words (amd64, arm64).
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    labels: dict[str, str] = {}
    architecture: str = ""
    variant: str = ""
    os: str = ""
    stop_signal: str = ""
    diff_ids: tuple[str, ...] = ()


_Words = Annotated[list[str], msgspec.Meta(max_length=MAX_WORDS)]


class _Run(msgspec.Struct):
    entrypoint: _Words | None = msgspec.field(name="Entrypoint", default=None)
    cmd: _Words | None = msgspec.field(name="Cmd", default=None)
    env: _Words | None = msgspec.field(name="Env", default=None)
    working_dir: str | None = msgspec.field(name="WorkingDir", default=None)
    user: str | None = msgspec.field(name="User", default=None)
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)
    stop_signal: str | None = msgspec.field(name="StopSignal", default=None)


class _RootFs(msgspec.Struct):
    type: str = ""
    diff_ids: Annotated[list[str], msgspec.Meta(max_length=MAX_LAYERS)] | None = None


class _Document(msgspec.Struct):
    architecture: str = ""
    variant: str | None = None
    os: str = ""
    config: _Run | None = None
    rootfs: _RootFs = msgspec.field(default_factory=_RootFs)


_decoder = msgspec.json.Decoder(_Document)


def parse_config(data: bytes, *, what: str) -> ImageConfig:
    """what: names the image in errors."""
    if len(data) > MAX_CONFIG:
        raise invalid(f"the config of {what} is larger than {MAX_CONFIG >> 20} MiB")
    try:
        document = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise invalid(f"the config of {what} is not one: {error}"[:400]) from error
    run = document.config or _Run()
    labels = run.labels or {}
    words = [*(run.entrypoint or ()), *(run.cmd or ()), *(run.env or ())]
    words += [run.working_dir or "", run.user or "", run.stop_signal or ""]
    if any("\0" in word for word in words):
        raise invalid(f"the config of {what} has a zero byte in a word")
    if len(labels) > MAX_WORDS or any(len(word) > MAX_WORD for word in words):
        raise invalid(f"the config of {what} has more or longer words than a program can be given")
    diff_ids = tuple(document.rootfs.diff_ids or ())
    if not all(is_digest(digest) for digest in diff_ids):
        raise invalid(f"the config of {what} names a layer by something that is no digest")
    if document.rootfs.type not in ("", "layers"):
        raise invalid(f"the config of {what} has a root file system of kind {document.rootfs.type[:40]!a}")
    return ImageConfig(
        entrypoint=tuple(run.entrypoint or ()),
        cmd=tuple(run.cmd or ()),
        # docker hands a word without = to the program, whose getenv does not see it
        env=tuple(word for word in run.env or () if word.find("=") > 0),
        working_dir=run.working_dir or "",
        user=run.user or "",
        labels=labels,
        architecture=document.architecture,
        variant=document.variant or "",
        os=document.os,
        stop_signal=run.stop_signal or "",
        diff_ids=diff_ids,
    )
