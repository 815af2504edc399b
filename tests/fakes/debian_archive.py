"""A small Debian archive with a memory: real signatures, real indexes, real .debs, served on loopback.

`FakeArchive.start()` makes a throw-away signing key and serves `files` over HTTP with ranges and
by-hash. `faults` maps a path to what goes wrong there, and `requests` remembers what was asked.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from backports import zstd


@dataclass(frozen=True)
class Entry:
    """A member of a .deb's data. kind: tarfile's type; target: of a link."""

    name: str
    content: bytes = b""
    mode: int = 0o644
    kind: bytes = tarfile.REGTYPE
    target: str = ""


def make_tar(entries: Sequence[Entry]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.mode, info.linkname = entry.kind, entry.mode, entry.target
            info.size = len(entry.content)
            archive.addfile(info, io.BytesIO(entry.content))
    return out.getvalue()


def make_ar(members: Sequence[tuple[str, bytes]]) -> bytes:
    out = bytearray(b"!<arch>\n")
    for name, content in members:
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) & 1)
    return bytes(out)


_PACKERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "xz": (".xz", lambda data: lzma.compress(data, preset=0)),
    "gzip": (".gz", gzip.compress),
    "zstd": (".zst", zstd.compress),
    "none": ("", lambda data: data),
}


def make_deb(entries: Sequence[Entry], *, compression: str = "xz") -> bytes:
    data = make_tar(entries)
    suffix, pack = _PACKERS[compression]
    return make_ar(
        [
            ("debian-binary", b"2.0\n"),
            ("control.tar.xz", lzma.compress(make_tar([]), preset=0)),
            (f"data.tar{suffix}", pack(data)),
        ]
    )


class SigningKey:
    """A GnuPG home with one key; `keyring` is what gpgv takes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(mode=0o700)
        self._gpg(
            "--passphrase", "", "--quick-gen-key", "Archive <archive@example.org>", "ed25519", "sign", "never"
        )
        self.keyring = home / "archive.gpg"
        self.keyring.write_bytes(self._gpg("--export"))

    def clearsign(self, text: bytes) -> bytes:
        return self._gpg("--clearsign", input=text)

    def close(self) -> None:
        subprocess.run(
            ["gpgconf", "--homedir", str(self.home), "--kill", "all"],
            check=True,
            timeout=60,
            capture_output=True,
        )
        shutil.rmtree(self.home, ignore_errors=True)

    def _gpg(self, *words: str, input: bytes = b"") -> bytes:
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--yes", "--pinentry-mode=loopback", *words]
        done = subprocess.run(argv, input=input, capture_output=True, timeout=60, check=True)
        return done.stdout


@dataclass
class FakeArchive:
    """files: path below /debian → bytes.

    faults: path → "404", "truncate" (once), "break" (always), "no-ranges", "corrupt" or "endless".
    """

    key: SigningKey
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """(path, Range header)"""
    base: str = ""
    _packages: dict[str, list[str]] = field(default_factory=dict)
    _runner: web.AppRunner | None = None

    def add_deb(
        self,
        name: str,
        content: bytes,
        *,
        suite: str,
        version: str = "1.0-1",
        depends: str = "",
        filename: str = "",
    ) -> str:
        """Put a package into a suite; returns its path. filename: what the index says instead."""
        path = f"pool/main/{name[0]}/{name}/{name}_{version.replace(':', '%3a')}_amd64.deb"
        self.files[path] = content
        digest = hashlib.sha256(content).hexdigest()
        paragraph = (
            f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
            + (f"Depends: {depends}\n" if depends else "")
            + f"Filename: {filename or path}\nSize: {len(content)}\nSHA256: {digest}\n"
        )
        self._packages.setdefault(suite, []).append(paragraph)
        return path

    def publish(self, suite: str, *, fields: str = "", codename: str = "", compression: str = "xz") -> None:
        """Write the suite's index and its signed Release file."""
        text = "\n".join(self._packages.get(suite, [])).encode()
        packed, suffix = (
            (lzma.compress(text, preset=0), ".xz") if compression == "xz" else (gzip.compress(text), ".gz")
        )
        path = f"main/binary-amd64/Packages{suffix}"
        digest = hashlib.sha256(packed).hexdigest()
        self.files[f"dists/{suite}/{path}"] = packed
        self.files[f"dists/{suite}/main/binary-amd64/by-hash/SHA256/{digest}"] = packed
        release = (
            f"Origin: Debian\nSuite: {suite}\nCodename: {codename or suite}\n{fields}"
            f"SHA256:\n {digest} {len(packed)} {path}\n"
        )
        self.files[f"dists/{suite}/InRelease"] = self.key.clearsign(release.encode())

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/debian/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.base = f"http://{host}:{port}/debian"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        asked = request.headers.get("Range", "")
        self.requests.append((path, asked))
        fault = self.faults.get(path, "")
        content = self.files.get(path)
        if content is None or fault == "404":
            raise web.HTTPNotFound
        if fault == "corrupt":
            content = bytes([content[0] ^ 1]) + content[1:]
        status, headers, begin = 200, {}, 0
        if asked.startswith("bytes=") and fault != "no-ranges":
            begin = int(asked.removeprefix("bytes=").partition("-")[0])
            status, headers = 206, {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
        response = web.StreamResponse(status=status, headers=headers)
        body = content[begin:]
        if fault == "endless":
            response.enable_chunked_encoding()
            await response.prepare(request)
            for _ in range(64):
                await response.write(body + bytes(1 << 16))
            return response
        response.content_length = len(body)
        await response.prepare(request)
        if fault == "truncate":  # the connection breaks in the middle, once
            del self.faults[path]
            await response.write(body[: len(body) // 2])
            assert request.transport is not None
            request.transport.close()
            return response
        if fault == "break":  # and this one at every try, without bringing anything
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(body)
        return response
