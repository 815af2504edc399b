"""The daemon on a real Unix socket: routes, operations, errors, leases, and its way out."""

from __future__ import annotations

import asyncio
import io
import os
import re
import stat
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from banger.api.replies import FEATURES
from banger.api.routes import ROUTES
from banger.config.paths import Paths
from banger.daemon import leases
from banger.daemon.listener import OwnersSocket, StateLock, bind_socket
from banger.errors import BangerError, ErrorCode
from banger.model.states import VMState
from banger.system.logcap import punch_head
from banger.vm.planner import Finding, Fix
from tests.fakes.guestagent import FakeGuestSocket
from tests.fakes.services import FakeWorld
from tests.unit.daemon.conftest import Clock, client_of, running

pytestmark = pytest.mark.anyio


async def events_of(session: aiohttp.ClientSession, url: str, after: int = 0) -> list[dict[str, Any]]:
    async with session.get(f"{url}/events", params={"after": str(after)}) as reply:
        assert reply.content_type == "application/x-ndjson"
        return [msgspec.json.decode(line) async for line in reply.content]


async def finished(session: aiohttp.ClientSession, method: str, url: str, **body: Any) -> dict[str, Any]:
    async with session.request(method, url, json=body) as reply:
        assert reply.status == 202, await reply.text()
        operation = await reply.json()
        assert reply.headers["Location"] == operation["url"]
        assert reply.headers["Banger-Op"] == operation["id"]
    return (await events_of(session, operation["url"]))[-1]


async def eventually(condition: Any, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is waited for knows no event
            await asyncio.sleep(0.01)


async def test_info_names_version_process_instance_and_features(paths: Paths, world: FakeWorld) -> None:
    async with running(paths, world), client_of(paths) as session, session.get("/v1") as reply:
        info = await reply.json()
    assert info["version"] == "1.2.3"
    assert info["pid"] == os.getpid()
    assert info["instance"] == "00112233aabbccdd"
    assert info["features"] == list(FEATURES)
    assert world.closed == 1


async def test_openapi_describes_every_route(paths: Paths, world: FakeWorld) -> None:
    async with running(paths, world), client_of(paths) as session, session.get("/v1/openapi.json") as reply:
        document = await reply.json()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method, route.path) for route in ROUTES}
    text = msgspec.json.encode(document).decode()
    for name in set(re.findall(r"#/components/schemas/(\w+)", text)):
        assert name in document["components"]["schemas"]


async def test_socket_is_private_and_goes_with_the_daemon(paths: Paths, world: FakeWorld) -> None:
    async with running(paths, world):
        assert stat.S_IMODE(Path(paths.socket).stat().st_mode) == 0o600
        assert stat.S_IMODE(Path(paths.runtime_dir).stat().st_mode) == 0o700
        assert stat.S_IMODE(Path(paths.state_dir).stat().st_mode) == 0o700
    assert not Path(paths.socket).exists()


async def test_create_runs_as_an_operation_with_numbered_events(paths: Paths, world: FakeWorld) -> None:
    async with running(paths, world), client_of(paths) as session:
        async with session.post("/v1/vms", json={"name": "web", "vcpu_count": 3}) as reply:
            operation = await reply.json()
            assert (reply.status, operation["kind"], operation["status"]) == (202, "vm.create", "running")
        said = await events_of(session, operation["url"])
        events = [event for event in said if event["kind"] != "heartbeat"]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        kinds = [(event["kind"], event.get("step", "")) for event in events]
        assert kinds == [
            ("step", "spec"),
            ("step", "reserve"),
            ("step", "root_disk"),
            ("progress", "root_disk"),
            ("result", ""),
        ]
        assert {event["op_id"] for event in events} == {operation["id"]}
        result = events[-1]["result"]
        assert (result["name"], result["state"], result["spec"]["vcpu_count"]) == ("web", "running", 3)
        assert result["image"] == "debian-bookworm"
        assert result["runtime"]["state"] == "running"
        assert events[-1]["vm_id"] == result["id"] == events[1]["vm_id"]
        # a second reader gets only what it has not seen
        rest = await events_of(session, operation["url"], 3)
        assert [event["seq"] for event in rest if event["kind"] != "heartbeat"] == [4, 5]
        async with session.get("/v1/vms/web") as reply:
            assert await reply.json() == result
        async with session.get("/v1/vms") as reply:
            assert (await reply.json())["vms"] == [result]
        async with session.get(operation["url"]) as reply:
            assert (await reply.json())["status"] == "succeeded"


async def test_client_that_goes_away_cancels_nothing_and_comes_back(paths: Paths, world: FakeWorld) -> None:
    world.vms.hold = asyncio.Event()
    async with running(paths, world), client_of(paths) as session:
        async with session.post("/v1/vms", json={"name": "web"}) as reply:
            url = (await reply.json())["url"]
        seen = []
        async with session.get(f"{url}/events") as reply:
            async for line in reply.content:
                event = msgspec.json.decode(line)
                seen.append(event)
                if event["kind"] == "heartbeat":
                    break  # the connection is dropped here
        last = seen[-1]["seq"]
        assert last == 4
        assert seen[-2]["seq"] == last, "a heartbeat uses up no number"
        world.vms.hold.set()
        rest = [event for event in await events_of(session, url, last) if event["kind"] != "heartbeat"]
        assert [(event["seq"], event["kind"]) for event in rest] == [(5, "result")]
        assert world.vms.cancelled == 0


async def test_cancel_ends_the_operation_and_says_aborted(paths: Paths, world: FakeWorld) -> None:
    world.vms.hold = asyncio.Event()
    async with running(paths, world), client_of(paths) as session:
        async with session.post("/v1/vms", json={}) as reply:
            url = (await reply.json())["url"]
        await eventually(lambda: "starting" in {record.state for record in world.vms.list()})
        async with session.post(f"{url}/cancel") as reply:
            assert reply.status == 200
        last = (await events_of(session, url))[-1]
        assert (last["kind"], last["error"]["code"]) == ("error", "aborted")
        async with session.get(url) as reply:
            assert (await reply.json())["status"] == "cancelled"
        async with session.post(f"{url}/cancel") as reply:
            assert (await reply.json())["status"] == "cancelled"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/vms/none", None, 404, "not_found"),
        ("GET", "/v1/nothing", None, 404, "not_found"),
        ("PUT", "/v1/vms", None, 405, "invalid_argument"),
        ("POST", "/v1/vms", b"{", 400, "invalid_argument"),
        ("POST", "/v1/vms", b'{"nmae": "x"}', 400, "invalid_argument"),
        ("POST", "/v1/vms", b'{"vcpu_count": "two"}', 400, "invalid_argument"),
        ("POST", "/v1/vms", b'"' + b"x" * (2 << 20) + b'"', 413, "invalid_argument"),
        ("GET", "/v1/operations/none", None, 404, "not_found"),
        ("GET", "/v1/operations/none/events?after=-1", None, 404, "not_found"),
        ("POST", "/v1/vms/stopped/connect", None, 409, "wrong_state"),
        ("GET", "/v1/vms/stopped/agent", None, 409, "wrong_state"),
        ("GET", "/v1/vms/stopped/logs?source=/etc/passwd", None, 400, "invalid_argument"),
        ("GET", "/v1/vms/stopped/logs?follow=maybe", None, 400, "invalid_argument"),
        ("GET", "/v1/vms/stopped/logs", None, 404, "not_found"),
        ("GET", "/v1/images/none", None, 404, "not_found"),
    ],
)
async def test_errors_have_a_body_with_code_and_op_id(
    paths: Paths, world: FakeWorld, method: str, path: str, body: bytes | None, status: int, code: str
) -> None:
    world.vms.add("stopped", state=VMState.STOPPED)
    async with (
        running(paths, world),
        client_of(paths) as session,
        session.request(method, path, data=io.BytesIO(body) if body else None) as reply,
    ):
        error = await reply.json()
        assert (reply.status, error["code"]) == (status, code), error
        assert error["op_id"] == reply.headers["Banger-Op"]


async def test_unexpected_failure_is_internal_without_a_traceback(
    paths: Paths, world: FakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world.vms.fail = RuntimeError("secret detail")
    async with running(paths, world), client_of(paths) as session:
        last = await finished(session, "POST", "/v1/vms", name="web")
    assert last["error"]["code"] == "internal"
    assert "secret" not in msgspec.json.encode(last).decode()
    assert "secret detail" in caplog.text


async def test_error_of_the_service_reaches_the_wire_whole(paths: Paths, world: FakeWorld) -> None:
    world.vms.fail = BangerError(
        ErrorCode.NO_SPACE, "the disk is full", hint="make room", details="df", data={"step": "root_disk"}
    )
    async with running(paths, world), client_of(paths) as session:
        last = await finished(session, "POST", "/v1/vms", name="web")
    error = last["error"]
    assert error.pop("op_id")
    assert error == {
        "code": "no_space",
        "brief": "the disk is full",
        "hint": "make room",
        "details": "df",
        "data": {"step": "root_disk"},
    }


async def test_operations_on_vms(paths: Paths, world: FakeWorld) -> None:
    vm_id = world.vms.add("web")
    async with running(paths, world), client_of(paths) as session:
        assert (await finished(session, "POST", "/v1/vms/web/stop"))["result"]["state"] == "stopped"
        assert (await finished(session, "POST", "/v1/vms/web/start"))["result"]["state"] == "running"
        assert (await finished(session, "POST", "/v1/vms/web/restart"))["result"]["state"] == "running"
        assert (await finished(session, "PATCH", "/v1/vms/web", vcpu_count=4))["result"]["spec"][
            "vcpu_count"
        ] == 4
        assert (await finished(session, "POST", "/v1/vms/web/kill", signal="FOO"))["error"]["code"] == (
            "invalid_argument"
        )
        assert (await finished(session, "POST", "/v1/vms/web/kill"))["result"]["state"] == "stopped"
        assert (await finished(session, "DELETE", f"/v1/vms/{vm_id[:12]}"))["result"]["id"] == vm_id
    assert not world.vms.records


async def test_connect_touches_and_says_where_the_guest_is(paths: Paths, world: FakeWorld) -> None:
    vm_id = world.vms.add("web")
    async with (
        running(paths, world),
        client_of(paths) as session,
        session.post("/v1/vms/web/connect") as reply,
    ):
        assert await reply.json() == {
            "id": vm_id,
            "name": "web",
            "vm_dir": f"{paths.vms_dir}/{vm_id}",
            "vsock_path": f"{paths.vms_dir}/{vm_id}/v.sock",
            "port": 1024,
            "exec": {},
        }
    assert world.vms.touched == [vm_id]


async def test_images_and_kernels(paths: Paths, world: FakeWorld) -> None:
    async with running(paths, world), client_of(paths) as session:
        async with session.get("/v1/images") as reply:
            assert [image["name"] for image in (await reply.json())["images"]] == ["debian-bookworm"]
        async with session.get("/v1/images/debian-bookworm") as reply:
            assert (await reply.json())["build_size"] == 2 << 30
        async with session.get("/v1/kernels") as reply:
            assert [kernel["name"] for kernel in (await reply.json())["kernels"]] == ["debian-6.1"]


async def test_logs_whole_tail_and_follow(paths: Paths, world: FakeWorld) -> None:
    vm_id = world.vms.add("web")
    log = Path(paths.vms_dir) / vm_id / "console.log"
    log.write_bytes(b"one\ntwo\nthree\n")
    async with running(paths, world), client_of(paths) as session:
        async with session.get("/v1/vms/web/logs") as reply:
            assert await reply.read() == b"one\ntwo\nthree\n"
        for tail, wanted in ((0, b""), (1, b"three\n"), (2, b"two\nthree\n"), (9, b"one\ntwo\nthree\n")):
            async with session.get("/v1/vms/web/logs", params={"tail": str(tail)}) as reply:
                assert await reply.read() == wanted
        async with session.get("/v1/vms/web/logs", params={"follow": "true", "tail": "1"}) as reply:
            assert await reply.content.readany() == b"three\n"
            with log.open("ab") as file:
                file.write(b"four\n")
            assert await reply.content.readany() == b"four\n"
            log.rename(log.with_suffix(".1"))  # rotated
            log.write_bytes(b"five\n")
            assert await reply.content.readany() == b"five\n"
            log.unlink()
            assert await reply.content.read() == b""


async def test_log_that_is_a_symlink_is_not_followed(paths: Paths, world: FakeWorld, tmp_path: Path) -> None:
    vm_id = world.vms.add("web")
    (tmp_path / "secret").write_text("secret")
    (Path(paths.vms_dir) / vm_id / "console.log").symlink_to(tmp_path / "secret")
    async with running(paths, world), client_of(paths) as session, session.get("/v1/vms/web/logs") as reply:
        assert reply.status == 404


async def test_agent_upgrade_carries_bytes_both_ways(paths: Paths, world: FakeWorld) -> None:
    vm_id = world.vms.add("web")
    received = bytearray()

    def upper(connection: Any) -> None:
        connection.sendall(b"hello")
        while data := connection.recv(65536):
            received.extend(data)
            connection.sendall(data.upper())

    guest = FakeGuestSocket(f"{paths.vms_dir}/{vm_id}/v.sock", upper)
    payload = b"abcdefgh" * (1 << 17)  # 1 MiB: more than every buffer on the way
    try:
        async with running(paths, world):
            reader, writer = await asyncio.open_unix_connection(paths.socket)
            writer.write(
                b"GET /v1/vms/web/agent HTTP/1.1\r\nHost: banger\r\n"
                b"Connection: Upgrade\r\nUpgrade: banger-agent/1\r\n\r\n"
            )
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 ")
            assert await reader.readexactly(5) == b"hello"
            writer.write(payload)
            async with asyncio.timeout(60):
                assert await reader.readexactly(len(payload)) == payload.upper()
            writer.close()
            await writer.wait_closed()
            await eventually(lambda: bytes(received) == payload)
    finally:
        guest.close()


async def test_agent_upgrade_of_a_dead_guest_is_an_error(paths: Paths, world: FakeWorld) -> None:
    world.vms.add("web")
    async with running(paths, world), client_of(paths) as session:
        async with session.get("/v1/vms/web/agent", headers={"Upgrade": "banger-agent/1"}) as reply:
            assert (reply.status, (await reply.json())["code"]) == (502, "guest_unreachable")
        async with session.get("/v1/vms/web/agent") as reply:
            assert (reply.status, (await reply.json())["code"]) == (400, "invalid_argument")


async def test_stop_route_ends_the_daemon_but_not_while_busy_if_idle(paths: Paths, world: FakeWorld) -> None:
    world.vms.hold = asyncio.Event()
    async with running(paths, world) as stop, client_of(paths) as session:
        async with session.post("/v1/vms", json={}) as reply:
            url = (await reply.json())["url"]
        async with session.post("/v1/daemon/stop", json={"if_idle": True}) as reply:
            assert (reply.status, (await reply.json())["code"]) == (409, "busy")
        assert not stop.is_set()
        watching = asyncio.create_task(events_of(session, url))
        await eventually(world.vms.list)
        async with session.post("/v1/daemon/stop") as reply:
            assert reply.status == 200
        await stop.wait()
        # whoever watches the operation hears how it ended before the connection goes
        assert (await watching)[-1]["error"]["code"] == "aborted"
    assert world.vms.cancelled == 1


async def test_newer_client_is_turned_away_while_idle_only(paths: Paths, world: FakeWorld) -> None:
    newer = {"Banger-Client-Version": "1.3.0"}
    async with running(paths, world), client_of(paths) as session:
        async with session.get("/v1/vms", headers=newer) as reply:
            assert reply.status == 426
        async with session.get("/v1", headers=newer) as reply:
            assert reply.status == 200
        for same in ("1.2.3", "1.2.2", "nonsense"):
            async with session.get("/v1/vms", headers={"Banger-Client-Version": same}) as reply:
                assert reply.status == 200
        world.vms.hold = asyncio.Event()
        async with session.post("/v1/vms", json={}) as reply:
            assert reply.status == 202
        async with session.get("/v1/vms", headers=newer) as reply:
            assert reply.status == 200


async def alone_for_long(clock: Clock, condition: Any) -> None:
    """Until it is so, while the leases' time flies."""

    def later() -> bool:
        clock.now += leases.GRACE_S
        return bool(condition())

    await eventually(later)


async def test_vm_with_auto_remove_goes_when_its_lease_ends(
    paths: Paths, world: FakeWorld, clock: Clock
) -> None:
    async with running(paths, world), client_of(paths) as session:
        last = await finished(session, "POST", "/v1/vms", name="gone", auto_remove=True)
        world.vms.add("stays")
        async with session.post("/v1/vms/gone/lease") as reply:
            assert msgspec.json.decode(await reply.content.readline()) == {
                "vm_id": last["result"]["id"],
                "leased": True,
            }
            for _ in range(20):
                clock.now += leases.GRACE_S
                await asyncio.sleep(0.02)
            assert len(world.vms.records) == 2
        await alone_for_long(clock, lambda: len(world.vms.records) == 1)
        assert [record.name for record in world.vms.list()] == ["stays"]


async def test_restarted_daemon_waits_for_the_lease_to_come_back(
    paths: Paths, world: FakeWorld, clock: Clock
) -> None:
    world.vms.add("kept", auto_remove=True)
    world.vms.add("left", auto_remove=True)
    async with (
        running(paths, world),
        client_of(paths) as session,
        session.post("/v1/vms/kept/lease") as reply,
    ):
        await reply.content.readline()
        clock.now = leases.START_GRACE_S - 0.1
        await asyncio.sleep(0.2)
        assert len(world.vms.records) == 2, "both have the grace"
        await alone_for_long(clock, lambda: len(world.vms.records) == 1)
        assert [record.name for record in world.vms.list()] == ["kept"]


async def test_boot_with_auto_remove_that_nobody_watches_is_undone(
    paths: Paths, world: FakeWorld, clock: Clock
) -> None:
    world.vms.hold = asyncio.Event()
    async with running(paths, world), client_of(paths) as session:
        async with session.post("/v1/vms", json={"auto_remove": True}) as reply:
            url = (await reply.json())["url"]
        async with session.get(f"{url}/events") as reply:
            await reply.content.readline()
            for _ in range(20):
                clock.now += leases.GRACE_S
                await asyncio.sleep(0.02)
            assert len(world.vms.records) == 1, "watching the operation is as good as a lease"
        await alone_for_long(clock, lambda: not world.vms.records)


async def test_strangers_are_turned_away_before_they_say_a_word(paths: Paths, world: FakeWorld) -> None:
    class Nobodys(OwnersSocket):
        allowed = staticmethod(lambda _uid: False)

    async with running(paths, world, socket_type=Nobodys):
        reader, writer = await asyncio.open_unix_connection(paths.socket)
        assert b"403 Forbidden" in await reader.read()
        writer.close()


async def test_only_one_daemon_per_state_folder(paths: Paths, world: FakeWorld) -> None:
    async with running(paths, world):
        with pytest.raises(BangerError) as refusal:
            await StateLock(paths.state_dir).acquire(wait_s=0.1)
    assert refusal.value.code is ErrorCode.BUSY
    assert str(os.getpid()) in refusal.value.brief


async def test_stale_socket_is_replaced_and_a_file_is_not(paths: Paths, world: FakeWorld) -> None:
    bind_socket(paths.socket).close()  # as a crash leaves it
    assert Path(paths.socket).is_socket()
    async with running(paths, world), client_of(paths) as session, session.get("/v1") as reply:
        assert reply.status == 200
    Path(paths.socket).write_text("mine")
    with pytest.raises(BangerError, match="in the way"):
        bind_socket(paths.socket)
    assert Path(paths.socket).read_text() == "mine"


async def test_socket_path_may_be_very_long(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 100) / ("e" * 100) / "bangerd.sock"
    listener = bind_socket(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listener.close()


async def test_stats_and_health_touch_nothing(paths: Paths, world: FakeWorld) -> None:
    world.vms.add("web")
    world.vms.add("off", state=VMState.STOPPED)
    world.vms.add("deaf")
    world.vms.deaf = {"deaf"}
    async with running(paths, world), client_of(paths) as session:
        async with session.post("/v1/vms/web/stats") as reply:
            body = await reply.json()
            assert (reply.status, body["name"], body["stats"]["cpu_percent"]) == (200, "web", 12.5)
        async with session.post("/v1/vms/off/stats") as reply:
            assert set((await reply.json())["stats"]) == {"collected_at", "work_disk_bytes"}
        async with session.get("/v1/vms/off/health") as reply:
            body = await reply.json()
            assert (reply.status, body["healthy"], body["state"]) == (200, False, "stopped")
        async with session.get("/v1/vms/deaf/health") as reply:
            assert (await reply.json())["code"] == "timeout"
            assert reply.status >= 500
        async with session.get("/v1/vms/none/health") as reply:
            assert reply.status == 404
    assert world.vms.touched == []


async def test_delete_if_not_running_leaves_what_runs(paths: Paths, world: FakeWorld) -> None:
    world.vms.add("web")
    world.vms.add("off", state=VMState.STOPPED)
    async with running(paths, world), client_of(paths) as session:
        event = await finished(session, "DELETE", "/v1/vms/web?if_not_running=true")
        assert (event["kind"], event["error"]["code"]) == ("error", "wrong_state")
        event = await finished(session, "DELETE", "/v1/vms/off?if_not_running=true")
        assert event["kind"] == "result"
        assert [record.name for record in world.vms.list()] == ["web"]
        assert (await finished(session, "DELETE", "/v1/vms/web"))["kind"] == "result"


async def test_audit_and_repair(paths: Paths, world: FakeWorld) -> None:
    world.vms.findings = [
        Finding(kind="tap", name="tap-fc-1", problem="belongs to no VM", fix=Fix.DELETE_TAP),
        Finding(kind="tap", name="tap-fc-2", problem="belongs to no VM", fix=Fix.DELETE_TAP),
        Finding(kind="tap", name="tap-fc-3", problem="has banger's name, but not its mark"),
    ]
    world.vms.stubborn = {"tap-fc-2"}
    async with running(paths, world), client_of(paths) as session:
        async with session.get("/v1/host/audit") as reply:
            before = (await reply.json())["findings"]
        async with session.post("/v1/host/repair") as reply:
            after = (await reply.json())["findings"]
        async with session.get("/v1/host/audit") as reply:
            left = [finding["name"] for finding in (await reply.json())["findings"]]
    assert [finding.get("fixable", False) for finding in before] == [True, True, False]
    assert [finding.get("fixed", False) for finding in after] == [True, False, False]
    assert [finding.get("failure", "") for finding in after] == ["", "tap-fc-2 is in use", ""]
    assert left == ["tap-fc-2", "tap-fc-3"]


async def test_a_log_whose_head_was_given_back_begins_with_a_line(paths: Paths, world: FakeWorld) -> None:
    vm_id = world.vms.add("web")
    log = Path(paths.vm_dir(vm_id)) / "monitor.log"
    with log.open("wb") as file:
        file.write(b"x" * (3 << 20) + b"\nlast\n")
        os.fsync(file.fileno())
    assert punch_head(str(log), limit_bytes=1 << 20, keep_bytes=1 << 16)
    source = {"source": "monitor"}
    async with running(paths, world), client_of(paths) as session:
        reply = await session.get("/v1/vms/web/logs", params=source)
        said = await reply.read()
    assert said.startswith(b"x")
    assert said.endswith(b"x\nlast\n")


async def test_images_are_pulled_and_the_cache_pruned(
    paths: Paths, world: FakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    body = {
        "reference": "example.org/app",
        "credentials": {"example.org": {"username": "ann", "password": "hunter2-secret"}},
    }
    async with running(paths, world), client_of(paths) as session:
        async with session.post("/v1/images/pull", json=body) as reply:
            assert reply.status == 202
            url = (await reply.json())["url"]
        async with session.get(f"{url}/events") as reply:
            events = await reply.text()
        assert '"current":5,"total":10' in events
        assert '"name":"pulled"' in events
        async with session.get(url) as reply:
            assert "hunter2-secret" not in events + await reply.text()
        wrong = {"reference": "x", "credentials": {"x": {"password": ["hunter2-secret"]}}}
        async with session.post("/v1/images/pull", json=wrong) as reply:
            assert reply.status == 400
            assert "hunter2-secret" not in await reply.text()
        async with session.post("/v1/images/cache/prune", json={"dry_run": True}) as reply:
            assert await reply.json() == {"blobs": 2, "freed_bytes": 3 << 20, "in_use": 0}
    login = world.images.pulls[0].credentials["example.org"]
    assert login.password == "hunter2-secret"
    assert "hunter2-secret" not in repr(world.images.pulls) + caplog.text
