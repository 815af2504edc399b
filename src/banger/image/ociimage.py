"""What an image's record has of a pulled image: a name, and what its config says. Pure."""

from __future__ import annotations

import re

import msgspec

from banger.image.oci.config import ImageConfig
from banger.image.oci.reference import DEFAULT_TAG, Reference
from banger.model.names import MAX_NAME_LENGTH
from banger.model.records import Image


def image_name(reference: Reference) -> str:
    """The name of one that was given none: `alpine`, `debian-12`: its last part, and its tag but latest."""
    words = [reference.repository.rpartition("/")[2]]
    if reference.tag not in ("", DEFAULT_TAG):
        words.append(reference.tag)
    elif not reference.tag:
        words.append(reference.digest.partition(":")[2][:12])
    return as_name("-".join(words))


def as_name(text: str) -> str:
    """The nearest thing to text that is a name."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return name[:MAX_NAME_LENGTH].strip("-") or "image"


def with_config(image: Image, config: ImageConfig) -> Image:
    """The record, with what it keeps of the image's config."""
    return msgspec.structs.replace(
        image,
        entrypoint=config.entrypoint,
        cmd=config.cmd,
        env=config.env,
        workdir=config.working_dir,
        user=config.user,
    )
