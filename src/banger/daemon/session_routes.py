"""Routes about guest sessions: names and references here, everything else is the agent's. No state here.

Attach, logs and send are not here: the client speaks with the agent itself, at the place `vm.connect` names.
"""

from __future__ import annotations

import math
import secrets

import msgspec
from aiohttp import web

from banger.api.replies import SessionList
from banger.api.requests import SignalSession, StartSession, StopSession
from banger.daemon.context import Handler, answer, daemon_of, query_bool, read_body
from banger.daemon.vm_routes import require_running
from banger.errors import BangerError, ErrorCode
from banger.guest.sessions import GuestSessions
from banger.model.names import generate_name, validate_name
from banger.model.records import GuestSession, VMRecord
from banger.model.references import resolve
from banger.model.sessions import (
    LIVE,
    MAX_STOP_TIMEOUT_S,
    check_tag,
    check_tag_count,
    signal_number,
)

STDIN_MODES = ("closed", "pipe")
MAX_WINDOW = 0xFFFF


def _running_vm(request: web.Request) -> VMRecord:
    record = daemon_of(request).services.vms.resolve(request.match_info["vm"])
    require_running(record)
    return record


def _agent(record: VMRecord) -> GuestSessions:
    return GuestSessions(record.runtime.vm_dir, vm_id=record.id, vm_name=record.name)


async def _session(request: web.Request) -> tuple[GuestSessions, GuestSession]:
    """What the route names, as it is now."""
    record = _running_vm(request)
    agent = _agent(record)
    sessions = {session.id: session for session in await agent.list()}
    reference = request.match_info["session"]
    found = resolve(reference, [(s.id, s.name) for s in sessions.values()], what="session")
    return agent, sessions[found]


async def _as_it_is(agent: GuestSessions, session: GuestSession) -> GuestSession:
    """The session read again; as it was known when it is gone meanwhile."""
    again = await agent.list(session.id)
    return again[0] if again else session


async def _with_log(agent: GuestSessions, session: GuestSession) -> GuestSession:
    """A launch that failed, with what it said."""
    if session.status != "failed" or session.launch_stage == "running":
        return session
    return msgspec.structs.replace(session, launch_raw_log=await agent.error_log(session.id))


async def list_sessions(request: web.Request) -> web.StreamResponse:
    return answer(SessionList(sessions=tuple(await _agent(_running_vm(request)).list())))


async def start(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, StartSession)
    _check(body)
    record = _running_vm(request)
    agent = _agent(record)
    taken = {session.name for session in await agent.list()}
    name = body.name or generate_name(taken)
    if name in taken:
        raise BangerError(
            ErrorCode.ALREADY_EXISTS,
            f"a session named {name} exists already in {record.name}",
            hint=f"choose another name, or: banger vm session rm {record.name} {name}",
        )
    await daemon_of(request).services.vms.touch(record.id)
    session = await agent.start(
        secrets.token_hex(16),
        body.command,
        name=name,
        env=body.env,
        cwd=body.cwd or (record.workspace.guest_path if record.workspace and not body.user else ""),
        user=body.user,
        terminal=body.terminal,
        stdin=body.stdin == "pipe",
        rows=body.rows,
        cols=body.cols,
        tags=body.tags,
    )
    return answer(await _with_log(agent, session))


async def show(request: web.Request) -> web.StreamResponse:
    agent, session = await _session(request)
    # asked for alone: of a long command line a list has the beginning only
    return answer(await _with_log(agent, await _as_it_is(agent, session)))


async def signal(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, SignalSession)
    number = signal_number(body.signal)
    agent, session = await _session(request)
    if session.status not in LIVE:
        raise BangerError(
            ErrorCode.WRONG_STATE, f"session {session.name} is not running: it has {_ended(session)}"
        )
    await agent.signal(session.id, number)
    return answer(await _as_it_is(agent, session))


async def stop(request: web.Request) -> web.StreamResponse:
    body = await read_body(request, StopSession)
    if not (math.isfinite(body.timeout_s) and 0 <= body.timeout_s <= MAX_STOP_TIMEOUT_S):
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT, f"timeout_s is not a number from 0 to {MAX_STOP_TIMEOUT_S}"
        )
    agent, session = await _session(request)
    if session.status not in LIVE:
        return answer(session)
    try:
        return answer(await agent.stop(session.id, grace_s=body.timeout_s))
    except BangerError as error:
        if error.data.get("agent_code") != "not_running":  # it ended by itself meanwhile
            raise
    return answer(await _as_it_is(agent, session))


async def remove(request: web.Request) -> web.StreamResponse:
    force = query_bool(request, "force")
    agent, session = await _session(request)
    if session.status in LIVE and not force:
        raise BangerError(
            ErrorCode.IN_USE,
            f"session {session.name} is {session.status}",
            hint="stop it first, or remove it with -f, which kills it",
        )
    await agent.remove(session.id, force=force)
    return answer(session)


def _ended(session: GuestSession) -> str:
    if session.status == "failed":
        return "failed"
    return f"exited with {session.exit_code}" if session.exit_code is not None else "exited"


def _check(body: StartSession) -> None:
    if body.name:
        validate_name(body.name)
    if not body.command or not body.command[0]:
        raise BangerError(ErrorCode.INVALID_ARGUMENT, "the session's command is empty")
    if body.stdin not in STDIN_MODES:
        raise BangerError(
            ErrorCode.INVALID_ARGUMENT, f"stdin: {body.stdin[:40]!a} is not one of {', '.join(STDIN_MODES)}"
        )
    if not (0 <= body.rows <= MAX_WINDOW and 0 <= body.cols <= MAX_WINDOW):
        raise BangerError(ErrorCode.INVALID_ARGUMENT, f"rows and cols are numbers from 0 to {MAX_WINDOW}")
    for key, value in body.tags.items():
        check_tag(key, value)
    check_tag_count(body.tags)


HANDLERS: dict[str, Handler] = {
    "session.list": list_sessions,
    "session.start": start,
    "session.show": show,
    "session.signal": signal,
    "session.stop": stop,
    "session.remove": remove,
}
