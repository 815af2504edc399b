"""One function for each kind of value in config.toml: the checked value, or a Fault in plain words.

Only config/keys.py uses it. A check takes the value as tomllib gives it and the user's home folder (for `~/`;
"" when it is not known), and gives what Settings holds. Pure: nothing is looked up on disk.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from banger.config.errors import Fault
from banger.errors import BangerError
from banger.model.durations import format_duration, parse_duration
from banger.model.names import name_fault
from banger.model.sizes import MIB, check_memory_mib, check_vcpu_count, parse_disk_size

Check = Callable[[object, str], object]
N = TypeVar("N", int, float)

LOG_LEVELS = ("debug", "info", "warning", "error")
MAX_POOL = 256
MAX_TEXT = 4096
MAX_FILE_NAME = 255
MIN_POLL_S = 0.1
_BRIDGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")  # 15: the kernel's IFNAMSIZ less its end
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPOSITORY = re.compile(
    r"(?:(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?/)?"  # the registry
    r"[a-z0-9]+(?:(?:\.|_|__|-+|/)[a-z0-9]+)*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
)
_MODE = re.compile(r"(?:0o)?[0-7]{3,4}")
_TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a table",
}


def described(value: object) -> str:
    """The type of a TOML value, in words."""
    return _TYPES.get(type(value), f"a {type(value).__name__}")


def text(value: object, _home: str = "") -> str:
    """A text without control characters."""
    if not isinstance(value, str):
        raise Fault(f"must be a text in quotes, not {described(value)}")
    if len(value) > MAX_TEXT:
        raise Fault(f"is {len(value)} characters long, {MAX_TEXT} are allowed")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
        raise Fault("contains a control character")
    return value


def flag(value: object, _home: str) -> bool:
    if not isinstance(value, bool):
        raise Fault(f"must be true or false, not {described(value)}")
    return value


def whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Fault(f"must be a whole number, not {described(value)}")
    return value


def whole_between(low: int, high: int) -> Check:
    def check(value: object, _home: str) -> int:
        number = whole(value)
        if not low <= number <= high:
            # int.__repr__ fails above 4300 digits
            shown = str(number) if abs(number) < 10**18 else "the number"
            raise Fault(f"must be {low} to {high}; {shown} is not")
        return number

    return check


def one_of(*choices: str) -> Check:
    def check(value: object, _home: str) -> str:
        chosen = text(value)
        if chosen not in choices:
            raise Fault(f"must be one of {', '.join(choices)}; {_shown(chosen)} is not")
        return chosen

    return check


def log_level(value: object, _home: str = "") -> str:
    """Any case: loggers' names for levels are often written in capitals."""
    return str(one_of(*LOG_LEVELS)(value.lower() if isinstance(value, str) else value, ""))


def duration(minimum_s: float = 0.0) -> Check:
    def check(value: object, _home: str) -> float:
        if value == 0 and not isinstance(value, bool | float):
            seconds = 0.0
        elif not isinstance(value, str):
            raise Fault(f'must be a duration in quotes such as "10s", not {described(value)}')
        else:
            seconds = _asked(lambda: parse_duration(text(value), what="the duration"))
        if seconds < minimum_s:
            raise Fault(f"must be at least {format_duration(minimum_s)}")
        return seconds

    return check


def disk_size(value: object, _home: str) -> int:
    """Bytes. A bare number is MiB, as on the command line."""
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > 1 << 40:
            raise Fault("the size is too big")
        value = str(value)
    if not isinstance(value, str):
        raise Fault(f'must be a size such as "8G", not {described(value)}')
    return _asked(lambda: parse_disk_size(text(value), what="the size"))


def memory_mib(value: object, _home: str) -> int:
    number = whole(value)
    if abs(number) > 1 << 40:
        raise Fault("the size is too big")
    return _asked(lambda: check_memory_mib(number, what="the size"))


def vcpu(value: object, _home: str) -> int:
    number = whole(value)
    if abs(number) > MIB:
        raise Fault("the count is too big")
    return _asked(lambda: check_vcpu_count(number, what="the count"))


def host_path(value: object, home: str) -> str:
    """An absolute path, `~/` taken as the user's home; no `..`, no `~user`, nothing relative."""
    path = text(value)
    if not path.strip():
        raise Fault("is empty")
    if ".." in path.split("/"):
        raise Fault(f"{_shown(path)} contains ..", "write the path without it")
    if path == "~" or path.startswith("~/"):
        if not home.startswith("/"):
            raise Fault(
                f"{_shown(path)}: the home folder is not known (HOME is not set)", "write the whole path"
            )
        path = f"{home}/{path[2:]}"
    elif path.startswith("~"):
        raise Fault(f"{_shown(path)} names another user's home", "write the whole path")
    elif not path.startswith("/"):
        raise Fault(f"{_shown(path)} is relative", "a path begins with / or ~/")
    return _normal(path)


def synced_path(value: object, _home: str) -> str:
    """As host_path, but `~/` stays: whose home it is, each VM's owner decides."""
    stays = isinstance(value, str) and (value == "~" or value.startswith("~/"))
    path = host_path(value, "/~")
    return path[1:] if stays else path


def optional_path(value: object, home: str) -> str:
    """As host_path; empty is: not set."""
    return "" if value == "" else host_path(value, home)


def guest_path(value: object, _home: str) -> str:
    """`~/…` below the guest's /root, which is the work disk. /root/… is taken as well."""
    path = text(value)
    if not path.strip():
        raise Fault("is empty")
    if ".." in path.split("/"):
        raise Fault(f"{_shown(path)} contains ..", "write the path without it")
    if path.startswith("~") and path != "~" and not path.startswith("~/"):
        raise Fault(f"{_shown(path)} names another user's home", "the guest's user is root: ~/ is /root/")
    if not path.startswith(("/", "~")):
        raise Fault(f"{_shown(path)} is relative", "a path in the guest begins with ~/")
    inside = _normal("/root" + path[1:] if path.startswith("~") else path)
    if not inside.startswith("/root/"):
        raise Fault(f"{_shown(path)} is not below /root", "a path in the guest begins with ~/ and a name")
    if any(len(part.encode("utf-8", "surrogatepass")) > MAX_FILE_NAME for part in inside.split("/")):
        raise Fault(f"has a name of more than {MAX_FILE_NAME} bytes")
    return "~/" + inside.removeprefix("/root/")


def mode(value: object, _home: str) -> int:
    """Permission bits from an octal text: "0600", "644"."""
    if isinstance(value, int) and not isinstance(value, bool):
        raise Fault("must be an octal text in quotes, not a number", 'for example mode = "0600"')
    digits = text(value)
    if not _MODE.fullmatch(digits):
        raise Fault(f"{_shown(digits)} is not an octal mode", 'for example mode = "0600"')
    bits = int(digits, 8)
    if bits > 0o777:
        raise Fault(f"{_shown(digits)} has more than permission bits", "0000 to 0777 are allowed")
    return bits


def bridge_name(value: object, _home: str) -> str:
    name = text(value)
    if not _BRIDGE_NAME.fullmatch(name):
        raise Fault(
            f"{_shown(name)} is not the name of a network interface",
            "1 to 15 of A-Z, a-z, 0-9, _, . and -, the first a letter or digit",
        )
    if name in ("lo", "all", "default") or name.startswith("tap-"):
        raise Fault(
            f"{_shown(name)} cannot be the bridge's name", "br-fc is the default; give it a name of its own"
        )
    return name


def bridge_ip(value: object, _home: str) -> str:
    address = _ipv4(value)
    if (
        address.is_loopback
        or address.is_multicast
        or address.is_reserved
        or address in ipaddress.ip_network("0.0.0.0/8")
    ):
        raise Fault(f"{address} cannot be a bridge's address", "take a private one, such as 172.16.0.1")
    return str(address)


def dns_server(value: object, _home: str) -> str:
    address = _ipv4(value)
    if address.is_multicast or address.is_unspecified or address.is_reserved:
        raise Fault(f"{address} cannot be a name server's address")
    return str(address)


def listen_address(value: object, _home: str) -> str:
    """IPv4 and port: `127.0.0.1:42069`."""
    whole_text = text(value)
    host, colon, port = whole_text.rpartition(":")
    example = "for example 127.0.0.1:42069"
    if not colon or not host:
        raise Fault(f"{_shown(whole_text)} is not an address and a port", example)
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        raise Fault(f"{_shown(host)} is not an IPv4 address", example) from None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise Fault(f"{_shown(port)} is not a port", "a port is 1 to 65535")
    if address.is_multicast or address.is_reserved:
        raise Fault(f"{address} cannot be listened on", example)
    return f"{address}:{int(port)}"


def ports(value: object, _home: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise Fault(f"must be a list of ports such as [8080], not {described(value)}")
    if len(value) > 1024:
        raise Fault(f"has {len(value)} entries, 1024 are allowed")
    check = whole_between(1, 65535)
    found: dict[int, None] = {}
    for number, entry in enumerate(value, 1):
        try:
            found[whole(check(entry, ""))] = None
        except Fault as fault:
            raise Fault(f"entry {number}: {fault.brief}", "a port is 1 to 65535") from None
    return tuple(found)


def image_name(value: object, _home: str) -> str:
    name = text(value)
    if not name or not name.isascii() or " " in name or name.startswith("-"):
        raise Fault(f"{_shown(name)} is not the name of an image", "`banger image list` shows them")
    return name


def catalog_name(value: object, _home: str) -> str:
    """What `image pull` and `vm run --image` call it, and the image's name here."""
    name = text(value)
    fault = name_fault(name)
    if fault:
        raise Fault(fault, "a name is 1 to 63 of a-z, 0-9 and -, and neither begins nor ends with -")
    return name


def pinned_reference(value: object, _home: str) -> str:
    """An image's reference with its digest, which alone says what is meant; the image room reads the rest."""
    reference = text(value)
    name, _, digest = reference.partition("@")
    if not _DIGEST.fullmatch(digest):
        raise Fault(
            f"{_shown(reference)} does not end in @sha256: and 64 hex digits",
            "an image of the catalog is pinned by its digest: `banger image show` and docker have it",
        )
    if not _REPOSITORY.fullmatch(name):
        raise Fault(f"{_shown(name)} is not an image reference", "for example registry.example.org/team/app")
    return reference


def optional_url(value: object, _home: str) -> str:
    """http or https, without a last slash; empty is: not set."""
    return "" if value == "" else _url(text(value))


def url_template(value: object, _home: str) -> str:
    """http or https, with nothing but {arch} to be put in; empty is: not set."""
    template = text(value)
    if not template:
        return ""
    filled = template.replace("{arch}", "x64")
    if any(letter in filled for letter in "{}"):
        raise Fault(f"{_shown(template)} has more than {{arch}} between braces", "{arch} is x64 or arm64")
    _url(filled)
    return template


def sha256(value: object, _home: str) -> str:
    """64 hex digits; empty is: not set."""
    digest = text(value).lower()
    if digest and not _SHA256.fullmatch(digest):
        raise Fault(f"{_shown(digest)} is not 64 hex digits", "`sha256sum FILE` prints it")
    return digest


def registry_host(value: object, _home: str) -> str:
    """HOST or HOST:PORT."""
    host = text(value)
    if not _is_authority(host):
        raise Fault(f"{_shown(host)} is not a host, or host:port", "for example registry.example.org:5000")
    return host.lower()


def registry_mirror(value: object, _home: str) -> str:
    """A URL, or HOST[:PORT]; empty is: none."""
    mirror = text(value)
    if not mirror:
        return ""
    if "://" in mirror:
        return _url(mirror)
    if not _is_authority(mirror):
        raise Fault(f"{_shown(mirror)} is neither a URL nor a host", "for example https://mirror.example.org")
    return mirror.lower()


def no_jailer(value: object, _home: str) -> object:
    """The jailer is not there yet: only what says so is accepted."""
    if value is False or value == "":
        return value
    raise Fault("the jailer is not supported yet", "remove the key: banger would run without the jailer")


def _is_authority(host: str) -> bool:
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not colon:
        name = host
    elif not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        return False
    return _HOST.fullmatch(name) is not None


def _url(url: str) -> str:
    example = "for example https://mirror.example.org/debian"
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for a bad one
    except ValueError as error:
        raise Fault(f"{_shown(url)} is not a URL: {error}", example) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Fault(f"{_shown(url)} is not an http or https URL", example)
    if parts.query or parts.fragment or " " in url or not url.isascii():
        raise Fault(f"{_shown(url)} is not a plain URL", example)
    return url.rstrip("/")


def _ipv4(value: object) -> ipaddress.IPv4Address:
    address = text(value)
    try:
        return ipaddress.IPv4Address(address)
    except ValueError:
        raise Fault(f"{_shown(address)} is not an IPv4 address", "for example 172.16.0.1") from None


def _normal(path: str) -> str:
    # normpath keeps two leading slashes
    return "/" + posixpath.normpath(path).lstrip("/")


def _asked(ask: Callable[[], N]) -> N:
    try:
        return ask()
    except BangerError as error:
        raise Fault(error.brief, error.hint) from None


def _shown(value: str) -> str:
    return ascii(value if len(value) <= 80 else value[:77] + "...")
