"""`vm cp`: words, both directions, archives, statuses, progress, against real agents."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from banger.cli.vm_cp import Place, amount, parse_place
from tests.unit.agent.copying import leftovers, tree
from tests.unit.cli.conftest import Instance, eventually
from tests.unit.cli.terminals import on_a_terminal, read_until


@pytest.fixture(scope="module")
def vm(banger: Instance) -> str:
    banger("vm", "create", "--name", "cp-vm")
    return "cp-vm"


def test_what_is_a_place_in_a_guest() -> None:
    assert parse_place("web:/etc") == Place("web", "/etc")
    assert parse_place("web:") == Place("web", "")
    assert parse_place("web:a:b") == Place("web", "a:b")
    for word in ("file", "/etc/a:b", "./a:b", "../a:b", "a/b:c", ":x", "-"):
        assert parse_place(word) == Place("", word)


def test_amounts_are_short() -> None:
    assert [amount(count) for count in (0, 1023, 1024, 1536 << 10, 3 << 40, 5 << 50)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 MiB", "3.0 TiB", "5120.0 TiB",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["a", "b"], "one of SRC and DST is VM:PATH, neither is here"),
        (["a:x", "b:y"], "one of SRC and DST is VM:PATH, both are here"),
        (["-", "-"], "neither"),
        (["a:x"], "Missing argument 'DST'"),
        (["--wrong", "a:x", "b"], "No such option"),
    ],
)
def test_wrong_usage_starts_nothing(fresh: Instance, argv: list[str], said: str) -> None:
    done = fresh("vm", "cp", *argv, status=2)
    assert done.stderr.startswith(b"banger: ")
    assert said in done.stderr.decode()
    assert not (fresh.home / "run").exists()


def test_in_and_out(banger: Instance, vm: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("text")
    (source / "a:b").symlink_to("sub")
    going = banger("vm", "cp", str(source), f"{vm}:{tmp_path}/guest")
    assert going.stdout == b""
    assert re.fullmatch(rb"copied 4 entries, \d\.\d KiB in \d+\.\d s, .*/s\n", going.stderr), going.stderr
    coming = banger("vm", "cp", "-q", f"{vm}:{tmp_path}/guest", str(tmp_path / "host"))
    assert (coming.stdout, coming.stderr) == (b"", b"")
    assert tree(tmp_path / "host") == tree(source)
    banger("--quiet", "vm", "cp", "-L", f"{vm}:{tmp_path}/guest/a:b", str(tmp_path / "followed"))
    assert (tmp_path / "followed" / "file").read_text() == "text"


def test_archives(banger: Instance, vm: str, tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as made:
        info = tarfile.TarInfo("folder/file")
        info.size = 300_000
        made.addfile(info, io.BytesIO(b"x" * 300_000))
    (tmp_path / "guest").mkdir()
    banger("vm", "cp", "-", f"{vm}:{tmp_path}/guest", stdin=data.getvalue())
    assert (tmp_path / "guest" / "folder" / "file").stat().st_size == 300_000
    out = banger("vm", "cp", f"{vm}:{tmp_path}/guest/folder", "-").stdout
    with tarfile.open(fileobj=io.BytesIO(out)) as read:
        assert read.getnames() == ["folder", "folder/file"]
    broken = banger("vm", "cp", "-", f"{vm}:{tmp_path}/guest", stdin=b"no archive" * 100, status=1)
    assert broken.stderr.startswith(b"banger: in the guest: the archive cannot be read: it is no tar archive")
    assert b"Traceback" not in broken.stderr


def test_a_reader_that_has_enough(banger: Instance, vm: str, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(8 << 20))
    with banger.popen("vm", "cp", "-q", f"{vm}:{tmp_path}/big", "-") as child:
        assert child.stdout is not None
        child.stdout.read(10)
        child.stdout.close()
        assert child.wait(60) == 141


def test_failures(banger: Instance, vm: str, tmp_path: Path) -> None:
    for source, destination, said in (
        (f"{tmp_path}/nothing", f"{vm}:{tmp_path}", f"banger: {tmp_path}/nothing: No such file or directory"),
        (
            f"{vm}:{tmp_path}/no\x1bthing",
            str(tmp_path),
            f"banger: in the guest: {tmp_path}/no\N{REPLACEMENT CHARACTER}thing",
        ),
        (f"{vm}:{tmp_path}", f"{tmp_path}/no/folder", f"banger: there is no folder {tmp_path}/no"),
        ("no-such-vm:x", str(tmp_path), "banger: no VM"),
    ):
        done = banger("vm", "cp", source, destination, status=1)
        assert done.stderr.decode().startswith(said), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cleans_up_on_both_sides(
    banger: Instance, vm: str, tmp_path: Path, number: signal.Signals
) -> None:
    """The archive's end never comes: what is in the guest has a temporary name until then."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as made:
        info = tarfile.TarInfo("folder/file")
        info.size = 300_000
        made.addfile(info, io.BytesIO(b"x" * 300_000))
    with banger.popen("vm", "cp", "-", f"{vm}:{tmp_path}", stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.write(data.getvalue()[:200_000])
        child.stdin.flush()
        eventually(lambda: bool(leftovers(tmp_path)))
        child.send_signal(number)
        assert child.wait(60) == 128 + number
        child.stdin.close()
        eventually(lambda: not list(tmp_path.iterdir()))


def test_progress_is_live_on_a_terminal(banger: Instance, vm: str, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    with (tmp_path / "many" / "big").open("wb") as big:
        for _ in range(64):
            big.write(b"x" * (1 << 20))
    with on_a_terminal(banger, "vm", "cp", str(tmp_path / "many"), f"{vm}:{tmp_path}/guest") as (_, ours):
        said = read_until(ours, b"copied 2 entries")
    assert said
