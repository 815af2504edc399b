"""The one client of Debian's archive: from a signature to a checked .deb.

InRelease → gpgv with Debian's own keyring → the package index, checked by the InRelease's SHA256 →
the .deb, checked by the index's. Nothing is believed that this chain does not cover. Kernel, tools
and (by mmdebstrap, with the same mirror and keyring) the default image come this way. Downloads are
kept by digest in Paths.downloads_dir; a crash leaves parts there, which the next run continues.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

from banger.image import compress, deb822, sources
from banger.image.errors import download_failed, invalid, not_found, unsuitable
from banger.image.fetch import Fetcher
from banger.image.staging import remove_tree
from banger.model.progress import Progress, ProgressEvent, no_progress
from banger.system.run import run

log = logging.getLogger("banger.archive")

KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
MAX_INRELEASE = 4 << 20
MAX_INDEX = 64 << 20
MAX_INDEX_UNPACKED = 512 << 20
MAX_DEB = 1 << 30
MAX_STALE = timedelta(days=90)
"""A Release file past its Valid-Until is used with a warning for this long (mirrors and caches lag;
Debian signs testing's for a week only), then refused: it would hide every later fix."""

DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_SUITE = re.compile(r"[a-z][a-z0-9+.-]{0,63}")
_POOL_PATH = re.compile(r"pool/[A-Za-z0-9+._~/%:-]{1,500}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Package:
    """A binary package as a signed index names it. size in bytes; depends: see deb822.parse_depends."""

    name: str
    version: str
    architecture: str
    suite: str
    filename: str
    size: int
    sha256: str
    depends: tuple[tuple[str, str], ...] = ()


class Archive:
    """A session with the archive. `Archive.open` makes one; indexes are held while it is open."""

    def __init__(
        self, fetcher: Fetcher, *, mirror: str, keyring: Path, work: Path, component: str = "main"
    ) -> None:
        self.mirror = mirror
        self.keyring = keyring
        self._fetcher = fetcher
        self._work = work
        self._component = component
        self._indexes: dict[tuple[str, str], bytes] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, downloads_dir: str | Path, *, mirror: str = "", keyring: Path | None = None
    ) -> AsyncIterator[Archive]:
        """mirror: settings.debian_mirror; "" takes the one that the host's apt uses."""
        directory = Path(downloads_dir)
        keyring = find_keyring((keyring,) if keyring else KEYRINGS)
        base = await asyncio.to_thread(sources.find_mirror, mirror)
        await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
        async with Fetcher(directory, proxies=await sources.apt_proxies()) as fetcher:
            yield cls(fetcher, mirror=base, keyring=keyring, work=directory)

    async def find(
        self, name: str, *, suite: str, architecture: str, version: str = "", progress: Progress = no_progress
    ) -> Package:
        """The newest package of that name (or exactly `version`) in a suite; NOT_FOUND otherwise."""
        index = await self._index(suite, architecture, progress)
        best: Package | None = None
        for fields in await asyncio.to_thread(lambda: list(deb822.find_paragraphs(index, "Package", name))):
            package = _package(fields, suite)
            if package.architecture not in (architecture, "all") or (version and package.version != version):
                continue
            if best is None or deb822.compare_versions(package.version, best.version) > 0:
                best = package
        if best is None:
            wanted = f"{name} {version}".strip()
            raise not_found(f"Debian's {suite} has no package {wanted} for {architecture}")
        return best

    async def download(self, package: Package, *, progress: Progress = no_progress, step: str = "") -> Path:
        """The package's .deb, checked, in the downloads folder (named by its digest)."""
        try:
            return await self._fetcher.fetch(
                f"{self.mirror}/{package.filename}",
                sha256=package.sha256,
                size=package.size,
                step=step or "download",
                message=f"downloading {package.name} {package.version}",
                progress=progress,
            )
        except FileNotFoundError as error:
            raise download_failed(
                f"{self.mirror} does not have {package.filename}, which its own index names",
                hint="a mirror in the middle of an update: try again later",
            ) from error

    async def _index(self, suite: str, architecture: str, progress: Progress) -> bytes:
        known = self._indexes.get((suite, architecture))
        if known is not None:
            return known
        if not _SUITE.fullmatch(suite):
            raise invalid(f"not the name of a Debian suite: {suite!r}")
        progress(ProgressEvent(step="index", message=f"reading Debian's {suite} package index"))
        sums = deb822.parse_sums((await self._release(suite)).get("sha256", ""))
        for suffix, kind in ((".xz", "xz"), (".gz", "gzip")):
            path = f"{self._component}/binary-{architecture}/Packages{suffix}"
            if path not in sums:
                continue
            digest, size = sums[path]
            if size > MAX_INDEX:
                raise invalid(f"the package index of {suite} is said to have {size} bytes")
            file = await self._fetch_index(suite, path, digest=digest, size=size, progress=progress)
            index = await asyncio.to_thread(_unpack_index, file, kind, f"the package index of {suite}")
            self._indexes[suite, architecture] = index
            return index
        raise invalid(f"the Release file of {suite} names no package index for {architecture}")

    async def _fetch_index(
        self, suite: str, path: str, *, digest: str, size: int, progress: Progress
    ) -> Path:
        """By hash first: that name's content cannot change while a mirror is updated."""
        folder = f"{self.mirror}/dists/{suite}/{path.rpartition('/')[0]}"
        for url in (f"{folder}/by-hash/SHA256/{digest}", f"{self.mirror}/dists/{suite}/{path}"):
            try:
                return await self._fetcher.fetch(
                    url,
                    sha256=digest,
                    size=size,
                    step="index",
                    message=f"downloading Debian's {suite} package index",
                    progress=progress,
                )
            except FileNotFoundError:
                continue
        raise download_failed(f"{self.mirror} has no package index for {suite}")

    async def _release(self, suite: str) -> dict[str, str]:
        """The fields of a suite's Release file, once its signature is known to be Debian's."""
        url = f"{self.mirror}/dists/{suite}/InRelease"
        try:
            signed = await self._fetcher.read(url, limit=MAX_INRELEASE)
        except FileNotFoundError as error:
            raise download_failed(
                f"{self.mirror} has no suite {suite}", hint="is it a full mirror of Debian's archive?"
            ) from error
        text = await verify_clearsigned(signed, keyring=self.keyring, work=self._work, what=url)
        fields = deb822.parse_paragraph(text.decode("utf-8", "replace"))
        if suite not in (fields.get("suite"), fields.get("codename")):
            raise invalid(
                f"{url} is signed, but for {fields.get('codename') or 'no suite'}",
                hint="the mirror serves the wrong files",
            )
        _check_age(fields, suite)
        return fields


OpenArchive = Callable[[], AbstractAsyncContextManager[Archive]]
"""How the services get a session when they need one (tests give another archive)."""


def find_keyring(candidates: tuple[Path, ...] = KEYRINGS) -> Path:
    """Debian's archive keys on this host; HOST_UNSUITABLE where they are not installed."""
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise unsuitable(
        f"Debian's archive keys are not on this host: no {candidates[0]}",
        hint="install the package debian-archive-keyring",
    )


def debian_architecture() -> str:
    """This machine's name in Debian; HOST_UNSUITABLE on others than x86_64 and aarch64."""
    machine = os.uname().machine
    if machine not in DEBIAN_ARCHITECTURES:
        raise unsuitable(f"banger does not run on {machine} machines")
    return DEBIAN_ARCHITECTURES[machine]


async def verify_clearsigned(signed: bytes, *, keyring: Path, work: Path, what: str) -> bytes:
    """The text that a key of the keyring signed: what gpgv gives out, never what was sent.

    One signature of a known, unexpired key suffices (Debian signs with several, older hosts do not
    know the newest); one that is bad is fatal. Exactly one signed block and nothing around it.
    """
    stripped = signed.strip()
    if (
        not stripped.startswith(b"-----BEGIN PGP SIGNED MESSAGE-----")
        or not stripped.endswith(b"-----END PGP SIGNATURE-----")
        or stripped.count(b"-----BEGIN PGP SIGNED MESSAGE-----") != 1
        or stripped.count(b"-----BEGIN PGP SIGNATURE-----") != 1
    ):
        raise invalid(f"{what} is not one signed message")
    folder = work / f".verify-{id(signed):x}-{asyncio.current_task().__hash__():x}"
    await asyncio.to_thread(remove_tree, folder)
    folder.mkdir(mode=0o700)
    try:
        (folder / "signed").write_bytes(signed)
        done = await run(
            [
                "gpgv",
                "--status-fd=1",
                f"--keyring={keyring.resolve()}",
                f"--output={folder / 'text'}",
                str(folder / "signed"),
            ],
            timeout_s=30,
            env={"GNUPGHOME": str(folder)},
            check=False,
        )
        words = [line.split() for line in done.stdout.decode("utf-8", "replace").splitlines()]
        kinds = [line[1] for line in words if len(line) > 1 and line[0] == "[GNUPG:]"]
        if "GOODSIG" not in kinds or "VALIDSIG" not in kinds or "BADSIG" in kinds:
            raise invalid(
                f"{what} is not signed by a key in {keyring.name}",
                details=done.stderr.decode("utf-8", "replace"),
                hint="an outdated debian-archive-keyring, or a mirror that is not Debian's",
            )
        return await asyncio.to_thread((folder / "text").read_bytes)
    finally:
        await asyncio.to_thread(remove_tree, folder)


def _check_age(fields: dict[str, str], suite: str) -> None:
    until = fields.get("valid-until")
    if not until:
        return
    try:
        moment = parsedate_to_datetime(until)
    except ValueError as error:
        raise invalid(f"the Release file of {suite} has a broken Valid-Until: {until!r}") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    age = datetime.now(UTC) - moment
    if age > MAX_STALE:
        raise invalid(
            f"the mirror's copy of {suite} has been out of date for {age.days} days",
            hint="choose another mirror with debian_mirror in config.toml; is the host's clock right?",
        )
    if age > timedelta(0):
        log.warning("the mirror's copy of %s was valid until %s", suite, until)


def _unpack_index(file: Path, kind: str, what: str) -> bytes:
    with file.open("rb") as stream:
        chunks = iter(lambda: stream.read(compress.STEP), b"")
        return b"".join(compress.decompressed(chunks, kind, limit=MAX_INDEX_UNPACKED, what=what))


def _package(fields: dict[str, str], suite: str) -> Package:
    name, size = fields.get("package", ""), fields.get("size", "")
    filename, digest = fields.get("filename", ""), fields.get("sha256", "")
    if not size.isascii() or not size.isdigit() or not _SHA256.fullmatch(digest):
        raise invalid(f"the index of {suite} has no size or digest for {name[:100]!a}")
    if not _POOL_PATH.fullmatch(filename) or ".." in filename.split("/"):
        raise invalid(f"the index of {suite} has a strange path for {name[:100]!a}: {filename[:200]!a}")
    if int(size) > MAX_DEB:
        raise invalid(f"{name[:100]!a} of {suite} is said to have {size} bytes")
    depends = ", ".join(filter(None, (fields.get("pre-depends"), fields.get("depends"))))
    return Package(
        name=name,
        version=fields.get("version", ""),
        architecture=fields.get("architecture", ""),
        suite=suite,
        filename=filename,
        size=int(size),
        sha256=digest,
        depends=tuple(deb822.parse_depends(depends)),
    )
