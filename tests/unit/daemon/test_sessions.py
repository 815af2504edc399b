"""Session routes on a real daemon socket, against an agent of memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from banger.config.paths import Paths
from banger.model.states import VMState
from tests.fakes.guestagent import FakeGuestSocket
from tests.fakes.services import FakeWorld
from tests.fakes.sessionagent import SessionAgent
from tests.unit.daemon.conftest import client_of, running

pytestmark = pytest.mark.anyio
URL = "/v1/vms/web/sessions"


@pytest.fixture
def agent(world: FakeWorld) -> Iterator[SessionAgent]:
    """The one in the VM `web`."""
    vm_id = world.vms.add("web")
    sessions = SessionAgent()
    server = FakeGuestSocket(world.vms.records[vm_id].runtime.vsock_path, sessions.run)
    yield sessions
    server.close()


async def ask(
    session: aiohttp.ClientSession, method: str, url: str = URL, *, status: int = 200, **body: Any
) -> dict[str, Any]:
    async with session.request(method, url, json=body or None) as reply:
        answered: dict[str, Any] = await reply.json()
        assert reply.status == status, answered
        return answered


async def test_start_list_show_signal_stop_remove(
    paths: Paths, world: FakeWorld, agent: SessionAgent
) -> None:
    async with running(paths, world), client_of(paths) as http:
        made = await ask(
            http,
            "POST",
            command=["make", "-j4"],
            name="build",
            env={"A": "1"},
            tags={"role": "ci"},
            stdin="pipe",
        )
        assert world.vms.touched == [made["vm_id"]]
        assert (made["status"], made["command"], made["args"], made["env"]) == (
            "running",
            "make",
            ["-j4"],
            {"A": "1"},
        )
        assert (made["stdin_mode"], made["attachable"], made["tags"]) == ("pipe", True, {"role": "ci"})
        other = await ask(http, "POST", command=["true"])
        assert other["name"]
        assert other["name"] != "build"

        listed = await ask(http, "GET")
        assert [one["id"] for one in listed["sessions"]] == [made["id"], other["id"]]
        for reference in (made["id"], "build", made["id"][:10]):
            assert (await ask(http, "GET", f"{URL}/{reference}"))["id"] == made["id"]

        await ask(http, "POST", f"{URL}/build/signal", signal="usr1")
        assert agent.signals == [(made["id"], 10)]
        refused = await ask(http, "DELETE", f"{URL}/build", status=409)
        assert refused["code"] == "in_use"
        stopped = await ask(http, "POST", f"{URL}/build/stop", timeout_s=2.5)
        assert (stopped["status"], stopped["exit_code"]) == ("exited", 143)
        assert agent.graces == [2500]
        again = await ask(http, "POST", f"{URL}/build/stop")
        assert again["status"] == "exited", "stopping what has ended is no error"
        assert (await ask(http, "POST", f"{URL}/build/signal", status=409))["code"] == "wrong_state"
        await ask(http, "DELETE", f"{URL}/build")
        await ask(http, "DELETE", f"{URL}/{other['id']}?force=true")
        assert (await ask(http, "GET"))["sessions"] == []
        assert world.vms.touched == [made["vm_id"]] * 2


async def test_a_launch_that_failed_is_answered_with_its_log(
    paths: Paths, world: FakeWorld, agent: SessionAgent
) -> None:
    async with running(paths, world), client_of(paths) as http:
        made = await ask(http, "POST", command=["no-such"])
        assert (made["status"], made["launch_stage"]) == ("failed", "exec")
        assert made["launch_message"] == "no-such: not found"
        assert made["launch_raw_log"] == "sh: no-such: not found\n"
        assert "attachable" not in made
        assert (await ask(http, "GET", f"{URL}/{made['id']}"))["launch_raw_log"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"command": []},
        {"command": [""]},
        {"command": ["x"], "name": "Not_A_Name"},
        {"command": ["x"], "stdin": "open"},
        {"command": ["x"], "rows": -1},
        {"command": ["x"], "cols": 1 << 20},
        {"command": ["x"], "tags": {"": "x"}},
        {"command": ["x"], "tags": {"a": "\x1b"}},
        {"command": ["x\0"]},
        {"command": ["x"], "cwd": "/a\0b"},
        {"command": ["x"], "env": {"A=B": "c"}},
        {"command": ["x"], "colour": "red"},
    ],
)
async def test_what_cannot_be_started(
    paths: Paths, world: FakeWorld, agent: SessionAgent, body: dict[str, Any]
) -> None:
    async with running(paths, world), client_of(paths) as http:
        assert (await ask(http, "POST", status=400, **body))["code"] == "invalid_argument"
    assert not agent.sessions


async def test_names_and_references(paths: Paths, world: FakeWorld, agent: SessionAgent) -> None:
    async with running(paths, world), client_of(paths) as http:
        await ask(http, "POST", command=["x"], name="build")
        taken = await ask(http, "POST", command=["x"], name="build", status=409)
        assert taken["code"] == "already_exists"
        assert "banger vm session rm web build" in taken["hint"]
        missing = await ask(http, "GET", f"{URL}/biuld", status=404)
        assert "did you mean build?" in missing["hint"]
        for one in agent.sessions.values():  # two that begin with the same digit
            agent.sessions = {"1" * 32: one, "1" + "2" * 31: one}
            break
        assert (await ask(http, "GET", f"{URL}/1", status=409))["code"] == "ambiguous"


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("signal", {"signal": "NOPE"}),
        ("signal", {"signal": "0"}),
        ("stop", {"timeout_s": -1}),
        ("stop", {"timeout_s": 1e9}),
    ],
)
async def test_what_cannot_be_asked(
    paths: Paths, world: FakeWorld, agent: SessionAgent, verb: str, body: dict[str, Any]
) -> None:
    async with running(paths, world), client_of(paths) as http:
        await ask(http, "POST", command=["x"], name="build")
        assert (await ask(http, "POST", f"{URL}/build/{verb}", status=400, **body))[
            "code"
        ] == "invalid_argument"
    assert not agent.signals
    assert not agent.graces


async def test_a_stopped_vm_and_an_old_agent_say_what_to_do(
    paths: Paths, world: FakeWorld, agent: SessionAgent
) -> None:
    world.vms.add("asleep", state=VMState.STOPPED)
    agent.old = True
    async with running(paths, world), client_of(paths) as http:
        asleep = await ask(http, "GET", "/v1/vms/asleep/sessions", status=409)
        assert (asleep["code"], asleep["hint"]) == ("wrong_state", "banger vm start asleep")
        old = await ask(http, "GET", status=409)
        assert (old["code"], old["hint"]) == ("wrong_state", "banger vm restart web")


async def test_connect_for_a_session_touches(paths: Paths, world: FakeWorld, agent: SessionAgent) -> None:
    async with running(paths, world), client_of(paths) as http:
        await ask(http, "POST", "/v1/vms/web/connect", purpose="session")
    assert len(world.vms.touched) == 1
