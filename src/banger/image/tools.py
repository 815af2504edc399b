"""Programs that the host's release lacks, from Debian's archive into banger's own tools folder.

A program found on PATH that works wins; else the catalog's packages are fetched (archive.py) and the
listed files unpacked into Paths.tools_dir/<tool>/, published by rename. Nothing is installed into the
system. Libraries that came along are found through LD_LIBRARY_PATH, which each Tool carries.
"""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from banger.config.paths import Paths
from banger.config.settings import Settings
from banger.errors import BangerError, ErrorCode
from banger.image import catalog, deb
from banger.image.archive import Archive, OpenArchive, debian_architecture
from banger.image.errors import not_found, unsuitable
from banger.image.staging import staged
from banger.model.progress import Progress, ProgressEvent, no_progress
from banger.system.ext4 import E2fsprogs
from banger.system.programs import find
from banger.system.run import run

_STEP = "tools"


@dataclass(frozen=True, slots=True)
class Tool:
    """A program to run: its absolute path, and what its environment needs besides."""

    path: str
    env: Mapping[str, str] = field(default_factory=dict)


Check = Callable[[Tool], Awaitable[bool]]


class ToolService:
    """Tools by the name of their program. One instance per daemon; answers are remembered."""

    def __init__(
        self,
        paths: Paths,
        settings: Settings,
        *,
        open_archive: OpenArchive | None = None,
        find: Callable[[str], str | None] = find,
    ) -> None:
        self._find = find
        self._root = Path(paths.tools_dir)
        self._open_archive = open_archive or (
            lambda: Archive.open(paths.downloads_dir, mirror=settings.debian_mirror)
        )
        self._known: dict[str, Tool] = {}
        self._works: dict[str, bool] = {}

    async def ensure_tool(self, program: str, progress: Progress = no_progress) -> Tool:
        """A working program: the host's own, banger's copy, or a copy fetched now.

        Raises NOT_FOUND for what the catalog does not have, HOST_UNSUITABLE where the fetched one does
        not run here either, and the archive's errors.
        """
        known = self._known.get(program)
        if known is not None and os.access(known.path, os.X_OK):
            return known
        entry = next((e for e in catalog.TOOLS.values() if program in e.programs), None)
        if entry is None:
            raise not_found(f"banger does not know how to get the program {program}")
        tool = None
        host = self._find(entry.programs[0])
        if (
            host is not None
            and await self._check(entry, Tool(host))
            and (found := self._find(program)) is not None
        ):
            tool = Tool(found)
        if tool is None:
            folder = self._root / entry.name
            await self._ensure_folder(entry, folder, progress)
            own = _tool_in(folder, entry.programs[0])
            if not await self._check(entry, own):
                self._works.clear()  # whoever mends it need not start the daemon again
                raise unsuitable(
                    f"{entry.programs[0]} from Debian's {entry.packages[0].suite} does not run on this host",
                    hint=f"install {entry.packages[0].package} yourself, so that it is on PATH",
                )
            tool = _tool_in(folder, program)
        self._known[program] = tool
        return tool

    async def _check(self, entry: catalog.ToolEntry, tool: Tool) -> bool:
        """Once for all programs of a tool."""
        if tool.path not in self._works:
            self._works[tool.path] = await CHECKS.get(entry.name, _runs)(tool)
        return self._works[tool.path]

    async def _ensure_folder(self, entry: catalog.ToolEntry, folder: Path, progress: Progress) -> None:
        if (folder / "tool").is_file():
            return
        await asyncio.to_thread(self._root.mkdir, parents=True, exist_ok=True)
        architecture = debian_architecture()
        async with staged(
            folder,
            waiting=lambda: progress(
                ProgressEvent(step=_STEP, message=f"another process is fetching {entry.name}")
            ),
            already=(folder / "tool").is_file,
        ) as staging:
            if staging is None:
                return
            lines: list[str] = []
            async with self._open_archive() as archive:
                for wanted in entry.packages:
                    package = await archive.find(
                        wanted.package, suite=wanted.suite, architecture=architecture, progress=progress
                    )
                    file = await archive.download(package, progress=progress, step=_STEP)
                    await asyncio.to_thread(deb.extract, file, staging, _selection(wanted.wanted))
                    lines.append(f"{package.name} {package.version} {package.suite} {package.sha256}\n")
            (staging / "tool").write_text("".join(lines))


def _selection(wanted: tuple[str, ...]) -> Callable[[str], str | None]:
    """A merged /usr: `lib/…` and `sbin/…` go to `usr/…`, whatever the package's own choice."""

    def choose(path: str) -> str | None:
        for item in wanted:
            item, _, new = item.partition("=")
            if new and path in (item, f"usr/{item}"):
                return new
            if path == item or path == f"usr/{item}" or (item.endswith("/") and path.startswith(item)):
                if item.endswith("/") and ".so" not in path.rpartition("/")[2]:
                    return None
                return path if path.startswith(("usr/", "etc/")) else f"usr/{path}"
        return None

    return choose


def _tool_in(folder: Path, program: str) -> Tool:
    for place in ("usr/sbin", "usr/bin"):
        path = folder / place / program
        if path.is_file():
            break
    else:
        raise unsuitable(f"{folder} has no {program}", hint=f"remove {folder}; it is fetched again")
    libraries = [str(found) for found in (folder / "usr/lib").glob("*-linux-gnu") if found.is_dir()]
    env = {"LD_LIBRARY_PATH": ":".join(libraries)} if libraries else {}
    return Tool(str(path), env)


async def _runs(tool: Tool) -> bool:
    try:
        await run([tool.path, "--version"], timeout_s=20, env=tool.env)
    except BangerError:
        return False
    return True


async def _makes_ext4_from_tar(tool: Tool) -> bool:
    """mke2fs ≥ 1.47.1 with libarchive: asked by doing it, because the version alone does not say."""
    disk = os.memfd_create("probe.ext4")  # a crash leaves nothing of it
    try:
        await run(
            [tool.path, "-q", "-F", "-t", "ext4", "-d", "-", f"/proc/self/fd/{disk}", "4M"],
            timeout_s=30,
            env=tool.env,
            input=_probe_tar(),
            pass_fds=(disk,),
        )
    except BangerError as error:
        if error.code is ErrorCode.NO_SPACE:
            raise
        return False
    finally:
        os.close(disk)
    return True


def _probe_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("./probe"), io.BytesIO())
    return out.getvalue()


CHECKS: dict[str, Check] = {"e2fsprogs": _makes_ext4_from_tar}


async def ensure_e2fsprogs(tools: ToolService, progress: Progress = no_progress) -> E2fsprogs:
    """The four programs from one release."""
    found = {
        name: await tools.ensure_tool(name, progress) for name in ("mke2fs", "debugfs", "e2fsck", "resize2fs")
    }
    return E2fsprogs(
        mke2fs=found["mke2fs"].path,
        debugfs=found["debugfs"].path,
        e2fsck=found["e2fsck"].path,
        resize2fs=found["resize2fs"].path,
        env=found["mke2fs"].env,
    )
