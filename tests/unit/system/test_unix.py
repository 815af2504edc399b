"""Sockets at long paths, full backlogs, and what is never removed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from banger.system import unix


def deep(tmp_path: Path) -> str:
    folder = tmp_path / ("x" * 60) / ("y" * 60)
    folder.mkdir(parents=True)
    return f"{folder}/s"


def test_long_paths_both_ways(tmp_path: Path) -> None:
    path = deep(tmp_path)
    assert len(path) > unix.ADDRESS_BYTES
    before = len(os.listdir("/proc/self/fd"))
    with unix.bind_listener(path, mode=0o640) as listener, unix.connect(path, timeout_s=50) as client:
        assert os.stat(path).st_mode & 0o777 == 0o640
        accepted, _ = listener.accept()
        with accepted:
            client.sendall(b"hi")
            assert accepted.recv(2) == b"hi"
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.anyio
async def test_long_paths_with_asyncio(tmp_path: Path) -> None:
    path = deep(tmp_path)
    with unix.bind_listener(path), await unix.connect_async(path, timeout_s=50) as client:
        assert client.getblocking() is False


@pytest.mark.anyio
async def test_a_full_backlog_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    path = f"{tmp_path}/s"
    with unix.bind_listener(path, backlog=0) as listener, unix.connect(path, timeout_s=50):
        with pytest.raises(TimeoutError):
            await unix.connect_async(path, timeout_s=0.05)
        listener.accept()[0].close()
        (await unix.connect_async(path, timeout_s=50)).close()


def test_failures_leave_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in (f"{tmp_path}/none", f"{tmp_path}/{'no-such-folder' * 10}/s"):
        with pytest.raises(OSError):
            unix.connect(path, timeout_s=1)
    with pytest.raises(OSError):
        unix.bind_listener(f"{tmp_path}/no/folder")
    assert len(os.listdir("/proc/self/fd")) == before


def test_replacing(tmp_path: Path) -> None:
    path = f"{tmp_path}/s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    with pytest.raises(OSError):
        unix.bind_listener(path)
    unix.bind_listener(path, replace=True).close()
    unix.remove_socket(path)
    unix.remove_socket(path)
    Path(path).write_text("precious")
    for attempt in (lambda: unix.remove_socket(path), lambda: unix.bind_listener(path, replace=True)):
        with pytest.raises(FileExistsError):
            attempt()
    assert Path(path).read_text() == "precious"
