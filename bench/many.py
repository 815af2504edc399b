"""What one VM more costs beside 10, 100, 1,000 and 1,100 others: all of it that could grow with them.

Address and name from the store, its row, its tap made (none is of the pool) and removed, the firewall's
tables replaced, the name put into the zone. The others are rows and taps, on two bridges from a thousand
on. Aim: ratio 1.5, without the tables, which are replaced whole (`net`).
"""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Awaitable
from multiprocessing.connection import Connection
from typing import TypeVar

from banger.config.paths import resolve_paths
from banger.config.settings import Settings
from banger.helper.inprocess import InProcessHelper
from banger.model.names import generate_name
from banger.model.records import Image, VMRecord, VMRuntime, VMSpec, now
from banger.model.states import VMState
from banger.network.addresses import lowest_free
from banger.network.dnszone import NamedGuest, Zone
from banger.network.firewall import Firewall
from banger.network.host import HostNetwork
from banger.store.database import Database
from banger.store.images import ImageTable
from banger.store.settings import SettingTable
from banger.store.vms import VMTable
from bench.harness import Sample, rounds, table

SIZES = (10, 100, 1000, 1100)
SETTINGS = Settings(bridge_name="br-many", bridge_ip="10.20.0.1", cidr=16, tap_pool_size=0)
IMAGE = "a" * 64
CLONE_NEWNET = 0x40000000
T = TypeVar("T")


class Crowd:
    """The network and the store of an instance with as many VMs as it is grown to."""

    def __init__(self, database: Database, helper: InProcessHelper) -> None:
        self.vms = VMTable(database)
        self.helper = helper
        settings = SettingTable(database)
        self.firewall = Firewall(helper, SETTINGS, records=self.vms.list, before=settings)
        self.network = HostNetwork(helper, SETTINGS, firewall=self.firewall)
        self.zone = Zone(SETTINGS.bridge_ip, SETTINGS.cidr)
        self.records: list[VMRecord] = []
        self.made = 0

    async def one_more(self) -> tuple[VMRecord, dict[str, float]]:
        """What create and start do of it, and the milliseconds of each."""
        parts: dict[str, float] = {}
        taken, used = await timed("reserve", parts, self._reserve())
        record = self._record(taken, used)
        await timed("row", parts, self.vms.insert(record))
        await timed("tap", parts, self._tap(record))
        await timed("tables", parts, self.firewall.refresh())
        began = time.perf_counter()
        self.zone.put(record.id, NamedGuest(name=record.name, address=record.runtime.guest_ip, nat=False))
        parts["zone"] = (time.perf_counter() - began) * 1000
        return record, parts

    async def one_less(self, record: VMRecord, parts: dict[str, float]) -> None:
        await timed("release", parts, self.network.release_tap(record.runtime.tap_device, record.id))
        self.zone.remove(record.id)
        await timed("row goes", parts, self.vms.delete(record.id))
        await timed("is empty", parts, self._is_empty())

    async def grow(self, size: int) -> float:
        """Milliseconds for each."""
        began, before = time.perf_counter(), len(self.records)
        while len(self.records) < size:
            record = self._record(*self.vms.taken())
            await self.vms.insert(record)
            await self._tap(record)
            self.records.append(record)
        return (time.perf_counter() - began) * 1000 / max(1, len(self.records) - before)

    async def _reserve(self) -> tuple[set[str], set[str]]:
        self.vms.promised_mib()
        taken, used = self.vms.taken()
        generate_name(taken)
        lowest_free(SETTINGS.bridge_ip, SETTINGS.cidr, used=used)
        return taken, used

    async def _is_empty(self) -> bool:
        return self.vms.is_empty()

    async def _tap(self, record: VMRecord) -> None:
        guest = record.runtime.guest_ip
        await self.network.prepare(guest)
        name = self.network.choose_tap(record.id, guest)
        if name != record.runtime.tap_device:
            raise RuntimeError(f"{name} instead of {record.runtime.tap_device}")
        await self.network.make_tap(name, record.id, guest=guest)

    def _record(self, _taken: set[str], used: set[str]) -> VMRecord:
        self.made += 1
        vm_id = f"{self.made:08x}" + "0" * 56
        moment = now()
        return VMRecord(
            id=vm_id,
            name=f"vm-{self.made}",
            image_id=IMAGE,
            state=VMState.RUNNING,
            created_at=moment,
            updated_at=moment,
            last_touched_at=moment,
            spec=VMSpec(nat_enabled=self.made % 2 == 0),
            runtime=VMRuntime(
                guest_ip=lowest_free(SETTINGS.bridge_ip, SETTINGS.cidr, used=used),
                tap_device=f"tap-fc-{vm_id[:8]}",
            ),
        )


async def timed(what: str, parts: dict[str, float], work: Awaitable[T]) -> T:
    began = time.perf_counter()
    result = await work
    parts[what] = (time.perf_counter() - began) * 1000
    return result


class Place:
    """A crowd in a process and a network namespace of its own, so that they can take turns."""

    def __init__(self, size: int) -> None:
        self._asks, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(target=serve, args=(size, theirs))
        self._process.start()
        self.said = str(self._asks.recv())

    def once(self) -> Sample:
        self._asks.send(True)
        parts: dict[str, float] = self._asks.recv()
        return Sample(sum(ms for part, ms in parts.items() if part != "tables"), parts=parts)

    def end(self) -> str:
        self._asks.send(False)
        said = str(self._asks.recv())
        self._process.join()
        return said


def run(count: int) -> str:
    places = {f"one beside {size}": Place(size) for size in SIZES}
    taken = rounds({name: place.once for name, place in places.items()}, count)
    said = [f"{name}: {place.said}, {place.end()}." for name, place in places.items()]
    text = "p50 ms is of all parts but `tables`.\n\n" + table(taken, baseline=f"one beside {SIZES[0]}")
    return text + "\n\n" + "\n".join(said)


def serve(size: int, asks: Connection) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    asyncio.run(answer(size, asks))


async def answer(size: int, asks: Connection) -> None:
    """True asks for one VM more and less; False for the end, with all removed."""
    home = tempfile.mkdtemp(prefix="banger-bench-")
    database = await Database.open(f"{home}/banger.db")
    helper = InProcessHelper("0" * 16, resolve_paths({"BANGER_HOME": home}))
    crowd = Crowd(database, helper)
    try:
        moment = now()
        await ImageTable(database).put(Image(id=IMAGE, name="i", created_at=moment, updated_at=moment))
        each = await crowd.grow(size)
        asks.send(f"grown at {each:.1f} ms each, all links listed in {await look(crowd, size):.1f} ms")
        while asks.recv():
            record, parts = await crowd.one_more()
            await crowd.one_less(record, parts)
            asks.send(parts)
        began = time.perf_counter()
        for record in crowd.records:
            await crowd.network.release_tap(record.runtime.tap_device, record.id)
        asks.send(f"removed at {(time.perf_counter() - began) * 1000 / size:.1f} ms each")
    finally:
        await crowd.network.shutdown()
        await crowd.network.close()
        await helper.close()
        await database.close()
        shutil.rmtree(home)


async def look(crowd: Crowd, size: int) -> float:
    """List every link, and see that all are there, each on its bridge."""
    began = time.perf_counter()
    links = await crowd.helper.list_links()
    took = (time.perf_counter() - began) * 1000
    taps = {link.name: link.master for link in links if link.kind == "tap"}
    bridges = crowd.network.bridges
    wanted = {r.runtime.tap_device: bridges.of(r.runtime.guest_ip) for r in crowd.records}
    if taps != wanted or len(taps) != size:
        raise RuntimeError(f"{len(taps)} taps, not the {size} that were made")
    return took
