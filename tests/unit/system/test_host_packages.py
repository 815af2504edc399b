"""The list of host packages: that it can be used before anything is installed, and what it finds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from banger.system import host_packages
from banger.system.host_packages import HOST_PACKAGES, RUN, TEST, HostPackage, absent, missing, package_of

SCRIPT = host_packages.__file__


def script(*argv: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """The file as the set-up runs it: isolated, without site-packages."""
    return subprocess.run(
        [sys.executable, "-I", "-S", SCRIPT, *argv],
        env={} if path is None else {"PATH": path},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_runs_without_any_package_installed() -> None:
    listed = script("--list", "run", "test")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.split() == [row.debian for row in HOST_PACKAGES]


def test_lists_by_use() -> None:
    listed = script("--list", "run").stdout.split()
    assert "qemu-system-x86" in listed
    assert "clang" not in listed


@pytest.mark.parametrize("argv", [(), ("--missing",), ("--missing", "everything"), ("--what", "run")])
def test_wrong_usage(argv: tuple[str, ...]) -> None:
    assert script(*argv).returncode == 2


def test_a_row_is_absent_until_all_its_programs_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    row = HostPackage("x", "why", programs=("bgr-one", "bgr-two"))
    assert absent(row) == ["bgr-one", "bgr-two"]
    for name in row.programs:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert absent(row) == []


def test_a_file_may_match_any_of_its_patterns(tmp_path: Path) -> None:
    row = HostPackage("x", "why", files=((f"{tmp_path}/a*", f"{tmp_path}/b*"),))
    assert absent(row) == [f"{tmp_path}/a*"]
    (tmp_path / "bee").touch()
    assert absent(row) == []


def test_programs_in_sbin_are_found_without_it_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "/usr/sbin" in host_packages.search_path().split(":")
    assert host_packages.search_path().startswith("/nowhere:")


def test_package_of_a_program() -> None:
    assert package_of("debugfs") == "e2fsprogs"
    assert package_of("frobnicate") is None


def test_every_row_can_be_checked_and_says_why() -> None:
    names = [row.debian for row in HOST_PACKAGES]
    assert len(names) == len(set(names))
    for row in HOST_PACKAGES:
        assert row.programs or row.files, row
        assert row.why, row
        assert row.use in (RUN, TEST), row
        assert bool(row.minimum) == bool(row.version_argv), row


def test_missing_keeps_to_the_uses_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_packages, "absent", lambda _row: ["something"])
    assert [row.use for row in missing([TEST])] == [row.use for row in HOST_PACKAGES if row.use == TEST]


def test_the_documented_table_is_this_list() -> None:
    """Mend it with what `python3 -I src/banger/system/host_packages.py --table` prints."""
    documented = Path(__file__).parents[3].joinpath("docs/doctor.md").read_text()
    assert host_packages.table() in documented
    assert script("--table").stdout == host_packages.table()
