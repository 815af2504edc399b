"""References to images, spelled as docker spells them, and where the registry they name answers.

`alpine`, `debian:12`, `localhost:5000/app`, `example.org/team/app:v1@sha256:…`. Pure; any room may use it.
The one module that knows the name of docker's own registry, which a reference without a registry means.
"""

from __future__ import annotations

import ipaddress
import re
import socket

import msgspec

from banger.errors import ErrorCode
from banger.image.errors import ImageError

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_ALIASES = {f"index.{DEFAULT_REGISTRY}": DEFAULT_REGISTRY, f"registry-1.{DEFAULT_REGISTRY}": DEFAULT_REGISTRY}
_ENDPOINTS = {DEFAULT_REGISTRY: f"registry-1.{DEFAULT_REGISTRY}"}
_ACCOUNTS = {DEFAULT_REGISTRY: f"https://index.{DEFAULT_REGISTRY}/v1/"}
_SHORT_NAMES = "library/"

MAX_NAME = 255
MAX_TEXT = 1024

_HOST = (
    r"(?:(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*"
    r"|\[[a-fA-F0-9:]+\])(?::[0-9]{1,5})?"
)
_REGISTRY = re.compile(_HOST, re.ASCII)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})", re.ASCII)
_HEX_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """registry: host or host:port; repository: its whole path; tag and digest: "" where not given.

    One without a digest always has a tag. With both the digest counts, as with docker.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        text = f"{self.registry}/{self.repository}"
        if self.tag:
            text += f":{self.tag}"
        return f"{text}@{self.digest}" if self.digest else text

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest, else the tag."""
        return self.digest or self.tag

    @property
    def endpoint(self) -> str:
        """The host (and port) at which the registry's API answers."""
        return _ENDPOINTS.get(self.registry, self.registry)


def parse_reference(text: str) -> Reference:
    """The reference that docker would understand; INVALID_ARGUMENT says what is wrong with it."""
    if not text or len(text) > MAX_TEXT:
        raise _bad(text, "it is empty" if not text else f"it is longer than {MAX_TEXT} characters")
    if "://" in text:
        raise _bad(text, "it has a scheme", hint="leave out what is before the host: example.org/name:tag")
    name, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise _bad(text, "what follows the @ is no sha256 or sha512 digest")
    if _HEX_ID.fullmatch(name):
        raise _bad(text, "64 hex digits are an id, not a name")
    registry, path = _split_registry(name)
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _bad(text, "what follows the : is no tag (letters, digits, _ . -, at most 128)")
    if not _REGISTRY.fullmatch(registry) or not _is_address(registry):
        raise _bad(text, "what is before the first / is no host name")
    if registry == DEFAULT_REGISTRY and "/" not in path:
        path = _SHORT_NAMES + path
    if not all(_COMPONENT.fullmatch(part) for part in path.split("/")):
        if path != path.lower():
            raise _bad(text, "names are lower case")
        raise _bad(text, "its name may have a-z, 0-9, and between them . _ __ - and /")
    if len(registry) + 1 + len(path) > MAX_NAME:
        raise _bad(text, f"its name is longer than {MAX_NAME} characters")
    return Reference(
        registry=registry, repository=path, tag=tag if tag or digest else DEFAULT_TAG, digest=digest
    )


def is_digest(text: str) -> bool:
    """Whether text is `sha256:` or `sha512:` and the right number of lower-case hex digits."""
    return _DIGEST.fullmatch(text) is not None


def account_keys(registry: str) -> tuple[str, ...]:
    """The names under which credentials for a registry are kept, in docker's order."""
    if registry == DEFAULT_REGISTRY or registry in _ALIASES:
        return (_ACCOUNTS[DEFAULT_REGISTRY], f"index.{DEFAULT_REGISTRY}", DEFAULT_REGISTRY)
    return (registry,)


def host_of(address: str) -> str:
    """The host of `host`, `host:port` or `[v6]:port`, without brackets."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.rpartition(":")[0] if address.count(":") == 1 else address


def is_loopback(address: str) -> bool:
    """Whether `host` or `host:port` can only be this machine, by its spelling: no name is looked up."""
    host = host_of(address)
    if host.lower() == "localhost":
        return True
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return _libc_reads_loopback(host)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def _libc_reads_loopback(host: str) -> bool:
    """127.1, 0x7f000001 and the like: whoever connects has libc read the host, and that takes them."""
    try:
        return socket.inet_aton(host)[0] == 127 and host.split() == [host]
    except (OSError, ValueError):
        return False


def _split_registry(name: str) -> tuple[str, str]:
    """docker's rule: the first part is a host if it could be no part of a path, or is localhost."""
    first, slash, rest = name.partition("/")
    if not slash or not (re.search(r"[.:]", first) or first == "localhost" or first != first.lower()):
        return DEFAULT_REGISTRY, name
    return _ALIASES.get(first, first), rest


def _is_address(registry: str) -> bool:
    """Whether what its pattern leaves open holds: a port that there can be, an IPv6 address in brackets."""
    bracketed, _, rest = registry.rpartition("]")
    port = rest.rpartition(":")[2] if ":" in rest else ""
    try:
        if bracketed:
            ipaddress.IPv6Address(bracketed[1:])
    except ValueError:
        return False
    return not port or 0 < int(port) < 65536


def _bad(text: str, why: str, *, hint: str | None = None) -> ImageError:
    return ImageError(ErrorCode.INVALID_ARGUMENT, f"not an image reference: {text[:200]!a}: {why}", hint=hint)
