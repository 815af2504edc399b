"""Bad input and unusable hosts: one clear error with a hint, nothing left behind, no row."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.instance import SMALL, Instance, Result, instance

pytestmark = pytest.mark.guest


def check(result: Result, *said: str) -> None:
    assert result.status in (1, 125), result.stderr
    for words in said:
        assert words in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("  "), f"no hint: {result.stderr}"


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Instance]:
    with instance(tmp_path / "home") as made:
        yield made
        assert made.leftovers_without_daemon() == []


def test_a_missing_program(fresh: Instance) -> None:
    fresh.configure('qemu_bin = "/nonexistent/qemu"\nvmm = "qemu"\n' + SMALL)
    check(fresh.banger("vm", "create", "--name", "a"), "/nonexistent/qemu")
    assert fresh.vms() == []


def test_a_busy_bridge_name(fresh: Instance) -> None:
    fresh.run_in_netns("ip", "link", "add", "br-fc", "type", "bridge").require()
    fresh.run_in_netns("ip", "link", "set", "br-fc", "up").require()
    check(fresh.banger("vm", "create", "--name", "a"), "br-fc", "bridge_name")
    assert fresh.vms() == []
    fresh.run_in_netns("ip", "link", "delete", "br-fc").require()


def test_a_network_that_is_in_use(fresh: Instance) -> None:
    fresh.run_in_netns("ip", "link", "add", "lan0", "type", "bridge").require()
    fresh.run_in_netns("ip", "addr", "add", "172.16.0.9/16", "dev", "lan0").require()
    check(fresh.banger("vm", "create", "--name", "a"), "172.16.0", "bridge_ip")
    assert fresh.vms() == []
    fresh.run_in_netns("ip", "link", "delete", "lan0").require()


def test_no_space(fresh: Instance) -> None:
    """A real full file system: the VMs' folder on a small tmpfs."""
    folder = Path(fresh.paths.vms_dir)
    folder.mkdir(mode=0o700, parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs", folder], check=True, timeout=60
    )
    try:
        check(fresh.banger("vm", "create", "--name", "a"), "1 GiB", "prune")
        assert fresh.vms() == []
        fresh.ok("daemon", "stop")
    finally:
        subprocess.run(["umount", folder], check=True, timeout=60)


def test_a_config_typo(fresh: Instance) -> None:
    fresh.configure('bridge_nam = "br-x"\n')
    check(fresh.banger("vm", "create", "--name", "a"), "config.toml:1", "bridge_name")
    fresh.configure(SMALL)
    assert fresh.vms() == []


def test_an_unusable_socket_folder(fresh: Instance) -> None:
    run = Path(fresh.paths.runtime_dir)
    run.write_text("a file where the folder should be")
    result = fresh.banger("vm", "create", "--name", "a")
    assert result.status == 1
    assert str(run) in result.stderr
    assert "Traceback" not in result.stderr
    run.unlink()
    assert fresh.vms() == []
