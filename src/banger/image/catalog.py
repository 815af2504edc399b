"""The built-in catalog: which kernels, images and tools banger knows how to get. Data only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """A kernel from Debian's archive: `package` is the meta-package that depends on the newest real one."""

    name: str
    distro: str
    suite: str
    package: str


@dataclass(frozen=True, slots=True)
class DebianImage:
    """An image made by mmdebstrap. size_bytes: at least; a larger content gets 1.5 times its size."""

    name: str
    suite: str
    kernel: str
    packages: tuple[str, ...]
    description: str
    size_bytes: int = 1 << 30
    docker: bool = False


@dataclass(frozen=True, slots=True)
class OciImage:
    """An image of a registry. reference: with its digest, so that it is the same one for everybody."""

    name: str
    reference: str
    description: str


ImageEntry = DebianImage | OciImage


@dataclass(frozen=True, slots=True)
class ToolPackage:
    """One .deb of a tool, and what is taken from it: clean paths below its root.

    A folder ends in "/": its shared libraries are taken. "a=b" takes the file a as b.
    """

    package: str
    suite: str
    wanted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ToolEntry:
    """Programs that the host may lack. The first one stands for all: they come from one release."""

    name: str
    packages: tuple[ToolPackage, ...]
    programs: tuple[str, ...]


DEBIAN_PACKAGES = (
    "systemd-sysv",
    "dbus",
    "libpam-systemd",
    "openssh-server",
    "sudo",
    "git",
    "curl",
    "ca-certificates",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "nano",
    "procps",
)
"""What every Debian of the catalog has besides the essential packages."""

KERNELS: dict[str, KernelEntry] = {
    "debian-bookworm": KernelEntry("debian-bookworm", "debian", "bookworm", "linux-image-cloud-{arch}"),
    "debian-bookworm-backports": KernelEntry(
        "debian-bookworm-backports", "debian", "bookworm-backports", "linux-image-cloud-{arch}"
    ),
    "debian-trixie": KernelEntry("debian-trixie", "debian", "trixie", "linux-image-cloud-{arch}"),
}

IMAGES: dict[str, DebianImage] = {
    "debian-bookworm": DebianImage(
        name="debian-bookworm",
        suite="bookworm",
        kernel="debian-bookworm",
        packages=DEBIAN_PACKAGES,
        description="Debian 12 with systemd, sshd, sudo, git and curl",
    ),
    "debian-docker": DebianImage(
        name="debian-docker",
        suite="bookworm",
        kernel="debian-bookworm",
        packages=(*DEBIAN_PACKAGES, "docker.io", "apparmor"),  # whose profiles Docker loads
        description="The same with Debian's Docker",
        docker=True,
    ),
}

TOOLS: dict[str, ToolEntry] = {
    "vhost-device-vsock": ToolEntry(
        name="vhost-device-vsock",
        packages=(ToolPackage("vhost-device-vsock", "forky", ("usr/bin/vhost-device-vsock",)),),
        programs=("vhost-device-vsock",),
    ),
    "e2fsprogs": ToolEntry(
        name="e2fsprogs",
        packages=(
            ToolPackage(
                "e2fsprogs",
                "bookworm-backports",
                ("sbin/mke2fs", "sbin/debugfs", "sbin/e2fsck", "sbin/resize2fs", "etc/mke2fs.conf"),
            ),
            ToolPackage("libext2fs2", "bookworm-backports", ("lib/", "usr/lib/")),
            ToolPackage("libss2", "bookworm-backports", ("lib/", "usr/lib/")),
            ToolPackage("libcom-err2", "bookworm-backports", ("lib/", "usr/lib/")),
            # read by mke2fs at run time (dlopen), with what it needs that a minimal Debian may lack
            ToolPackage("libarchive13", "bookworm", ("usr/lib/",)),
            ToolPackage("libxml2", "bookworm", ("usr/lib/",)),
            ToolPackage("libicu72", "bookworm", ("usr/lib/",)),
            ToolPackage("libnettle8", "bookworm", ("usr/lib/",)),
        ),
        programs=("mke2fs", "debugfs", "e2fsck", "resize2fs"),
    ),
    "kmod": ToolEntry(
        name="kmod",
        packages=(
            # one program of several names, which are symlinks
            ToolPackage("kmod", "bookworm", ("bin/kmod=usr/sbin/depmod",)),
            ToolPackage("libkmod2", "bookworm", ("lib/", "usr/lib/")),
        ),
        programs=("depmod",),
    ),
}
