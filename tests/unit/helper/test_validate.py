"""What the helper takes from nobody, and the marks it reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from banger.config.paths import resolve_paths
from banger.errors import ErrorCode
from banger.helper import marks, tracing, validate
from banger.helper.errors import Refused
from banger.helper.inprocess import InProcessHelper
from banger.helper.interface import FirewallRules, GuestRule
from banger.model.netwhy import Flow, Protocol
from banger.model.records import ProcessIdentity

VM = "ab" * 32
INSTANCE = "0123456789abcdef"


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (validate.bridge_name, ["br-fc", "br0"], ["", "lo", "a" * 16, "a/b", "a b", "-x", "..", "br\n"]),
        (
            validate.tap_name,
            ["tap-fc-0123abcd", "tap-pool-0"],
            ["eth0", "tap-fc-", "tap-fc-012345678", "tap-fc-A", "tap-pool-0\n", "xtap-fc-0"],
        ),
        (validate.vm_id, [VM], ["", VM[:-1], VM + "0", VM.upper(), "../" + VM[3:], VM + "\n"]),
        (validate.role, ["monitor", "vsock"], ["", "a b", "../x", "x" * 17, "monitor\n"]),
        (validate.file_name, ["console.log"], ["", ".", "..", "a/b", ".hidden", "x" * 65, "a\0"]),
        (
            validate.dm_name,
            ["fc-rootfs-0123abcd", "fc-rootfs-0123abcd-base"],
            ["root", "fc-rootfs-", "fc-rootfs-0123abcd-", "fc-rootfs-../../x", "fc-rootfs-0123abcd\n"],
        ),
        (
            validate.loop_device,
            ["/dev/loop0", "/dev/loop12"],
            ["/dev/sda", "/dev/loop", "/dev/loop0p1", "loop0"],
        ),
    ],
)
def test_names(check: Callable[[str], str], good: list[str], bad: list[str]) -> None:
    for text in good:
        assert check(text) == text
    for text in bad:
        with pytest.raises(Refused) as caught:
            check(text)
        assert caught.value.code is ErrorCode.PERMISSION_DENIED


GUEST = GuestRule(tap="tap-fc-1", mac="06:00:ac:10:00:02", address="172.16.0.2", nat=True)
RULES = FirewallRules(bridge="br-fc", address="172.16.0.1", host_access=(80,), guests=(GUEST,))


@pytest.mark.parametrize(
    "change",
    [
        {"bridge": 'br" accept'},
        {"bridge": "br*"},
        {"address": "172.16.0.1/0"},
        {"address": "0.0.0.0/0, 1.1.1.1"},
        {"address": "::1"},
        {"host_access": (0,)},
        {"host_access": (65536,)},
        {"guests": (replace(GUEST, tap="eth0"),)},
        {"guests": (replace(GUEST, tap='tap-fc-1" }'),)},
        {"guests": (replace(GUEST, mac="ff:ff:ff:ff:ff:ff"),)},
        {"guests": (replace(GUEST, mac="06:00:ac:10:00:02\n"),)},
        {"guests": (replace(GUEST, address="172.16.0.2, 0.0.0.0"),)},
        {"guests": (replace(GUEST, address="172.16.0.02"),)},
        {"guests": (GUEST, replace(GUEST, tap="tap-fc-2"))},
        {"guests": (replace(GUEST, address="172.16.0.1"),)},
        {"guests": (GUEST,) * 70_000},
    ],
)
def test_no_word_of_a_ruleset_comes_from_elsewhere(change: dict[str, object]) -> None:
    assert validate.firewall(RULES) is RULES
    with pytest.raises(Refused):
        validate.firewall(replace(RULES, **change))


@pytest.mark.parametrize("path", ["/h/vms/a", "/h/images/a/b"])
def test_paths_below(path: str) -> None:
    assert validate.below(path, "/h/vms", "/h/images") == path


@pytest.mark.parametrize(
    "path",
    ["", "a", "/h/vms", "/h/vms/", "/h/vmsx/a", "/h/vms/../x", "/h/vms//a", "//h/vms/a", "/etc/passwd"],
)
def test_paths_elsewhere(path: str) -> None:
    with pytest.raises(Refused):
        validate.below(path, "/h/vms", "/h/images")


@pytest.mark.parametrize(
    ("text", "prefix"), [("10.0.0.1", 7), ("10.0.0.1", 31), ("x", 24), ("::1", 24), ("", 24)]
)
def test_addresses(text: str, prefix: int) -> None:
    with pytest.raises(Refused):
        validate.address(text, prefix)


def test_programs() -> None:
    assert validate.program("/opt/x/firecracker", allowed=validate.MONITOR_PROGRAMS)
    for path in ("/bin/sh", "firecracker/sh", ""):
        with pytest.raises(Refused):
            validate.program(path, allowed=validate.MONITOR_PROGRAMS)


@given(st.sampled_from(["", VM]), st.sampled_from(["bridge", "tap", "pool"]))
def test_link_marks_round_trip_and_fit(vm_id: str, role: str) -> None:
    alias = marks.link_alias(INSTANCE, vm_id, role)
    assert marks.parse_link_alias(alias) == (INSTANCE, vm_id, role)
    assert len(alias) < 256


@given(st.text(max_size=120))
def test_other_aliases_are_no_marks(text: str) -> None:
    assert marks.parse_link_alias(text) is None
    assert marks.parse_loop_label(text) is None


def test_loop_labels_round_trip_and_fit() -> None:
    label = marks.loop_label(INSTANCE, VM)
    assert marks.parse_loop_label(label) == (INSTANCE, VM[:32])
    assert len(label) <= 63


def test_bridge_mac_is_local_unicast_and_the_instances() -> None:
    mac = marks.bridge_mac(INSTANCE)
    assert mac == "06:01:01:23:45:67"
    assert int(mac[:2], 16) & 3 == 2


@pytest.mark.anyio
async def test_operations_refuse_before_they_act(tmp_path: Path) -> None:
    paths = resolve_paths({"BANGER_HOME": str(tmp_path)})
    helper = InProcessHelper(INSTANCE, paths)
    me = ProcessIdentity(role="monitor", pid=1, start_time=1)
    folder = paths.vm_dir(VM)
    attempts = [
        helper.ensure_bridge("../x", address="10.0.0.1", prefix=24),
        helper.ensure_bridge("br0", address="10.0.0.1", prefix=31),
        helper.delete_bridge("lo"),
        helper.create_tap("eth0", bridge="br0", vm_id=VM),
        helper.create_tap("tap-fc-0", bridge="br0", vm_id="x"),
        helper.mark_tap("eth0", vm_id=VM),
        helper.delete_tap("eth0"),
        helper.attach_loop("/etc/passwd", read_only=True, vm_id=VM),
        helper.attach_loop(f"{folder}/../../x", read_only=True, vm_id=VM),
        helper.detach_loop("/dev/sda", backing_file=f"{folder}/x"),
        helper.create_snapshot_dm(
            "fc-rootfs-abababab",
            uuid=f"BANGER-{'f' * 16}-{VM}",
            base_loop="/dev/loop0",
            cow_loop="/dev/loop1",
            size_bytes=4096,
        ),
        helper.remove_dm("fc-rootfs-abababab", uuid="LVM-x"),
        helper.remove_dm("root", uuid=marks.dm_uuid(INSTANCE, VM)),
        helper.launch(["/bin/sh"], role="monitor", vm_id=VM, vm_dir=folder, stdout="log"),
        helper.launch(["/x/firecracker"], role="m/..", vm_id=VM, vm_dir=folder, stdout="log"),
        helper.launch(["/x/firecracker"], role="monitor", vm_id=VM, vm_dir="/tmp/x", stdout="log"),
        helper.launch(
            ["/x/firecracker"], role="monitor", vm_id=VM, vm_dir=paths.vm_dir("cd" * 32), stdout="log"
        ),
        helper.launch(["/x/firecracker"], role="monitor", vm_id=VM, vm_dir=folder, stdout="../log"),
        helper.signal(me, 9999),
    ]
    for attempt in attempts:
        with pytest.raises(Refused):
            await attempt
    await helper.close()


FLOW = Flow(
    tap="tap-fc-1",
    guest="10.9.0.2",
    gateway="10.9.0.1",
    target="192.0.2.1",
    protocol=Protocol.TCP,
    port=80,
    source=61000,
)


@pytest.mark.parametrize(
    "change",
    [
        {"tap": 'x" accept'},
        {"guest": "10.9.0.2 drop"},
        {"gateway": ""},
        {"target": "::1"},
        {"target": "192.0.2.1/8"},
        {"port": 0},
        {"port": 65536},
        {"source": 0},
        {"source": 65536},
    ],
)
def test_a_flow_is_words_of_a_ruleset(change: dict[str, object]) -> None:
    assert validate.flow(FLOW) is FLOW
    with pytest.raises(Refused):
        validate.flow(replace(FLOW, **change))


def test_a_traces_table_is_known_by_its_instance() -> None:
    table = marks.trace_table(INSTANCE)
    assert marks.is_trace_table(table)
    assert marks.is_trace_table(table, INSTANCE)
    assert not marks.is_trace_table(table, "f" * 16)
    assert not marks.is_nft_table(table)
    assert not marks.is_nft_namesake(table)
    assert marks.is_nft_namesake(f"{table}0")
    assert set(re.findall(r"^table (\S+ \S+) \{$", tracing.ruleset(table, FLOW), re.MULTILINE)) == {
        f"bridge {table}",
        f"inet {table}",
    }
