"""What the image readers' fuzzer begins with: files that tar, dpkg-deb and compressors made, good documents.

And, in FOUND, inputs that once broke something: they are tried in each run.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import json
import lzma
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.block
from backports import zstd

from banger.image.oci import manifest as m
from banger.image.oci.reference import DEFAULT_REGISTRY
from tests.fakes.debian_archive import Entry, make_deb
from tests.fakes.kernels import make_bzimage, make_elf, make_module
from tests.fakes.registry import digest_of, tar_of
from tests.fuzz.seeds import archive, piece

DIGEST = f"sha256:{'0123456789abcdef' * 4}"
WORDS = (
    *(b"schemaVersion", b"mediaType", b"manifests", b"layers", b"config", b"digest", b"size", b"platform"),
    *(b"architecture", b"amd64", b"linux", b"rootfs", b"diff_ids", b"Entrypoint", b"Cmd", b"Env", b"null"),
    *(
        b"auths",
        b"credHelpers",
        b"credsStore",
        b"identitytoken",
        b"Username",
        b"Secret",
        b"token",
        b"\\u0000",
    ),
    *(b"Bearer realm=", b"Basic", b"service=", b"bytes 0-1/2", b"//", b"http://", b"https://", b"[::1]"),
    *(b"ustar\0", b"ustar  \0", b"././@LongLink", b"30 mtime=1.5\n", b"SCHILY.xattr.", b"LIBARCHIVE.xattr."),
    *(b"GNU.sparse.major", b"GNU.sparse.map", b"GNU.sparse.realsize", b"path=", b"linkpath=", b"size="),
    *(b".wh.", b".wh..wh..opq", b"..", b"!<arch>\n", b"debian-binary   ", b"data.tar.xz     ", b"HdrS"),
    *(b"manifest.json", b"index.json", b"oci-layout", b"blobs/sha256/", b"repositories", b"\x7fELF\2\1\1"),
    *(b"Package: x\n", b"SHA256:", b"Depends:", b"Valid-Until:", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"),
    *(DIGEST.encode(), b"sha512:", m.OCI_MANIFEST.encode(), m.OCI_LAYER.encode(), m.OCI_CONFIG.encode()),
)
"""The fuzzer's dictionary: what it would not find by chance."""


def _pax(records: bytes) -> bytes:
    """A file behind a pax header; sums come with the target."""

    def header(kind: bytes, size: int) -> bytes:
        numbers = b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % size + b"00000000000\0"
        return (b"x".ljust(100, b"\0") + numbers + b" " * 8 + kind + bytes(100) + b"ustar\x0000").ljust(
            512, b"\0"
        )

    return header(b"x", len(records)) + records.ljust(512, b"\0") + header(b"0", 0) + bytes(1024)


FOUND: dict[str, list[bytes]] = {
    # an address in brackets that is none
    "reference": [b"[0:1]:5000/x"],
    # a host name that speaks to the terminal, in an error
    "challenge": [b'Bearer realm="https://\x1b[2Jexample.org/token"'],
    # a folder replaced by a file: the names below it counted on
    "tree": [b"\x05\0\0\0\x00\x01\0\0\x01\x02\x01\0\x00\0\0\0"],
    # tarfile's own errors are not all TarErrors
    "root": [_pax(b"22 GNU.sparse.map=0,x\n")],
    # a package whose name speaks to the terminal; a field twice, of which readers take different ones
    "deb822": [
        b"Package: x\x1b[2J\nSize: y\n",
        b"Package: x\x1b[2J\nSize: 1\nSHA256: %s\n" % (b"0" * 64),
        b"Package: x\n\nPackage: x\nPackage: y\n\n",
    ],
    "sources": [b"deb http://[x/debian bookworm main\n"],
}


def of(target: str) -> list[bytes]:
    """Seeds of a target, and what was once found with it."""
    return [*_MAKERS.get(target, lambda: [b"seed"])(), *FOUND.get(target, [])]


def _described(media_type: str, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": DIGEST, "size": 7, **more}


def _references() -> list[bytes]:
    names = ("alpine", f"{DEFAULT_REGISTRY}/library/alpine:3", "localhost:5000/a/b_c__d-e.f:v1")
    return [
        name.encode() for name in (*names, f"[::1]:5000/x@{DIGEST}", f"example.org/t/a:v1@{DIGEST}", "A/b")
    ]


def _manifests() -> list[bytes]:
    layers = [_described(kind) for kind in m.LAYERS]
    image = {
        "schemaVersion": 2,
        "mediaType": m.OCI_MANIFEST,
        "config": _described(m.OCI_CONFIG),
        "layers": layers,
    }
    platforms = [
        {"os": "linux", "architecture": name, "variant": "v8"} for name in ("amd64", "arm64", "unknown")
    ]
    entries = [
        _described(m.OCI_MANIFEST, platform=platform, annotations={"a": "b"}) for platform in platforms
    ]
    index = {"schemaVersion": 2, "manifests": [*entries, _described(m.OCI_INDEX)]}
    return [bytes([kind]) + json.dumps(document).encode() for kind in range(3) for document in (image, index)]


def _configs() -> list[bytes]:
    run = {
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["x"],
        "Env": ["A=b", "PATH=/bin", "X", "N=a\nb"],
        "User": "7:8",
        "WorkingDir": "/srv",
        "Labels": {"a": "b"},
        "StopSignal": "SIGTERM",
        "ExposedPorts": {"80/tcp": {}},
    }
    whole: dict[str, object] = {
        "architecture": "amd64",
        "os": "linux",
        "config": run,
        "history": [{"created_by": "x"}],
    }
    whole["rootfs"] = {"type": "layers", "diff_ids": [DIGEST, DIGEST]}
    small: dict[str, object] = {"config": None, "rootfs": {}}
    return [json.dumps(document).encode() for document in (whole, small, {})]


def _auths() -> list[bytes]:
    auths = {
        "example.org": {"auth": "YTpi"},
        "https://example.org/v1/": {"username": "a", "password": "b"},
        "example.org/team": {"identitytoken": "t", "registrytoken": "r"},
        "localhost:5000": None,
    }
    file = {"auths": auths, "credHelpers": {"[::1]:5000": "pass"}}
    answers = [{"Username": "a", "Secret": "b"}, {"Username": "<token>", "Secret": "b", "ServerURL": "x"}]
    tokens: list[dict[str, Any]] = [{"token": "abc", "expires_in": 300}, {"access_token": "abc"}]
    kinds: dict[int, list[dict[str, Any]]] = {
        0: [file, {"credsStore": "secretservice"}],
        1: answers,
        2: tokens,
    }
    return [bytes([kind]) + json.dumps(one).encode() for kind, many in kinds.items() for one in many]


def _challenges() -> list[bytes]:
    return [
        b'Bearer realm="https://example.org/token",service="s",scope="repository:a:pull"\nBasic realm=x',
        b'Negotiate, Digest realm="a\\"b", nonce=x\nBasic realm="x", Bearer realm=https://example.org',
        b"https://example.org/blob?sig=a%2Fb\n//localhost/x\n/relative\n../up\nhttp://127.0.0.1/",
        b"Sat, 21 Nov 2026 10:00:00 GMT\n120\n-1",
    ]


@functools.cache
def _tars() -> tuple[bytes, ...]:
    """Of GNU tar, in all its forms, with sparse files, attributes, long names, links, whiteouts."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "d/deep").mkdir(parents=True)
        (root / "d/file").write_text("contents")
        (root / "d" / ("n" * 120)).write_text("")
        (root / "d/hard").hardlink_to(root / "d/file")
        (root / "d/soft").symlink_to("../" + "t" * 120)
        (root / "d/.wh.gone").write_text("")
        (root / ".wh..wh..opq").write_text("")
        with (root / "d/sparse").open("wb") as file:
            for at in (8192, 65536, 200_000):
                file.seek(at)
                file.write(b"island")
            file.truncate(300_000)
        made: list[bytes] = []
        for words in (
            ("--format=gnu", "--sparse"),
            ("--format=v7", "--exclude=*n*"),
            ("--format=ustar", "--exclude=*n*", "--exclude=soft"),
            *(
                ("--format=posix", "--sparse", f"--sparse-version={version}")
                for version in ("0.0", "0.1", "1.0")
            ),
        ):
            argv = ["tar", "-c", *words, "--owner=7", "--group=8", "--mtime=@-1.5", "-b1", "-C", name, "."]
            done = subprocess.run(argv, capture_output=True, timeout=30, check=False)
            made.append(done.stdout)
    return (*made, archive(), tar_of({"a": b"one", "d/b": b"two"}))


def _layers() -> list[bytes]:
    tars = _tars()
    packed = [gzip.compress(tars[0]), zstd.compress(tars[1]), tars[3]]
    pairs = [piece(tars[2]) + piece(tars[3]), piece(packed[0]) + piece(packed[1]) + piece(packed[2])]
    return [*map(piece, tars), *pairs]


def _trees() -> list[bytes]:
    return [
        bytes(range(256)),
        bytes(number * 7 % 256 for number in range(400)),
        b"\5\0\0\0\0\1\0\0\1\2\0\0\7\0\0\0" * 4,
    ]


def _packed() -> list[bytes]:
    data = _tars()[0]
    block = lz4.block.compress(data, store_size=False)
    skippable = struct.pack("<II", 0x184D2A50, 5) + b"12345"
    made = [
        (0, gzip.compress(data) + gzip.compress(b"more")),
        (1, lzma.compress(data, preset=0)),
        (2, lzma.compress(data, lzma.FORMAT_ALONE, preset=0)),
        (3, bz2.compress(data)),
        (4, zstd.compress(data)),
        (4, skippable + zstd.compress(data) + skippable + zstd.compress(b"more") + skippable),
        (5, struct.pack("<II", 0x184C2102, len(block)) + block + b"tail"),
    ]
    return [bytes([kind, step]) + packed for kind, packed in made for step in (7, 200)]


def _archives() -> list[bytes]:
    one, two = tar_of({"a": b"one"}), gzip.compress(tar_of({"b": b"two"}), mtime=0)
    diff_ids = [digest_of(one), digest_of(gzip.decompress(two))]
    config = json.dumps(
        {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    ).encode()
    blobs = [config, one, two]
    layers = [
        {"mediaType": kind, "digest": digest_of(blob), "size": len(blob)}
        for kind, blob in ((m.OCI_LAYER, one), (f"{m.OCI_LAYER}+gzip", two))
    ]
    described = {"mediaType": m.OCI_CONFIG, "digest": digest_of(config), "size": len(config)}
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": m.OCI_MANIFEST, "config": described, "layers": layers}
    ).encode()
    blobs.append(manifest)
    entry = {"mediaType": m.OCI_MANIFEST, "digest": digest_of(manifest), "size": len(manifest)}
    entry["annotations"] = {"org.opencontainers.image.ref.name": "app:v1"}
    layout = {f"blobs/sha256/{digest_of(blob)[7:]}": blob for blob in blobs}
    layout["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    layout["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    saved = [{"Config": "c.json", "RepoTags": ["app:v1"], "Layers": ["1/layer.tar", "2.tar"]}]
    docker = {"manifest.json": json.dumps(saved).encode(), "c.json": config, "1/layer.tar": one, "2.tar": two}
    return [tar_of(layout), tar_of(docker), gzip.compress(tar_of(docker)), *_tars()[:2]]


def _debs() -> list[bytes]:
    entries = [
        Entry("./usr/bin/x", b"program", mode=0o755),
        Entry("./usr/lib/libx.so.1", b"library"),
        Entry("./usr/lib/libx.so", kind=b"2", target="libx.so.1"),
    ]
    made = [make_deb(entries, compression=kind) for kind in ("none", "none", "gzip", "xz", "zstd")]
    if shutil.which("dpkg-deb"):
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "DEBIAN").mkdir()
            control = (
                "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
            )
            (Path(name) / "DEBIAN/control").write_text(control)
            (Path(name) / "usr/share").mkdir(parents=True)
            (Path(name) / "usr/share/x").write_text("content")
            argv = ["dpkg-deb", "-Znone", "--uniform-compression", "--build", name, f"{name}/x.deb"]
            subprocess.run(argv, capture_output=True, timeout=30, check=True)
            made.append((Path(name) / "x.deb").read_bytes())
    return made


def _paragraphs() -> list[bytes]:
    package = (
        f"Package: x\nVersion: 1:2.0~rc1-3\nArchitecture: amd64\nFilename: pool/main/x/x_2.deb\nSize: 77\n"
        f"SHA256: {DIGEST[7:]}\nDepends: libc6 (>= 2.36), y (= 1) | z, w:any\nDescription: a\n b\n .\n"
    )
    release = (
        f"Suite: bookworm\nCodename: bookworm\nValid-Until: Sat, 21 Nov 2099 10:00:00 UTC\nSHA256:\n"
        f" {DIGEST[7:]} 12 main/binary-amd64/Packages.xz\n"
    )
    lines = f"{DIGEST[7:]} 12 main/binary-amd64/Packages.xz\n"
    return [
        text.encode() for text in (f"{package}\n{package}", release, lines, "1.0~rc1-1\n1:1.0+b2-1", "# x\n")
    ]


def _sources() -> list[bytes]:
    return [
        b"Types: deb\nURIs: https://example.org/debian\nSuites: bookworm\nComponents: main\nSigned-By: /x\n",
        b"deb [arch=amd64 signed-by=/x] http://example.org/debian bookworm main # remark\ndeb-src x y z\n",
        b"ID=debian\nVERSION_CODENAME=\"bookworm\"\nPRETTY_NAME='Debian'\n",
        b'Acquire::http::Proxy "http://localhost:3142";\nAcquire::https::Proxy::example.org "DIRECT";\n',
    ]


def _kernels() -> list[bytes]:
    elf = make_elf([(0x1000, b"code" * 500, 40_000), (0x9000, bytes(5000), 9000)], behind=b"symbols")
    length = struct.pack("<I", len(elf))
    block = lz4.block.compress(elf, store_size=False)
    payloads = [gzip.compress(elf), lzma.compress(elf, preset=0) + length, zstd.compress(elf) + length]
    payloads += [struct.pack("<II", 0x184C2102, len(block)) + block + length, elf, bz2.compress(elf) + length]
    payloads.append(lzma.compress(elf, lzma.FORMAT_ALONE, preset=0) + length)
    return [*map(make_bzimage, payloads), elf]


def _modules() -> list[bytes]:
    return [
        make_module("x", "y,z"),
        make_module("x", extra=b"alias=a\0softdep=pre: b\0"),
        make_elf([(0, b"x", 1)]),
    ]


def _cpios() -> list[bytes]:
    names = (
        b"init\xffcontent",
        b"banger",
        b"a/link\xff../target",
        b"a/b/c\xff" + b"x" * 700,
        b"a/b",
        b"d/l\xff/x",
    )
    return [b"".join(map(piece, names)), piece(b"../x\xffy") + piece(b"/a//b")]


_MAKERS: dict[str, Callable[[], list[bytes]]] = {
    "reference": _references,
    "manifest": _manifests,
    "config": _configs,
    "auth": _auths,
    "challenge": _challenges,
    "headers": lambda: list(_tars()),
    "layers": _layers,
    "tree": _trees,
    "root": lambda: list(_tars()),
    "stage": lambda: list(_tars()),
    "compress": _packed,
    "archive": _archives,
    "deb": _debs,
    "deb822": _paragraphs,
    "sources": _sources,
    "kernel": _kernels,
    "module": _modules,
    "cpio": _cpios,
}
