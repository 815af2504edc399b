"""A registry with a memory and with faults, in process, on loopback.

`FakeRegistry.start()` serves `manifests` and `blobs`; `faults` maps a digest, or `repository:tag`, to what
goes wrong with each request for it in turn (the last one with `*` behind it for ever); `requests` remembers
what was asked and with which authorization. `lying()` serves from a thread, in another network namespace.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import io
import json
import random
import socket
import tarfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web

from banger.image.oci import manifest as m
from tests.fakes.proxy import within

REALM = "fake registry"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress, the same every time."""
    return random.Random(seed).randbytes(size)


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    range: str
    authorization: str


@dataclass
class FakeRegistry:
    """auth: "", "basic" or "bearer". users: name → password. tokens: handed out, each good for all."""

    auth: str = ""
    users: dict[str, str] = field(default_factory=dict)
    refresh_tokens: set[str] = field(default_factory=set)
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    """By `repository:tag` and by `repository@digest`: content and content type."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    requests: list[Asked] = field(default_factory=list)
    token_requests: list[dict[str, str]] = field(default_factory=list)
    realm: str = ""
    """Where the challenge sends one; "" is this registry's own token server."""
    tokens: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    busy: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a blob's bytes begin to go out."""
    gate: asyncio.Event | None = None
    """Blobs with the fault "wait", or after their half "pause", wait for it."""
    paused: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a blob's half has gone out with the fault "pause"."""
    address: str = ""
    _runner: web.AppRunner | None = None

    def put(self, repository: str, tag: str, document: dict[str, Any], *, content_type: str = "") -> str:
        data = json.dumps(document).encode()
        digest = digest_of(data)
        kind = content_type or str(document.get("mediaType", "application/json"))
        self.manifests[f"{repository}@{digest}"] = self.manifests[f"{repository}:{tag}"] = (data, kind)
        return digest

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = digest_of(data)
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def image(
        self,
        repository: str = "app",
        tag: str = "latest",
        *,
        layers: Sequence[bytes] = (b"one", b"two"),
        architecture: str = "",
        config: dict[str, Any] | None = None,
    ) -> str:
        """Layers as tars of one file each; the digest of the manifest."""
        tars = [tar_of({f"file-{number}": content}) for number, content in enumerate(layers)]
        described = self.blob(
            json.dumps(
                {
                    "architecture": architecture or m.this_platform().architecture,
                    "os": "linux",
                    "config": config or {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
                    "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]},
                }
            ).encode(),
            m.OCI_CONFIG,
        )
        packed = [self.blob(gzip.compress(tar, 1, mtime=0), f"{m.OCI_LAYER}+gzip") for tar in tars]
        return self.put(
            repository,
            tag,
            {"schemaVersion": 2, "mediaType": m.OCI_MANIFEST, "config": described, "layers": packed},
        )

    def layers(self, repository: str = "app", tag: str = "latest") -> list[str]:
        return [layer["digest"] for layer in json.loads(self.manifests[f"{repository}:{tag}"][0])["layers"]]

    def bytes_of_blobs(self) -> list[Asked]:
        return [asked for asked in self.requests if "/blobs/" in asked.path]

    async def start(self, listener: socket.socket | None = None) -> FakeRegistry:
        app = web.Application()
        app.router.add_get("/token", self._give_token)
        app.router.add_post("/token", self._give_token)
        app.router.add_get("/elsewhere/{tail:.*}", self._elsewhere)
        app.router.add_get("/v2/{repository:.+}/manifests/{name}", self._manifest)
        app.router.add_get("/v2/{repository:.+}/blobs/{digest}", self._blob)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        listener = listener or socket.create_server(("127.0.0.1", 0))
        await web.SockSite(self._runner, listener).start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"{host}:{port}"
        return self

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _manifest(self, request: web.Request) -> web.StreamResponse:
        refusal = self._note(request)
        if refusal is not None:
            return refusal
        repository, name = request.match_info["repository"], request.match_info["name"]
        key = f"{repository}@{name}" if ":" in name else f"{repository}:{name}"
        data, content_type = self.manifests.get(key, (b"", ""))
        fault = self._fault(key)
        if not data:
            return _error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        headers = {"Content-Type": content_type}
        if fault != "no-digest":
            headers["Docker-Content-Digest"] = digest_of(data)
        if fault == "wrong":
            data = data.replace(b"2", b"3")
        if fault == "larger":
            data += b" " * (5 << 20)
        if fault == "html":
            return web.Response(body=b"<html>log in</html>", content_type="text/html")
        return await self._answer(request, fault) or web.Response(body=data, headers=headers)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        refusal = self._note(request)
        if refusal is not None:
            return refusal
        digest = request.match_info["digest"]
        return await self._serve(request, digest, self._fault(digest))

    async def _elsewhere(self, request: web.Request) -> web.StreamResponse:
        """A storage that redirects lead to; asks for nothing."""
        self.requests.append(_asked(request))
        return await self._serve(request, request.match_info["tail"].split("?")[0], "")

    async def _serve(self, request: web.Request, digest: str, fault: str) -> web.StreamResponse:
        data = self.blobs.get(digest)
        answer = await self._answer(request, fault)
        if answer is not None:
            return answer
        if data is None:
            return _error(404, "BLOB_UNKNOWN", "blob unknown")
        start = 0
        status, headers = 200, {"Content-Type": "application/octet-stream"}
        asked = request.headers.get("Range", "")
        if asked and fault != "no-range":
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            status = 206
            told = start + (1 if fault == "wrong-range" else 0)
            headers["Content-Range"] = f"bytes {told}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        if fault == "wrong":
            body = bytes(byte ^ 1 for byte in body)
        if fault == "longer":
            body += b"more"
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = len(body)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.busy.set()
        try:
            await response.prepare(request)
            if fault == "pause" and self.gate is not None:  # half of it first
                await response.write(body[: len(body) // 2])
                body = body[len(body) // 2 :]
                self.paused.set()
            if self.gate is not None and fault in ("pause", "wait"):
                await self.gate.wait()
            if fault == "break":
                await response.write(body[: len(body) // 2])
                assert request.transport is not None
                request.transport.abort()
                return response
            for position in range(0, len(body) if fault == "drip" else 0, 100):
                await response.write(body[position : position + 100])
                await asyncio.sleep(0.01)
            for position in range(0, len(body), 1 << 16):
                await response.write(body[position : position + (1 << 16)])
            await response.write_eof()
        finally:
            self.at_once -= 1
        return response

    async def _answer(self, request: web.Request, fault: str) -> web.StreamResponse | None:
        """Faults that are an answer of their own: "503", "429 5" (Retry-After), "-> URL", "circle", "chain",
        "endless" and a content type."""
        code, _, rest = fault.partition(" ")
        if code == "->":
            return web.Response(status=307, headers={"Location": rest})
        if code == "circle":
            return web.Response(status=302, headers={"Location": f"{request.rel_url}"})
        if code == "chain":
            here = int(request.query.get("n", "0"))
            return web.Response(status=302, headers={"Location": f"{request.path}?n={here + 1}"})
        if code == "endless":
            return await _without_end(request, rest or "application/octet-stream")
        if code.isdigit():
            response = _error(int(code), "TROUBLE", "trouble\x1b[2J")
            if rest:
                response.headers["Retry-After"] = rest
            return response
        return None

    def _fault(self, key: str) -> str:
        waiting = self.faults.get(key, [])
        if not waiting:
            return ""
        if waiting[0].endswith("*"):
            return waiting[0].removesuffix("*")
        return waiting.pop(0)

    def _note(self, request: web.Request) -> web.Response | None:
        self.requests.append(_asked(request))
        given = request.headers.get("Authorization", "")
        if self.auth == "basic" and not self._known(given):
            return _error(401, "UNAUTHORIZED", "who are you", challenge=f'Basic realm="{REALM}"')
        if self.auth == "bearer" and given.removeprefix("Bearer ") not in self.tokens:
            realm = self.realm or f"http://{self.address}/token"
            challenge = f'Bearer realm="{realm}",service="fake",scope="repository:other:pull,push"'
            return _error(401, "UNAUTHORIZED", "a token please", challenge=challenge)
        return None

    def _known(self, given: str) -> bool:
        accounts = {
            "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
            for name, password in self.users.items()
        }
        return given in accounts

    async def _give_token(self, request: web.Request) -> web.StreamResponse:
        fields: dict[str, str] = dict(request.query)
        if request.method == "POST":
            form = parse_qs((await request.read()).decode())
            fields = {key: values[0] for key, values in form.items()}
        given = request.headers.get("Authorization", "")
        self.token_requests.append({**fields, "authorization": given})
        allowed = fields.get("refresh_token") in self.refresh_tokens or not self.users or self._known(given)
        if not allowed:
            return _error(401, "UNAUTHORIZED", "wrong password")
        token = f"token-{len(self.token_requests)}"
        self.tokens.append(token)
        return web.json_response({"access_token" if request.method == "POST" else "token": token})


@contextlib.contextmanager
def lying(netns: str) -> Iterator[FakeRegistry]:
    """A registry on loopback in that network namespace, served by a thread. Set it up between requests."""
    loop = asyncio.new_event_loop()
    serving = threading.Thread(target=loop.run_forever, daemon=True)
    serving.start()
    try:
        listener = within(netns, lambda: socket.create_server(("127.0.0.1", 0)))
        made = FakeRegistry()
        asyncio.run_coroutine_threadsafe(made.start(listener), loop).result(60)
        try:
            yield made
        finally:
            asyncio.run_coroutine_threadsafe(made.stop(), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        serving.join(10)
        loop.close()


async def _without_end(request: web.Request, content_type: str) -> web.StreamResponse:
    """Until the one who asked has had enough."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    response.enable_chunked_encoding()
    await response.prepare(request)
    while True:
        await response.write(bytes(1 << 16))


def _asked(request: web.Request) -> Asked:
    return Asked(
        request.method,
        str(request.rel_url),
        request.headers.get("Range", ""),
        request.headers.get("Authorization", ""),
    )


def _error(status: int, code: str, message: str, *, challenge: str = "") -> web.Response:
    response = web.json_response({"errors": [{"code": code, "message": message}]}, status=status)
    if challenge:
        response.headers["WWW-Authenticate"] = challenge
    return response
