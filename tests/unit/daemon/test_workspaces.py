"""The routes about workspaces and kept work, on a real socket with fake services."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from banger.config.paths import Paths
from banger.model.states import VMState
from banger.workspace.errors import WorkNotKept
from tests.fakes.services import FakeWorld
from tests.unit.daemon.conftest import client_of, running
from tests.unit.daemon.test_daemon import events_of, finished

pytestmark = pytest.mark.anyio

COMMIT = "ab" * 20
BROUGHT = {
    "source_path": "/home/me/app",
    "repo_root": "/home/me/app",
    "repo_name": "app",
    "guest_path": "/root/repo",
    "mode": "shallow_overlay",
    "head_commit": COMMIT,
    "base_commit": COMMIT,
    "brought_commit": COMMIT,
    "refs": {"HEAD": COMMIT},
}


async def asked(session: aiohttp.ClientSession, method: str, url: str, **more: Any) -> tuple[int, Any]:
    async with session.request(method, url, **more) as reply:
        return reply.status, await reply.json()


async def test_what_is_brought_is_recorded_and_told_to_who_keeps(paths: Paths, world: FakeWorld) -> None:
    vm_id = world.vms.add("box")
    async with running(paths, world), client_of(paths) as session:
        status, vm = await asked(session, "PUT", "/v1/vms/box/workspace", json=BROUGHT)
        assert status == 200
        assert vm["workspace"]["repo_root"] == "/home/me/app"
        assert world.vms.works.brought[vm_id] == {"HEAD": COMMIT}
        status, connected = await asked(session, "POST", "/v1/vms/box/connect", json={"purpose": "exec"})
        assert connected["workspace"] == vm["workspace"]
        status, error = await asked(session, "PUT", "/v1/vms/box/workspace", json={**BROUGHT, "mode": "all"})
        assert (status, error["code"]) == (400, "invalid_argument")


async def test_a_keep_is_an_operation_whose_result_is_the_work(paths: Paths, world: FakeWorld) -> None:
    world.vms.add("box")
    async with running(paths, world), client_of(paths) as session:
        await asked(session, "PUT", "/v1/vms/box/workspace", json=BROUGHT)
        last = await finished(session, "POST", "/v1/vms/box/workspace/keep", ignored=True)
        assert last["result"]["vm_name"] == "box"
        assert last["result"]["vm_exists"] is True
        assert last["result"]["how"] == "guest-git"
        world.vms.works.live = WorkNotKept("git said no", vm_name="box")
        last = await finished(session, "POST", "/v1/vms/box/workspace/keep")
        assert last["error"]["code"] == "work_not_kept"


async def test_kept_work_outlives_its_vm_and_says_so(paths: Paths, world: FakeWorld) -> None:
    vm_id = world.vms.add("box", state=VMState.STOPPED)
    async with running(paths, world), client_of(paths) as session:
        await asked(session, "PUT", "/v1/vms/box/workspace", json=BROUGHT)
        async with session.delete("/v1/vms/box") as reply:
            operation = await reply.json()
        said = [event.get("message") for event in await events_of(session, operation["url"])]
        assert "work of box is kept: banger workspace pull box" in said
        status, listed = await asked(session, "GET", "/v1/work")
        (work,) = listed["work"]
        assert work["vm_id"] == vm_id
        assert "vm_exists" not in work
        status, shown = await asked(session, "GET", f"/v1/work/{vm_id}")
        assert (status, shown) == (200, work)
        status, removed = await asked(session, "DELETE", "/v1/work/box")
        assert (status, removed) == (200, work)
        assert (await asked(session, "GET", "/v1/work"))[1] == {"work": []}
        status, error = await asked(session, "GET", "/v1/work/box")
        assert (status, error["code"]) == (404, "not_found")


async def test_the_work_of_a_vm_that_is_there_is_not_removed_alone(paths: Paths, world: FakeWorld) -> None:
    vm_id = world.vms.add("box")
    async with running(paths, world), client_of(paths) as session:
        await asked(session, "PUT", "/v1/vms/box/workspace", json=BROUGHT)
        assert (await asked(session, "GET", "/v1/work/box"))[1]["vm_exists"] is True
        status, error = await asked(session, "DELETE", "/v1/work/box")
        assert (status, error["code"]) == (409, "in_use")
        assert "banger vm delete --discard-work box" in error["hint"]
    assert vm_id in world.vms.works.stores


async def test_packs_and_patches_are_raw_bytes(paths: Paths, world: FakeWorld) -> None:
    world.vms.add("box")
    async with running(paths, world), client_of(paths) as session:
        await asked(session, "PUT", "/v1/vms/box/workspace", json=BROUGHT)
        async with session.post("/v1/work/box/pack", json={"have": [COMMIT]}) as reply:
            assert reply.content_type == "application/octet-stream"
            assert await reply.read() == b"PACK" + COMMIT.encode()
        async with session.get("/v1/work/box/patch", params={"base": COMMIT}) as reply:
            assert await reply.read() == f"diff from {COMMIT}\n".encode()


async def test_a_stream_that_fails_is_an_answer_at_first_and_then_an_end_too_early(
    paths: Paths, world: FakeWorld
) -> None:
    world.vms.add("box")
    async with running(paths, world), client_of(paths) as session:
        await asked(session, "PUT", "/v1/vms/box/workspace", json=BROUGHT)
        status, error = await asked(session, "POST", "/v1/work/box/pack", json={"have": ["f" * 40]})
        assert (status, error["code"]) == (400, "invalid_argument")
        async with session.get("/v1/work/box/patch", params={"base": "0" * 40}) as reply:
            with pytest.raises(aiohttp.ClientError):
                await reply.read()


async def test_discard_work_reaches_the_service(paths: Paths, world: FakeWorld) -> None:
    world.vms.add("box", state=VMState.STOPPED)
    async with running(paths, world), client_of(paths) as session:
        await finished(session, "DELETE", "/v1/vms/box?discard_work=true&if_not_running=true")
    assert world.vms.calls == ["delete box --discard-work"]
