"""The image room's readers as fuzz targets: each takes any bytes and asserts what the reader promises.

Nothing but banger's own errors comes out, none with a character that a terminal acts upon; what was taken in
is within its bounds; contents are only ever looked up inside the file. Writing outside the run's folder is
forbidden to all of them (image_main.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import posixpath
import shutil
import stat
import struct
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin

from banger.image import (
    archive,
    bzimage,
    compress,
    deb,
    deb822,
    elf,
    flatten,
    initramfs,
    layertree,
    rootfs,
    sources,
    treetar,
)
from banger.image.cpio import CpioWriter
from banger.image.errors import ImageError
from banger.image.oci import archive as oci_archive
from banger.image.oci import auth, config, endpoint, manifest, reference, tarindex, transport
from banger.image.oci.blobs import BlobCache
from banger.system import tarheaders
from banger.system.tarheaders import BadTar, Header
from banger.workspace.errors import WorkNotKept
from banger.workspace.stage import _unpack

UNSAFE = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))))
MAX_BRIEF = 2000
LIMITS = flatten.Limits(
    entries=2000, unpacked=4 << 20, ratio=200, ratio_from=1 << 20, index=1 << 20, steps=20_000
)
HERE = Path()
"""The run's own folder: the fuzzer's working directory."""

# what a kernel may unpack to, so that a run's limit of memory means something
bzimage.MAX_KERNEL = 64 << 20
MARKS = (b"ustar\0", b"ustar  \0")


def pieces(data: bytes) -> list[bytes]:
    """Pieces with their lengths before them; the last one is what is left."""
    found: list[bytes] = []
    while len(data) >= 2:
        (length,) = struct.unpack_from("<H", data)
        found.append(data[2 : 2 + length])
        data = data[2 + length :]
    return found


def with_right_sums(data: bytes) -> bytes:
    """Most changes to a tar would be lost on a header's sum: right ones for all that has tar's mark."""
    fixed = bytearray(data)
    at = data.find(b"ustar")
    while at >= 0:
        begin = at - 257
        if begin >= 0 and begin + 512 <= len(fixed):
            fixed[begin + 148 : begin + 156] = b" " * 8
            fixed[begin + 148 : begin + 156] = b"%06o\0 " % sum(fixed[begin : begin + 512])
        at = data.find(b"ustar", at + 1)
    return bytes(fixed)


@contextmanager
def refused(*others: type[Exception]) -> Iterator[None]:
    """What a reader may raise: its room's error, which can be shown; and `others`."""
    try:
        yield
    except ImageError as error:
        _check_error(error)
    except others:
        pass


def _check_error(error: ImageError) -> None:
    assert len(error.brief) <= MAX_BRIEF, len(error.brief)
    for text in (error.brief, error.hint or ""):
        assert not any(letter in UNSAFE for letter in text), repr(text)


@contextmanager
def in_memory(data: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("fuzz")
    try:
        os.write(descriptor, data)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def a_folder(name: str) -> Iterator[Path]:
    path = HERE.resolve() / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def fuzz_broken(data: bytes) -> None:
    """Promises too much, so that a test sees that broken promises are seen."""
    assert not data.startswith(b"\0"), "not so"


def fuzz_escape(data: bytes) -> None:
    """Writes where nothing may write, for the same reason."""
    if data.startswith(b"\0"):
        (HERE.resolve().parent / "escaped").write_bytes(b"")


# --- names and documents


def fuzz_reference(data: bytes) -> None:
    with refused():
        found = reference.parse_reference(data.decode("utf-8", "surrogateescape"))
        assert reference.parse_reference(str(found)) == found
        assert found.tag or found.digest
        assert str(found).isascii()
        assert str(found).isprintable()
        assert not {"", ".", ".."} & set(found.repository.split("/"))
        assert len(found.registry) + 1 + len(found.repository) <= reference.MAX_NAME
        assert reference.account_keys(found.registry)
        reference.is_loopback(found.endpoint)
        for scheme in ("http", "https"):
            assert endpoint.origin(f"{scheme}://{found.endpoint}")[0] == scheme


TYPES = ("", *sorted(manifest.INDEXES | manifest.MANIFESTS), "text/plain; charset=utf-8", "text/html")


def fuzz_manifest(data: bytes) -> None:
    with refused():
        found = (
            manifest.parse_manifest(data[1:], content_type=TYPES[data[0] % len(TYPES)], what="x")
            if data
            else None
        )
        if isinstance(found, manifest.Index):
            assert len(found.entries) <= manifest.MAX_ENTRIES
            _check_descriptors(found.entries)
            for entry in manifest.candidates(found, manifest.this_platform("x86_64"), what="x"):
                assert entry in found.entries
        elif found is not None:
            _check_descriptors([found.config, *found.layers])
            assert {layer.media_type for layer in found.layers} <= manifest.LAYERS.keys()
            assert sum(layer.size for layer in found.layers) <= manifest.MAX_BLOB


def _check_descriptors(found: Sequence[manifest.Descriptor]) -> None:
    cache = BlobCache(Path("/cache"))
    for entry in found:
        assert 0 <= entry.size <= manifest.MAX_BLOB
        path = cache.path(entry.digest)
        assert os.path.normpath(path) == str(path)
        assert path.parent.parent == cache.root


def fuzz_config(data: bytes) -> None:
    with refused():
        found = config.parse_config(data, what="x")
        manifest.check_config(found, manifest.this_platform("x86_64"), layers=len(found.diff_ids), what="x")
        assert len(found.diff_ids) <= config.MAX_LAYERS
        words = (*found.entrypoint, *found.cmd, *found.env, found.working_dir, found.user)
        assert all("\0" not in word and len(word) <= config.MAX_WORD for word in words)
        kept, left = initramfs.fit_env(found.env)
        assert len(kept) + len(left) == len(found.env)
        assert all("\n" not in word for word in kept)
        for word in words:
            word.encode()


def fuzz_auth(data: bytes) -> None:
    """A file of credentials, a helper's answer, a token server's."""
    kind, body = (data[0] % 3, data[1:]) if data else (0, b"")
    with refused():
        if kind == 0:
            file = auth.parse_auth_file(body, what="x")
            for name in ("example.org", "localhost:5000", reference.DEFAULT_REGISTRY, "[::1]:5000"):
                found = file.lookup(name, "team/app")
                if isinstance(found, auth.Helper):
                    assert "/" not in found.name
                    assert not found.name.startswith((".", "-"))
                elif found:
                    _check_credential(found)
        elif kind == 1:
            answer = auth.parse_helper_answer(body, what="x")
            if answer:
                _check_credential(answer)
        else:
            assert auth.parse_token(body, what="x").isprintable()


def _check_credential(found: auth.Credential) -> None:
    assert (
        found.password not in repr(found) or found.password in f"Credential(username={found.username!r}, …)"
    )
    assert found.basic().isascii()
    for text in (found.username, found.password, found.identity_token, found.registry_token):
        assert not set(text) & set("\r\n\0")


def fuzz_challenge(data: bytes) -> None:
    """What a registry's headers say: challenges, where to go on, how long to wait, which part this is."""
    headers = [line.decode("utf-8", "surrogateescape") for line in data.split(b"\n")[:16]]
    for challenge in auth.parse_challenges(headers):
        assert challenge.scheme in ("basic", "bearer")
        assert challenge.scheme == "basic" or challenge.realm
        with refused():
            endpoint.check_hop("https://example.org/v2/", challenge.realm, endpoint.Access())
            scheme, host, _port = endpoint.origin(challenge.realm)
            assert scheme == "https"
            assert not reference.is_loopback(host)
    for header in headers:
        wait = transport._retry_after(header)
        assert wait is None or wait >= 0
        for source in ("http://localhost:5000/v2/x", "https://example.org/v2/x"):
            with refused():
                try:
                    target = urljoin(source, header)
                except ValueError:
                    target = ""
                endpoint.check_hop(source, target, endpoint.Access())
                scheme, host, _port = endpoint.origin(target)
                assert scheme == "https" or source.startswith("http:")
                assert source.startswith("http:") or not reference.is_loopback(host)


# --- layers


def fuzz_headers(data: bytes) -> None:
    data = with_right_sums(data)
    with refused(BadTar), in_memory(data) as descriptor:
        count = 0
        for header in tarheaders.read_headers(descriptor, 0, len(data)):
            count += 1
            _check_header(header, len(data))
        assert count <= len(data) // 512


def _check_header(header: Header, end: int) -> None:
    assert b"\0" not in header.name
    assert header.kind in tarheaders._KINDS
    assert 0 <= header.mode <= 0o7777
    assert min(header.uid, header.gid, header.size, *header.device) >= 0
    assert max(header.uid, header.gid, header.size, *header.device, abs(header.mtime)) <= 10**16
    if header.kind != tarheaders.FILE:
        assert not header.size
        return
    at = 0
    for offset, length, position in header.pieces or ():
        assert at <= offset
        assert length > 0
        at = offset + length
        assert 0 <= position <= position + length <= end
    assert at <= header.size
    if header.pieces is None:
        assert header.position + header.size <= end


def fuzz_layers(data: bytes) -> None:
    """Whole layers, plain or packed: the tar that comes out is one that tar reads, and nothing climbs."""
    with refused(), a_folder("layers") as folder:
        layers: list[manifest.Layer] = []
        for number, piece in enumerate(pieces(data)[:8]):
            blob = with_right_sums(piece)
            (folder / str(number)).write_bytes(blob)
            digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
            diff_id = hashlib.sha256(_unpacked(blob)).hexdigest()
            layers.append(
                manifest.Layer(
                    digest=digest,
                    diff_id=f"sha256:{diff_id}",
                    media_type=manifest.OCI_LAYER,
                    size=len(blob),
                    path=folder / str(number),
                )
            )
        out = io.BytesIO()
        made = flatten.flatten(layers, out, work=folder, limits=LIMITS)
        assert made.length == len(out.getvalue())
        assert made.entries <= LIMITS.entries
        _check_tree(out)


def _unpacked(blob: bytes) -> bytes:
    kind = compress.recognise(blob)
    try:
        return b"".join(compress.decompressed([blob], kind, limit=LIMITS.unpacked, what="x"))
    except ImageError:
        return b""


def _check_tree(out: io.BytesIO) -> None:
    """As tarfile reads it: folders before what is in them, link targets before links, each name once."""
    out.seek(0)
    found: dict[str, tarfile.TarInfo] = {}
    with tarfile.open(fileobj=out, mode="r:", errors="surrogateescape") as archive_:
        for info in archive_:
            assert info.name == "." or info.name.startswith("./"), info.name
            parts = info.name.split("/")
            assert not {"", ".."} & set(parts), info.name
            assert info.name not in found, info.name
            if len(parts) > 1:
                assert found["/".join(parts[:-1])].isdir(), info.name
            if info.islnk():
                target = found[info.linkname]
                assert not target.isdir()
                same = ("uid", "gid", "mode", "mtime")
                assert all(getattr(info, name) == getattr(target, name) for name in same)
            found[info.name] = info


NAMES = (
    *(b"a", b"b", b"a/b", b"a/b/c", b"b/c", b".wh.a", b"a/.wh.b", b"a/.wh..wh..opq", b".wh..wh..opq", b"/"),
    *(b"a/../b", b"./a/./b", b"a/b/.wh.c", b".wh..", b".wh..wh.aufs", b"n" * 255, b"a/" * 1200, b"\xff/\n"),
)
TARGETS = (b"a", b"b", b"../b", b"/a/b", b"a/b/c", b".", b"/", b"..", b"n" * 255, b"a/../../b", b"", b"b/c")
KINDS = (*sorted(tarheaders._KINDS), None)


def fuzz_tree(data: bytes) -> None:
    """The same without tars: four bytes an entry, so that changes make other trees and not broken ones."""
    tree = layertree.LayerTree(max_nodes=300, max_index=1 << 16, max_steps=5000)
    for at in range(0, len(data) - 3, 4):
        kind = KINDS[data[at] % len(KINDS)]
        if kind is None:
            tree.next_layer()
            continue
        name, target = NAMES[data[at + 1] % len(NAMES)], TARGETS[data[at + 2] % len(TARGETS)]
        header = Header(name, kind, data[at + 3] & 0o77, data[at + 3], 0, -1, target=target)
        if data[at + 3] & 64:
            header.xattrs = {b"user.x": bytes([data[at + 3]]), b"security.capability": b"1" * 20}
        try:
            tree.apply(header, -1)
        except (BadTar, layertree.TooLarge):
            return
    out = io.BytesIO()
    try:
        measured = treetar.measure(tree.root)
    except BadTar:
        return
    treetar.write_tree(tree.root, out)
    _check_tree(out)
    assert measured.inodes <= 301
    inodes = {id(inode): inode for _path, inode in layertree.walk(tree.root)}
    for inode in inodes.values():
        names = sum(child is inode for folder in _folders(tree.root) for child in folder.children.values())
        assert names == inode.names


def _folders(top: layertree.Folder) -> list[layertree.Folder]:
    below = [inode for _path, inode in layertree.walk(top) if isinstance(inode, layertree.Folder)]
    return [top, *below]


def fuzz_root(data: bytes) -> None:
    """The tar of a made root file system, rewritten for mke2fs."""
    with refused(), a_folder("root") as folder:
        source = io.BytesIO(with_right_sums(data))
        rootfs.rewrite(source, folder / "out", folder / "seed", add=[rootfs.TreeFile("etc/x", b"x")])
        for name in ("out", "seed"):
            with tarfile.open(folder / name, "r:") as made:
                for info in made:
                    assert info.name == "." or info.name.startswith("./")
                    assert ".." not in info.name.split("/")


def fuzz_stage(data: bytes) -> None:
    """The tar of a guest's folder, laid out on the host: only what may be there, and nowhere else."""
    data = with_right_sums(data)
    with a_folder("stage") as folder, in_memory(data) as descriptor:
        said: tuple[str, ...] = ()
        try:
            _, said = _unpack(descriptor, str(folder), most_bytes=1 << 20, stop=threading.Event())
        except WorkNotKept as error:
            said = (error.brief,)
        assert not any(letter in UNSAFE for text in said for letter in text)
        assert set(os.listdir(folder)) <= {"tree"}
        for where, folders, files in os.walk(folder):
            for name in (*folders, *files):
                mode = os.lstat(os.path.join(where, name)).st_mode
                assert stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISLNK(mode)
                assert stat.S_ISLNK(mode) or not mode & 0o7022


def fuzz_compress(data: bytes) -> None:
    """Whatever the steps it comes in, the same content or none; never more than the limit."""
    if len(data) < 2:
        return
    kinds = ("gzip", "xz", "lzma", "bzip2", "zstd", "lz4")
    kind, step, packed = kinds[data[0] % len(kinds)], 1 + data[1] % 64, data[2:]
    trailing = data[1] >= 128
    if trailing or kind != "lz4":
        whole = _content([packed], kind, trailing=trailing)
        stepped = _content(
            (packed[at : at + step] for at in range(0, len(packed), step)), kind, trailing=trailing
        )
        # libzstd is stricter with a broken frame that it has as a whole
        assert whole == stepped or (kind == "zstd" and whole is None), kind


def _content(chunks: Iterator[bytes] | list[bytes], kind: str, *, trailing: bool) -> bytes | None:
    limit = 8 << 20
    found = hashlib.sha256()
    length = 0
    try:
        for piece in compress.decompressed(iter(chunks), kind, limit=limit, what="x", trailing=trailing):
            assert len(piece) <= 8 << 20
            length += len(piece)
            found.update(piece)
    except ImageError:
        return None
    assert length <= limit
    return found.digest()


# --- files of images


_loop = asyncio.new_event_loop()


def fuzz_archive(data: bytes) -> None:
    """`image pull --file`: the index of names, and the whole of what comes behind it."""
    data = with_right_sums(data)
    with refused():
        index = tarindex.read_index(io.BytesIO(data), what="x")
        for name, member in index._members.items():
            assert 0 <= member.offset <= member.offset + member.size <= len(data)
            assert posixpath.normpath(name) == name or not name
    with refused(), a_folder("cache") as folder:
        image = _loop.run_until_complete(_load(data, folder / "blobs"))
        if image is not None:
            assert reference.is_digest(image.digest)
            assert not image.reference or image.reference.isprintable()


async def _load(data: bytes, root: Path) -> manifest.PulledImage | None:
    with BlobCache(root).lease() as lease:
        image = await oci_archive.load(
            io.BytesIO(data), lease=lease, what="x", platform=manifest.this_platform("x86_64")
        )
        for layer in image.layers:
            content = layer.path.read_bytes()
            assert f"sha256:{hashlib.sha256(content).hexdigest()}" == layer.digest or "512" in layer.digest
            assert len(content) == layer.size
        return image


# --- Debian's


def fuzz_deb(data: bytes) -> None:
    data = with_right_sums(data)
    with refused():
        for member in deb.ar_members(io.BytesIO(data), length=len(data)):
            assert 0 < member.offset <= member.offset + member.size <= len(data)
    with a_folder("deb") as folder:
        (folder / "x.deb").write_bytes(data)
        (folder / "out").mkdir()
        with refused():
            written = deb.extract(folder / "x.deb", folder / "out", lambda path: path)
            assert len(written) == len(set(written))
        assert sorted(os.listdir(folder)) == ["out", "x.deb"]
        for path in (folder / "out").rglob("*"):
            mode = path.lstat().st_mode
            assert stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISLNK(mode)
            if path.is_symlink():
                assert "/" not in os.readlink(path)
            else:
                assert stat.S_IMODE(mode) in (0o755, 0o644)


def fuzz_deb822(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    with refused():
        for fields in deb822.parse_paragraphs(text):
            archive._check_age(fields, "bookworm")
            with refused():
                package = archive._package(fields, "bookworm")
                assert ".." not in package.filename.split("/")
                assert package.filename.startswith("pool/")
                assert 0 <= package.size <= archive.MAX_DEB
    with refused():
        for fields in deb822.find_paragraphs(data, "Package", "x"):
            assert "x" in fields["package"].split("\n")
    with refused():
        for _digest, size in deb822.parse_sums(text).values():
            assert size >= 0
    for name, version in deb822.parse_depends(text):
        assert "," not in name + version
    left, _, right = text[:2000].partition("\n")
    assert deb822.compare_versions(left, right) == -deb822.compare_versions(right, left)
    assert deb822.compare_versions(left, left) == 0


def fuzz_sources(data: bytes) -> None:
    """The host's own files of apt: broken ones are nobody's attack, but no reason to fall over either."""
    text = data.decode("utf-8", "replace")
    sources.parse_os_release(text)
    for read in (sources.parse_deb822_sources, sources.parse_list_sources):
        for uri, _suites, _components in read(text):
            with refused():
                sources.normalise_mirror(uri)
    with a_folder("etc") as folder, refused():
        (folder / "etc/apt").mkdir(parents=True)
        (folder / "etc/os-release").write_text("ID=debian\nVERSION_CODENAME=bookworm\n")
        (folder / "etc/apt/sources.list").write_bytes(data)
        assert sources.find_mirror("", root=folder).startswith("http")
    sources.parse_apt_proxies(text).for_url("http://example.org/x")


# --- kernels


def fuzz_kernel(data: bytes) -> None:
    with refused():
        kernel = bzimage.extract_kernel(data)
        trimmed = elf.trim_kernel(kernel)
        assert len(trimmed) <= len(kernel)
        before, after = elf.segments(kernel), elf.segments(trimmed)
        assert [(part.kind, part.offset, part.memory_size) for part in before] == [
            (part.kind, part.offset, part.memory_size) for part in after
        ]


def fuzz_module(data: bytes) -> None:
    with refused():
        for key, values in elf.module_info(data).items():
            assert "=" not in key
            assert values


def fuzz_cpio(data: bytes) -> None:
    """A writer, of names that an image's config and a VM's files give it: what it wrote is read again."""
    writer = CpioWriter()
    wanted: dict[bytes, bytes] = {}
    for number, piece in enumerate(pieces(data)):
        name, _, content = piece.partition(b"\xff")
        text = name.decode("utf-8", "surrogateescape")
        with refused():
            if number % 2:
                writer.add_folder(text)
            else:
                writer.add_file(text, content)
                wanted[name.strip(b"/")] = content
    found = dict(_read_cpio(writer.finish()))
    assert {name: found[name] for name in wanted} == wanted


def _read_cpio(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    assert len(data) % 512 == 0
    at = 0
    seen: set[bytes] = set()
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        size, length = fields[6], fields[11]
        name = data[at + 110 : at + 110 + length]
        assert name.endswith(b"\0")
        name = name[:-1]
        assert b"\0" not in name
        begin = (at + 110 + length + 3) & -4
        content = data[begin : begin + size]
        at = (begin + size + 3) & -4
        if name == b"TRAILER!!!":
            assert not data[at:].strip(b"\0")
            return
        assert name not in seen
        assert not {b"", b".", b".."} & set(name.split(b"/"))
        parent = name.rpartition(b"/")[0]
        assert not parent or parent in seen
        seen.add(name)
        yield name, content


def target(name: str) -> Callable[[bytes], None]:
    found: Callable[[bytes], None] = getattr(sys.modules[__name__], f"fuzz_{name}")
    return found
