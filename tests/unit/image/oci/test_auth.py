"""How docker and podman keep credentials, and how registries ask for them."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError
from banger.image.errors import ImageError
from banger.image.oci.auth import (
    AuthFile,
    Challenge,
    Credential,
    Helper,
    parse_auth_file,
    parse_challenges,
    parse_helper_answer,
    parse_token,
)
from banger.image.oci.reference import DEFAULT_REGISTRY, account_keys

ANN = Credential(username="ann", password="a:b")
BOB = Credential(username="bob", password="x")


def encoded(credential: Credential) -> dict[str, str]:
    text = f"{credential.username}:{credential.password}"
    return {"auth": base64.b64encode(text.encode()).decode()}


def file(**document: Any) -> AuthFile:
    return parse_auth_file(json.dumps(document).encode(), what="config.json")


@pytest.mark.parametrize(
    "key", ["example.org", "https://example.org", "http://example.org/v1/", "example.org/v2/"]
)
def test_keys_of_a_registry(key: str) -> None:
    found = file(auths={"other.example.org": encoded(BOB), key: encoded(ANN)})
    assert found.lookup("example.org") == ANN
    assert found.lookup("example.org", "team/app") == ANN
    assert found.lookup("example.org:5000") is None
    assert found.lookup("sub.example.org") is None


@pytest.mark.parametrize("key", account_keys(DEFAULT_REGISTRY))
def test_dockers_own_registry_has_old_names(key: str) -> None:
    assert file(auths={key: encoded(ANN)}).lookup(DEFAULT_REGISTRY) == ANN
    assert file(credHelpers={key: "x"}).lookup(DEFAULT_REGISTRY) == Helper(name="x", address=key)
    assert file(credsStore="s").lookup(DEFAULT_REGISTRY) == Helper(
        name="s", address=account_keys(DEFAULT_REGISTRY)[0]
    )


def test_a_helper_goes_before_the_store_and_that_before_the_file() -> None:
    document = {
        "auths": {"a.example.org": encoded(ANN), "b.example.org": encoded(ANN)},
        "credHelpers": {"a.example.org": "special"},
        "credsStore": "keyring",
    }
    assert file(**document).lookup("a.example.org") == Helper(name="special", address="a.example.org")
    assert file(**document).lookup("b.example.org") == Helper(name="keyring", address="b.example.org")
    del document["credsStore"]
    assert file(**document).lookup("b.example.org") == ANN


def test_podmans_paths_the_longest_first() -> None:
    found = file(auths={"example.org/team": encoded(ANN), "example.org": encoded(BOB)})
    assert found.lookup("example.org", "team/app") == ANN
    assert found.lookup("example.org", "teamwork/app") == BOB
    assert found.lookup("example.org") == BOB
    only = file(auths={"example.org/team": encoded(ANN)})
    assert only.lookup("example.org", "other/app") is None


def test_all_forms_of_an_entry() -> None:
    assert file(auths={"r": {"username": "u", "password": "p"}}).lookup("r") == Credential(
        username="u", password="p"
    )
    assert file(auths={"r": {"identitytoken": "t"}}).lookup("r") == Credential(identity_token="t")
    assert file(auths={"r": {"registrytoken": "t"}}).lookup("r") == Credential(registry_token="t")
    assert file(auths={"r": {}}).lookup("r") is None
    assert file(auths=None, HttpHeaders={"a": "b"}).lookup("r") is None


def secret_free(caught: pytest.ExceptionInfo[BangerError]) -> None:
    error = caught.value
    assert "geheim" not in f"{error.brief}{error.details}{error.hint}{error.__cause__}"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"geheim",
        b"[]",
        b'{"auths": {"r": {"auth": "geheim"}}}',
        b'{"auths": {"r": {"auth": "Z2VoZWlt"}}}',
        b'{"auths": {"r": {"username": "a\\nb", "password": "geheim"}}}',
        b'{"auths": {"r": {"auth": 7}}}',
        b'{"credHelpers": {"r": "../geheim"}}'.replace(b"geheim", b"x"),
        b'{"credsStore": "a b"}',
        b'{"auths":' * 50_000,
        b" " * (2 << 20),
    ],
)
def test_broken_files_are_refused_without_being_quoted(data: bytes) -> None:
    with pytest.raises(BangerError, match=r"config\.json") as caught:
        parse_auth_file(data, what="config.json")
    secret_free(caught)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_a_file_or_not(data: bytes) -> None:
    for parse in (parse_auth_file, parse_helper_answer, parse_token):
        with contextlib.suppress(ImageError):
            parse(data, what="x")


def test_what_a_helper_answers() -> None:
    answer = json.dumps({"ServerURL": "r", "Username": "u", "Secret": "p"}).encode()
    assert parse_helper_answer(answer, what="x") == Credential(username="u", password="p")
    answer = json.dumps({"Username": "<token>", "Secret": "t"}).encode()
    assert parse_helper_answer(answer, what="x") == Credential(identity_token="t")
    assert parse_helper_answer(b"{}", what="x") is None
    with pytest.raises(BangerError) as caught:
        parse_helper_answer(b"geheim", what="x")
    secret_free(caught)


def test_nothing_secret_is_printed() -> None:
    credential = Credential(
        username="ann", password="geheim", identity_token="geheim", registry_token="geheim"
    )
    assert "geheim" not in f"{credential} {credential!r} {AuthFile(auths={'r': credential})}"


BEARER = 'Bearer realm="https://auth.example.org/t?a=b,c",service="reg \\"x\\"",scope="repository:a:pull"'
FOUND = Challenge(scheme="bearer", realm="https://auth.example.org/t?a=b,c", service='reg "x"')
BASIC = Challenge(scheme="basic")


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([BEARER], [FOUND]),
        (['Basic realm="x"'], [BASIC]),
        (["basic"], [BASIC]),
        ([f'Basic realm="x", {BEARER}'], [BASIC, FOUND]),
        ([BEARER, "Basic"], [FOUND, BASIC]),
        ([f"Negotiate, {BEARER}"], [FOUND]),
        (
            ["Bearer realm=https://auth.example.org/t"],
            [Challenge(scheme="bearer", realm="https://auth.example.org/t")],
        ),
        (["Bearer"], []),
        (['Bearer service="x"'], []),
        (['Digest realm="x"'], []),
        (["", '"', "=", ",,,"], []),
    ],
)
def test_challenges(headers: list[str], found: list[Challenge]) -> None:
    assert parse_challenges(headers) == found


@given(st.lists(st.text(alphabet='Bearbasic realm="\\,= \t:/x', max_size=200), max_size=3))
def test_any_challenge_ends(headers: list[str]) -> None:
    for challenge in parse_challenges(headers):
        assert challenge.scheme in ("basic", "bearer")


@pytest.mark.limit(5)
@pytest.mark.parametrize("piece", [" ", ",", "a ", 'a="', "a=b,", "\\", "Bearer a", "=", "a" * 30 + " "])
def test_long_challenges_end_soon(piece: str) -> None:
    parse_challenges(["Bearer " + piece * 100_000, piece * 100_000])


def test_tokens() -> None:
    assert parse_token(b'{"token": "a.b"}', what="r") == "a.b"
    assert parse_token(b'{"access_token": "c", "expires_in": 3}', what="r") == "c"
    for bad in (b"{}", b'{"token": ""}', b'{"token": "a\\nb"}', b'{"token": 7}', b'{"token": "a b"}', b"x"):
        with pytest.raises(BangerError, match="token"):
            parse_token(bad, what="r")
