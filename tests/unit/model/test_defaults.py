"""Defaults: config, then host, then built in; every value checked, every origin kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.config.settings import VMDefaults
from banger.errors import BangerError
from banger.model.defaults import HostCapacity, host_memory_mib, host_vcpu, resolve_spec, validate_spec
from banger.model.records import VMSpec
from banger.model.sizes import GIB, MIB

BIG = HostCapacity(cpus=64, memory_bytes=512 * GIB)


def test_the_built_in_values_when_nothing_is_known() -> None:
    resolved = resolve_spec(VMDefaults(), HostCapacity())
    assert resolved.spec == VMSpec(
        vcpu_count=2,
        memory_mib=2048,
        system_overlay_size_bytes=8 * GIB,
        work_disk_size_bytes=8 * GIB,
        nat_enabled=False,
    )
    assert set(resolved.origins.values()) == {"built-in"}


def test_the_line() -> None:
    assert resolve_spec(VMDefaults(), BIG).line() == "spec: 4 vcpu | 8192 MiB | 8G disk"


def test_config_wins_over_the_host_and_the_request_over_both() -> None:
    configured = VMDefaults(vcpu=3, memory_mib=1000, disk_size=GIB, system_overlay_size=2 * GIB, nat=True)
    resolved = resolve_spec(configured, BIG, memory_mib=500, nat=False)
    assert resolved.spec == VMSpec(
        vcpu_count=3,
        memory_mib=500,
        system_overlay_size_bytes=2 * GIB,
        work_disk_size_bytes=GIB,
        nat_enabled=False,
    )
    assert resolved.origins == {
        "vcpu_count": "config",
        "memory_mib": "request",
        "system_overlay_size_bytes": "config",
        "work_disk_size_bytes": "config",
        "nat_enabled": "request",
    }


@given(st.integers(min_value=1, max_value=1024), st.integers(min_value=1, max_value=1 << 45))
def test_what_the_host_gives_is_always_a_valid_spec(cpus: int, memory: int) -> None:
    host = HostCapacity(cpus=cpus, memory_bytes=memory)
    resolved = resolve_spec(VMDefaults(), host)
    validate_spec(resolved.spec)
    assert resolved.spec.vcpu_count == max(1, min(4, cpus // 4))
    assert 128 <= resolved.spec.memory_mib <= 8192
    if GIB <= memory <= 64 * GIB:
        assert resolved.spec.memory_mib == memory // 8 // MIB


def test_an_unknown_host_has_no_opinion() -> None:
    assert host_vcpu(HostCapacity()) is None
    assert host_memory_mib(HostCapacity()) is None


@pytest.mark.parametrize(
    "wrong",
    [
        VMSpec(vcpu_count=0),
        VMSpec(vcpu_count=33),
        VMSpec(memory_mib=127),
        VMSpec(memory_mib=128 * 1024 + 1),
        VMSpec(system_overlay_size_bytes=1),
        VMSpec(work_disk_size_bytes=-1),
        VMSpec(work_disk_size_bytes=128 * GIB + 1),
    ],
)
def test_a_spec_out_of_range_is_refused(wrong: VMSpec) -> None:
    with pytest.raises(BangerError):
        validate_spec(wrong)


def test_a_requested_zero_is_refused_not_defaulted() -> None:
    with pytest.raises(BangerError, match="vcpu: 0 is not positive"):
        resolve_spec(VMDefaults(), BIG, vcpu_count=0)
