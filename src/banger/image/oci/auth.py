"""Credentials for registries: how docker and podman keep them, and how registries ask for them.

Pure: files' contents, challenges and tokens' answers are parsed here; local/credentials.py reads the user's
files and runs helpers, registry.py talks to registries. Nothing here prints or keeps a secret.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

import msgspec

from banger.image.errors import invalid
from banger.image.oci.reference import account_keys

MAX_FILE = 1 << 20
MAX_CHALLENGE = 8 << 10
MAX_TOKEN = 256 << 10
TOKEN_USER = "<token>"
"""The user name with which a helper says that its secret is an identity token."""
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_NO_PATH = frozenset({"", "v1", "v2"})
"""Paths of old entries (`example.org/v1/`) that name a registry as a whole."""


class Credential(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """username and password; or identity_token, which buys tokens; or registry_token, which is one."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)

    def __repr__(self) -> str:
        return f"Credential(username={self.username!r}, …)"

    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode("ascii")


class Helper(msgspec.Struct, frozen=True, kw_only=True):
    """Ask the program docker-credential-<name> for `address`."""

    name: str
    address: str


class AuthFile(msgspec.Struct, frozen=True, kw_only=True):
    """A config.json or auth.json. auths: key → credential, an empty one where a store holds the secret."""

    auths: dict[str, Credential] = {}
    cred_helpers: dict[str, str] = {}
    creds_store: str = ""

    def lookup(self, registry: str, repository: str = "") -> Helper | Credential | None:
        """What this file says of a registry: its helper, else the file's store, else the file's own entry.

        As docker has it, only the first of these is asked. podman's entries for a path below a registry
        (`example.org/team`) count for repositories there, the longest first.
        """
        keys = account_keys(registry)
        for key in keys:
            if key in self.cred_helpers:
                return Helper(name=self.cred_helpers[key], address=key)
        if self.creds_store:
            return Helper(name=self.creds_store, address=keys[0])
        parts = repository.split("/") if repository else []
        for count in range(len(parts), 0, -1):
            found = self.auths.get("/".join([registry, *parts[:count]]))
            if found:
                return found
        for key in keys:
            if self.auths.get(key):
                return self.auths[key]
        hosts = {_hostname(key) for key in keys}
        return next((found for key, found in self.auths.items() if found and _hostname(key) in hosts), None)


class _Entry(msgspec.Struct):
    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identity_token: str | None = msgspec.field(name="identitytoken", default=None)
    registry_token: str | None = msgspec.field(name="registrytoken", default=None)


class _File(msgspec.Struct):
    auths: dict[str, _Entry | None] | None = None
    cred_helpers: dict[str, str] | None = msgspec.field(name="credHelpers", default=None)
    creds_store: str | None = msgspec.field(name="credsStore", default=None)


def parse_auth_file(data: bytes, *, what: str) -> AuthFile:
    """what: the file's name, for IMAGE_INVALID, which never quotes the content."""
    if len(data) > MAX_FILE:
        raise invalid(f"{what} is larger than {MAX_FILE >> 10} KiB")
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise invalid(f"{what} is not the JSON that docker and podman keep credentials in") from None
    helpers = {key: name for key, name in (file.cred_helpers or {}).items() if name}
    for name in [*helpers.values(), file.creds_store or "x"]:
        if not _HELPER.fullmatch(name):
            raise invalid(f"{what} names a credential helper that cannot be one: {name[:60]!a}")
    auths = {key: _credential(entry, what) for key, entry in (file.auths or {}).items() if entry is not None}
    return AuthFile(auths=auths, cred_helpers=helpers, creds_store=file.creds_store or "")


def parse_helper_answer(data: bytes, *, what: str) -> Credential | None:
    """What docker-credential-X prints for `get`. None: it knows of nothing."""

    class Answer(msgspec.Struct):
        username: str = msgspec.field(name="Username", default="")
        secret: str = msgspec.field(name="Secret", default="")

    try:
        answer = msgspec.json.decode(data, type=Answer)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise invalid(f"{what} answers with something that is no credential") from None
    if answer.username == TOKEN_USER:
        return _clean(Credential(identity_token=answer.secret), what)
    return _clean(Credential(username=answer.username, password=answer.secret), what) or None


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """scheme: "basic" or "bearer". realm and service: of a bearer's token server."""

    scheme: str
    realm: str = ""
    service: str = ""


_CHALLENGE = re.compile(
    r"""\s*,?\s*(?P<scheme>[A-Za-z][A-Za-z0-9-]{0,30})(?=\s|,|$)
        (?P<params>(?:\s*,?\s*[A-Za-z0-9_-]{1,40}\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s",=]+))*)""",
    re.VERBOSE | re.ASCII,
)
_PARAMETER = re.compile(r"""([A-Za-z0-9_-]{1,40})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",=]+))""", re.ASCII)


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Those of WWW-Authenticate that banger can meet, in the registry's order; others are left out."""
    found: list[Challenge] = []
    for header in headers:
        position = 0
        header = " ".join(header[:MAX_CHALLENGE].split())  # no long runs for the pattern to try
        while match := _CHALLENGE.match(header, position):
            position = match.end()
            fields = {
                name.lower(): re.sub(r"\\(.)", r"\1", quoted) or plain
                for name, quoted, plain in _PARAMETER.findall(match["params"])
            }
            scheme = match["scheme"].lower()
            if scheme == "basic":
                found.append(Challenge(scheme=scheme))
            elif scheme == "bearer" and fields.get("realm"):
                found.append(
                    Challenge(scheme=scheme, realm=fields["realm"], service=fields.get("service", ""))
                )
    return found


def parse_token(data: bytes, *, what: str) -> str:
    """A token server's answer."""

    class Answer(msgspec.Struct):
        token: str | None = None
        access_token: str | None = None

    try:
        answer = msgspec.json.decode(data, type=Answer)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise invalid(f"the token server of {what} answers with something that is no token") from None
    token = answer.token or answer.access_token or ""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise invalid(f"the token server of {what} gives no usable token")
    return token


def _credential(entry: _Entry, what: str) -> Credential:
    username, password = entry.username or "", entry.password or ""
    if entry.auth:
        try:
            text = base64.b64decode(entry.auth, validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            raise invalid(f"{what} has an `auth` that is not base64 of user:password") from None
        username, colon, password = text.partition(":")
        if not colon:
            raise invalid(f"{what} has an `auth` that is not base64 of user:password")
        password = password.strip("\0")
    found = Credential(
        username=username,
        password=password,
        identity_token=entry.identity_token or "",
        registry_token=entry.registry_token or "",
    )
    return _clean(found, what)


def _clean(found: Credential, what: str) -> Credential:
    """Nothing that could break out of a header."""
    for text in (found.username, found.password, found.identity_token, found.registry_token):
        if any(letter in text for letter in "\r\n\0"):
            raise invalid(f"{what} has a credential with a line break in it")
    return found


def _hostname(key: str) -> str:
    """The registry that an entry's key speaks of as a whole; "" for one of podman's paths below it."""
    if key.startswith(("http://", "https://")):
        try:
            return urlsplit(key).netloc
        except ValueError:
            return ""
    host, _, path = key.partition("/")
    return host if path.strip("/") in _NO_PATH else ""
