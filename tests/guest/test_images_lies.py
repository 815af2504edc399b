"""A registry that lies: the command names each lie, nothing is left of the image, no password goes astray.

The registry is the fake of the unit tests, served into the instance's network namespace.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.image.oci import manifest as m
from tests.fakes.registry import FakeRegistry, lying, noise
from tests.guest.instance import Instance
from tests.guest.test_images_hostile import check_refused

pytestmark = pytest.mark.guest

ASTRAY = "an authorization of its own"


@pytest.fixture(scope="module")
def serving(banger: Instance) -> Iterator[FakeRegistry]:
    with lying(banger.netns) as made:
        yield made


@pytest.fixture
def liar(serving: FakeRegistry) -> Iterator[FakeRegistry]:
    yield serving
    serving.faults, serving.auth, serving.realm = {}, "", ""
    serving.requests.clear()


def described(registry: FakeRegistry, name: str) -> dict[str, str]:
    """Where faults can be put: at the tag, the digest of its manifest, its config, its layer."""
    digest = registry.image(name, layers=[noise(300_000, sum(name.encode()))])
    config = json.loads(registry.manifests[f"{name}:latest"][0])["config"]["digest"]
    return {
        "tag": f"{name}:latest",
        "manifest": f"{name}@{digest}",
        "config": config,
        "layer": registry.layers(name)[0],
    }


@pytest.mark.parametrize(
    ("where", "fault", "says"),
    [
        ("manifest", "wrong*", ("the registry sends something else for", "MANIFEST")),
        ("manifest", "larger*", ("the manifest of", "larger than")),
        ("manifest", f"endless {m.OCI_MANIFEST}*", ("the manifest of", "larger than")),
        ("manifest", "html*", ("the registry sends something else for", "MANIFEST")),
        ("config", "wrong*", ("is something else", "CONFIG")),
        ("config", "longer*", ("its manifest says", "CONFIG")),
        ("config", "endless*", ("is larger than", "of its manifest")),
        ("layer", "wrong*", ("is something else", "LAYER")),
        ("layer", "longer*", ("its manifest says", "LAYER")),
        ("layer", "endless*", ("is larger than", "of its manifest", "LAYER")),
        ("layer", "404*", ("has the manifest, but not", "LAYER")),
        ("layer", "429 86400*", ("asks to wait 86400 s",)),
        ("layer", "circle*", ("in circles",)),
        ("layer", "-> file:///etc/passwd*", ("no http URL",)),
        ("layer", "-> http://registry.invalid/blob*", ("without encryption",)),
    ],
)
def test_a_lie_is_named(
    banger: Instance, liar: FakeRegistry, where: str, fault: str, says: tuple[str, ...]
) -> None:
    at = described(liar, "lie")
    liar.faults[at[where]] = [fault]
    names = {place.upper(): at[place].rpartition("@")[2][:19] for place in ("manifest", "config", "layer")}
    check_refused(banger, "lie", [names.get(words, words) for words in says], f"{liar.address}/lie")


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_a_password_does_not_follow_a_redirect(
    banger: Instance, liar: FakeRegistry, tmp_path: Path, kind: str
) -> None:
    """Nor a token: neither to a storage that asks nothing, nor to one that asks for them."""
    auth = base64.b64encode(b"ann:secret").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {liar.address: {"auth": auth}}}))
    env = {"DOCKER_CONFIG": str(tmp_path)}
    with lying(banger.netns) as other:
        liar.auth, liar.users, other.auth = kind, {"ann": "secret"}, kind
        at = described(liar, f"moved-{kind}")
        other.blobs[at["layer"]] = liar.blobs[at["layer"]]
        liar.faults[at["layer"]] = [f"-> http://{other.address}/v2/moved/blobs/{at['layer']}*"]
        check_refused(banger, f"moved-{kind}", (ASTRAY,), f"{liar.address}/moved-{kind}", env=env)
        assert other.token_requests == []
        liar.faults[at["layer"]] = [f"-> http://{other.address}/elsewhere/{at['layer']}*"]
        assert (
            banger.banger("image", "pull", f"{liar.address}/moved-{kind}", env=env).require().text
            == f"moved-{kind}\n"
        )
        assert len(other.requests) >= 2
        assert {asked.authorization for asked in other.requests} == {""}
    assert liar.requests[-1].authorization != ""
    banger.ok("image", "delete", f"moved-{kind}")


def test_a_token_server_in_the_clear_gets_no_password(
    banger: Instance, liar: FakeRegistry, tmp_path: Path
) -> None:
    auth = base64.b64encode(b"ann:secret").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {liar.address: {"auth": auth}}}))
    described(liar, "asked")
    liar.auth, liar.users, liar.realm = "bearer", {"ann": "secret"}, "http://token.invalid/"
    check_refused(
        banger,
        "asked",
        ("token.invalid", "without encryption"),
        f"{liar.address}/asked",
        env={"DOCKER_CONFIG": str(tmp_path)},
    )


def test_the_truth_after_a_lie(banger: Instance, liar: FakeRegistry) -> None:
    """What the lie left in the cache does not stand in the way."""
    at = described(liar, "once")
    liar.faults[at["layer"]] = ["wrong*"]
    check_refused(banger, "once", ("is something else",), f"{liar.address}/once")
    liar.faults.clear()
    assert banger.ok("image", "pull", f"{liar.address}/once").text == "once\n"
    banger.ok("image", "delete", "once")
