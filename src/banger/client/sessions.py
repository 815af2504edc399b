"""Sessions of one VM, for Python programs: `Sessions(client, "web").start(["make", "-j4"], name="build")`.

What changes or shows a session is asked of the daemon; attach, logs and send go straight to the guest's
agent. Synchronous, standard library only; each call may raise BangerError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from banger.client.client import REQUEST_TIMEOUT_S, Client, quote
from banger.client.errors import DaemonUnreachable
from banger.client.http import HTTPError
from banger.errors import BangerError, ErrorCode
from banger.model.sessions import LIVE, STOP_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from banger.client import shapes
    from banger.client.attach import Outcome

PURPOSE = "session"
START_TIMEOUT_S = 120.0
"""The daemon waits for an agent that is still mounting its root."""


class Sessions:
    """vm: a reference to a running VM. References to sessions: full id, exact name, unique id prefix."""

    def __init__(self, client: Client, vm: str) -> None:
        self._client = client
        self._vm = vm

    def list(self) -> list[shapes.Session]:
        """Oldest first."""
        sessions: list[shapes.Session] = self._client.request("GET", self._url())["sessions"]
        return sessions

    def show(self, reference: str) -> shapes.Session:
        return self._client.request("GET", self._url(reference))  # type: ignore[return-value]

    def start(
        self,
        command: Sequence[str],
        *,
        name: str = "",
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        tags: Mapping[str, str] | None = None,
        stdin: bool = False,
        terminal: bool = False,
        size: tuple[int, int] = (0, 0),
    ) -> shapes.Session:
        """One that cannot be launched is answered, too: its status is `failed`. size: rows and columns."""
        body = {
            "command": list(command),
            "name": name,
            "env": dict(env or {}),
            "cwd": cwd,
            "user": user,
            "tags": dict(tags or {}),
            "stdin": "pipe" if stdin else "closed",
            "terminal": terminal,
            "rows": size[0],
            "cols": size[1],
        }
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BangerError(
                ErrorCode.INVALID_ARGUMENT, "a session's command and environment are UTF-8 text"
            ) from None
        return self._ask("POST", self._url(), body, timeout_s=START_TIMEOUT_S)

    def signal(self, reference: str, signal: str = "TERM") -> shapes.Session:
        """To the command's process group."""
        return self._ask("POST", f"{self._url(reference)}/signal", {"signal": signal})

    def stop(self, reference: str, *, timeout_s: float = STOP_TIMEOUT_S) -> shapes.Session:
        """TERM, after timeout_s KILL; returns once the command has ended."""
        return self._ask(
            "POST",
            f"{self._url(reference)}/stop",
            {"timeout_s": timeout_s},
            timeout_s=timeout_s + REQUEST_TIMEOUT_S,
        )

    def remove(self, reference: str, *, force: bool = False) -> shapes.Session:
        """The session and its logs; force: kill it first."""
        return self._ask("DELETE", f"{self._url(reference)}?force={'true' if force else 'false'}")

    # streams

    def attach(
        self,
        session: shapes.Session,
        *,
        stdin: int | None = 0,
        replay: str = "unseen",
        detach_keys: bytes = b"\x10\x11",
        pass_end: bool = False,
        on_read_only: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Our standard streams at the session's, until it ends or is left. See client/attach.py."""
        from banger.client.agentconnection import connect_agent
        from banger.client.attach import Attachment, AttachOptions

        vm = session["vm_id"]
        options = AttachOptions(
            session_id=session["id"],
            terminal=session.get("attach_mode") == "terminal",
            write=stdin is not None and session.get("stdin_mode") == "pipe" and session["status"] in LIVE,
            replay=replay,
            detach_keys=detach_keys,
            pass_end=pass_end,
        )
        return Attachment(
            connect_agent(self._client, vm, purpose=PURPOSE),
            options,
            stdin=stdin,
            on_read_only=on_read_only,
            reconnect=lambda: connect_agent(self._client, vm, purpose=PURPOSE),
        ).run()

    def logs(
        self,
        session: shapes.Session,
        *,
        follow: bool = False,
        tail: int | None = None,
        stdout: bool = True,
        stderr: bool = True,
    ) -> int:
        """Onto our stdout and stderr, raw. 0, or 141 when nobody reads them."""
        from banger.client.agentconnection import connect_agent
        from banger.client.sessionstream import LogStream
        from banger.guest import sessionwire

        request = sessionwire.encode_session_logs(
            session["id"], follow=follow, stdout=stdout, stderr=stderr, tail=tail
        )
        return LogStream(connect_agent(self._client, session["vm_id"], purpose=PURPOSE)).run(request)

    def send(
        self, session: shapes.Session, text: bytes = b"", *, stdin: int | None = None, end: bool = False
    ) -> None:
        """text, or what the descriptor stdin has, to its stdin; end: that ends there, too."""
        from banger.client.agentconnection import connect_agent
        from banger.client.sessionstream import Sender
        from banger.guest import sessionwire

        connection = connect_agent(self._client, session["vm_id"], purpose=PURPOSE)
        Sender(connection, text=text, stdin=stdin).run(
            sessionwire.encode_session_send(session["id"], end=end)
        )

    # underneath

    def _url(self, reference: str | None = None) -> str:
        base = f"/v1/vms/{quote(self._vm)}/sessions"
        return base if reference is None else f"{base}/{quote(reference)}"

    def _ask(
        self,
        method: str,
        target: str,
        body: dict[str, Any] | None = None,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> shapes.Session:
        """As Client.request, but with a deadline of its own: a stop may take its time."""
        connection, response = self._client.open(method, target, body, timeout_s=timeout_s)
        try:
            reply: shapes.Session = json.loads(response.read() or b"{}")
            return reply
        except (OSError, HTTPError, ValueError) as error:
            raise DaemonUnreachable("the daemon went away", details=str(error)) from error
        finally:
            connection.close()
