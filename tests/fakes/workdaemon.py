"""The daemon's routes about kept work on a real socket, answered from keptwork.py. In a thread."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fakes.keptwork import KeptWork

Failure = tuple[int, dict[str, str]]


class WorkDaemon:
    """works: what is kept, by name. vms: names of VMs that are there. keep_fails: what a keep answers."""

    def __init__(self, *works: KeptWork) -> None:
        self.works = {work.name: work for work in works}
        self.vms = {work.name for work in works if work.vm_exists}
        self.asked: list[str] = []
        self.keep_fails: dict[str, str] | None = None
        self.break_off = False
        """Packs and patches end in the middle."""

    @contextmanager
    def serving(self, socket: Path) -> Iterator[WorkDaemon]:
        socket.parent.mkdir(parents=True)
        daemon = self

        class Handler(_Handler):
            owner = daemon

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        with Server(str(socket), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()

    def find(self, reference: str) -> KeptWork | None:
        by_id = {work.vm_id: work for work in self.works.values()}
        return self.works.get(reference) or by_id.get(reference)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: WorkDaemon

    def log_message(self, format: str, *args: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def _serve(self, method: str) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))) or b"{}")
        parts = urlsplit(self.path)
        words = [unquote(word) for word in parts.path.split("/")[2:]]
        self.owner.asked.append(f"{method} {parts.path}")
        match (method, words):
            case "GET", ["vms"]:
                self._json({"vms": [{"id": f"{n}-id", "name": n} for n in sorted(self.owner.vms)]})
            case "GET", ["vms", name]:
                if name in self.owner.vms:
                    self._json({"id": f"{name}-id", "name": name})
                else:
                    self._missing(name)
            case "POST", ["vms", name, "workspace", "keep"]:
                reply = {
                    "id": "1",
                    "kind": "workspace.keep",
                    "status": "running",
                    "url": f"/v1/operations/{name}",
                }
                self._json(reply, status=202)
            case "GET", ["operations", name, "events"]:
                self._events(name)
            case "GET", ["work"]:
                self._json({"work": [work.work() for work in self.owner.works.values()]})
            case _, ["work", reference, *rest]:
                work = self.owner.find(reference)
                if work is None:
                    self._missing(reference)
                elif rest == ["pack"]:
                    self._bytes(b"".join(work.pack(body["have"])))
                elif rest == ["patch"]:
                    base = parse_qs(parts.query).get("base", [""])[0]
                    if base and not work.has(base):
                        self._missing(base)
                    else:
                        self._bytes(work.patch(base))
                elif method == "DELETE" and work.vm_exists:
                    self._json({"code": "in_use", "brief": f"VM {work.name} is there"}, status=409)
                else:
                    if method == "DELETE":
                        del self.owner.works[work.name]
                    self._json(work.work())
            case _:
                self._missing(self.path)

    def _events(self, name: str) -> None:
        told: dict[str, object] = {"seq": 2, "time": "", "op_id": "1"}
        if self.owner.keep_fails is not None:
            told |= {"kind": "error", "error": self.owner.keep_fails}
        else:
            work = self.owner.find(name)
            assert work is not None
            told |= {"kind": "result", "result": work.work()}
        first = {
            "seq": 1,
            "time": "",
            "op_id": "1",
            "kind": "progress",
            "message": f"keeping the work in {name}",
        }
        lines = [json.dumps(event) + "\n" for event in (first, told)]
        self._bytes("".join(lines).encode(), cut=False)

    def _bytes(self, data: bytes, *, cut: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if cut and self.owner.break_off:
            data = data[: len(data) // 2]
            self.close_connection = True
        self.wfile.write(data)

    def _json(self, reply: Mapping[str, object], *, status: int = 200) -> None:
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _missing(self, name: str) -> None:
        self._json({"code": "not_found", "brief": f"no such VM: {name}"}, status=404)
