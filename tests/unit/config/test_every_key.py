"""Every key of config.toml takes effect: by which test it is seen. A key without one fails here, and so does
a test of this list that is no more."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from banger.config.keys import TABLES, TOP
from banger.config.settings import Settings
from banger.config.toml import parse_settings
from banger.errors import BangerError

TESTS = Path(__file__).parents[2]

EFFECTS = {
    "log_level": "unit/daemon/test_log_level.py::test_what_is_below_the_level_is_not_written",
    "vmm": "unit/vmm/test_select.py::test_the_setting_wins",
    "firecracker_bin": "unit/vmm/test_configured.py::test_the_named_firecracker",
    "qemu_bin": "unit/vmm/test_configured.py::test_the_named_qemu",
    "jailer_enabled": "unit/config/test_every_key.py::test_the_jailer_is_refused",
    "jailer_bin": "unit/config/test_every_key.py::test_the_jailer_is_refused",
    "jailer_chroot_base": "unit/config/test_every_key.py::test_the_jailer_is_refused",
    "ssh_key_path": "unit/vm/test_workdisk.py::test_another_key_path_reaches_new_vms",
    "default_image_name": "unit/vm/test_configured.py::test_the_default_image",
    "auto_stop_stale_after": "unit/vm/test_configured.py::test_vms_that_nobody_uses_are_stopped",
    "stats_poll_interval": "unit/vm/test_configured.py::test_the_interval_of_the_figures",
    "metrics_poll_interval": "unit/vm/test_configured.py::test_the_interval_of_the_monitors_metrics",
    "bridge_name": "host/test_configured.py::test_the_bridge_and_the_pool_are_as_configured",
    "bridge_ip": "host/test_configured.py::test_the_bridge_and_the_pool_are_as_configured",
    "cidr": "host/test_configured.py::test_the_bridge_and_the_pool_are_as_configured",
    "tap_pool_size": "host/test_configured.py::test_the_bridge_and_the_pool_are_as_configured",
    "default_dns": "host/test_dns.py::test_the_hosts_resolver_is_asked_for_guests_with_nat_only",
    "dns_listen": "host/test_dns.py::test_the_recipe_for_a_plain_resolv_conf",
    "root_disk": "unit/disk/test_strategies.py::test_which_strategy_a_new_vm_gets",
    "network_isolation": "host/test_firewall.py::test_guests_reach_each_other_only_without_isolation",
    "host_access": "host/test_firewall.py::test_of_the_host_only_ping_dns_and_host_access_are_there",
    "debian_mirror": "unit/image/test_sources.py::test_configured_mirror_wins",
    "vm_defaults.vcpu": "unit/vm/test_configured.py::test_the_defaults_of_new_vms",
    "vm_defaults.memory_mib": "unit/vm/test_configured.py::test_the_defaults_of_new_vms",
    "vm_defaults.disk_size": "unit/vm/test_configured.py::test_the_defaults_of_new_vms",
    "vm_defaults.system_overlay_size": "unit/vm/test_configured.py::test_the_defaults_of_new_vms",
    "vm_defaults.nat": "unit/vm/test_configured.py::test_the_defaults_of_new_vms",
    "tooling.mise_url": "guest/test_tooling.py::test_in_the_foreground_before_the_command",
    "tooling.mise_sha256": "guest/test_tooling.py::test_another_mise_than_the_configured_one_is_not_run",
    "registry.host": "unit/image/oci/test_endpoint.py::test_mirrors_come_first_with_accounts_of_their_own",
    "registry.insecure": "unit/image/oci/test_endpoint.py::test_schemes",
    "registry.mirror": "unit/image/oci/test_endpoint.py::test_mirrors_come_first_with_accounts_of_their_own",
    "catalog.name": "unit/image/test_catalog.py::test_an_entry_is_pulled_by_its_name_at_its_digest",
    "catalog.reference": "unit/image/test_catalog.py::test_an_entry_is_pulled_by_its_name_at_its_digest",
    "catalog.description": "guest/test_oci_images.py::test_the_catalog_of_the_configuration",
    "file_sync.host": "unit/image/test_workhome.py::test_files_and_folders_lie_where_they_were_asked",
    "file_sync.guest": "unit/image/test_workhome.py::test_files_and_folders_lie_where_they_were_asked",
    "file_sync.mode": "unit/image/test_workhome.py::test_files_and_folders_lie_where_they_were_asked",
}


@pytest.mark.parametrize(
    "line",
    ["jailer_enabled = true", 'jailer_bin = "/usr/bin/jailer"', 'jailer_chroot_base = "/srv/jailer"'],
)
def test_the_jailer_is_refused(line: str) -> None:
    with pytest.raises(BangerError, match="the jailer is not supported yet"):
        parse_settings(line.encode(), "config.toml")
    for off in ("jailer_enabled = false", 'jailer_bin = ""'):
        assert parse_settings(off.encode(), "config.toml") == Settings()


@functools.cache
def functions(path: str) -> frozenset[str]:
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def every_key() -> list[str]:
    return [key.name for key in TOP] + [f"{table.name}.{key.name}" for table in TABLES for key in table.keys]


@pytest.mark.parametrize("key", every_key())
def test_a_test_shows_what_a_key_does(key: str) -> None:
    path, _, name = EFFECTS[key].partition("::")
    assert name in functions(path), f"{path} has no {name}"


def test_the_list_has_no_keys_that_are_none() -> None:
    assert set(EFFECTS) == set(every_key())
