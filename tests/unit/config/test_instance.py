"""The instance's id is made once, whoever races; its folders are private or refused."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from banger.config.instance import ensure_folders, instance_id, private_folder
from banger.config.paths import resolve_paths
from banger.errors import BangerError, ErrorCode


def mode(path: Path | str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def test_the_id_is_made_once_and_private(tmp_path: Path) -> None:
    first = instance_id(str(tmp_path))
    assert len(first) == 16
    assert int(first, 16) >= 0
    assert instance_id(str(tmp_path)) == first
    assert mode(tmp_path / "instance") == 0o600
    assert os.listdir(tmp_path) == ["instance"]


def test_of_many_at_once_all_get_the_same(tmp_path: Path) -> None:
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with ThreadPoolExecutor(8) as threads:
            found = set(threads.map(instance_id, [str(folder)] * 16))
        assert len(found) == 1
        assert os.listdir(folder) == ["instance"]


@pytest.mark.parametrize("content", ["", "xyz", "0123456789ABCDEF", "0" * 17, "\xff"])
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "instance").write_text(content, encoding="latin-1")
    with pytest.raises(BangerError, match="does not hold an instance id") as caught:
        instance_id(str(tmp_path))
    assert caught.value.code is ErrorCode.INVALID_CONFIG


def test_folders_are_made_private(tmp_path: Path) -> None:
    paths = resolve_paths({"BANGER_HOME": str(tmp_path / "home")})
    before = os.umask(0)
    try:
        ensure_folders(paths)
        ensure_folders(paths)
    finally:
        os.umask(before)
    for folder in (paths.state_dir, paths.cache_dir, paths.runtime_dir):
        assert mode(folder) == 0o700


def test_a_readable_folder_is_closed(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o755)
    private_folder(str(tmp_path / "state"))
    assert mode(tmp_path / "state") == 0o700


@pytest.mark.parametrize("bits", [0o777, 0o1777, 0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, bits: int) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(bits)
    with pytest.raises(BangerError, match="others can write") as caught:
        private_folder(str(folder))
    assert caught.value.code is ErrorCode.HOST_UNSUITABLE
    assert caught.value.hint
    assert mode(folder) == bits


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away, which only root can")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(BangerError, match=r"another user \(uid 12345\)") as caught:
        private_folder(str(folder))
    assert caught.value.code is ErrorCode.HOST_UNSUITABLE


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    for path in (tmp_path / "state", tmp_path / "state" / "below"):
        with pytest.raises(BangerError, match="cannot be used") as caught:
            private_folder(str(path))
        assert caught.value.code is ErrorCode.HOST_UNSUITABLE
