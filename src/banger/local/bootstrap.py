"""Installs a repository's tools in its guest: bootstrap.sh there, as a session, whose log stays.

For the CLI, once the repository is in the guest. Nothing of the repository is read or run on this host. After
a crash of ours the session goes on; the next one takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from banger.client.agentconnection import connect_agent
from banger.client.client import Client
from banger.client.copy import is_there
from banger.client.files import write_file
from banger.client.sessions import PURPOSE, Sessions
from banger.client.sessionstream import LogStream
from banger.client.streams import Output
from banger.guest import sessionwire
from banger.local.tooling import Tooling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from banger.client.agentconnection import AgentConnection
    from banger.client.shapes import Session

SESSION = "bootstrap"
TAG = "banger-bootstrap"
FOLDER = "/root/repo"
SCRIPT = f"{os.path.dirname(os.path.abspath(__file__))}/bootstrap.sh"
GUEST_SCRIPT = "/root/.banger-bootstrap"
PROFILES = "/etc/profile.d"
WITH_PATH = 'PATH="$HOME/.local/share/mise/shims:$HOME/.local/bin:$PATH"'
MAX_LINE = 4096

NO_MISE, NOT_FETCHED, WRONG_SUM = 3, 4, 5
WHY = {
    NO_MISE: "the guest has no mise, and mise_url is not set",
    NOT_FETCHED: "mise could not be fetched",
    WRONG_SUM: "what was fetched is not what mise_sha256 says",
}
"""What bootstrap.sh's own exit statuses mean."""


def start_bootstrap(client: Client, reference: str, tooling: Tooling) -> Session:
    """The session that installs them; login shells find them from now on. One of an earlier time goes."""
    sessions = Sessions(client, reference)
    name = SESSION
    for earlier in sessions.list():
        if earlier["name"] == SESSION:
            if TAG in earlier.get("tags", {}):
                sessions.remove(earlier["id"], force=True)
            else:
                name = ""  # somebody's own: ours gets a name that is made up
    if is_there(client, reference, PROFILES):
        write_file(client, reference, f"{PROFILES}/banger-tools.sh", f"{WITH_PATH}\n".encode(), mode=0o644)
    with open(SCRIPT, "rb") as script:
        write_file(client, reference, GUEST_SCRIPT, script.read(), mode=0o700)
    argv = ["/bin/sh", GUEST_SCRIPT, FOLDER, *(word for word in (tooling.url, tooling.sha256) if word)]
    return sessions.start(argv, name=name, cwd=FOLDER, tags={TAG: ""})


def follow_bootstrap(
    client: Client, reference: str, session: Session, *, tell: Callable[[str], None]
) -> Session:
    """The session once it has ended. tell: hears each line of its output, unescaped."""
    request = sessionwire.encode_session_logs(session["id"], follow=True, stdout=True, stderr=True)
    LogLines(connect_agent(client, reference, purpose=PURPOSE), tell).run(request)
    return Sessions(client, reference).show(session["id"])


def why_failed(session: Session) -> str:
    """ "" where it did not."""
    status = session.get("exit_code")
    if status == 0 and session["status"] == "exited":
        return ""
    if status is None:
        return session.get("launch_message") or session.get("last_error") or f"it is {session['status']}"
    return WHY.get(status, f"mise ended with {status}")


def with_tools(argv: Sequence[str]) -> list[str]:
    """The command in an environment that finds them, for what is no login shell."""
    return ["/bin/sh", "-c", f'{WITH_PATH}; export PATH; exec "$@"', "sh", *argv]


class LogLines(LogStream):
    """A session's log, line by line, to a function."""

    def __init__(self, connection: AgentConnection, tell: Callable[[str], None]) -> None:
        super().__init__(connection)
        self._tell = tell
        self._rest = b""

    def run(self, request: bytes) -> int:
        status = super().run(request)
        if self._rest:
            self._tell(self._rest.decode("utf-8", "replace"))
        return status

    def _output(self, output: Output, payload: bytes) -> None:
        *lines, rest = (self._rest + payload).split(b"\n")
        while len(rest) > MAX_LINE:
            lines.append(rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        self._rest = rest
        for line in lines:
            self._tell(line.rstrip(b"\r").decode("utf-8", "replace"))
