"""A bzImage's payload: the ELF kernel that a machine monitor loads.

Layout from the kernel's Documentation/arch/x86/boot.rst: the setup header at 0x1f1, and since
protocol 2.08 payload_offset and payload_length. Pure; the input is hostile until parsed.
"""

from __future__ import annotations

import struct

from banger.image import compress
from banger.image.errors import invalid

MAX_BZIMAGE = 256 << 20
MAX_KERNEL = 1 << 30
ELF_MAGIC = b"\x7fELF"


def extract_kernel(image: bytes) -> bytes:
    """The ELF in a bzImage; an image that is an ELF already is returned as it is."""
    if image.startswith(ELF_MAGIC):
        return image
    return unpack_payload(find_payload(image))


def find_payload(image: bytes) -> bytes:
    """The compressed payload with the four bytes of its content's length at the end."""
    if len(image) < 0x268 or image[0x202:0x206] != b"HdrS" or image[0x1FE:0x200] != b"\x55\xaa":
        raise invalid("not a kernel: neither a bzImage nor an ELF file")
    setup_sectors = image[0x1F1] or 4
    (version,) = struct.unpack_from("<H", image, 0x206)
    if version < 0x0208:
        raise invalid(f"a kernel with boot protocol {version >> 8}.{version & 0xFF:02}; 2.08 is needed")
    offset, length = struct.unpack_from("<II", image, 0x248)
    begin = (setup_sectors + 1) * 512 + offset
    if length < 8 or begin + length > len(image):
        raise invalid("a kernel whose payload lies outside of its file")
    return image[begin : begin + length]


def unpack_payload(payload: bytes) -> bytes:
    """The payload's content, whose length must be the one that the payload names."""
    kind = compress.recognise(payload[:8])
    if kind == "none":
        if payload.startswith(ELF_MAGIC):
            return payload
        raise invalid(f"a kernel with an unknown compression (it begins with {payload[:4].hex()})")
    (expected,) = struct.unpack("<I", payload[-4:])
    if expected > MAX_KERNEL:
        raise invalid(f"a kernel that says it unpacks to {expected} bytes")
    # every compressor but gzip has its length appended by the kernel's build; gzip's own ends with it
    body = payload if kind == "gzip" else payload[:-4]
    kernel = b"".join(
        compress.decompressed([body], kind, limit=MAX_KERNEL, what="the kernel's payload", trailing=True)
    )
    # what follows the vmlinux (its relocations, for KASLR) belongs to the length
    if len(kernel) != expected:
        raise invalid(f"a kernel that unpacks to {len(kernel)} bytes and not to the {expected} it names")
    if not kernel.startswith(ELF_MAGIC):
        raise invalid("a kernel whose payload is no ELF file")
    return kernel
