"""What doctor says of each kind of host, without having that host."""

from __future__ import annotations

import pytest

import banger
from banger.config.settings import VMDefaults
from banger.local import findings
from banger.local.findings import Check, Distribution, Status
from banger.model.defaults import HostCapacity, resolve_spec
from banger.system.host_packages import HOST_PACKAGES, RUN, TEST, HostPackage
from banger.system.kvm import KvmStatus

DEBIAN = Distribution("debian", "Debian GNU/Linux 12")
ROW = HostPackage(
    "tool|tool-old",
    "makes things",
    programs=("tool",),
    minimum=(1, 10),
    version_argv=("tool", "-V"),
    fedora="tl",
)


@pytest.mark.parametrize(
    ("release", "family"),
    [
        ({"ID": "debian"}, "debian"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "debian"),
        ({"ID": "fedora"}, "fedora"),
        ({"ID": "rocky", "ID_LIKE": "rhel centos fedora"}, "fedora"),
        ({"ID": "manjaro", "ID_LIKE": "arch"}, "arch"),
        ({"ID": "alpine"}, ""),
        ({}, ""),
    ],
)
def test_distribution(release: dict[str, str], family: str) -> None:
    assert Distribution.of(release).family == family


@pytest.mark.parametrize(
    ("distribution", "hint"),
    [
        (DEBIAN, "sudo apt install tool (or tool-old)"),
        (Distribution("fedora", "Fedora"), "sudo dnf install tl"),
        (Distribution("arch", "Arch"), "sudo pacman -S tool"),
        (
            Distribution("", "Alpine"),
            "install what Debian calls tool; banger does not know Alpine's package tool",
        ),
    ],
)
def test_the_hint_is_for_this_distribution(distribution: Distribution, hint: str) -> None:
    found = findings.package(ROW, ["tool"], version="", distribution=distribution)
    assert (found.status, found.hint) == (Status.FAIL, hint)
    assert "tool" in found.message
    assert "makes things" in found.message


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("1.9.9", Status.FAIL),
        ("1.10", Status.PASS),
        ("1.10.1", Status.PASS),
        ("2.0", Status.PASS),
        ("", Status.WARN),
    ],
)
def test_versions_compare_as_numbers(version: str, status: Status) -> None:
    assert findings.package(ROW, [], version=version, distribution=DEBIAN).status is status


def test_what_only_tests_or_one_feature_need_is_a_warning() -> None:
    for row in HOST_PACKAGES:
        found = findings.package(row, ["x"], version="", distribution=DEBIAN)
        expected = Status.FAIL if row.required and row.use == RUN else Status.WARN
        assert found.status is expected, row.name
        assert ("tests" in found.message) == (row.use == TEST or "tests" in row.why)


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", "7.2.22"),
        ("mke2fs 1.47.0 (5-Feb-2023)", "1.47.0"),
        ("nftables v1.0.6 (Lester Gooch #5)", "1.0.6"),
        ("git version 2.39.5", "2.39.5"),
        ("nonsense", ""),
    ],
)
def test_find_version(said: str, version: str) -> None:
    assert findings.find_version(said) == version


def kvm(*, present: bool = True, openable: bool = True, usable: bool = False) -> KvmStatus:
    return KvmStatus(present=present, openable=openable, usable=usable, reason="" if usable else "the reason")


@pytest.mark.parametrize(
    ("status", "virtual", "hint"),
    [
        (kvm(present=False, openable=False), False, "firmware"),
        (kvm(present=False, openable=False), True, "nested virtualisation for it"),
        (kvm(openable=False), False, "usermod -aG kvm"),
        (kvm(), True, "nothing to do on this machine"),
    ],
)
def test_every_reason_for_emulation_has_its_remedy(status: KvmStatus, virtual: bool, hint: str) -> None:
    found = findings.kvm(status, virtual_machine=virtual)
    assert found.status is Status.WARN
    assert "emulated" in found.message
    assert "the reason" in found.message
    assert hint in found.hint


def test_usable_kvm_passes() -> None:
    assert findings.kvm(kvm(usable=True), virtual_machine=False).status is Status.PASS


def test_firecracker_is_missed_only_where_it_would_run() -> None:
    assert findings.firecracker("", "", kvm_usable=False).status is Status.PASS
    missed = findings.firecracker("", "", kvm_usable=True)
    assert missed.status is Status.WARN
    assert "PATH" in missed.hint
    assert findings.firecracker("/usr/bin/firecracker", "1.17.0", kvm_usable=True).status is Status.PASS


@pytest.mark.parametrize(
    ("free", "large", "status"),
    [
        (None, True, Status.FAIL),
        (None, False, Status.FAIL),
        (findings.LEAST_ROOM - 1, True, Status.FAIL),
        (findings.LEAST_ROOM, True, Status.WARN),
        (findings.IMAGE_ROOM, True, Status.PASS),
        (1, False, Status.PASS),
    ],
)
def test_room(free: int | None, large: bool, status: Status) -> None:
    assert findings.folder("state folder", "/somewhere", free, large=large).status is status


def test_device_mapper_matters_only_when_asked_for() -> None:
    assert findings.device_mapper(there=False, asked_for=False).status is Status.PASS
    assert findings.device_mapper(there=False, asked_for=True).status is Status.FAIL


def test_who_has_the_name_servers_port() -> None:
    ours = findings.names_port("127.0.0.1:42069", busy=True, holder="python3 (pid 7)", ours=True)
    free = findings.names_port("127.0.0.1:42069", busy=False, holder="", ours=False)
    taken = findings.names_port("127.0.0.1:42069", busy=True, holder="dnsmasq (pid 7)", ours=False)
    assert [check.status for check in (ours, free, taken)] == [Status.PASS, Status.PASS, Status.WARN]
    assert "dnsmasq (pid 7) has 127.0.0.1:42069" in taken.message
    assert "dns_listen" in taken.hint


def test_every_warning_and_failure_has_a_hint() -> None:
    cases: list[Check] = [
        findings.privileges(root=False),
        findings.subordinate_ids(False),
        findings.device("tun", "/dev/net/tun", "No such file", module="tun"),
        findings.device_mapper(there=False, asked_for=True),
        findings.folder("state folder", "/x", 0),
        findings.names_port("127.0.0.1:42069", busy=True, holder="", ours=False),
    ]
    assert all(case.hint and "\n" not in case.hint for case in cases)


def test_defaults_say_where_they_came_from() -> None:
    configured = VMDefaults(vcpu=3, nat=True)
    resolved = resolve_spec(configured, HostCapacity(cpus=4, memory_bytes=8 << 30))
    check = findings.defaults(resolved)
    assert check.status is Status.PASS
    assert check.message == (
        "3 vcpu (config), 1024 MiB (host), 8G disk (built-in), 8G overlay (built-in), NAT (config)"
    )


def test_the_daemon() -> None:
    current = findings.daemon(banger.__version__, 7, ())
    older = findings.daemon("0.0.1", 7, ())
    troubled = findings.daemon(banger.__version__, 7, ["nobody can ask for names"])
    assert [check.status for check in (current, older, troubled)] == [Status.PASS, Status.WARN, Status.WARN]
    assert "banger daemon stop" in older.hint
    assert "nobody can ask for names" in troubled.message


def test_a_key_that_others_can_read() -> None:
    assert findings.ssh_key("/k", mode=0o600).status is Status.PASS
    open_key = findings.ssh_key("/k", mode=0o644)
    assert (open_key.status, open_key.hint) == (Status.WARN, "chmod 600 /k")


def test_images_and_the_default() -> None:
    assert findings.images(["a", "b"], "b").message == "a, b (the default)"
    assert "debian (the default) is got at the first start" in findings.images(["a"], "debian").message
    assert findings.images([], "debian").status is Status.PASS
