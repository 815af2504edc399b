"""A kernel of the user's own, from a folder: `vmlinux` or `bzImage`, maybe `initrd.img` and `modules/`.

Filled into a staging folder that the kernel service publishes; what a crash leaves is in it. Blocking.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

from banger.errors import BangerError, ErrorCode
from banger.image import bzimage, elf
from banger.image.errors import invalid
from banger.image.kernel import INITRD, MODULES, write_kernel
from banger.image.modules import GUEST_MODULES
from banger.model.records import Kernel, now

IMAGES = ("vmlinux", "bzImage", "vmlinuz")
_RELEASE = re.compile(rb"Linux version ([0-9A-Za-z.+~_-]{1,100}) ")


def fill(source: Path, staging: Path, *, name: str) -> Kernel:
    """Copy and unpack what is in `source`. INVALID_ARGUMENT where it has no kernel, IMAGE_INVALID for a bad
    one. modules/ is left without its index."""
    found = [source / image for image in IMAGES if (source / image).is_file()]
    if not found:
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT,
            f"there is no kernel in {str(source)[:200]!a}",
            hint=f"it needs one of {', '.join(IMAGES)}; initrd.img and modules/ may be beside it",
        )
    if found[0].stat().st_size > bzimage.MAX_KERNEL:
        raise invalid(f"the kernel {found[0].name} is too large")
    vmlinux = elf.trim_kernel(bzimage.extract_kernel(found[0].read_bytes()))
    release = _RELEASE.search(vmlinux)
    if release is None:
        raise invalid(f"{found[0].name} does not say which version of Linux it is")
    if (source / INITRD).is_file():
        shutil.copyfile(source / INITRD, staging / INITRD)
    target = staging / MODULES
    if (source / MODULES).is_dir():
        shutil.copytree(source / MODULES, target, ignore=_links)
    else:
        # nothing says what is built in; that it is what guests need is the importer's word
        target.mkdir()
        builtin = "".join(f"kernel/{module}.ko\n" for module in GUEST_MODULES)
        (target / "modules.builtin").write_text(builtin)
    record = Kernel(
        name=name,
        distro="",
        arch=os.uname().machine,
        kernel_version=release[1].decode("ascii"),
        sha256=hashlib.sha256(vmlinux).hexdigest(),
        source=str(found[0]),
        imported_at=now(),
    )
    write_kernel(staging, vmlinux, record=record)
    return record


def _links(folder: str, names: list[str]) -> list[str]:
    """`build` and `source` lead out of the tree; so may any other."""
    return [name for name in names if os.path.islink(os.path.join(folder, name))]
