"""doctor on this host, in a home of its own: it answers, changes nothing, and finds what is broken."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from banger.config.paths import Paths, resolve_paths
from banger.config.settings import Settings
from banger.image import seeds
from banger.image.published import write_record
from banger.local import doctor, netchecks
from banger.local.findings import Check, Distribution, Status
from banger.model.records import Image, now
from banger.system.host_packages import HOST_PACKAGES, RUN, absent
from banger.system.routes import RoutingFacts


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return resolve_paths({"BANGER_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}, uid=0)


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_checks_everything_and_makes_nothing(paths: Paths) -> None:
    found = by_name(doctor.checks(paths))
    assert {"banger", "configuration", "kvm", "monitor", "tun", "kernel", "image", "ssh key"} <= set(found)
    assert {row.name for row in HOST_PACKAGES if row.use == RUN} <= set(found)
    for row in HOST_PACKAGES:
        if absent(row):
            assert found[row.name].status is not Status.PASS
    assert not Path(paths.home).exists()


def test_a_broken_configuration_is_one_failure_among_the_answers(paths: Paths) -> None:
    Path(paths.config_file).parent.mkdir(parents=True)
    Path(paths.config_file).write_text("tap_pol_size = 3\n")
    found = by_name(doctor.checks(paths))
    assert found["configuration"].status is Status.FAIL
    assert "tap_pol_size" in found["configuration"].message
    assert "kvm" in found


def test_a_missing_monitor_fails(paths: Paths) -> None:
    Path(paths.config_file).parent.mkdir(parents=True)
    Path(paths.config_file).write_text('vmm = "qemu"\nqemu_bin = "/nowhere/qemu"\n')
    assert by_name(doctor.checks(paths))["monitor"].status is Status.FAIL


def test_the_name_servers_port_and_who_has_it(paths: Paths, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        check = netchecks.names_check(paths, listen)
        assert check.status is Status.WARN
        assert f"(pid {os.getpid()}) has {listen}" in check.message
        Path(paths.state_dir).mkdir(parents=True)
        Path(paths.state_dir, "daemon.lock").write_text(f"{os.getpid()}\n")
        assert netchecks.names_check(paths, listen).status is Status.PASS
    assert "is free" in netchecks.names_check(paths, listen).message
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.42\n")
    assert netchecks.listed_server("127.0.0.42:53", str(conf))
    assert not netchecks.listed_server("127.0.0.42:42069", str(conf))
    assert not netchecks.listed_server("127.0.0.42:53", str(tmp_path / "none"))


def test_worst_and_json() -> None:
    good, bad = Check("a", Status.PASS, "fine"), Check("b", Status.WARN, "hm", "do it")
    assert doctor.worst([]) is Status.PASS
    assert doctor.worst([good, bad]) is Status.WARN
    assert doctor.to_json(good) == {"name": "a", "status": "PASS", "message": "fine"}
    assert doctor.to_json(bad)["hint"] == "do it"


def test_free_space_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    assert doctor.free_below(f"{tmp_path}/not/yet") == pytest.approx(
        doctor.free_below(str(tmp_path)), rel=0.1
    )
    (tmp_path / "file").touch()
    assert doctor.free_below(f"{tmp_path}/file/below") is None


def test_hidden_folders_are_no_images(tmp_path: Path) -> None:
    (tmp_path / ".staging-x").mkdir()
    (tmp_path / "one").mkdir()
    assert [path.name for path in doctor.subfolders(str(tmp_path))] == ["one"]
    assert doctor.subfolders(f"{tmp_path}/none") == []


def test_an_image_without_a_seed_is_said_with_its_reason(paths: Paths) -> None:
    root = Path(paths.images_dir)
    for folder, name in (("a" * 64, "whole"), ("b" * 64, "bare"), ("c" * 64, "")):
        (root / folder).mkdir(parents=True)
        if name:
            image = Image(id=folder, name=name, created_at=now(), updated_at=now(), rootfs_path="rootfs.ext4")
            write_record(root / folder, image)
            (root / folder / "rootfs.ext4").touch()
    (root / ("a" * 64) / "work-seed.tar").write_bytes(bytes(1024))
    (root / "rootfs").write_bytes(b"no file system" * 100)
    said = doctor.image_check(paths, "debian")
    assert (said.status, said.message) == (
        Status.WARN,
        "/root starts out empty: the image bare has no work seed",
    )
    (root / ("b" * 64) / "work-seed.tar").write_bytes(bytes(1024))
    assert doctor.image_check(paths, "debian").status is Status.PASS
    seeds.prepare(root / ("c" * 64) / "work-seed.tar", rootfs=str(root / "rootfs"), key="k", files=())
    said = doctor.image_check(paths, "debian")
    assert said.status is Status.WARN
    assert "the image cccccccccccc has no work seed: it " in said.message


def test_a_broken_image_and_a_key_that_is_none_are_failures(paths: Paths, tmp_path: Path) -> None:
    folder = Path(paths.images_dir, "a" * 64)
    folder.mkdir(parents=True)
    image = Image(
        id=folder.name,
        name="torn",
        managed=True,
        created_at=now(),
        updated_at=now(),
        rootfs_path="rootfs.ext4",
    )
    write_record(folder, image)
    said = doctor.image_check(paths, "debian")
    assert said.status is Status.FAIL
    assert "torn: " in said.message
    assert said.hint
    assert doctor.key_check(str(tmp_path)).status is Status.FAIL
    assert doctor.key_check(f"{tmp_path}/none").status is Status.PASS


def test_defaults_follow_the_configuration(paths: Paths) -> None:
    Path(paths.config_file).parent.mkdir(parents=True)
    Path(paths.config_file).write_text("[vm_defaults]\nvcpu = 3\n")
    settings, _ = doctor.read_settings(paths)
    assert doctor.defaults_check(settings).message.startswith("3 vcpu (config), ")
    assert doctor.daemon_check(paths).message.startswith("does not run")


@pytest.mark.anyio
async def test_a_kernel_that_shows_no_routes_is_said(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse() -> RoutingFacts:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(netchecks, "routing_facts", refuse)
    distribution = Distribution("debian", "Debian")
    found = by_name(await netchecks.network_checks(paths, Settings(), root=False, distribution=distribution))
    assert "Operation not permitted" in found["network"].message
    assert found["way out"].status is Status.WARN
