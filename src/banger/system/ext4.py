"""ext4 images with e2fsprogs: made, filled, checked and grown as plain files, never mounted.

The programs come from the caller (`E2fsprogs`): the host's own, or banger's copy of a newer release
with its libraries (image/tools.py). Making from a tar needs mke2fs ≥ 1.47.1 with libarchive. A crash
leaves a half-made file; callers work on staging names and rename.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from banger.errors import BangerError, ErrorCode
from banger.system.errors import CommandError
from banger.system.run import run, stream_lines

FEATURES = (
    "none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,"
    "extra_isize,metadata_csum"
)
"""All that ext4 has by default but resize_inode, which reserves blocks for growing while mounted (nobody
does that here), and orphan_file and metadata_csum_seed, which need a kernel (5.15) and an e2fsprogs
(1.47) that a user's own image may not have. Named in full: mke2fs.conf is not read."""
EXTENDED = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
MIN_SIZE = 4 << 20


@dataclass(frozen=True, slots=True)
class E2fsprogs:
    """Programs by path or bare name, and the environment they need (LD_LIBRARY_PATH of banger's copy)."""

    mke2fs: str = "mke2fs"
    debugfs: str = "debugfs"
    e2fsck: str = "e2fsck"
    resize2fs: str = "resize2fs"
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class XAttr:
    """An extended attribute to set. path: absolute inside the file system."""

    path: str
    name: str
    value: bytes


async def make(
    path: str | Path,
    *,
    size_bytes: int,
    programs: E2fsprogs,
    tar: str | Path | bytes | int | None = None,
    label: str = "",
    journal: bool = True,
    inodes: int = 0,
    timeout_s: float = 600,
) -> None:
    """A new ext4 of size_bytes in a sparse file at `path` (which must not exist, or is overwritten).

    tar: a file, the bytes of one, or a descriptor to read one from (which stays the caller's), whose entries
    become the content, with owner, mode, whole-second times, device nodes and security.capability; other
    xattrs follow with set_xattrs. inodes: at least so many, beyond one for each 16 KiB. Raises NO_SPACE when
    the content does not fit, CommandError for anything else that mke2fs says.
    """
    if size_bytes < MIN_SIZE:
        raise BangerError(ErrorCode.INVALID_ARGUMENT, f"an ext4 of {size_bytes} bytes is too small")
    argv = [programs.mke2fs, "-q", "-F", "-t", "ext4", "-b", "4096", "-i", "16384", "-I", "256", "-m", "0"]
    argv += ["-E", f"{EXTENDED},root_owner=0:0"]
    argv += ["-O", f"{FEATURES},has_journal" if journal else FEATURES]
    if inodes > size_bytes // 16384:
        argv += ["-N", str(inodes)]
    if label:
        argv += ["-L", label]
    content: bytes | None = None
    if isinstance(tar, bytes):
        argv += ["-d", "-"]
        content = tar
    elif isinstance(tar, int):
        argv += ["-d", "-"]
    elif tar is not None:
        argv += ["-d", os.fspath(tar)]
    argv += [os.fspath(path), f"{size_bytes // 1024}k"]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size_bytes)
    finally:
        os.close(descriptor)
    try:
        # an empty configuration: a host's own mke2fs.conf must not change what guests get
        env = {**programs.env, "MKE2FS_CONFIG": "/dev/null"}
        if isinstance(tar, int):
            await stream_lines(argv, lambda line: None, timeout_s=timeout_s, env=env, stdin=tar)
        else:
            await run(argv, timeout_s=timeout_s, env=env, input=content)
    except CommandError as error:
        lower = error.stderr.lower()
        if "could not allocate" in lower or "no space left" in lower or "no free space" in lower:
            raise BangerError(
                ErrorCode.NO_SPACE,
                f"the content does not fit into a file system of {size_bytes >> 20} MiB, or the disk is full",
                details=error.details,
            ) from error
        raise


async def set_xattrs(
    path: str | Path, attributes: Sequence[XAttr], *, programs: E2fsprogs, timeout_s: float = 300
) -> None:
    """Extended attributes that mke2fs drops, through debugfs. IMAGE_INVALID for names it cannot carry."""
    if not attributes:
        return
    with tempfile.TemporaryDirectory(prefix=".xattr-", dir=Path(path).parent) as folder:
        lines: list[bytes] = []
        for number, attribute in enumerate(attributes):
            for text in (attribute.path, attribute.name):
                if any(character in text for character in '\n\r\0"\\'):
                    raise BangerError(
                        ErrorCode.IMAGE_INVALID,
                        f"a name that the file system tools cannot carry: {text[:200]!r}",
                    )
            value = Path(folder, f"v{number}")
            value.write_bytes(attribute.value)
            lines.append(
                b'ea_set -f "%s" "%s" "%s"\n'
                % (os.fsencode(value), os.fsencode(attribute.path), os.fsencode(attribute.name))
            )
        script = Path(folder, "script")
        script.write_bytes(b"".join(lines))
        done = await run(
            [programs.debugfs, "-w", "-f", os.fspath(script), os.fspath(path)],
            timeout_s=timeout_s,
            env=programs.env,
        )
    # debugfs exits with 0 whatever its commands did; it says so on stderr, after its own banner
    said = [
        line
        for line in done.stderr.decode("utf-8", "replace").splitlines()
        if line.strip() and not line.startswith("debugfs ")
    ]
    if said:
        raise CommandError(done.argv, 1, stderr="\n".join(said).encode(), what="could not set attributes")


async def check(path: str | Path, *, programs: E2fsprogs, timeout_s: float = 600) -> None:
    """`e2fsck -fn`: CommandError unless the file system is clean. Changes nothing."""
    await run([programs.e2fsck, "-fn", os.fspath(path)], timeout_s=timeout_s, env=programs.env)


async def replay_journal(path: str | Path, *, programs: E2fsprogs, timeout_s: float = 300) -> bool:
    """Bring into the file system what its journal has, as its next mount would; nothing else is changed.

    For one that no machine uses any more. False where the journal was damaged: there is a new, empty one.
    CommandError where even that cannot be.
    """
    done = await run(
        [programs.e2fsck, "-p", "-E", "journal_only", os.fspath(path)],
        timeout_s=timeout_s,
        env=programs.env,
        check=False,
    )
    if done.status not in (0, 1):
        raise CommandError(done.argv, done.status, stderr=done.stdout + done.stderr)
    return not done.status


async def grow(path: str | Path, *, size_bytes: int, programs: E2fsprogs, timeout_s: float = 600) -> None:
    """Make an unmounted file system (and its file) size_bytes long; one that is as long stays as it is.

    Never shrinks. e2fsck first (resize2fs insists): a journal that a killed guest left is replayed.
    """
    size = Path(path).stat().st_size
    if size > size_bytes:
        raise BangerError(ErrorCode.INVALID_ARGUMENT, f"a disk can only grow; it has {size >> 20} MiB")
    done = await run(
        [programs.e2fsck, "-fp", os.fspath(path)], timeout_s=timeout_s, env=programs.env, check=False
    )
    if done.status not in (0, 1):  # 1: errors were corrected
        raise CommandError(done.argv, done.status, stderr=done.stdout + done.stderr)
    os.truncate(path, size_bytes)
    await run(
        [programs.resize2fs, os.fspath(path), f"{size_bytes // 1024}k"], timeout_s=timeout_s, env=programs.env
    )
