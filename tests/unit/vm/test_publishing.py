"""What a VM may publish, what becomes of it as the VM comes and goes, and who is said to have a port."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from banger.api.requests import PublishPort, UnpublishPort, UnpublishPorts
from banger.config.settings import Settings
from banger.errors import BangerError, ErrorCode
from banger.helper.interface import Observed, ObservedProcess
from banger.model.published import ANY_FREE, MOST_PUBLISHED, PortSpec
from banger.model.records import ProcessIdentity, PublishedPort, VMRecord, VMRuntime, VMSpec, now
from banger.model.states import VMState
from banger.network.bridges import bridges_of
from banger.store.vms import VMTable
from banger.system import tcplisten
from banger.vm.carrierprocess import CarrierProcess, Served
from banger.vm.planner import Fix, World, plan
from banger.vm.publishing import (
    FREE_PORTS,
    Publishing,
    going_ports,
    port_of,
    spec_of,
    wanted_ports,
    with_ports,
)

pytestmark = pytest.mark.anyio

HERE = "127.0.0.77"  # of this module: other tests listen on the loopback's first address


class Carrier:
    """Has what it is given, without a process."""

    def __init__(self) -> None:
        self.served: dict[str, Served] = {}
        self.problem = ""
        self.rests = 0

    def serve(self, key: str, served: Served) -> None:
        assert key not in self.served
        self.served[key] = served

    def withdraw(self, key: str) -> None:
        tcplisten.shut(self.served.pop(key).listener)

    async def rest(self) -> None:
        self.rests += 1

    async def settle(self) -> None:
        pass

    async def close(self) -> None:
        for key in list(self.served):
            self.withdraw(key)


class Table:
    def __init__(self) -> None:
        self.records: list[VMRecord] = []

    def list(self) -> list[VMRecord]:
        return self.records


def record(name: str, *specs: PortSpec) -> VMRecord:
    return VMRecord(
        id=name * 16,
        name=name,
        image_id="ab" * 32,
        state=VMState.RUNNING,
        created_at=now(),
        updated_at=now(),
        last_touched_at=now(),
        spec=VMSpec(published=tuple(map(port_of, specs))),
        runtime=VMRuntime(guest_ip="172.16.0.2", vm_dir=f"/vms/{name}"),
    )


@pytest.fixture
def carrier() -> Carrier:
    return Carrier()


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
async def publishing(table: Table, carrier: Carrier) -> AsyncIterator[Publishing]:
    made = Publishing(cast(VMTable, table), cast(CarrierProcess, carrier))
    yield made
    await made.close()
    assert not carrier.served


def free_port() -> int:
    with tcplisten.listen(HERE, 0) as listener:
        return int(listener.getsockname()[1])


def listens(spec: PortSpec) -> bool:
    with socket.socket() as client:
        return client.connect_ex((spec.host_address, spec.host_port)) == 0


async def test_from_the_start_to_the_end_of_a_vm(publishing: Publishing, carrier: Carrier) -> None:
    one, other = PortSpec(HERE, free_port(), 80), PortSpec(HERE, free_port(), 81)
    vm = record("vm", one, other)
    await publishing.preflight(vm)
    assert not listens(one)
    await publishing.bind(vm, [one, other])
    assert listens(one), "early connections wait"
    assert not carrier.served
    publishing.serve(vm)
    assert [(s.vm, s.vm_dir, s.address, s.port) for s in carrier.served.values()] == [
        (vm.id, "/vms/vm", "172.16.0.2", 80),
        (vm.id, "/vms/vm", "172.16.0.2", 81),
    ]
    assert [state.listening for state in publishing.states(vm, alive=True)] == [True, True]
    carrier.problem = "the carrier ended"
    assert {state.problem for state in publishing.states(vm, alive=True)} == {carrier.problem}

    less = with_ports(vm, (port_of(other),))
    await publishing.follow(less, alive=True)
    assert not listens(one)
    assert listens(other)
    await publishing.follow(less, alive=False)
    assert not listens(other)
    assert not carrier.served
    assert carrier.rests == 2
    assert [state.listening for state in publishing.states(vm, alive=False)] == [False, False]


async def test_what_is_bound_and_not_stored_is_shut_again(publishing: Publishing, carrier: Carrier) -> None:
    spec = PortSpec(HERE, free_port(), 80)
    vm = record("vm")
    await publishing.bind(vm, [spec])
    await publishing.follow(vm, alive=True)
    assert not listens(spec)
    assert not carrier.served


async def test_all_or_none(publishing: Publishing) -> None:
    with tcplisten.listen(HERE, 0) as taken:
        free, used = PortSpec(HERE, free_port(), 80), PortSpec(HERE, taken.getsockname()[1], 81)
        for attempt in (publishing.try_out([free, used]), publishing.bind(record("vm"), [free, used])):
            with pytest.raises(BangerError) as caught:
                await attempt
            assert caught.value.code is ErrorCode.IN_USE
            assert caught.value.brief.endswith(f"(pid {os.getpid()})")
            assert caught.value.data == {"address": HERE, "port": used.host_port}
            assert not listens(free)


async def test_a_vm_that_has_the_port_is_named(publishing: Publishing, table: Table) -> None:
    spec = PortSpec(HERE, free_port(), 80)
    vm = record("web", spec)
    table.records = [record("rests", spec), vm]
    await publishing.bind(vm, [spec])
    with pytest.raises(BangerError) as caught:
        await publishing.try_out([PortSpec("0.0.0.0", spec.host_port, 80)])
    assert caught.value.brief == f"0.0.0.0:{spec.host_port} is in use already by the VM web"
    assert caught.value.data["vm"] == "web"


async def test_what_the_host_does_not_have_or_allow(
    publishing: Publishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BangerError, match=r"192\.0\.2\.1 is not an address of this host"):
        await publishing.try_out([PortSpec("192.0.2.1", 8080, 80)])

    def denied(_address: str, _port: int) -> socket.socket:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(tcplisten, "listen", denied)
    with pytest.raises(BangerError) as caught:
        await publishing.try_out([PortSpec(HERE, 80, 80)])
    assert caught.value.code is ErrorCode.PERMISSION_DENIED


async def test_a_free_port_is_nobodys(publishing: Publishing, table: Table) -> None:
    every = [PortSpec(HERE, number, 1) for number in FREE_PORTS if number != 25_000]
    table.records = [record("vm", *every)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("banger.vm.publishing.TRIES", len(FREE_PORTS))
        assert await publishing.choose([PortSpec(HERE, ANY_FREE, 80)], published=()) == [
            PortSpec(HERE, 25_000, 80)
        ]
        table.records.append(record("other", PortSpec("127.0.0.1", 25_000, 1)))
        with pytest.raises(BangerError, match="no free port"):
            await publishing.choose([PortSpec(HERE, ANY_FREE, 80)], published=())


async def test_what_is_chosen(publishing: Publishing) -> None:
    one, had = PortSpec(HERE, 8080, 80), PublishedPort(host_address="::1", host_port=8080, guest_port=80)
    assert await publishing.choose([one, one], published=(had,)) == [one]
    assert await publishing.choose([spec_of(had)], published=(had,)) == [spec_of(had)]
    with pytest.raises(BangerError) as caught:
        await publishing.choose([one, one._replace(guest_port=81)], published=())
    assert caught.value.code is ErrorCode.ALREADY_EXISTS
    many = [PortSpec(HERE, number, 80) for number in range(1, MOST_PUBLISHED + 2)]
    assert len(await publishing.choose(many[1:], published=())) == MOST_PUBLISHED
    with pytest.raises(BangerError, match="64 ports at most"):
        await publishing.choose(many, published=())
    with pytest.raises(BangerError, match="not an IP address"):
        await publishing.choose(
            wanted_ports([PublishPort(guest_port=80, host_address="\x1b[31m")]), published=()
        )


async def test_ports_of_vms_that_run_on_and_one_that_was_lost(
    publishing: Publishing, carrier: Carrier
) -> None:
    with tcplisten.listen(HERE, 0) as taken:
        lost, kept = PortSpec(HERE, taken.getsockname()[1], 80), PortSpec(HERE, free_port(), 81)
        vm = record("vm", lost, kept)
        await publishing.seed([vm])
        first, second = publishing.states(vm, alive=True)
        assert "in use already" in first.problem
        assert (first.listening, second.listening) == (False, True)
        (finding,) = publishing.findings()
        assert (finding.kind, finding.name, finding.vm_id) == ("port", f"{HERE}:{lost.host_port}", vm.id)
        tcplisten.shut(taken)
    await publishing.bind(vm, [lost])
    await publishing.follow(vm, alive=True)
    assert publishing.findings() == []
    assert len(carrier.served) == 2


def test_what_unpublish_means() -> None:
    ports = [PortSpec("127.0.0.1", 80, 80), PortSpec("::1", 80, 81), PortSpec("::1", 443, 443)]
    vm = record("vm", *ports)
    request = UnpublishPorts(ports=(UnpublishPort(host_port=80),))
    assert going_ports(vm, request) == ports[:2]
    request = UnpublishPorts(ports=(UnpublishPort(host_port=80, host_address="0:0::1"),))
    assert going_ports(vm, request) == ports[1:2]
    assert going_ports(vm, UnpublishPorts(all=True)) == ports
    assert going_ports(with_ports(vm, ()), UnpublishPorts(all=True)) == []
    request = UnpublishPorts(ports=(UnpublishPort(host_port=443), UnpublishPort(host_port=443, guest_port=1)))
    with pytest.raises(BangerError) as caught:
        going_ports(vm, request)
    assert caught.value.code is ErrorCode.NOT_FOUND


def test_only_this_daemons_carrier_is_explained() -> None:
    ours, left = (ProcessIdentity(role="ports", pid=pid, start_time=pid) for pid in (10, 11))
    seen = tuple(
        ObservedProcess(identity=one, cwd="/state/ports", argv=("/usr/bin/python3", "carrier.py"))
        for one in (ours, left)
    )
    world = World(
        instance="0" * 16,
        vms=(),
        observed=Observed(boot_id="b", processes=seen),
        bridges=bridges_of(Settings()),
        vms_dir="/state/vms",
        images_dir="/state/images",
        carriers=frozenset({ours}),
    )
    (finding,) = plan(world).findings
    assert (finding.name, finding.fix, finding.process) == ("11 (python3)", Fix.KILL_PROCESS, left)
    assert finding.problem == "carries ports for no daemon"


def test_a_record_of_an_older_banger_publishes_nothing(tmp_path: Path) -> None:
    assert msgspec.json.decode(b'{"vcpu_count": 1}', type=VMSpec).published == ()
