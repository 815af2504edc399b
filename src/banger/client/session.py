"""A session of a guest's as an object: a command that outlives this program, with its logs kept.

Made by VM.session, VM.sessions and VM.get_session (client/vm.py). Thread-safe: what is known of it is
replaced as a whole. Standard library only. After a crash of ours the session goes on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from banger.client.agentconnection import AgentConnection, connect_agent
from banger.client.core import Core
from banger.client.dialogue import AttachDialogue, LogsDialogue, SendDialogue
from banger.client.process import SessionStream, Stream
from banger.client.sessions import PURPOSE, Sessions
from banger.client.values import Replay
from banger.errors import BangerError, ErrorCode
from banger.model.sessions import LIVE, STOP_TIMEOUT_S

if TYPE_CHECKING:
    from banger.client import shapes


class Session:
    """A long-lived command in a guest."""

    def __init__(self, core: Core, record: shapes.Session) -> None:
        self._core = core
        self._record = record

    def __repr__(self) -> str:
        return f"<banger.Session {self.name} {self.status}>"

    @property
    def info(self) -> shapes.Session:
        """All that was known when it was last asked: GuestSession of docs/api.md."""
        return self._record

    @property
    def id(self) -> str:
        """32 hexadecimal digits."""
        return self._record["id"]

    @property
    def name(self) -> str:
        """Given, or made up."""
        return self._record["name"]

    @property
    def status(self) -> str:
        """starting, running, stopping, exited or failed, as of the last refresh."""
        return self._record["status"]

    @property
    def returncode(self) -> int | None:
        """None while it runs; -N when signal N ended it. As of the last refresh."""
        if number := self._record.get("exit_signal"):
            return -number
        return self._record.get("exit_code")

    def refresh(self) -> Session:
        """Ask again; itself."""
        with self._core.calls.client() as client:
            self._record = Sessions(client, self._vm).show(self.id)
        return self

    def wait(self, timeout: float | None = None) -> int:
        """Its return code, once it has ended. TIMEOUT leaves it running; GUEST_ERROR if it never ran."""
        if self._record["status"] in LIVE:
            deadline = None if timeout is None else time.monotonic() + timeout
            with self._logs(follow=True, tail=0) as stream:
                while stream.read(None if deadline is None else max(0.0, deadline - time.monotonic())):
                    pass
            self.refresh()
        returncode = self.returncode
        if returncode is None or self.status == "failed":
            raise BangerError(
                ErrorCode.GUEST_ERROR,
                f"the session {self.name} did not run: {self._record.get('launch_message', '')}".rstrip(": "),
                details=self._record.get("last_error"),
            )
        return returncode

    def logs(self, *, tail: int | None = None) -> bytes:
        """What it has written so far, stdout and stderr, all in memory; tail: the last lines of each."""
        with self._logs(follow=False, tail=tail) as stream:
            return b"".join(piece.data for piece in stream)

    def follow(self, *, tail: int | None = None) -> Stream:
        """What it has written and goes on to write, to its end: a stream to iterate, in a with block."""
        return self._logs(follow=True, tail=tail)

    def attach(
        self, *, write: bool = False, replay: Replay = "unseen", size: tuple[int, int] = (24, 80)
    ) -> SessionStream:
        """Its streams, in a with block whose end leaves the session running.

        write: its stdin, if it was started with one and nobody else has it (has_stdin says so). replay: what
        nobody attached has seen yet, all of the logs, or none of them.
        """
        dialogue = AttachDialogue(self.id, write=write, replay=replay, size=size)
        stream = SessionStream(self._reach(), dialogue)
        try:
            stream.wait_started()
        except BaseException:
            stream.close()
            raise
        return stream

    def send(self, data: bytes | str = b"", *, end: bool = False) -> None:
        """To its stdin, all of it before this returns; end: its stdin ends there."""
        dialogue = SendDialogue(self.id, end=end)
        with Stream(self._reach(), dialogue) as stream:
            stream.write(data)
            stream.close_stdin()
            stream.read()

    def signal(self, signal: str | int = "TERM") -> None:
        """To its process group."""
        with self._core.calls.client() as client:
            self._record = Sessions(client, self._vm).signal(self.id, str(signal))

    def stop(self, *, timeout: float = STOP_TIMEOUT_S) -> Session:
        """TERM, after `timeout` seconds KILL; itself, once it has ended."""
        with self._core.calls.client() as client:
            self._record = Sessions(client, self._vm).stop(self.id, timeout_s=timeout)
        return self

    def remove(self, *, force: bool = False) -> None:
        """It and its logs. IN_USE while it runs, unless force kills it first."""
        with self._core.calls.client() as client:
            Sessions(client, self._vm).remove(self.id, force=force)

    @property
    def _vm(self) -> str:
        return self._record["vm_id"]

    def _logs(self, *, follow: bool, tail: int | None) -> Stream:
        return Stream(self._reach(), LogsDialogue(self.id, follow=follow, tail=tail))

    def _reach(self) -> AgentConnection:
        with self._core.calls.client() as client:
            return connect_agent(client, self._vm, purpose=PURPOSE)
