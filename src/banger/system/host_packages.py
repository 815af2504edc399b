"""The one list of what banger needs from the host's distribution, and why.

`banger doctor` checks it, errors about a missing program take their hint from it, docs/doctor.md is
held against it, and the set-up of a clone installs from it. For the last it must run as a script on a
bare Debian, before there is a virtual environment: nothing but the standard library is imported here,
and nothing of banger's. Pure but for looking at which programs and files are there.

    python3 -I src/banger/system/host_packages.py --missing run test   # Debian packages, one a line
"""

from __future__ import annotations

import glob
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

RUN = "run"
"""Needed to run guests."""
TEST = "test"
"""Needed only by this project's own tests."""

_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


@dataclass(frozen=True)
class HostPackage:
    """One row: there when all `programs` are found and, for each of `files`, one of its patterns matches.

    debian: the package's name; where releases name it differently, the names in order of preference,
    joined by "|". minimum: the lowest version of programs[0] that is known to do, asked by `version_argv`.
    required: without it no guest starts; otherwise one feature is missing and `why` says which.
    """

    debian: str
    why: str
    use: str = RUN
    programs: tuple[str, ...] = ()
    files: tuple[tuple[str, ...], ...] = ()
    required: bool = True
    minimum: tuple[int, ...] = ()
    version_argv: tuple[str, ...] = ()
    fedora: str = ""  # where the name differs
    arch: str = ""

    @property
    def name(self) -> str:
        """A short name for people: the first Debian name."""
        return self.debian.split("|")[0]


HOST_PACKAGES: tuple[HostPackage, ...] = (
    HostPackage(
        "qemu-system-x86",
        "the monitor on hosts whose KVM runs no stock kernel",
        programs=("qemu-system-x86_64",),
        minimum=(7, 2),  # vhost-user-vsock on microvm was tried from this on (Debian 12)
        version_argv=("qemu-system-x86_64", "--version"),
        fedora="qemu-system-x86-core",
        arch="qemu-system-x86",
    ),
    HostPackage(
        "qemu-system-data",
        "qboot, the firmware of QEMU's microvm machine",
        files=(("/usr/share/qemu/qboot.rom", "/usr/share/*/qboot.rom"),),
        fedora="qemu-common",
        arch="qemu-system-x86-firmware",
    ),
    HostPackage(
        "e2fsprogs",
        "makes, fills, checks and grows the guests' disks",
        programs=("mke2fs", "debugfs", "e2fsck", "resize2fs"),
        minimum=(1, 46),
        version_argv=("mke2fs", "-V"),
    ),
    HostPackage(
        "libarchive13t64|libarchive13",
        "mke2fs reads image archives with it",
        files=(
            (
                "/usr/lib/*/libarchive.so.13",
                "/usr/lib64/libarchive.so.13",
                "/usr/lib/libarchive.so.13",
            ),
        ),
        fedora="libarchive",
        arch="libarchive",
    ),
    HostPackage(
        "mmdebstrap",
        "builds the default image from Debian's archive",
        programs=("mmdebstrap",),
        minimum=(1, 0),
        version_argv=("mmdebstrap", "--version"),
    ),
    HostPackage(
        "uidmap",
        "lets a user other than root build images in a user namespace",
        programs=("newuidmap", "newgidmap"),
        fedora="shadow-utils",
        arch="shadow",
    ),
    HostPackage(
        "gpgv",
        "checks the signatures of Debian's archive",
        programs=("gpgv",),
        fedora="gnupg2",
        arch="gnupg",
    ),
    HostPackage(
        "debian-archive-keyring",
        "the keys those signatures are checked with",
        files=(
            (
                "/usr/share/keyrings/debian-archive-keyring.gpg",
                "/usr/share/keyrings/debian-archive-keyring.pgp",
            ),
        ),
        fedora="debian-keyring",
    ),
    HostPackage(
        "ca-certificates",
        "checks whom images and packages are fetched from",
        files=(("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"),),
    ),
    HostPackage(
        "nftables",
        "the firewall between guests, host and network",
        programs=("nft",),
        minimum=(0, 9, 8),
        version_argv=("nft", "--version"),
    ),
    HostPackage(
        "openssh-client",
        "`vm ssh`, and the key that guests let in",
        programs=("ssh", "ssh-keygen"),
        minimum=(8, 5),  # KnownHostsCommand
        version_argv=("ssh", "-V"),
        fedora="openssh-clients",
        arch="openssh",
    ),
    HostPackage(
        "git",
        "`vm run PATH` and `vm workspace`: a repository in the guest",
        programs=("git",),
        required=False,
        minimum=(2, 32),  # GIT_CONFIG_GLOBAL: git in a repository of ours reads no other configuration
        version_argv=("git", "--version"),
    ),
    HostPackage(
        "dmsetup",
        '`root_disk = "dm-snapshot"`',
        programs=("dmsetup",),
        required=False,
        fedora="device-mapper",
        arch="device-mapper",
    ),
    HostPackage(
        "iproute2",
        "network namespaces of the tests, and a person's look at bridge and taps",
        programs=("ip",),
        required=False,
        fedora="iproute",
    ),
    HostPackage(
        "clang",
        "the guest agent's C under the address and undefined-behaviour sanitizers",
        use=TEST,
        programs=("clang",),
    ),
    HostPackage(
        "libclang-rt-dev|libclang-rt-19-dev|libclang-rt-14-dev",
        "those sanitizers' runtime",
        use=TEST,
        files=(
            (
                "/usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.asan-*.a",
                "/usr/lib*/clang/*/lib/linux/libclang_rt.asan-*.a",
                "/usr/lib*/clang/*/lib/*/libclang_rt.asan*.a",
            ),
        ),
        fedora="compiler-rt",
        arch="compiler-rt",
    ),
    HostPackage(
        "gpg",
        "throw-away signing keys for the archive client's tests",
        use=TEST,
        programs=("gpg",),
        fedora="gnupg2",
        arch="gnupg",
    ),
    HostPackage(
        "gpg-agent",
        "gpg makes no key without it",
        use=TEST,
        programs=("gpg-agent",),
        fedora="gnupg2",
        arch="gnupg",
    ),
    HostPackage(
        "procps",
        "tests of the agent's terminals look at process groups",
        use=TEST,
        programs=("ps",),
        fedora="procps-ng",
        arch="procps-ng",
    ),
    HostPackage(
        "rsync",
        "tests that rsync reaches guests over ssh",
        use=TEST,
        programs=("rsync",),
    ),
    HostPackage(
        "bind9-dnsutils",
        "dig: tests that names resolve",
        use=TEST,
        programs=("dig",),
        fedora="bind-utils",
        arch="bind",
    ),
    HostPackage(
        "dnsmasq-base",
        "tests that docs/names.md tells the truth about it",
        use=TEST,
        programs=("dnsmasq",),
        fedora="dnsmasq",
        arch="dnsmasq",
    ),
    HostPackage(
        "iptables",
        "tests beside Docker's rules, of both kinds of iptables",
        use=TEST,
        programs=("iptables-nft", "iptables-legacy"),
        fedora="iptables-nft iptables-legacy",
    ),
    HostPackage(
        "ufw",
        "tests beside a real ufw, in a namespace; installed, it is not active",
        use=TEST,
        programs=("ufw",),
    ),
    HostPackage(
        "dbus-daemon",
        "the bus of the systemd-resolved that tests run",
        use=TEST,
        programs=("dbus-daemon",),
        arch="dbus",
    ),
    HostPackage(
        "bash-completion",
        "TAB as bash has it with that package",
        use=TEST,
        files=(("/usr/share/bash-completion/bash_completion",),),
    ),
    HostPackage(
        "zsh",
        "TAB in a real zsh",
        use=TEST,
        programs=("zsh",),
    ),
    HostPackage(
        "fish",
        "TAB in a real fish",
        use=TEST,
        programs=("fish",),
    ),
    HostPackage(
        "man-db",
        "renders the manual pages",
        use=TEST,
        programs=("man",),
    ),
    HostPackage(
        "groff-base",
        "what man renders pages with",
        use=TEST,
        programs=("groff",),
        fedora="groff-base",
        arch="groff",
    ),
    HostPackage(
        "curl",
        "tests that published ports lead into guests",
        use=TEST,
        programs=("curl",),
    ),
    HostPackage(
        "iputils-ping",
        "tests that host and guest reach each other",
        use=TEST,
        programs=("ping",),
        fedora="iputils",
        arch="iputils",
    ),
    HostPackage(
        "docker-registry",
        "the real registry that tests pull from",
        use=TEST,
        programs=("docker-registry",),
    ),
    HostPackage(
        "skopeo",
        "tests pull what it pushed and read what it saved",
        use=TEST,
        programs=("skopeo",),
    ),
    HostPackage(
        "umoci",
        "makes the images of those tests",
        use=TEST,
        programs=("umoci",),
    ),
    HostPackage(
        "zstd",
        "pzstd, which packs layers as only some tools do",
        use=TEST,
        programs=("pzstd",),
    ),
    HostPackage(
        "apache2-utils",
        "htpasswd: the accounts of those tests' registry",
        use=TEST,
        programs=("htpasswd",),
    ),
    HostPackage(
        "openssl",
        "the certificates of those tests' registry",
        use=TEST,
        programs=("openssl",),
    ),
    HostPackage(
        "busybox-static",
        "all that is in the smallest images of those tests",
        use=TEST,
        programs=("busybox",),
        fedora="busybox",
        arch="busybox",
    ),
)


def search_path() -> str:
    """PATH as programs are looked up: the user's own, then the system's folders (PATH often lacks sbin)."""
    own = [folder for folder in os.environ.get("PATH", "").split(":") if folder.startswith("/")]
    return ":".join(dict.fromkeys([*own, *_SYSTEM_FOLDERS]))


def absent(package: HostPackage) -> list[str]:
    """What of the row is not on this host: names of programs, first patterns of files."""
    path = search_path()
    programs = [program for program in package.programs if shutil.which(program, path=path) is None]
    files = [patterns[0] for patterns in package.files if not any(glob.glob(pattern) for pattern in patterns)]
    return programs + files


def missing(uses: Iterable[str]) -> list[HostPackage]:
    """The rows for these uses that are not (wholly) on this host, in the list's order."""
    wanted = set(uses)
    return [package for package in HOST_PACKAGES if package.use in wanted and absent(package)]


def package_of(program: str) -> str | None:
    """The Debian package that has a program, or None when banger does not know it."""
    return next((row.name for row in HOST_PACKAGES if program in row.programs), None)


def table() -> str:
    """The list as docs/doctor.md shows it: a Markdown table."""
    lines = [
        "| Debian's package | what is looked for | at least | without it | for |",
        "|---|---|---|---|---|",
    ]
    for row in HOST_PACKAGES:
        looked_for = [*row.programs, *(patterns[0].rsplit("/", 1)[-1] for patterns in row.files)]
        without = "a warning: only tests" if row.use == TEST else "no guest" if row.required else "a warning"
        cells = (
            " or ".join(row.debian.split("|")),
            " ".join(f"`{name}`" for name in looked_for),
            ".".join(map(str, row.minimum)),
            without,
            row.why,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    if list(argv) == ["--table"]:
        print(table(), end="")
        return 0
    if len(argv) < 2 or argv[0] not in ("--missing", "--list") or not set(argv[1:]) <= {RUN, TEST}:
        print("usage: host_packages.py --missing|--list run|test … | --table", file=sys.stderr)
        return 2
    for row in HOST_PACKAGES:
        if row.use in argv[1:] and (argv[0] == "--list" or absent(row)):
            print(row.debian)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
