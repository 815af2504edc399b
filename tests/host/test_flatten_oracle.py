"""Images that others make, flattened by us into an ext4, unpacked by umoci as root: equal, entry by entry."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from banger.errors import BangerError
from banger.image.flatten import FlatTree, flatten
from banger.image.oci.manifest import Layer
from banger.image.ocirootfs import make_rootfs
from banger.image.rootfs import TreeFile
from banger.model.progress import ProgressEvent
from tests.artifacts import artifacts
from tests.capabilities import require

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.host,
    pytest.mark.limit(300),
    require("root", "loop", "skopeo", "umoci"),
]

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_raw+ep
ACL = bytes.fromhex(
    "0200000001000600ffffffff020006000700000004000400ffffffff10000600ffffffff20000400ffffffff"
)

Entry = tuple[object, ...]


def command(*argv: str | Path) -> None:
    done = subprocess.run([str(word) for word in argv], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, (argv, done.stderr.decode())


def snapshot(top: Path) -> dict[bytes, Entry]:
    """path → type and mode, owner, second, device, target, content, attributes; and its hard links."""
    found: dict[bytes, Entry] = {}
    links: dict[int, list[bytes]] = {}
    start = os.fsencode(top)
    for folder, folders, files in os.walk(start):
        for name in [b".", *folders, *files]:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, start)
            if relative == b"lost+found":
                continue
            info = os.lstat(path)
            content = ""
            if stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            names = os.listxattr(path, follow_symlinks=False)
            found[relative] = (
                oct(info.st_mode),
                (info.st_uid, info.st_gid),
                info.st_mtime_ns // 10**9,
                info.st_rdev,
                os.readlink(path) if stat.S_ISLNK(info.st_mode) else b"",
                content,
                sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in names),
            )
            if not stat.S_ISDIR(info.st_mode):
                links.setdefault(info.st_ino, []).append(relative)
    for group in links.values():
        for path in group:
            found[path] += (sorted(group),)
    return found


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    place = image.parent / "mnt"
    place.mkdir()
    command("mount", "-o", "ro,loop,noload", image, place)
    try:
        yield place
    finally:
        command("umount", place)
        place.rmdir()


def layers_of(layout: Path, tag: str) -> list[Layer]:
    def blob(digest: str) -> Path:
        return layout / "blobs" / digest.replace(":", "/")

    index = json.loads((layout / "index.json").read_bytes())
    (found,) = [
        entry
        for entry in index["manifests"]
        if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag
    ]
    manifest = json.loads(blob(found["digest"]).read_bytes())
    diff_ids = json.loads(blob(manifest["config"]["digest"]).read_bytes())["rootfs"]["diff_ids"]
    return [
        Layer(
            digest=layer["digest"],
            diff_id=diff_id,
            media_type=layer["mediaType"],
            size=layer["size"],
            path=blob(layer["digest"]),
        )
        for layer, diff_id in zip(manifest["layers"], diff_ids, strict=True)
    ]


class Studio:
    """An OCI layout whose images umoci makes: from a tree that is changed, or from tars of our own."""

    def __init__(self, home: Path) -> None:
        self.layout = home / "layout"
        self.bundle = home / "bundle"
        self.root = self.bundle / "rootfs"
        self.image = f"{self.layout}:test"
        command("umoci", "init", "--layout", self.layout)
        command("umoci", "new", "--image", self.image)
        self._unpack()

    def _unpack(self) -> None:
        command("rm", "-rf", self.bundle)
        command("umoci", "unpack", "--image", self.image, self.bundle)

    def layer(self) -> None:
        """What was changed below `root` since the last one."""
        command("umoci", "repack", "--refresh-bundle", "--image", self.image, self.bundle)

    def raw(self, tar: Path) -> None:
        command("umoci", "raw", "add-layer", "--image", self.image, tar)
        self._unpack()

    def reference(self) -> dict[bytes, Entry]:
        self._unpack()
        return snapshot(self.root)


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(tmp_path)


def first_layer(root: Path) -> None:
    root.chmod(0o755)
    for folder in ("etc", "usr/bin", "usr/lib", "var/cache/deep/er", "dev", "opaque/below", "root"):
        (root / folder).mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "usr/bin/sudo").write_bytes(os.urandom(300_000))
    os.chown(root / "usr/bin/sudo", 0, 70_000)
    (root / "usr/bin/sudo").chmod(0o4755)
    os.link(root / "usr/bin/sudo", root / "usr/bin/sudoedit")
    (root / "usr/bin/ping").write_bytes(b"ping")
    os.setxattr(root / "usr/bin/ping", "security.capability", CAPABILITY)
    os.link(root / "usr/bin/ping", root / "usr/bin/ping4")
    (root / "etc/shadow").write_bytes(b"secret")
    (root / "etc/shadow").chmod(0o640)
    os.setxattr(root / "etc/shadow", "user.note", b"\0binary\xff")
    os.setxattr(root / "etc/shadow", "system.posix_acl_access", ACL)
    os.setxattr(root / "var/cache", "trusted.mark", b"yes")
    os.mknod(root / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(root / "dev/disk", 0o660 | stat.S_IFBLK, os.makedev(259, 70_000))
    os.mkfifo(root / "dev/pipe", 0o600)
    (root / "var/cache/deep/er/file").write_bytes(b"x" * 5000)
    (root / "opaque/below/file").write_bytes(b"hidden")
    (root / "opaque/file").write_bytes(b"hidden")
    with open(os.fsencode(root) + b"/etc/n\xf6t-utf8 \xe2\x82\xac \n", "wb") as file:
        file.write(b"strange name")
    (root / "etc" / ("n" * 250)).write_bytes(b"long name")
    (root / "etc/long").symlink_to("t" * 1000)
    (root / "etc/file-to-folder").write_bytes(b"f")
    (root / "etc/folder-to-file").mkdir()
    (root / "etc/folder-to-file/x").write_bytes(b"x")
    (root / "etc/folder-to-link").mkdir()
    (root / "etc/folder-to-link/x").write_bytes(b"x")
    (root / "etc/empty").write_bytes(b"")
    os.utime(root / "etc/empty", (1, 1))
    os.utime(root / "usr/lib", (1_000_000_000, 1_000_000_000))


def second_layer(root: Path) -> None:
    command("rm", "-r", root / "var/cache/deep", root / "etc/folder-to-file", root / "etc/folder-to-link")
    (root / "etc/folder-to-file").write_bytes(b"now a file")
    (root / "etc/folder-to-link").symlink_to("/usr")
    (root / "etc/file-to-folder").unlink()
    (root / "etc/file-to-folder").mkdir(mode=0o711)
    (root / "etc/file-to-folder/in").write_bytes(b"in")
    (root / "usr/bin/sudoedit").unlink()
    (root / "etc/empty").chmod(0o600)
    (root / "usr/lib/new").write_bytes(b"new")


def third_layer(path: Path) -> None:
    """What no repacking makes: opaque folders, links to a lower layer's files, paths through symlinks."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as out:

        def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", **fields: int) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mtime = kind, target, 1_600_000_000
            for key, value in fields.items():
                setattr(info, key, value)
            out.addfile(info)

        entry("opaque", tarfile.DIRTYPE, mode=0o700)
        entry("opaque/.wh..wh..opq")
        entry("opaque/fresh", uid=12)
        entry("usr/bin/sudo-again", tarfile.LNKTYPE, "usr/bin/sudo", mode=0o4755, gid=70_000)
        entry("etc/long-again", tarfile.LNKTYPE, "etc/long", mode=0o777)
        entry("dev/null-again", tarfile.LNKTYPE, "dev/null", mode=0o666)
        entry("lib/through", mode=0o600)
        entry("./usr/bin/.wh.ping")
        entry("usr/bin/.wh.nothing")


def fourth_layer(root: Path) -> None:
    """The target of the third's link is replaced; the link keeps the old file."""
    (root / "usr/bin/sudo").unlink()
    (root / "usr/bin/sudo").write_bytes(b"another")
    (root / "var/log").mkdir()


async def test_equal_to_a_root_unpack(studio: Studio, tmp_path: Path) -> None:
    first_layer(studio.root)
    studio.layer()
    second_layer(studio.root)
    studio.layer()
    third_layer(tmp_path / "third.tar")
    studio.raw(tmp_path / "third.tar")
    fourth_layer(studio.root)
    studio.layer()
    wanted = studio.reference()
    layers = layers_of(studio.layout, "test")
    assert len(layers) == 4
    programs = await asyncio.to_thread(lambda: artifacts().e2fsprogs)
    made = await make_rootfs(layers, tmp_path / "root.ext4", tmp_path / "seed.tar", programs=programs)
    assert made.size_bytes == (tmp_path / "root.ext4").stat().st_size == 1 << 30
    with mounted(tmp_path / "root.ext4") as place:
        got = snapshot(place)
    assert sorted(got) == sorted(wanted)
    assert {path: (got[path], entry) for path, entry in wanted.items() if got[path] != entry} == {}
    assert b"usr/bin/sudo-again" in got
    assert b"usr/lib/through" in got
    assert b"opaque/file" not in got


async def test_other_tools_compressions(studio: Studio, tmp_path: Path) -> None:
    """The same image as skopeo copies it, zstd and uncompressed, is the same tree."""
    first_layer(studio.root)
    studio.layer()
    magics: list[bytes] = []
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    # skopeo compresses as told only from plain to a "dir:", whose files are named by their digests
    command("skopeo", "copy", "--dest-decompress", f"oci:{studio.image}", f"dir:{plain}")
    command(
        "skopeo", "copy", "--dest-compress", "--dest-compress-format", "zstd", f"dir:{plain}", f"dir:{packed}"
    )
    for place in (plain, packed):
        manifest = json.loads((place / "manifest.json").read_bytes())
        diff_ids = json.loads((place / manifest["config"]["digest"][7:]).read_bytes())["rootfs"]["diff_ids"]
        layers = [
            Layer(
                digest=layer["digest"],
                diff_id=diff_id,
                media_type=layer["mediaType"],
                size=layer["size"],
                path=place / layer["digest"][7:],
            )
            for layer, diff_id in zip(manifest["layers"], diff_ids, strict=True)
        ]
        magics += [layer.path.read_bytes()[:4] for layer in layers]
        with FlatTree(layers, work=tmp_path) as flat:
            assert flat.measure().inodes == len(snapshot(studio.root)) - 2  # two names are hard links
    assert magics == [b".\0\0\0", b"\x28\xb5\x2f\xfd"]


@pytest.mark.parametrize("form", ["gnu", "posix0.0", "posix0.1", "posix1.0"])
async def test_sparse_files_of_gnu_tar(tmp_path: Path, form: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "holes").open("wb") as file:
        for number in range(40):  # more pieces than a header has room for
            file.seek(number * 1_000_000 + 8192)
            file.write(b"piece %d" % number)
        file.truncate(50_000_000)
    (source / "only-a-hole").touch()
    os.truncate(source / "only-a-hole", 3_000_000)
    (source / "z").write_bytes(b"after")
    words = [f"--format={form[:5].rstrip('01.')}"] + (
        [f"--sparse-version={form[5:]}"] if form != "gnu" else []
    )
    command("tar", "-C", source, *words, "-S", "-cf", tmp_path / "layer", "holes", "only-a-hole", "z")
    assert (tmp_path / "layer").stat().st_size < 1 << 20
    with (tmp_path / "out.tar").open("wb") as out:
        flatten([as_layer(tmp_path / "layer")], out, work=tmp_path)
    with tarfile.open(tmp_path / "out.tar") as found:
        for path in source.iterdir():
            content = found.extractfile(f"./{path.name}")
            assert content is not None
            assert content.read() == path.read_bytes()


def raw_layer(path: Path, members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> Layer:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as out:
        for info, content in members:
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return as_layer(path)


def as_layer(path: Path) -> Layer:
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return Layer(digest=digest, diff_id=digest, media_type="", size=path.stat().st_size, path=path)


async def test_additions_seed_and_many_small_files(tmp_path: Path) -> None:
    """Files for which one inode per 16 KiB is too few; /root goes to the seed; a link into it is a copy."""
    members: list[tuple[tarfile.TarInfo, bytes]] = [
        (tarfile.TarInfo(f"m/{n % 300}/{n}"), b"") for n in range(20_000)
    ]
    link = tarfile.TarInfo("linked")
    link.type, link.linkname = tarfile.LNKTYPE, "root/.profile"
    usr = tarfile.TarInfo("lib")
    usr.type, usr.linkname = tarfile.SYMTYPE, "usr/lib"
    members += [(tarfile.TarInfo("root/.profile"), b"hello"), (link, b""), (usr, b"")]
    full = tarfile.TarInfo("full")
    full.pax_headers = {
        "SCHILY.xattr.user.large": "x" * 3700,
        "SCHILY.xattr.security.capability": CAPABILITY.decode("latin-1"),
    }
    members.append((full, b""))
    heard: list[ProgressEvent] = []
    programs = await asyncio.to_thread(lambda: artifacts().e2fsprogs)
    await make_rootfs(
        [raw_layer(tmp_path / "layer", members)],
        tmp_path / "root.ext4",
        tmp_path / "seed.tar",
        programs=programs,
        size_bytes=256 << 20,
        add=[
            TreeFile("etc/machine-id"),
            TreeFile("etc/a/b", target="/dev/null"),
            TreeFile("lib/c", b"c" * 200_000),
        ],
        progress=heard.append,
    )
    with mounted(tmp_path / "root.ext4") as place:
        got = snapshot(place)
        assert (place / "usr/lib/c").read_bytes() == b"c" * 200_000
        assert (place / "linked").read_bytes() == b"hello"
        assert os.listdir(place / "root") == []
        assert os.getxattr(place / "full", "user.large") == b"x" * 3700
        assert os.getxattr(place / "full", "security.capability") == CAPABILITY
    assert len([path for path in got if path.startswith(b"m/")]) == 20_300
    assert (got[b"etc/machine-id"][0], got[b"etc/a/b"][4]) == ("0o100644", b"/dev/null")
    with tarfile.open(tmp_path / "seed.tar") as seed:
        assert seed.getnames() == [".", "./.profile"]


async def test_refused_too_small_and_cancelled_leave_nothing(tmp_path: Path) -> None:
    programs = await asyncio.to_thread(lambda: artifacts().e2fsprogs)
    rootfs, seed = tmp_path / "root.ext4", tmp_path / "seed.tar"
    layer = raw_layer(tmp_path / "layer", [(tarfile.TarInfo("a"), os.urandom(20 << 20))])
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with pytest.raises(BangerError, match="does not fit into a file system of 8 MiB"):
        await make_rootfs([layer], rootfs, seed, programs=programs, size_bytes=8 << 20)
    with pytest.raises(BangerError, match=r"layer sha256:[0-9a-f]{64}, entry '\.\./x': a path with"):
        await make_rootfs(
            [raw_layer(tmp_path / "evil", [(tarfile.TarInfo("../x"), b"")])], rootfs, seed, programs=programs
        )
    for wait_for in ("unpacking", "writing"):
        reached = asyncio.Event()

        def heard(event: ProgressEvent, wait_for: str = wait_for, reached: asyncio.Event = reached) -> None:
            if event.message.startswith(wait_for):
                reached.set()

        task = asyncio.ensure_future(make_rootfs([layer], rootfs, seed, programs=programs, progress=heard))
        async with asyncio.timeout(30):
            await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(os.listdir("/proc/self/fd")) == descriptors
    # asyncio's own pool keeps its threads; none of ours is left
    assert not [thread for thread in threading.enumerate() if thread.name == "unpack"]
    assert threading.active_count() >= threads
