"""What a command of banger's may import before it has said anything: start-up is most of its time.

Each case runs in a fresh interpreter and reads sys.modules. A list of what is allowed would have to
follow every release of Python and click; so the dear ones are forbidden by name.
"""

from __future__ import annotations

import json
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from banger import __version__
from tests.style import source

FORBIDDEN = (
    "aiohttp",
    "asyncio",
    "banger.daemon",
    "banger.vm",
    "concurrent.futures",
    "dnslib",
    "email",
    "http.client",
    "importlib.metadata",
    "logging",
    "msgspec",
    "multiprocessing",
    "pyroute2",
    "sqlite3",
    "ssl",
    "subprocess",
    "tomllib",
    "unittest",
    "urllib.request",
)
HOT = (("vm", "list"), ("vm", "list", "-q"), ("vm", "list", "--json"), ("version",), ("--help",))
"""Commands that scripts call in loops, and what a person sees first."""

RUN_MAIN = """
import contextlib, io, sys
sys.argv = ["banger", *sys.argv[1:]]
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
    try:
        # not main(), which ends the process before it could tell
        from banger.cli.main import run
        status = run(sys.argv[1:])
    except SystemExit as end:
        status = end.code
assert not status, (status, said.getvalue())
print(*sorted(sys.modules))
"""

REPLIES: dict[str, dict[str, object]] = {
    "/v1": {
        "api": "v1",
        "version": __version__,
        "pid": 1,
        "instance": "0" * 16,
        "features": [],
        "started_at": "2026-01-01T00:00:00Z",
        "running_operations": 0,
    },
    "/v1/vms": {"vms": []},
}


class Daemon(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """As much of the daemon as an empty list needs: keeps the connection, answers every GET."""

    daemon_threads = True


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        reply = REPLIES.get(self.path.split("?")[0])
        body = json.dumps(reply or {}).encode()
        self.send_response(404 if reply is None else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A BANGER_HOME whose daemon has no VMs."""
    (tmp_path / "run").mkdir(mode=0o700)
    with Daemon(str(tmp_path / "run" / "bangerd.sock"), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield tmp_path
        server.shutdown()
        thread.join()


def modules_after(code: str, *argv: str, options: tuple[str, ...] = (), home: str = "") -> set[str]:
    done = subprocess.run(
        [sys.executable, *options, "-c", code, *argv],
        env={"PYTHONPATH": str(source.PROJECT / "src"), "BANGER_HOME": home},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("command", HOT, ids=" ".join)
def test_hot_commands_import_little(command: tuple[str, ...], home: Path) -> None:
    loaded = modules_after(RUN_MAIN, *command, home=str(home))
    bare = modules_after("import sys; print(*sys.modules)")
    dear = sorted(
        name
        for name in loaded - bare
        if any(name == other or name.startswith(f"{other}.") for other in FORBIDDEN)
    )
    assert not dear, f"banger {' '.join(command)} imports {', '.join(dear)}"


def client_modules() -> list[str]:
    return [
        ".".join(path.relative_to(source.PACKAGE.parent).with_suffix("").parts)
        for path in source.modules()
        if source.room_of(path) == "client" and path.name != "__init__.py"
    ]


@pytest.mark.parametrize("module", client_modules())
def test_the_client_needs_only_the_standard_library(module: str) -> None:
    """-S: no site-packages, so that any other import fails."""
    assert module in modules_after(f"import sys, {module}\nprint(*sys.modules)", options=("-S",))
