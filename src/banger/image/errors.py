"""What goes wrong with images, kernels and the archive they come from."""

from __future__ import annotations

import errno
from typing import Any

from banger.errors import BangerError, ErrorCode


class ImageError(BangerError):
    """An image, kernel, package or archive cannot be had or used; the code says which kind."""


def invalid(brief: str, *, details: str | None = None, hint: str | None = None) -> ImageError:
    """Something that was read is broken or hostile."""
    return ImageError(ErrorCode.IMAGE_INVALID, brief, details=details, hint=hint)


def download_failed(brief: str, *, details: str | None = None, hint: str | None = None) -> ImageError:
    """Something could not be read from the network."""
    return ImageError(ErrorCode.DOWNLOAD_FAILED, brief, details=details, hint=hint)


def unsuitable(brief: str, *, details: str | None = None, hint: str | None = None) -> ImageError:
    """The host lacks something."""
    return ImageError(ErrorCode.HOST_UNSUITABLE, brief, details=details, hint=hint)


def not_found(brief: str, *, hint: str | None = None, data: dict[str, Any] | None = None) -> ImageError:
    return ImageError(ErrorCode.NOT_FOUND, brief, hint=hint, data=data)


def from_os_error(error: OSError, what: str) -> ImageError:
    """A full disk has its own code; any other failure of a file operation is the host's."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ImageError(
            ErrorCode.NO_SPACE,
            f"no space left while {what}",
            details=str(error),
            hint="free some space, or set BANGER_HOME to a folder on a larger disk",
        )
    return ImageError(
        ErrorCode.HOST_UNSUITABLE, f"{what} failed: {error.strerror or error}", details=str(error)
    )
