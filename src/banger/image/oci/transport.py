"""HTTP with one registry: authorization, redirects, and telling what may pass from what will not.

A `Transport` sends one request at a time or several at once; the caller repeats what was Transient, with a
Patience that says when it is enough. Authorization goes only to the origin that asked for it. Used by
registry.py alone; keeps nothing on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from types import TracebackType
from urllib.parse import urlencode, urljoin

import aiohttp
import msgspec
from aiohttp.typedefs import StrOrURL

from banger.errors import ErrorCode
from banger.image.errors import ImageError, download_failed, invalid
from banger.image.oci.auth import MAX_TOKEN, Credential, parse_challenges, parse_token
from banger.image.oci.endpoint import Access, Endpoint, check_hop, origin, proxy_for, tls

log = logging.getLogger("banger.registry")

CONNECT_TIMEOUT_S = 30.0
READ_TIMEOUT_S = 60.0
SMALL_TIMEOUT_S = 120.0
"""For a whole small answer: a token, an error's text, a manifest."""
MAX_REDIRECTS = 5
MAX_ERROR = 16 << 10
PATIENCE = 4
"""How many times in a row something may fail without having brought anything."""
MAX_TRIES = 30
MAX_RETRY_AFTER_S = 60.0
_BACKOFF_S = 0.5
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CLIENT = "banger"

Sleep = Callable[[float], Awaitable[None]]


class Transient(Exception):
    """A failure that another try may not meet. retry_after: seconds that the registry asked for."""

    def __init__(self, brief: str, *, retry_after: float | None = None) -> None:
        super().__init__(brief)
        self.brief = brief
        self.retry_after = retry_after


class Patience:
    """Counts one download's failures. tell: hears why one waits."""

    def __init__(self, what: str, *, sleep: Sleep, tell: Callable[[str], None]) -> None:
        self._what = what
        self._sleep = sleep
        self._tell = tell
        self._row = 0
        self._tries = 0

    async def wait(self, error: Transient, *, progressed: bool) -> None:
        """Until the next try; DOWNLOAD_FAILED when there should be none."""
        self._row = 1 if progressed else self._row + 1
        self._tries += 1
        delay = _BACKOFF_S * 2 ** (self._row - 1) if error.retry_after is None else error.retry_after
        if delay > MAX_RETRY_AFTER_S:
            raise download_failed(
                f"cannot download {self._what}: {error.brief}, and asks to wait {delay:.0f} s",
                hint="try again later; registries allow more to those who are logged in",
            )
        if self._row > PATIENCE or self._tries > MAX_TRIES:
            raise download_failed(
                f"cannot download {self._what}: {error.brief} ({self._tries} tries)",
                hint="is the network up? what has come is kept: the next try goes on from there",
            )
        log.info("%s: %s; trying again in %.1f s", self._what, error.brief, delay)
        self._tell(f"{error.brief}: trying again in {delay:.0f} s")
        await self._sleep(delay)


class Transport:
    """An async context manager. scope: what tokens are asked for, `repository:NAME:pull`."""

    def __init__(self, endpoint: Endpoint, access: Access, *, scope: str) -> None:
        self.endpoint = endpoint
        self._access = access
        self._scope = scope
        self._bases = list(endpoint.bases)
        self._met = False
        self._meeting = asyncio.Lock()
        self._authorization = ""
        self._authorizing = asyncio.Lock()
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Transport:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
            ),
            headers={"User-Agent": _CLIENT, "Accept-Encoding": "identity"},
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=1 << 20,
            # not trust_env: that would send the user's .netrc to whoever a registry points at
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, *, what: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a request below /v2/, after redirects and authorization; its status may be any but
        401 and the passing ones. Raises Transient, DOWNLOAD_FAILED, PERMISSION_DENIED; in the body of the
        `with` too, where the connection breaks."""
        used = self._authorization
        response = await self._follow(method, path, what=what, headers=headers or {}, authorization=used)
        try:
            if response.status == 401:
                if origin(str(response.url)) != origin(self._bases[0]):
                    # a storage that a redirect led to: what it asks for is none of its business
                    raise download_failed(
                        f"cannot download {what}: {self.endpoint.address} redirects to a place that asks "
                        "for an authorization of its own"
                    )
                challenges = response.headers.getall("WWW-Authenticate", [])
                base = str(response.url)
                response.close()
                authorization = await self._authorize(challenges, base=base, used=used, what=what)
                response = await self._follow(
                    method, path, what=what, headers=headers or {}, authorization=authorization
                )
                if response.status == 401:
                    raise await self._denied(response, what)
            if response.status in _PASSING:
                said = await _said(response)
                raise Transient(
                    f"{self.endpoint.address} answers {response.status}{said}",
                    retry_after=_retry_after(response.headers.get("Retry-After", "")),
                )
            with self._passing():
                yield response
        finally:
            response.close()

    async def refused(self, response: aiohttp.ClientResponse, what: str) -> ImageError:
        """The error for an answer that is not what was asked for."""
        if response.status in (401, 403):
            return await self._denied(response, what)
        said = await _said(response)
        if response.status == 404:
            return ImageError(
                ErrorCode.NOT_FOUND, f"{self.endpoint.address} has no {what}{said}", hint=_LOGIN_HINT
            )
        return download_failed(
            f"cannot download {what}: {self.endpoint.address} answers {response.status}{said}"
        )

    async def _denied(self, response: aiohttp.ClientResponse, what: str) -> ImageError:
        return self._no_access(what, await _said(response))

    def _no_access(self, what: str, said: str) -> ImageError:
        known = bool(self.endpoint.credential)
        return ImageError(
            ErrorCode.PERMISSION_DENIED,
            f"{self.endpoint.address} does not give {what}{' to this account' if known else ''}{said}",
            hint="is the account right, and allowed to pull this?" if known else _LOGIN_HINT,
        )

    async def _follow(
        self, method: str, path: str, *, what: str, headers: Mapping[str, str], authorization: str
    ) -> aiohttp.ClientResponse:
        """Send, and follow redirects; what the registry itself is asked carries the authorization."""
        response = await self._first(method, path, what=what, headers=headers, authorization=authorization)
        home = origin(str(response.url))
        seen = {str(response.url)}
        while response.status in _REDIRECTS:
            source = str(response.url)
            location = response.headers.get("Location", "")
            response.close()
            if not location:
                raise download_failed(f"{self.endpoint.address} redirects to nowhere for {what}")
            try:
                target = urljoin(source, location)
            except ValueError:
                target = ""
            check_hop(source, target, self._access)
            if target in seen or len(seen) > MAX_REDIRECTS:
                raise download_failed(f"{self.endpoint.address} redirects in circles for {what}")
            seen.add(target)
            response = await self._send(
                method,
                _exact(response, target),
                headers=headers,
                authorization=authorization if origin(target) == home else "",
            )
        return response

    async def _first(
        self, method: str, path: str, *, what: str, headers: Mapping[str, str], authorization: str
    ) -> aiohttp.ClientResponse:
        """Try the bases until one answers; from then on it is the only one, for all tasks."""
        async with contextlib.AsyncExitStack() as stack:
            if not self._met:
                await stack.enter_async_context(self._meeting)
            if not self._met:
                return await self._try_bases(method, path, what=what, headers=headers)
        url = f"{self._bases[0]}/v2/{path}"
        return await self._send(method, url, headers=headers, authorization=authorization)

    async def _try_bases(
        self, method: str, path: str, *, what: str, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        failures: list[str] = []
        for base in list(self._bases):
            try:
                response = await self._send(method, f"{base}/v2/{path}", headers=headers, authorization="")
            except Transient as error:
                failures.append(error.brief)
                continue
            self._met = True
            self._bases = [base]
            return response
        raise download_failed(
            f"cannot reach the registry {self.endpoint.address} for {what}: {'; '.join(failures)}",
            hint="is its name right, and the network up?",
        )

    async def _send(
        self,
        method: str,
        url: StrOrURL,
        *,
        headers: Mapping[str, str],
        authorization: str,
        form: Mapping[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        assert self._session is not None, "a Transport is used inside `async with`"
        sent = dict(headers)
        if authorization:
            sent["Authorization"] = authorization
        context = await self._context(str(url))
        with self._passing():
            return await self._session.request(
                method,
                url,
                headers=sent,
                data=form,
                allow_redirects=False,
                ssl=context,
                proxy=proxy_for(str(url)),
            )

    async def _context(self, url: str) -> ssl.SSLContext | bool:
        scheme, host, port = origin(url)
        if scheme == "http":
            return True  # none is needed
        name = f"[{host}]" if ":" in host else host
        address = name if port == 443 else f"{name}:{port}"
        if address not in self._contexts:
            own = address == self.endpoint.address and self.endpoint.insecure
            insecure = own or self._access.is_insecure(address)
            self._contexts[address] = await asyncio.to_thread(tls, address, self._access, insecure=insecure)
        return self._contexts[address]

    @contextlib.contextmanager
    def _passing(self) -> Iterator[None]:
        """Failures of the connection as Transient, those of trust and of URLs as errors."""
        address = self.endpoint.address
        try:
            yield
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            if len(self._bases) > 1:  # http is next
                raise Transient(f"no TLS at {address}") from error
            raise download_failed(
                f"no trusted connection to {address}: {_reason(error)}",
                hint=f"its authority's certificate goes to /etc/docker/certs.d/{address}/ca.crt",
            ) from error
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise download_failed(f"{address} points to something that is no http URL") from error
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise Transient(f"no answer from {address}: {_reason(error)}") from error

    async def _authorize(self, challenges: list[str], *, base: str, used: str, what: str) -> str:
        """The Authorization that meets the challenge; one task asks, the others take what it got."""
        async with self._authorizing:
            if self._authorization and self._authorization != used:
                return self._authorization
            self._authorization = await self._meet(challenges, base=base, what=what)
            return self._authorization

    async def _meet(self, headers: list[str], *, base: str, what: str) -> str:
        credential = self.endpoint.credential
        if credential.registry_token:
            return f"Bearer {credential.registry_token}"
        challenges = parse_challenges(headers)
        for challenge in challenges:
            if challenge.scheme == "bearer":
                check_hop(base, challenge.realm, self._access)
                return "Bearer " + await self._token(
                    challenge.realm, challenge.service, credential=credential, what=what
                )
        if not any(challenge.scheme == "basic" for challenge in challenges):
            raise download_failed(
                f"{self.endpoint.address} asks for an authorization that banger does not know"
            )
        if not credential.username:
            raise self._no_access(what, "")
        return credential.basic()

    async def _token(self, realm: str, service: str, *, credential: Credential, what: str) -> str:
        """From the token server. The scope is ours: what a registry asks for could be about another's."""
        query = {"scope": self._scope, **({"service": service} if service else {})}
        try:
            async with asyncio.timeout(SMALL_TIMEOUT_S):
                if credential.identity_token:
                    form = {
                        "grant_type": "refresh_token",
                        "client_id": _CLIENT,
                        "refresh_token": credential.identity_token,
                        **query,
                    }
                    response = await self._send("POST", realm, headers={}, authorization="", form=form)
                else:
                    url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
                    basic = credential.basic() if credential.username else ""
                    response = await self._send("GET", url, headers={}, authorization=basic)
                try:
                    if response.status in (400, 401, 403):
                        raise await self._denied(response, what)
                    if response.status in _PASSING:
                        raise Transient(
                            f"the token server of {self.endpoint.address} answers {response.status}",
                            retry_after=_retry_after(response.headers.get("Retry-After", "")),
                        )
                    if response.status != 200:
                        raise download_failed(
                            f"the token server of {self.endpoint.address} answers {response.status}"
                        )
                    with self._passing():
                        body = await read_small(response, MAX_TOKEN, f"a token of {self.endpoint.address}")
                finally:
                    response.close()
        except TimeoutError as error:
            raise Transient(f"no answer from the token server of {self.endpoint.address}") from error
        return parse_token(body, what=self.endpoint.address)


async def read_small(response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
    """A whole body of at most `limit` bytes, else IMAGE_INVALID."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise invalid(f"{what} is larger than {limit >> 10} KiB")
    return bytes(body)


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] = []


_LOGIN_HINT = "is the name right? a private image needs a login: docker login, or podman login"


async def _said(response: aiohttp.ClientResponse) -> str:
    """ ": message" of the registry's own, made harmless; "" where it says nothing to understand."""
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            body = await response.content.read(MAX_ERROR)
        found = msgspec.json.decode(body, type=_Errors).errors
    except (msgspec.MsgspecError, ValueError, RecursionError, aiohttp.ClientError, OSError):
        return ""
    return f" ({found[0].message[:200] or found[0].code[:60]!a})" if found else ""


def _retry_after(value: str) -> float | None:
    """Seconds from a Retry-After header: a number, or a date."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        when = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, when.timestamp() - time.time()) if when.tzinfo else None


def _reason(error: BaseException) -> str:
    """Without URLs: a storage's may carry a signature."""
    cause = error.__cause__ if isinstance(error, aiohttp.ClientConnectorError) else None
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
    text = str(cause or error) or type(error).__name__
    return ascii(text[:200])[1:-1] if "://" not in text else type(error).__name__


def _exact(response: aiohttp.ClientResponse, target: str) -> StrOrURL:
    """As the registry wrote it: quoting it anew would break the signature in a storage's URL."""
    return type(response.url)(target, encoded=True) if target.isascii() and " " not in target else target
