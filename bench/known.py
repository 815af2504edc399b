"""Many known VMs: a daemon's start (reconcile included), a listing and memory, at 10, 100 and 1,000 of them.

Linear is the aim: what one more VM costs is the same at 100 as at 1,000. Real rows of stopped VMs.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from pathlib import Path

import msgspec

from banger.model.ids import new_vm_id
from banger.store.database import Database
from banger.store.vms import VMTable
from bench.harness import p50
from bench.home import Home, home

COUNTS = (10, 100, 1000)
CONFIG = "cidr = 16\n"


def run(count: int) -> str:
    lines = [
        "| VMs | start ms | start per VM ms | list ms | list per VM ms | daemon RSS MiB |",
        "|---|---|---|---|---|---|",
    ]
    for vms in COUNTS:
        with home(CONFIG) as made:
            starts, lists, rss = measure(made, vms, rounds=max(3, count // 6))
            lines.append(
                f"| {vms} | {p50(starts):.0f} | {p50(starts) / vms:.3f} | {p50(lists):.1f}"
                f" | {p50(lists) / vms:.4f} | {rss / (1 << 20):.0f} |"
            )
            asyncio.run(forget(made.paths.database))
    return "\n".join(lines)


def measure(made: Home, vms: int, *, rounds: int) -> tuple[list[float], list[float], int]:
    """Milliseconds of each start and of each list, and the daemon's resident bytes after them."""
    made.run("vm", "create", "--no-start", "--name", "known-0")
    with made.client() as client:
        client.stop_daemon()
    asyncio.run(multiply(made.paths.database, vms))
    starts: list[float] = []
    lists: list[float] = []
    found = pages = 0
    for _ in range(rounds):
        with made.client() as client:
            began = time.perf_counter()
            client.info()
            starts.append((time.perf_counter() - began) * 1000)
            for _ in range(3):
                began = time.perf_counter()
                found = len(client.list_vms())
                lists.append((time.perf_counter() - began) * 1000)
            if found != vms:
                raise RuntimeError(f"{found} VMs are listed, not {vms}")
            pages = int(Path(f"/proc/{client.info()['pid']}/statm").read_text().split()[1])
            client.stop_daemon()
    return starts, lists, pages * 4096


async def multiply(path: str, vms: int) -> None:
    """Rows like the first one's, with ids, names, addresses and folders of their own."""
    database = await Database.open(path)
    table = VMTable(database)
    (first,) = table.list()
    address = ipaddress.IPv4Address(first.runtime.guest_ip)
    for number in range(1, vms):
        vm_id = new_vm_id()
        runtime = msgspec.structs.replace(
            first.runtime,
            guest_ip=str(address + number),
            vm_dir=str(Path(first.runtime.vm_dir).with_name(vm_id)),
        )
        await table.insert(msgspec.structs.replace(first, id=vm_id, name=f"known-{number}", runtime=runtime))
    await database.close()


async def forget(path: str) -> None:
    """Delete the rows: they have nothing on the host."""
    database = await Database.open(path)
    table = VMTable(database)
    for record in table.list():
        await table.delete(record.id)
    await database.close()
