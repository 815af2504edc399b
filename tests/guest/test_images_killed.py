"""The daemon gets SIGKILL (the command Ctrl-C) in a pull, a build, a promotion: the next try succeeds.

When is told by the bytes that have come, by the command's progress lines, or by the program that is at work,
and goes no further (`Held`): never by the clock. Afterwards no half image, no staging folder, no part of a
blob and no program is left; the audit agrees (conftest, after each test).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.artifacts import artifacts
from tests.capabilities import require
from tests.fakes.ociregistry import make_layout, push, registry
from tests.fakes.proxy import Proxy, proxy
from tests.guest.conftest import module_instance
from tests.guest.instance import Instance, processes_below, until

pytestmark = [require("docker-registry", "skopeo", "umoci"), pytest.mark.guest]

NOISE = 6 << 20
PLAIN = 40 << 20
COPIED = 96 << 20
COMMAND_S = 60.0
WRAPPER = """#!/bin/sh
{env}
hold() {{
    echo $$ > {folder}/at-work
    while [ -e {folder}/hold ]; do sleep 0.05; done
}}
case "$*" in
*/.staging-*) [ ! -e {folder}/hold ] || {{ {half}; exit; }} ;;
esac
exec {real} "$@"
"""
"""A program that can be held in the middle of its work on an image."""
MKE2FS = """{{ head -c 1000000; hold; cat; }} | {real} "$@\""""
CP = """head -c 1000000 "$4" > "$5"; hold; {real} "$@\""""
"""Behind cp's two options and `--`."""


class Held:
    """Programs that come first on the daemon's PATH; those that begin within `with` stand still half-way."""

    def __init__(self, folder: Path) -> None:
        self._at_work, self._hold = folder / "at-work", folder / "hold"
        mkfs = artifacts().e2fsprogs
        env = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in mkfs.env.items())
        found = {
            "mke2fs": mkfs.mke2fs,
            "debugfs": mkfs.debugfs,
            "e2fsck": mkfs.e2fsck,
            "resize2fs": mkfs.resize2fs,
        }
        for name, path in (*found.items(), ("cp", "cp")):
            half = {"mke2fs": MKE2FS, "cp": CP}.get(name, ":")
            real = shlex.quote(shutil.which(path) or path)
            script = WRAPPER.format(
                folder=folder, real=real, half=half.format(real=real), env=env if name in found else ""
            )
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)

    def __enter__(self) -> None:
        self._at_work.unlink(missing_ok=True)
        self._hold.touch()

    def __exit__(self, *_exc: object) -> None:
        self._hold.unlink()

    def at_work(self) -> int:
        """The pid of the one that stands still; its process group is stopped as well."""
        until(lambda: self._at_work.exists() and self._at_work.read_text(), timeout_s=COMMAND_S)
        pid = int(self._at_work.read_text())
        os.killpg(pid, signal.SIGSTOP)
        return pid


@pytest.fixture(scope="module")
def held() -> Iterator[Held]:
    folder = Path(tempfile.mkdtemp(prefix="banger-held-"))
    try:
        made = Held(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
            yield made
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def banger(held: Held) -> Iterator[Instance]:
    yield from module_instance()


@pytest.fixture(scope="module")
def before(banger: Instance) -> Iterator[Proxy]:
    """A registry with `big` (does not compress) and `wide` (does), behind a proxy that can hold it."""
    folder = Path(tempfile.mkdtemp(prefix="banger-layout-"))
    try:
        (folder / "big").mkdir()
        (folder / "big/noise").write_bytes(random.Random(6).randbytes(NOISE))
        (folder / "wide").mkdir()
        for number in range(4):
            (folder / f"wide/{number}").write_bytes(b"%d" % number * (PLAIN // 4))
        with registry(banger.home / "registry", run_in=banger.argv()) as address:
            for tag in ("big", "wide"):
                make_layout(folder / "layout", tag, [folder / tag], {})
                push(folder / "layout", tag, f"{address}/{tag}", run_in=banger.argv())
            banger.ok("image", "list")  # starts the daemon
            with proxy(int(address.rpartition(":")[2]), netns=banger.netns) as made:
                yield made
    finally:
        shutil.rmtree(folder)


def left(banger: Instance) -> list[str]:
    """What an interrupted attempt may leave until the next one, and nothing afterwards."""
    images, blobs = Path(banger.paths.images_dir), Path(banger.paths.cache_dir, "blobs")
    found = [path.name for path in images.glob(".*") if not path.name.startswith(".lock-")]
    found += [f"{path}" for path in blobs.rglob("*.part")]
    return found + [line for _, line in processes_below(f"{images}/.staging-")]


def killed(banger: Instance, command: subprocess.Popen[bytes], daemon: int, *, staging: str = "") -> None:
    """SIGKILL to the daemon; the command says that it went away. staging: what has to be there then."""
    os.kill(daemon, signal.SIGSTOP)
    try:
        assert not staging or staging in left(banger), "it was the middle"
    finally:
        os.kill(daemon, signal.SIGKILL)
    _, said = command.communicate(timeout=COMMAND_S)
    assert command.returncode == 1, said
    assert b"banger: " in said


def at_line(command: subprocess.Popen[bytes], message: str) -> None:
    assert command.stderr is not None
    said: list[str] = []
    for line in command.stderr:
        said.append(line.decode("utf-8", "replace").rstrip())
        if message in said[-1]:
            return
    pytest.fail(f"no progress line says {message!r}: {said}")


def goes_on(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGCONT)


def names(banger: Instance) -> list[str]:
    return [image["name"] for image in json.loads(banger.ok("image", "list", "--json").text)]


def test_while_blobs_come(banger: Instance, before: Proxy) -> None:
    """What has come is not brought again."""
    daemon = banger.daemon_pid()
    before.hold(NOISE // 2)
    command = banger.start("image", "pull", f"{before.address}/big")
    assert before.held.wait(COMMAND_S), command.stderr
    blobs = Path(banger.paths.cache_dir, "blobs")
    until(lambda: sum(part.stat().st_size for part in blobs.rglob("*.part")), timeout_s=COMMAND_S)
    killed(banger, command, daemon)
    had = sum(part.stat().st_size for part in blobs.rglob("*.part"))
    before.release()
    before.forget()
    assert "big" not in names(banger)
    assert banger.ok("image", "pull", f"{before.address}/big").text == "big\n"
    assert before.received < NOISE - had + (64 << 10)
    assert left(banger) == []
    banger.ok("image", "delete", "big")


@pytest.mark.parametrize("message", ["unpacking the layers", "writing the root file system"])
def test_while_it_is_built(banger: Instance, held: Held, before: Proxy, message: str) -> None:
    daemon = banger.daemon_pid()
    with held:  # it gets no further than that, however late the line is read
        command = banger.start("image", "pull", f"{before.address}/wide", "--name", "built")
        at_line(command, message)
        killed(banger, command, daemon, staging=".staging-built")
    banger.ok("image", "list")
    until(lambda: left(banger) == [], timeout_s=COMMAND_S)  # the next daemon's start is enough
    assert "built" not in names(banger)
    assert banger.ok("image", "pull", f"{before.address}/wide", "--name", "built").text == "built\n"
    assert left(banger) == []
    banger.ok("image", "delete", "built")


def interrupted(command: subprocess.Popen[bytes]) -> None:
    """Ctrl-C: the command ends its operation, and then itself."""
    os.killpg(command.pid, signal.SIGINT)
    out, said = command.communicate(timeout=COMMAND_S)
    assert (command.returncode, out) == (128 + signal.SIGINT, b""), said


def test_ctrl_c_while_blobs_come(banger: Instance, before: Proxy) -> None:
    """Nothing of the image is left, and what has come is not brought again."""
    banger.ok("image", "cache", "prune")
    before.hold(NOISE // 2)
    command = banger.start("image", "pull", f"{before.address}/big", "--name", "stopped")
    assert before.held.wait(COMMAND_S), command.stderr
    blobs = Path(banger.paths.cache_dir, "blobs")
    until(lambda: sum(part.stat().st_size for part in blobs.rglob("*.part")), timeout_s=COMMAND_S)
    interrupted(command)
    before.release()
    assert [one for one in left(banger) if not one.endswith(".part")] == []
    assert "stopped" not in names(banger)
    had = sum(part.stat().st_size for part in blobs.rglob("*.part"))
    before.forget()
    assert banger.ok("image", "pull", f"{before.address}/big", "--name", "stopped").text == "stopped\n"
    assert before.received < NOISE - had + (64 << 10)
    assert left(banger) == []
    banger.ok("image", "delete", "stopped")


def test_ctrl_c_while_mke2fs_writes(banger: Instance, held: Held, before: Proxy) -> None:
    """The program ends with the pull, though it is stopped; and what it wrote is gone."""
    daemon = banger.daemon_pid()
    with held:
        command = banger.start("image", "pull", f"{before.address}/wide", "--name", "unwritten")
        writer = held.at_work()
        try:
            interrupted(command)
        finally:
            goes_on(writer)
    assert left(banger) == []
    assert "unwritten" not in names(banger)
    assert banger.daemon_pid() == daemon
    assert banger.ok("image", "pull", f"{before.address}/wide", "--name", "unwritten").text == "unwritten\n"
    banger.ok("image", "delete", "unwritten")


def test_while_mke2fs_writes(banger: Instance, held: Held, before: Proxy) -> None:
    """It loses the one who feeds it, and ends; what it made is removed by the next daemon, not taken."""
    daemon = banger.daemon_pid()
    with held:
        command = banger.start("image", "pull", f"{before.address}/wide", "--name", "fed")
        writer = held.at_work()
        try:
            killed(banger, command, daemon, staging=".staging-fed")
        finally:
            goes_on(writer)
    banger.ok("image", "list")
    until(lambda: left(banger) == [], timeout_s=COMMAND_S)
    assert "fed" not in names(banger)
    assert banger.ok("image", "pull", f"{before.address}/wide", "--name", "fed").text == "fed\n"
    assert left(banger) == []
    shown = json.loads(banger.ok("image", "show", "fed", "--json").text)
    subprocess.run(["e2fsck", "-fn", shown["rootfs_path"]], check=True, capture_output=True, timeout=60)
    banger.ok("image", "delete", "fed")


def test_while_files_are_promoted(banger: Instance, held: Held) -> None:
    """The image stays as it was registered until its copy is whole."""
    kernel = Path(banger.paths.kernels_dir, "debian-bookworm/vmlinux")
    rootfs = banger.home / "mine.ext4"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(rootfs), "16M"], check=True, timeout=60)
    with rootfs.open("ab") as file:
        file.write(random.Random(7).randbytes(1 << 20) * (COPIED >> 20))
    banger.ok("image", "register", "mine", "--rootfs", str(rootfs), "--kernel", str(kernel))
    daemon = banger.daemon_pid()
    with held:
        command = banger.start("image", "promote", "mine")
        copier = held.at_work()
        try:
            killed(banger, command, daemon, staging=".staging-mine")
        finally:
            goes_on(copier)
    banger.ok("image", "list")
    until(lambda: left(banger) == [], timeout_s=COMMAND_S)
    assert json.loads(banger.ok("image", "show", "mine", "--json").text)["managed"] is False
    banger.ok("image", "promote", "mine")
    shown = json.loads(banger.ok("image", "show", "mine", "--json").text)
    assert shown.get("managed", True) is True
    assert Path(shown["rootfs_path"]).read_bytes() == rootfs.read_bytes()
    assert left(banger) == []
    banger.ok("image", "delete", "mine")
