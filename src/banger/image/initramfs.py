"""The initramfs: one shared per kernel and agent, and behind it each VM's own small archive.

Shared: /init (the guest agent), /banger/modules (a .ko path a line, in load order) and the .ko files;
made when agent or modules are new, named by what is in it, published by rename. Per VM:
/banger/config and /banger/files/…, which the agent lays over the guest's root before its init starts.
The VM's file carries private keys, so it is 0600. The vm room calls `build_guest_initrd` at each start.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from banger.errors import BangerError, ErrorCode
from banger.image import cpio, modules
from banger.image.errors import from_os_error, invalid, unsuitable
from banger.image.staging import write_atomically
from banger.model.records import Image

AGENT_FOLDER = Path(__file__).resolve().parent.parent / "agent_bin"
FORMAT = b"banger initramfs 1\n"
"""Part of the content key: change it when the layout changes."""
CONFIG = "banger/config"
FILES = "banger/files"
MODULE_LIST = "banger/modules"
MODULE_FOLDER = "banger/ko"
MAX_GUEST_FILES = 16 << 20
_KEEP = 2
_KEY = re.compile(r"[a-z_]+")
MAX_ENV = 250
MAX_ENV_BYTES = 48 << 10
MAX_WORKDIR = 240
"""What the agent's config has room for, with some for the rest of it (agent/src/config.h)."""


class GuestFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file laid into the guest, root:root. path: below the guest's root, without a leading slash."""

    path: str
    content: bytes
    mode: int = 0o644


class GuestConfig(msgspec.Struct, frozen=True, kw_only=True):
    """/banger/config: what a guest is told of itself. Devices as /dev/vdX, "" for none.

    address with its prefix ("172.16.0.2/24"); root_mode "overlay" or "direct"; init "auto", "agent" or
    a path in the image; workdir: where commands begin that name no folder, "" for home; env: `K=V` each.
    """

    hostname: str
    address: str = ""
    gateway: str = ""
    mac: str = ""
    root_mode: str = "overlay"
    root: str = "/dev/vda"
    overlay: str = ""
    work: str = ""
    modules: str = ""
    init: str = "auto"
    workdir: str = ""
    env: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """`key value` lines; empty values are left out. A value with a newline or NUL is refused."""
        lines: list[str] = []
        keys = ("hostname", "address", "gateway", "mac", "root_mode", "root", "overlay", "work")
        for key in (*keys, "modules", "init", "workdir"):
            value: str = getattr(self, key)
            if value:
                lines.append(_line(key, value))
        lines += [_line("env", value) for value in self.env]
        return "".join(lines).encode("utf-8", "surrogateescape")


def _line(key: str, value: str) -> str:
    assert _KEY.fullmatch(key)
    if any(character in value for character in "\n\r\0") or len(value) > 65_536:
        raise BangerError(ErrorCode.INVALID_ARGUMENT, f"a guest's {key} must be one line: {value[:60]!r}")
    return f"{key} {value}\n"


def fit_env(env: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What commands get of the image's environment, and the names of what cannot be passed on.

    The config is of lines, and bounded: a value with a line break, and what is too much, is left out.
    """
    taken: list[str] = []
    left: list[str] = []
    length = 0
    for entry in env:
        size = len(entry.encode("utf-8", "replace")) + len("env \n")
        fits = length + size <= MAX_ENV_BYTES and len(taken) < MAX_ENV and entry.find("=") > 0
        if fits and _one_line(entry):
            taken.append(entry)
            length += size
        else:
            left.append(entry.partition("=")[0])
    return tuple(taken), tuple(left)


def image_workdir(image: Image) -> str:
    """ "" where the image has none, or / (docker's default: home is nicer), or one that cannot be one."""
    path = image.workdir
    if not path.startswith("/") or not path.strip("/") or len(path.encode("utf-8", "replace")) > MAX_WORKDIR:
        return ""
    return path if _one_line(path) else ""


def _one_line(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return not any(character in text for character in "\n\r\0")


def agent_binary(architecture: str = "") -> Path:
    """The guest agent for an architecture ("x86_64", "aarch64"; this machine's by default)."""
    architecture = architecture or os.uname().machine
    path = AGENT_FOLDER / f"agent-{architecture}"
    if not path.is_file():
        raise unsuitable(
            f"banger's guest agent for {architecture} was not built",
            hint="from a clone: make setup (it builds the agent with the pinned compiler)",
        )
    return path


def ensure_shared(
    modules_dir: Path | None, agent: Path, out_dir: Path, *, initrd: Path | None = None
) -> Path:
    """The shared initramfs for these modules and this agent, made when it is not there. Blocking.

    modules_dir: None for a kernel that has all it needs built in. initrd: the kernel's own, put in front.
    Its name has a key of what it is made from: agent's bytes, and path, size and time of the module
    tree's list. The two newest are kept (a VM that is just starting may still read the one before).
    """
    try:
        key = _content_key(modules_dir, agent, initrd)
    except OSError as error:
        raise from_os_error(error, f"reading {initrd or modules_dir or agent}") from error
    path = out_dir / f"initramfs-{key}.img"
    if path.is_file():
        return path
    try:
        data = build_shared(modules_dir, agent.read_bytes())
        if initrd is not None:
            own = initrd.read_bytes()
            data = own + bytes(-len(own) % cpio.BLOCK) + data
        out_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
        _drop_old(out_dir, path)
    except OSError as error:
        raise from_os_error(error, f"making {path}") from error
    return path


def build_shared(modules_dir: Path | None, agent: bytes) -> bytes:
    """The shared archive's bytes. Blocking (reads about ten modules)."""
    if agent[:4] != b"\x7fELF":
        raise invalid("the guest agent is no ELF program")
    archive = cpio.CpioWriter()
    archive.add_file("init", agent, mode=0o755)
    archive.add_folder("dev")
    paths: list[str] = []
    for module in modules.load_order(modules_dir) if modules_dir is not None else ():
        name = f"{MODULE_FOLDER}/{module.name}.ko"
        archive.add_file(name, module.content)
        paths.append(f"/{name}\n")
    archive.add_file(MODULE_LIST, "".join(paths).encode())
    return archive.finish()


def guest_archive(config: GuestConfig, files: Sequence[GuestFile]) -> bytes:
    """A VM's own archive."""
    total = sum(len(file.content) for file in files)
    if total > MAX_GUEST_FILES:
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT,
            f"{total} bytes of files for a guest's start are too many",
            hint=f"at most {MAX_GUEST_FILES >> 20} MiB travel with the initramfs",
        )
    archive = cpio.CpioWriter()
    archive.add_folder("banger")
    archive.add_file(CONFIG, config.encode(), mode=0o600)
    archive.add_folder(FILES)
    for file in files:
        archive.add_file(f"{FILES}/{file.path}", file.content, mode=file.mode)
    return archive.finish()


def build_guest_initrd(
    shared: str | Path, config: GuestConfig, *, files: Sequence[GuestFile], out: str | Path
) -> None:
    """Write `shared` followed by the VM's own archive to `out`, 0600, by rename. Blocking, about 2 ms."""
    own = guest_archive(config, files)
    target = Path(out)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with open(shared, "rb") as source:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                length = _copy(source.fileno(), file.fileno())
                file.seek(length)
                file.write(bytes(-length % cpio.BLOCK))
                file.write(own)
        os.replace(temporary, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise from_os_error(error, f"writing {target}") from error


def _copy(source: int, target: int) -> int:
    """copy_file_range shares extents where the file system can; returns the bytes copied."""
    length = os.fstat(source).st_size
    done = 0
    while done < length:
        try:
            count = os.copy_file_range(source, target, length - done, done, done)
        except OSError:  # across file systems on old kernels
            os.lseek(source, done, os.SEEK_SET)
            os.lseek(target, done, os.SEEK_SET)
            count = os.sendfile(target, source, done, length - done)
        if count == 0:
            break
        done += count
    return done


def _content_key(modules_dir: Path | None, agent: Path, initrd: Path | None) -> str:
    digest = hashlib.sha256(FORMAT)
    digest.update(agent.read_bytes())
    digest.update("\0".join(modules.GUEST_MODULES).encode())
    if initrd is not None:
        found = initrd.stat()
        digest.update(f"{initrd} {found.st_size} {found.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    if modules_dir is None:
        return digest.hexdigest()[:16]
    builtin = modules_dir / "modules.builtin"
    for path in (modules_dir, builtin):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        digest.update(f"{path.name} {found.st_size if path is builtin else 0}\n".encode())
    with contextlib.suppress(FileNotFoundError):
        digest.update((modules_dir.parent / "kernel.json").read_bytes())
    return digest.hexdigest()[:16]


def _drop_old(out_dir: Path, newest: Path) -> None:
    others = sorted(
        (path for path in out_dir.glob("initramfs-*.img") if path != newest),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for path in others[_KEEP - 1 :]:
        path.unlink(missing_ok=True)
