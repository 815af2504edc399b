"""An image's sshd_config gets a line for banger's host key where sshd would not find that."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.capabilities import demand
from tests.unit.agent.conftest import FLAGS, SOURCES

KEY = "/etc/ssh/ssh_host_ed25519_key"
LINE = f"# the key that banger checks\nHostKey {KEY}\n".encode()
MAIN = """
#include <stdio.h>
#include "base.h"
#include "sshd.h"
int main(int argc, char **argv)
{
	log_to_stderr();
	return argc < 2 ? 9 : sshd_offer_key(argv[1], SSHD_HOST_KEY) + 2;
}
"""
FAILED, ALONE, CHANGED = 1, 2, 3
Offer = Callable[[Path], int]


@pytest.fixture(scope="module")
def offer(tmp_path_factory: pytest.TempPathFactory) -> Offer:
    """The agent's own function as a program, under sanitizers."""
    demand("clang")
    folder = tmp_path_factory.mktemp("sshd")
    (folder / "main.c").write_text(MAIN)
    sources = [str(SOURCES / name) for name in ("sshd.c", "base.c")]
    subprocess.run(
        ["clang", *FLAGS, f"-I{SOURCES}", "-o", str(folder / "offer"), str(folder / "main.c"), *sources],
        check=True,
        timeout=120,
    )

    def run(config: Path) -> int:
        done = subprocess.run([folder / "offer", config], capture_output=True, timeout=30, check=False)
        assert done.returncode in (FAILED, ALONE, CHANGED), done.stderr.decode()
        return done.returncode

    return run


@pytest.mark.parametrize(
    "content",
    [
        b"HostKey /etc/ssh/ssh_host_rsa_key",
        b"Port 22\n\thostkey=/etc/ssh/ssh_host_ecdsa_key\n",
        b'HOSTKEY "/etc/ssh/other"\r\nMatch User x\n',
        b"#Include /etc/ssh/sshd_config.d/*.conf\n HostKey x\n",
        f"HostKey {KEY}.old\n#HostKey {KEY}\n".encode(),
        b"HostKey a\0b\n",
    ],
)
def test_a_list_of_other_keys_gets_bangers(offer: Offer, tmp_path: Path, content: bytes) -> None:
    config = tmp_path / "sshd_config"
    config.write_bytes(content)
    config.chmod(0o640)
    assert offer(config) == CHANGED
    assert config.read_bytes() == LINE + content
    assert config.stat().st_mode & 0o7777 == 0o640
    assert offer(config) == ALONE
    assert [path.name for path in tmp_path.iterdir()] == ["sshd_config"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"Port 22\n#HostKey /etc/ssh/ssh_host_rsa_key\n",
        b"HostKeyAlgorithms ssh-rsa\nHostKeyAgent /x\n",
        f"HostKey /x\n  HostKey {KEY}\n".encode(),
        f'HostKey = "{KEY}"\nHostKey /x'.encode(),
        b"Include /etc/ssh/sshd_config.d/*.conf\nHostKey /x\n",
    ],
)
def test_what_finds_it_already_is_left_alone(offer: Offer, tmp_path: Path, content: bytes) -> None:
    config = tmp_path / "sshd_config"
    config.write_bytes(content)
    inode = config.stat().st_ino
    assert offer(config) == ALONE
    assert config.read_bytes() == content
    assert config.stat().st_ino == inode


def test_what_is_no_file_is_left_alone(offer: Offer, tmp_path: Path) -> None:
    assert offer(tmp_path / "nothing") == ALONE
    (tmp_path / "file").write_bytes(b"HostKey /x\n")
    assert offer(tmp_path / "file" / "sshd_config") == ALONE
    (tmp_path / "link").symlink_to("file")
    assert offer(tmp_path / "link") == ALONE
    assert offer(tmp_path) == ALONE
    assert (tmp_path / "file").read_bytes() == b"HostKey /x\n"
    with (tmp_path / "huge").open("wb") as huge:
        huge.write(b"HostKey /x\n")
        huge.truncate((1 << 20) + 1)
    assert offer(tmp_path / "huge") == ALONE


PIECES = st.lists(
    st.sampled_from(
        [b"HostKey", b"Include", b" ", b"\t", b"=", b'"', b"\n", b"\r", KEY.encode(), b"sshd_config.d"]
    )
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.one_of(st.binary(max_size=200), PIECES.map(b"".join)))
def test_any_bytes_stay_behind_the_line(offer: Offer, tmp_path: Path, content: bytes) -> None:
    config = tmp_path / "sshd_config"
    config.write_bytes(content)
    status = offer(config)
    assert config.read_bytes() == (LINE + content if status == CHANGED else content)
    assert offer(config) == ALONE
