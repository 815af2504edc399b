"""Guests for tests: one instance a module, one running guest to look at, leaks checked after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guest.instance import Instance, checked_instance


@pytest.fixture(scope="module")
def banger() -> Iterator[Instance]:
    """An instance in a network namespace of its own; its home is gone afterwards."""
    yield from module_instance()


def module_instance(config: str = "") -> Iterator[Instance]:
    """The same for modules with a configuration of their own."""
    with checked_instance(config) as made:
        yield made


@pytest.fixture(scope="module")
def guest(banger: Instance) -> str:
    """The name of a running guest that tests share; they leave it as they found it."""
    banger.ok("vm", "run", "--name", "shared-guest", "-d")
    return "shared-guest"


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: only what the module's own VMs explain is there; the product's audit agrees."""
    yield
    if "banger" in request.fixturenames:
        made: Instance = request.getfixturevalue("banger")
        left = made.unexplained()
        assert not left, f"left on the host: {left}"
        made.ok("host", "audit")
