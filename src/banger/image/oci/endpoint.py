"""Where and how a registry may be reached: schemes, certificates, proxies, and where a redirect may lead.

Pure but for reading certificates and the environment's proxies. The rules: https with a checked certificate;
http, or any certificate, only for loopback and for what `[[registry]]` says is insecure; a redirect never
leads from https to http, and never from elsewhere to this machine.
"""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from banger.config.settings import Registry
from banger.image.errors import ImageError, download_failed, unsuitable
from banger.image.oci.auth import Credential
from banger.image.oci.reference import Reference, is_loopback

CERTIFICATE_DIRS = (Path("/etc/docker/certs.d"), Path("/etc/containers/certs.d"))
"""As docker and podman have it: DIR/HOST[:PORT]/ with *.crt (authorities), *.cert and *.key (a client's)."""
MAX_LOCATION = 8 << 10


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """What a pull may use. credentials: by registry (Reference.registry, or a mirror's host:port)."""

    credentials: dict[str, Credential] = {}
    registries: tuple[Registry, ...] = ()
    certificate_dirs: tuple[Path, ...] = CERTIFICATE_DIRS

    def is_insecure(self, address: str) -> bool:
        """Whether http and any certificate will do for host[:port]; an http mirror is as good as said so."""
        address = address.lower()
        return is_loopback(address) or any(
            (entry.insecure and entry.host == address)
            or (
                entry.mirror.partition("/")[0] == "http:" and urlsplit(entry.mirror).netloc.lower() == address
            )
            for entry in self.registries
        )


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """address: host[:port]; bases: URLs to try in this order, until one answers."""

    address: str
    bases: tuple[str, ...]
    credential: Credential = Credential()
    insecure: bool = False


def endpoints(reference: Reference, access: Access) -> list[Endpoint]:
    """A configured mirror, if there is one, and then the registry itself."""
    found: list[Endpoint] = []
    for scheme, address, path in _mirrors(reference, access.registries):
        found.append(_endpoint(address, access, account=address, scheme=scheme, path=path))
    found.append(_endpoint(reference.endpoint, access, account=reference.registry))
    return found


def mirrors(reference: Reference, registries: Sequence[Registry]) -> list[str]:
    """The mirrors (host[:port]) that may be asked for a reference: they have credentials of their own."""
    return [address for _scheme, address, _path in _mirrors(reference, registries)]


def _mirrors(reference: Reference, registries: Sequence[Registry]) -> Iterator[tuple[str, str, str]]:
    """(scheme or "", host[:port], path)"""
    for entry in registries:
        if entry.mirror and entry.host == reference.registry.lower():
            scheme, _, rest = entry.mirror.rpartition("://")
            address, _, path = rest.partition("/")
            yield scheme, address, path


def _endpoint(address: str, access: Access, *, account: str, scheme: str = "", path: str = "") -> Endpoint:
    insecure = access.is_insecure(address) or access.is_insecure(account)
    below = f"/{path.strip('/')}" if path.strip("/") else ""
    schemes = (scheme,) if scheme else ("https", "http") if insecure else ("https",)
    return Endpoint(
        address=address,
        bases=tuple(f"{scheme}://{address}{below}" for scheme in schemes),
        credential=access.credentials.get(account, Credential()),
        insecure=insecure,
    )


def origin(url: str) -> tuple[str, str, int]:
    """(scheme, host, port): what an Authorization header is for. ValueError where the URL has none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("no http URL")
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def check_hop(source: str, target: str, access: Access) -> None:
    """Refuse to follow `source` (a URL) to `target`, a redirect's or a token server's, where it is unsafe."""
    try:
        scheme, host, _port = origin(target)
        parts = urlsplit(target)
    except ValueError:
        raise _refused(source, "to something that is no http URL") from None
    shown = ascii(host[:100])[1:-1]
    if len(target) > MAX_LOCATION or parts.username or parts.password or not target.isprintable():
        raise _refused(source, f"to a strange URL at {shown}")
    if is_loopback(_bracketed(host)) and not is_loopback(_bracketed(origin(source)[1])):
        raise _refused(source, "to this machine itself")
    both = access.is_insecure(parts.netloc) and access.is_insecure(urlsplit(source).netloc)
    if scheme == "http" and not both:
        raise _refused(source, f"to {shown} without encryption")


def tls(address: str, access: Access, *, insecure: bool) -> ssl.SSLContext:
    """A client's context for host[:port], with the certificates that the host's owner put there. Blocking."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if insecure else ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for directory in access.certificate_dirs:
        folder = directory / address
        if "/" in address or not folder.is_dir():
            continue
        try:
            for authority in sorted(folder.glob("*.crt")):
                context.load_verify_locations(cafile=authority)
            for certificate in sorted(folder.glob("*.cert")):
                context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        except (OSError, ssl.SSLError) as error:
            raise unsuitable(f"the certificates in {folder} cannot be used: {error}") from error
    return context


def proxy_for(url: str) -> str | None:
    """The environment's proxy (https_proxy and friends); none for this machine itself."""
    scheme, host, port = origin(url)
    if is_loopback(_bracketed(host)) or urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    proxies = urllib.request.getproxies_environment()
    found = proxies.get(scheme) or proxies.get("all")
    if found and not found.startswith(("http://", "https://")):
        raise unsuitable(f"{scheme}_proxy is no http proxy: banger can use no other kind")
    return found


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _refused(source: str, where: str) -> ImageError:
    return download_failed(
        f"the registry at {origin(source)[1]} points {where}: not followed",
        hint="a registry in your own network can be allowed with [[registry]] insecure = true",
    )
