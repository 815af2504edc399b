"""What a pull costs the daemon: memory that does not grow with the image; nothing when it is here already."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.capabilities import require
from tests.fakes.ociregistry import registry
from tests.fakes.proxy import proxy, within
from tests.fakes.pushed import layer_of, upload
from tests.guest.instance import Instance

pytestmark = [require("docker-registry"), pytest.mark.guest]
MIB = 1 << 20
GROWS_KIB = 48 << 10
"""Downloads and unpacking hold some pieces of a MiB each, which an image of 2 MiB does not fill."""


@pytest.fixture(scope="module")
def address(banger: Instance) -> Iterator[str]:
    with registry(banger.home / "registry", run_in=banger.argv()) as found:
        yield found


def peak_kib(banger: Instance, *words: str) -> int:
    """The daemon's largest resident size while it pulls, from a fresh start."""
    banger.ok("daemon", "stop")
    banger.ok("daemon", "start")
    banger.ok("image", "pull", *words)
    status = Path(f"/proc/{banger.daemon_pid()}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1])


def test_an_image_of_sixty_times_the_size_takes_no_more_memory(banger: Instance, address: str) -> None:
    peaks: dict[int, int] = {}
    for size in (2 * MIB, 120 * MIB):
        name = f"of-{size // MIB}"
        layers = [layer_of(40, size // 2, seed=number) for number in range(2)]
        within(banger.netns, lambda: upload(address, name, layers))  # noqa: B023 (called at once)
        peaks[size] = peak_kib(banger, f"{address}/{name}")
        banger.ok("image", "delete", name)
        banger.ok("image", "cache", "prune")
    assert peaks[120 * MIB] - peaks[2 * MIB] < GROWS_KIB, peaks


def test_a_second_pull_brings_and_builds_nothing(banger: Instance, address: str) -> None:
    pinned = within(banger.netns, lambda: upload(address, "twice", [layer_of(10, MIB)]))
    with proxy(int(address.rpartition(":")[2]), netns=banger.netns) as counted:
        for reference, asks in (
            (f"{counted.address}/twice", ["HEAD /v2/twice/manifests/latest"]),
            (f"{counted.address}/twice@{pinned}", []),
        ):
            words = ("image", "pull", reference, "--name", f"twice-{len(asks)}")
            banger.ok(*words)
            built = banger.ok("image", "show", words[-1], "--json").text
            counted.forget()
            banger.ok(*words)
            assert counted.requests == asks
            assert counted.received < 4096
            assert banger.ok("image", "show", words[-1], "--json").text == built
            banger.ok("image", "delete", words[-1])
