"""The Include in a user's ssh config: every other byte stays; and what ssh itself makes of our lines."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.config.paths import Paths, resolve_paths
from banger.errors import BangerError, ErrorCode
from banger.local import sshconfig
from tests.capabilities import require


def paths_of(home: Path | str) -> Paths:
    return resolve_paths({"BANGER_HOME": str(home)}, uid=1000)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return paths_of(tmp_path / "banger")


LINES = st.lists(
    st.sampled_from(
        [
            b"Host x\n",
            b"\r\n",
            b"# comment\n",
            b"Include other\n",
            b"# >>> banger ssh-config /h/state/ssh/config >>>\n",
            b"# <<< banger ssh-config /elsewhere/config <<<\n",
            b"no newline",
            b"\xff\x00",
        ]
    )
).map(b"".join)


@given(st.one_of(st.binary(max_size=400), LINES))
def test_install_and_uninstall_leave_any_bytes_as_they_were(content: bytes) -> None:
    paths = paths_of("/h")
    installed = sshconfig.with_block(content, paths)
    assert installed.endswith(content)
    assert sshconfig.is_installed(installed, paths)
    assert sshconfig.with_block(installed, paths) == installed
    assert sshconfig.without_block(installed, paths) == content


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_a_block_that_was_moved_down_is_found(above: bytes, below: bytes) -> None:
    paths = paths_of("/h")
    moved = above + b"\n" + sshconfig.block(paths) + below
    assert not sshconfig.is_installed(moved, paths)
    assert sshconfig.without_block(moved, paths) == above + b"\n" + below
    assert sshconfig.with_block(moved, paths) == sshconfig.block(paths) + above + b"\n" + below


def test_an_editor_may_have_changed_the_line_ends(paths: Paths) -> None:
    for block in (sshconfig.block(paths).replace(b"\n", b"\r\n"), sshconfig.block(paths).rstrip(b"\n")):
        assert sshconfig.without_block(b"Port 1\n" + block, paths) == b"Port 1\n"


def test_what_somebody_wrote_between_the_fences_is_not_taken_out(paths: Paths) -> None:
    block = sshconfig.block(paths)
    begin, rest = block.split(b"\n", 1)
    content = begin + b"\nHost precious\n" + rest
    assert sshconfig.without_block(content, paths) == content
    assert sshconfig.with_block(content, paths) == block + content


def test_another_instances_block_stays(paths: Paths, tmp_path: Path) -> None:
    other = sshconfig.block(paths_of(tmp_path / "other"))
    assert sshconfig.without_block(sshconfig.with_block(other, paths), paths) == other


def test_files_keep_mode_and_are_changed_once(paths: Paths, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_bytes(b"Host a\r\n  Port 2")
    config.chmod(0o640)
    assert sshconfig.install(paths, str(config))
    inode = config.stat().st_ino
    assert not sshconfig.install(paths, str(config))
    assert config.stat().st_ino == inode, "nothing to change, and yet it was written"
    assert config.stat().st_mode & 0o7777 == 0o640
    assert Path(paths.ssh_config).stat().st_mode & 0o7777 == 0o600
    assert sshconfig.uninstall(paths, str(config))
    assert config.read_bytes() == b"Host a\r\n  Port 2"
    assert config.stat().st_mode & 0o7777 == 0o640
    assert not Path(paths.ssh_config).exists()
    assert not sshconfig.uninstall(paths, str(config))
    assert [path.name for path in tmp_path.iterdir() if path.name != "banger"] == ["config"]


def test_a_symlink_stays_one(paths: Paths, tmp_path: Path) -> None:
    dotfiles = tmp_path / "dotfiles"
    dotfiles.mkdir()
    (dotfiles / "ssh").write_bytes(b"Host a\n")
    config = tmp_path / "config"
    config.symlink_to("dotfiles/ssh")
    sshconfig.install(paths, str(config))
    assert config.is_symlink()
    assert (dotfiles / "ssh").read_bytes() == sshconfig.with_block(b"Host a\n", paths)
    sshconfig.uninstall(paths, str(config))
    assert config.is_symlink()
    assert (dotfiles / "ssh").read_bytes() == b"Host a\n"


def test_a_file_that_was_not_there_goes_again(paths: Paths, tmp_path: Path) -> None:
    config = tmp_path / ".ssh" / "config"
    sshconfig.install(paths, str(config))
    assert config.parent.stat().st_mode & 0o7777 == 0o700
    assert config.stat().st_mode & 0o7777 == 0o600
    assert not sshconfig.install(paths, str(config))
    sshconfig.uninstall(paths, str(config))
    assert list(config.parent.iterdir()) == []


def test_an_empty_file_stays(paths: Paths, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.touch()
    sshconfig.install(paths, str(config))
    sshconfig.uninstall(paths, str(config))
    assert config.read_bytes() == b""


def test_what_was_written_after_the_install_stays(paths: Paths, tmp_path: Path) -> None:
    config = tmp_path / "config"
    sshconfig.install(paths, str(config))
    with config.open("ab") as file:
        file.write(b"Host mine\n")
    sshconfig.uninstall(paths, str(config))
    assert config.read_bytes() == b"Host mine\n"


def test_troubles_are_errors_with_the_files_name(paths: Paths, tmp_path: Path) -> None:
    folder = tmp_path / "config"
    folder.mkdir()
    with pytest.raises(BangerError) as caught:
        sshconfig.install(paths, str(folder))
    assert str(folder) in caught.value.brief
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(sshconfig.MOST_BYTES + 1)
    with pytest.raises(BangerError, match="no ssh configuration"):
        sshconfig.install(paths, str(huge))
    assert huge.stat().st_size == sshconfig.MOST_BYTES + 1


@pytest.mark.parametrize("name", ['quo"te', "per%cent", "new\nline", "star*", "back\\slash", "dollar$"])
def test_a_path_that_ssh_would_not_take_literally_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BangerError) as caught:
        sshconfig.host_block(paths_of(tmp_path / name))
    assert caught.value.code is ErrorCode.INVALID_CONFIG
    assert "\n" not in caught.value.brief


def test_the_users_own_key(paths: Paths) -> None:
    os.makedirs(paths.home)
    assert sshconfig.identity_file(paths) == f"{paths.ssh_dir}/id_ed25519"
    Path(paths.config_file).write_text('ssh_key_path = "/keys/mine"\n')
    assert dict(sshconfig.options(paths))["IdentityFile"] == "/keys/mine"


class TestWithSsh:
    pytestmark = require("ssh")

    def effective(self, config: Path, host: str) -> dict[str, list[str]]:
        """What ssh itself would do for this host (it connects nowhere)."""
        done = subprocess.run(
            ["ssh", "-G", "-F", str(config), host], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, list[str]] = {}
        for line in done.stdout.splitlines():
            key, _, value = line.partition(" ")
            found.setdefault(key, []).append(value)
        return found

    @pytest.mark.parametrize("name", ["plain", "with space", "qu'ote", "hash#tag"])
    def test_ssh_reads_it_as_it_is_meant(self, tmp_path: Path, name: str) -> None:
        paths = paths_of(tmp_path / name)
        config = tmp_path / "config"
        config.write_text("Host *\n    User me\n    Port 2222\n    ProxyCommand none\n")
        sshconfig.install(paths, str(config))
        guest = self.effective(config, "web.vm")
        assert guest["user"] == ["root"]
        assert guest["port"] == ["2222"]
        assert guest["stricthostkeychecking"] == ["true"]
        assert guest["globalknownhostsfile"] == ["/dev/null"]
        assert guest["hostkeyalgorithms"] == ["ssh-ed25519"]
        assert guest["identitiesonly"] == ["yes"]
        assert guest["proxyusefdpass"] == ["yes"]
        assert guest["userknownhostsfile"][0].strip('"') == paths.known_hosts
        assert guest["identityfile"][0].strip('"') == f"{paths.ssh_dir}/id_ed25519"
        assert "ssh-proxy" in guest["proxycommand"][0]
        other = self.effective(config, "example.org")
        assert other["user"] == ["me"]
        assert "proxycommand" not in other

    def test_a_hosts_line_below_is_not_taken_in(self, tmp_path: Path, paths: Paths) -> None:
        """The included Host line ends with its file."""
        config = tmp_path / "config"
        config.write_text("ServerAliveInterval 17\n")
        sshconfig.install(paths, str(config))
        assert self.effective(config, "example.org")["serveraliveinterval"] == ["17"]


@pytest.mark.parametrize("key", ["right", "wrong"])
def test_the_hint_is_said_for_another_key_only(tmp_path: Path, key: str) -> None:
    known = tmp_path / "known hosts"
    known.write_text(
        "# x\n\na.vm,172.16.0.2 ssh-ed25519 other banger:1\nweb.vm,172.16.0.3 ssh-ed25519 right b:2"
    )
    done = subprocess.run(
        ["/bin/sh", sshconfig.HINT_SCRIPT, str(known), "HOSTNAME", "web.vm", key],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == ""
    assert ("banger vm restart web`" in done.stderr) is (key == "wrong")
    assert ("\n" in done.stderr) is (key == "wrong")


@pytest.mark.parametrize("words", [("ORDER", "web.vm", "NONE"), ("HOSTNAME", "new.vm", "key")])
def test_the_hint_is_silent_otherwise(tmp_path: Path, words: tuple[str, ...]) -> None:
    known = tmp_path / "known_hosts"
    for there in (False, True):
        if there:
            known.write_text("web.vm,172.16.0.3 ssh-ed25519 right banger:2\n")
        done = subprocess.run(
            ["/bin/sh", sshconfig.HINT_SCRIPT, str(known), *words],
            capture_output=True,
            timeout=30,
            check=True,
        )
        assert done.stdout + done.stderr == b""
