"""Manifests, indexes and configs: what is taken, what is refused and how it is named."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.errors import BangerError, ErrorCode
from banger.image.errors import ImageError
from banger.image.oci import manifest as m
from banger.image.oci.config import MAX_CONFIG, MAX_LAYERS, ImageConfig, parse_config

WHAT = "example.org/app:v1"
HERE = m.Platform(os="linux", architecture="amd64")


def digest(letter: str) -> str:
    return f"sha256:{letter * 64}"


def descriptor(media_type: str, letter: str = "a", **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(letter), "size": 7, **more}


def image(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": m.OCI_MANIFEST,
        "config": descriptor(m.OCI_CONFIG),
        "layers": [descriptor(f"{m.OCI_LAYER}+gzip", "b"), descriptor(f"{m.OCI_LAYER}+zstd", "c")],
    }
    made.update(changes)
    return {key: value for key, value in made.items() if value is not ...}


def index(*entries: dict[str, Any], **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"schemaVersion": 2, "mediaType": m.OCI_INDEX, "manifests": list(entries)}
    made.update(changes)
    return {key: value for key, value in made.items() if value is not ...}


def entry(architecture: str, letter: str = "a", *, os: str = "linux", variant: str = "") -> dict[str, Any]:
    platform = {"os": os, "architecture": architecture, "variant": variant}
    return descriptor(m.OCI_MANIFEST, letter, platform=platform)


def parse(document: object, content_type: str = "") -> m.Manifest | m.Index:
    return m.parse_manifest(json.dumps(document).encode(), content_type=content_type, what=WHAT)


def refused(document: object, content_type: str = "") -> str:
    with pytest.raises(BangerError) as caught:
        parse(document, content_type)
    assert caught.value.code is ErrorCode.IMAGE_INVALID
    assert WHAT in caught.value.brief
    assert caught.value.brief.isprintable()
    return caught.value.brief


def chosen(found: m.Manifest | m.Index) -> list[str]:
    assert isinstance(found, m.Index)
    return [descriptor.digest for descriptor in m.candidates(found, HERE, what=WHAT)]


@pytest.mark.parametrize(
    "document",
    [
        image(),
        image(mediaType=...),
        image(
            mediaType=m.DOCKER_MANIFEST,
            config=descriptor(m.DOCKER_CONFIG),
            layers=[descriptor(f"{m.DOCKER_LAYER}.gzip"), descriptor(m.DOCKER_LAYER)],
        ),
    ],
)
@pytest.mark.parametrize("content_type", ["", "application/json", "text/plain; charset=utf-8"])
def test_manifests_of_both_families(document: dict[str, Any], content_type: str) -> None:
    found = parse(document, content_type)
    assert isinstance(found, m.Manifest)
    assert len(found.layers) == 2
    assert all(layer.media_type in m.LAYERS for layer in found.layers)


def test_the_registry_names_the_type_where_the_document_does_not() -> None:
    assert isinstance(parse(image(mediaType=...), f"{m.OCI_MANIFEST}; charset=utf-8"), m.Manifest)
    assert isinstance(parse(index(mediaType=...), m.OCI_INDEX), m.Index)


@pytest.mark.parametrize(
    ("document", "content_type", "why"),
    [
        (image(), m.OCI_INDEX, "says that it is"),
        (image(mediaType=...), m.OCI_INDEX, "ambiguous"),
        (image(), "text/html", "unknown type: text/html"),
        (image(manifests=[]), "", "ambiguous"),
        (index(layers=[]), "", "ambiguous"),
        (index(config=descriptor(m.OCI_CONFIG)), "", "ambiguous"),
        (image(layers=...), "", "ambiguous"),
        (image(schemaVersion=3), "", "schema version 3"),
        ({"schemaVersion": 1, "fsLayers": []}, "", "schema 1"),
        (image(mediaType="application/x\x1b[2J"), "", r"unknown type: application/x\\x1b"),
        (image(), "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1"),
        (image(config=descriptor("application/vnd.cncf.helm.config.v1+json")), "", "helm"),
        (image(layers=[descriptor(f"{m.OCI_LAYER}+gzip+encrypted")]), "", "encrypted"),
        (
            image(layers=[descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")]),
            "",
            "foreign",
        ),
        (
            image(layers=[{**descriptor(m.OCI_LAYER), "digest": "sha256:../../etc"}]),
            "",
            "digest that is none",
        ),
        (image(layers=[{**descriptor(m.OCI_LAYER), "size": -1}]), "", ">= 0"),
        (image(layers=[{**descriptor(m.OCI_LAYER), "size": 1 << 62}]), "", "<="),
        (image(layers=[{**descriptor(m.OCI_LAYER), "size": 1 << 200}]), "", "not one"),
        (image(layers=[{**descriptor(m.OCI_LAYER), "size": 100 << 30}] * 2), "", "together"),
        (image(layers=[descriptor(m.OCI_LAYER)] * (MAX_LAYERS + 1)), "", "length"),
        (index(*[entry("amd64")] * (m.MAX_ENTRIES + 1)), "", "length"),
        ([], "", "not one"),
        ("x", "", "not one"),
    ],
)
def test_what_is_refused_is_named(document: object, content_type: str, why: str) -> None:
    assert why.replace("\\\\", "\\") in refused(document, content_type)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"x":' * 100_000,
        b'{"schemaVersion":2,"mediaType":"\xed\xa0\x80","architecture":"\xed\xa0\x80"}',
        b" " * (m.MAX_MANIFEST + 1),
    ],
)
def test_broken_documents(data: bytes) -> None:
    for parse_it in (m.parse_manifest, parse_config):
        with pytest.raises(BangerError) as caught:
            parse_it(data, what=WHAT)
        assert caught.value.code is ErrorCode.IMAGE_INVALID
        assert len(caught.value.brief) < 500


WORDS = """schemaVersion mediaType config layers manifests digest size platform os architecture
    rootfs diff_ids Env Cmd Labels User annotations"""
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(digest("a")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(WORDS.split()),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(_JSON)
def test_any_json_is_parsed_or_refused(document: object) -> None:
    data = json.dumps(document).encode()
    for parse_it in (m.parse_manifest, parse_config):
        with contextlib.suppress(ImageError):
            parse_it(data, what=WHAT)


def test_this_machines_entry_the_oldest_variant_first() -> None:
    found = parse(
        index(
            entry("arm64", "1"),
            entry("amd64", "2", variant="v3"),
            entry("amd64", "3", variant="v2"),
            entry("unknown", "4", os="unknown"),
            entry("amd64", "5", os="windows"),
            entry("amd64", "6"),
        )
    )
    assert chosen(found) == [digest("6"), digest("3"), digest("2")]


def test_entries_without_a_platform_come_last() -> None:
    nested = descriptor(m.OCI_INDEX, "7")
    found = parse(index(descriptor(m.OCI_MANIFEST, "8"), nested, entry("amd64", "9")))
    assert chosen(found) == [digest("9"), digest("8"), digest("7")]
    assert chosen(parse(index(nested))) == [digest("7")]


def test_a_wrong_platform_names_those_there_are() -> None:
    found = parse(
        index(entry("arm64", variant="v8"), entry("amd64", os="windows"), entry("unknown", os="unknown"))
    )
    with pytest.raises(BangerError) as caught:
        chosen(found)
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert str(caught.value) == (
        f"{WHAT} has no image for linux/amd64; it has: linux/arm64/v8, windows/amd64"
    )


def test_the_machine_in_gos_words() -> None:
    assert str(m.this_platform("x86_64")) == "linux/amd64"
    assert str(m.this_platform("aarch64")) == "linux/arm64"
    assert str(m.this_platform("riscv64")) == "linux/riscv64"


CONFIG: dict[str, Any] = {
    "architecture": "amd64",
    "os": "linux",
    "config": {
        "Entrypoint": ["/entry", "a b"],
        "Cmd": None,
        "Env": ["PATH=/bin", "EMPTY=", "BARE", "=x", "A=b=c"],
        "WorkingDir": "/srv",
        "User": "www:www",
        "Labels": {"a": "b"},
        "Volumes": {"/data": {}},
        "StopSignal": "SIGTERM",
    },
    "rootfs": {"type": "layers", "diff_ids": [digest("d")]},
    "history": [{"created_by": "x"}],
}


def config(**changes: Any) -> ImageConfig:
    return parse_config(json.dumps({**CONFIG, **changes}).encode(), what=WHAT)


def test_what_a_config_says() -> None:
    assert config() == ImageConfig(
        entrypoint=("/entry", "a b"),
        env=("PATH=/bin", "EMPTY=", "A=b=c"),
        working_dir="/srv",
        user="www:www",
        labels={"a": "b"},
        architecture="amd64",
        os="linux",
        stop_signal="SIGTERM",
        diff_ids=(digest("d"),),
    )
    assert config(config=None, rootfs={}) == ImageConfig(architecture="amd64", os="linux")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"config": {"Cmd": "sh"}}, "not one"),
        ({"config": {"Cmd": ["a\0b"]}}, "zero byte"),
        ({"config": {"Env": ["A=" + "x" * 200_000]}}, "more or longer"),
        ({"config": {"Env": ["A=b"] * 5000}}, "not one"),
        ({"config": {"Labels": {str(n): "" for n in range(5000)}}}, "more or longer"),
        ({"rootfs": {"type": "layers", "diff_ids": ["x"]}}, "no digest"),
        ({"rootfs": {"type": "cow", "diff_ids": []}}, "kind"),
        ({"rootfs": {"diff_ids": [digest("a")] * (MAX_LAYERS + 1)}}, "not one"),
        ({"pad": "x" * MAX_CONFIG}, "larger"),
    ],
)
def test_hostile_configs(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(BangerError, match=why) as caught:
        config(**changes)
    assert caught.value.code is ErrorCode.IMAGE_INVALID


def test_a_config_must_fit_machine_and_manifest() -> None:
    m.check_config(config(), HERE, layers=1, what=WHAT)
    m.check_config(config(architecture="", os=""), HERE, layers=1, what=WHAT)
    with pytest.raises(BangerError, match="is for linux/arm64, not for linux/amd64"):
        m.check_config(config(architecture="arm64"), HERE, layers=1, what=WHAT)
    with pytest.raises(BangerError, match="has 2 layers, and its config speaks of 1"):
        m.check_config(config(), HERE, layers=2, what=WHAT)
