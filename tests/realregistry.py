"""A real registry for tests: Debian's docker-registry on a local address, and tools that push to it.

`RealRegistry` runs one with or without TLS, open or with accounts (htpasswd) or with tokens, for which
`TokenServer` stands in the test's own event loop, or in a process (`python -m tests.realregistry FOLDER`).
`Maker` makes images with umoci and pushes them with skopeo: other people's tools, so that what is pulled was
not written by what pulls it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from banger.image.oci.auth import Credential
from banger.system.run import run
from tests.fakes.registry import tar_of

ANN = Credential(username="ann", password="secret")
START_TIMEOUT_S = 60.0
TOOL_TIMEOUT_S = 120.0
SERVICE = "test registry"


def make_certificate(folder: Path, *addresses: str) -> tuple[Path, Path]:
    """A self-signed authority that is its own server: (certificate, key), for IP addresses and localhost."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    names = ",".join(["DNS:localhost", *(f"IP:{address}" for address in addresses)])
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    argv += ["-addext", f"subjectAltName={names}", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    return certificate, key


@dataclass
class TokenServer:
    """Gives ann what she asks for, and everyone else to pull from `public/…`. granted: what was asked."""

    folder: Path
    issuer: str = "test issuer"
    lifetime_s: int = 300
    granted: list[str] = field(default_factory=list)
    realm: str = ""
    certificate: Path = Path()
    _key: Path = Path()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[TokenServer]:
        self.folder.mkdir()
        self.certificate, self._key = await asyncio.to_thread(make_certificate, self.folder, "127.0.0.1")
        app = web.Application()
        app.router.add_get("/token", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            self.realm = f"http://{host}:{port}/token"
            yield self
        finally:
            await runner.cleanup()

    def settings(self) -> dict[str, str]:
        """Those of a registry that takes its tokens."""
        return {
            "realm": self.realm,
            "service": SERVICE,
            "issuer": self.issuer,
            "rootcertbundle": str(self.certificate),
        }

    async def _answer(self, request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "")
        known = given == ANN.basic()
        if given and not known:
            return web.json_response({"errors": [{"code": "UNAUTHORIZED", "message": "no"}]}, status=401)
        access: list[dict[str, Any]] = []
        for scope in request.query.getall("scope", []):
            self.granted.append(scope)
            kind, name, actions = scope.split(":")
            if known or name.startswith("public/"):
                allowed = actions.split(",") if known else ["pull"]
                access.append({"type": kind, "name": name, "actions": allowed})
        return web.json_response({"token": await asyncio.to_thread(self._sign, access)})

    def _sign(self, access: list[dict[str, Any]]) -> str:
        """A JWT, as docker's token specification has it."""
        der = base64.b64encode(
            subprocess.run(
                ["openssl", "x509", "-in", str(self.certificate), "-outform", "DER"],
                check=True,
                capture_output=True,
                timeout=60,
            ).stdout
        ).decode()
        now = int(time.time())
        claims: dict[str, object] = {
            "iss": self.issuer,
            "sub": "",
            "aud": SERVICE,
            "jti": secrets.token_hex(8),
            "access": access,
        }
        claims |= {"exp": now + self.lifetime_s, "nbf": now - 10, "iat": now - 10}
        body = f"{_b64({'typ': 'JWT', 'alg': 'RS256', 'x5c': [der]})}.{_b64(claims)}"
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self._key)],
            input=body.encode(),
            check=True,
            capture_output=True,
            timeout=60,
        ).stdout
        return f"{body}.{_b64(signature)}"


def _b64(data: object) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@dataclass
class RealRegistry:
    """folder: its storage and log. certificate, key: with TLS. accounts: name → password, by htpasswd."""

    folder: Path
    ip: str = "127.0.0.1"
    certificate: Path | None = None
    key: Path | None = None
    accounts: dict[str, str] = field(default_factory=dict)
    tokens: TokenServer | None = None
    address: str = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[RealRegistry]:
        self.folder.mkdir()
        config = self.folder / "config.json"  # YAML takes JSON
        config.write_text(json.dumps(self._config()))
        process = self._start(config)
        try:
            self.address = await self._listening(process)
            yield self
        finally:
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait, 30)

    def _start(self, config: Path) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(
                ["docker-registry", "serve", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"]},
                start_new_session=True,
            )

    async def _listening(self, process: subprocess.Popen[bytes]) -> str:
        async with asyncio.timeout(START_TIMEOUT_S):
            while True:
                text = (self.folder / "log").read_text()
                for line in text.splitlines():
                    _, found, rest = line.partition("listening on ")
                    if found:
                        return rest.split('"')[0].split(",")[0].strip()
                assert process.poll() is None, text
                await asyncio.sleep(0.02)

    def _config(self) -> dict[str, Any]:
        made: dict[str, Any] = {
            "version": 0.1,
            "log": {"accesslog": {"disabled": True}, "level": "info", "formatter": "text"},
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "storage")}},
            "http": {"addr": f"{self.ip}:0", "secret": "s"},
        }
        if self.certificate is not None:
            made["http"]["tls"] = {"certificate": str(self.certificate), "key": str(self.key)}
        if self.accounts:
            lines = [_htpasswd(name, password) for name, password in self.accounts.items()]
            (self.folder / "htpasswd").write_text("".join(lines))
            made["auth"] = {"htpasswd": {"realm": "test", "path": str(self.folder / "htpasswd")}}
        if self.tokens is not None:
            made["auth"] = {"token": self.tokens.settings()}
        return made


def _htpasswd(name: str, password: str) -> str:
    argv = ["htpasswd", "-nbB", "-C", "4", name, password]
    return subprocess.run(argv, check=True, capture_output=True, timeout=60).stdout.decode().strip() + "\n"


@dataclass
class Maker:
    """Images by umoci in a layout below folder, pushed by skopeo."""

    folder: Path

    async def image(
        self, tag: str, layers: Sequence[dict[str, bytes] | Path], *, config: Sequence[str] = ()
    ) -> str:
        """layers: tars, or files for one each. config: `umoci config`'s options. Returns the layout:tag."""
        layout = self.folder / "layout"
        target = f"{layout}:{tag}"
        if not layout.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            await self._tool("umoci", "init", "--layout", str(layout))
        await self._tool("umoci", "new", "--image", target)
        for number, layer in enumerate(layers):
            path = layer if isinstance(layer, Path) else self.folder / f"{tag}-{number}.tar"
            if not isinstance(layer, Path):
                path.write_bytes(tar_of(layer))
            await self._tool("umoci", "raw", "add-layer", "--image", target, str(path))
        if config:
            await self._tool("umoci", "config", "--image", target, *config)
        return target

    async def push(self, target: str, registry: RealRegistry, name: str, *options: str) -> str:
        """The digest of what the registry has then. options: skopeo's, for example --format v2s2."""
        account = ["--dest-creds", f"{ANN.username}:{ANN.password}"]
        digest = self.folder / "digest"
        await self._tool(
            "skopeo",
            "copy",
            "--insecure-policy",
            "--dest-tls-verify=false",
            f"--digestfile={digest}",
            *(account if registry.accounts or registry.tokens else []),
            *options,
            f"oci:{target}",
            f"docker://{registry.address}/{name}",
        )
        return digest.read_text().strip()

    async def save(self, target: str, kind: str, file: Path, name: str) -> None:
        """As a file: kind "oci-archive" or "docker-archive"."""
        await self._tool("skopeo", "copy", "--insecure-policy", f"oci:{target}", f"{kind}:{file}:{name}")

    async def _tool(self, *argv: str) -> None:
        await run(argv, timeout_s=TOOL_TIMEOUT_S, env={"HOME": str(self.folder), "TMPDIR": str(self.folder)})


async def _serve(folder: Path) -> None:
    """Prints the settings for a registry, and serves until stdin ends."""
    async with TokenServer(folder).serving() as tokens:
        print(json.dumps(tokens.settings()), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
