"""References as docker spells them, and hostile ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.image.errors import ImageError
from banger.image.oci.reference import (
    DEFAULT_REGISTRY,
    Reference,
    account_keys,
    host_of,
    is_digest,
    is_loopback,
    parse_reference,
)

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("alpine", DEFAULT_REGISTRY, "library/alpine", "latest", ""),
        ("debian:12", DEFAULT_REGISTRY, "library/debian", "12", ""),
        ("team/app", DEFAULT_REGISTRY, "team/app", "latest", ""),
        (f"{DEFAULT_REGISTRY}/alpine", DEFAULT_REGISTRY, "library/alpine", "latest", ""),
        (f"index.{DEFAULT_REGISTRY}/library/alpine:3", DEFAULT_REGISTRY, "library/alpine", "3", ""),
        ("localhost/app", "localhost", "app", "latest", ""),
        ("localhost:5000/app:v1", "localhost:5000", "app", "v1", ""),
        ("example.org/a/b/c:X_y.z-1", "example.org", "a/b/c", "X_y.z-1", ""),
        ("[::1]:5000/app", "[::1]:5000", "app", "latest", ""),
        ("UPPER/app", "UPPER", "app", "latest", ""),
        (f"alpine@{DIGEST}", DEFAULT_REGISTRY, "library/alpine", "", DIGEST),
        (f"example.org/app:v1@{DIGEST}", "example.org", "app", "v1", DIGEST),
        (f"example.org/app@sha512:{HEX}{HEX}", "example.org", "app", "", f"sha512:{HEX}{HEX}"),
        ("a__b/c--d.e_f", DEFAULT_REGISTRY, "a__b/c--d.e_f", "latest", ""),
    ],
)
def test_spelled_as_docker_does(text: str, registry: str, repository: str, tag: str, digest: str) -> None:
    assert parse_reference(text) == Reference(
        registry=registry, repository=repository, tag=tag, digest=digest
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("a" * 2000, "longer"),
        ("https://example.org/app", "scheme"),
        ("docker://alpine", "scheme"),
        (HEX, "64 hex digits"),
        ("Alpine", "lower case"),
        ("example.org/App", "lower case"),
        ("example.org/", "its name"),
        ("example.org//app", "its name"),
        ("example.org/../app", "its name"),
        ("example.org/a_-b", "its name"),
        ("app:", "no tag"),
        ("app:-x", "no tag"),
        ("app:" + "x" * 129, "no tag"),
        ("app:a:b", "no tag"),
        ("app@", "no sha256"),
        ("app@sha256:abc", "no sha256"),
        (f"app@{DIGEST.upper()}", "no sha256"),
        (f"app@md5:{HEX}", "no sha256"),
        (f"app@{DIGEST}@{DIGEST}", "no sha256"),
        ("exa mple.org/app", "host name"),
        ("-example.org/app", "host name"),
        ("example..org/app", "host name"),
        ("example.org:99999/app", "host name"),
        ("[0:1]:5000/app", "host name"),
        ("[::1]:0/app", "host name"),
        ("example.org:0/app", "host name"),
        ("example.org/" + "a" * 250, "longer than 255"),
        ("app\n", "its name"),
        ("example.org\n/app", "host name"),
        ("app:latest\n", "no tag"),
        ("ä", "its name"),
        ("example.org:٣/app", "host name"),
    ],
)
def test_what_is_none_is_said_why(text: str, why: str) -> None:
    with pytest.raises(BangerError, match=why) as caught:
        parse_reference(text)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert caught.value.brief.isprintable()


_PART = st.from_regex(r"[a-z0-9]+((\.|_|__|-{1,3})[a-z0-9]+){0,2}", fullmatch=True)
_HOSTS = st.sampled_from(
    ["example.org", "localhost", "localhost:5000", "127.0.0.1:443", "[::1]:5000", "a.b:1"]
)


@given(
    host=_HOSTS,
    parts=st.lists(_PART.filter(lambda part: len(part) < 30), min_size=1, max_size=4),
    tag=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True) | st.just(""),
    digest=st.sampled_from(["", DIGEST]),
)
def test_what_is_written_is_read_again(host: str, parts: list[str], tag: str, digest: str) -> None:
    wanted = Reference(
        registry=host, repository="/".join(parts), tag=tag or ("" if digest else "latest"), digest=digest
    )
    assert parse_reference(str(wanted)) == wanted


@given(st.text(max_size=80) | st.from_regex(r"[a-zA-Z0-9:/@._\[\]-]{1,60}", fullmatch=True))
def test_any_text_is_a_reference_or_an_error(text: str) -> None:
    try:
        found = parse_reference(text)
    except ImageError:
        return
    assert parse_reference(str(found)) == found
    # what goes into URLs has no part that a path could climb with
    assert ".." not in found.repository.split("/")
    assert set(f"{found.repository}{found.tag}") <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-"
    )
    assert not found.digest or is_digest(found.digest)
    assert found.target


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST:5000", True),
        ("127.0.0.1:5000", True),
        ("127.1.2.3", True),
        ("127.1:5000", True),
        ("0x7f000001", True),
        ("2130706433", True),
        ("[::1]:5000", True),
        ("[::ffff:127.0.0.1]", True),
        ("example.org", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("127.example.org", False),
        ("127.", False),
        ("127.1 x", False),
        ("10.1", False),
        ("10.0.0.1:5000", False),
        ("[::2]", False),
    ],
)
def test_what_is_this_machine(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


def test_hosts_and_accounts() -> None:
    assert host_of("[::1]:5000") == "::1"
    assert host_of("example.org:5000") == "example.org"
    assert host_of("example.org") == "example.org"
    assert account_keys("example.org:5000") == ("example.org:5000",)
    first, *others = account_keys(DEFAULT_REGISTRY)
    assert first.startswith("https://index.")
    assert first.endswith("/v1/")
    assert DEFAULT_REGISTRY in others
    assert parse_reference("alpine").endpoint != DEFAULT_REGISTRY
    assert parse_reference("example.org/a").endpoint == "example.org"
