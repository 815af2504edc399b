"""docs/images.md, typed as it stands there: images of registries, archives and one's own files; kernels.

The registry is Debian's docker-registry on loopback, which config.toml names as the mirror of the two that
the page pulls from; what it has was made by umoci. The catalog's image and kernel are there already, as the
tests' artifacts: tests/host/test_image_build.py brings them.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from banger.image.oci.reference import DEFAULT_REGISTRY
from tests.artifacts import artifacts
from tests.capabilities import require
from tests.fakes.ociregistry import busybox_tree, make_layout, manifest_of, push, registry
from tests.guest.conftest import module_instance
from tests.guest.instance import SMALL, Instance
from tests.guest.pagetyping import Page, Refused, type_page
from tests.guest.typist import Typist, typist

pytestmark = [require("docker-registry", "skopeo", "umoci", "busybox"), pytest.mark.guest]

PORT = 5000
CONFIG = SMALL + "".join(
    f'[[registry]]\nhost = "{host}"\nmirror = "http://127.0.0.1:{PORT}"\n'
    for host in (DEFAULT_REGISTRY, "registry.example.org")
)
SERVE = '#!/bin/sh\necho "$COLOUR, as $(id -u):" "$@"\n'
A_SHELL = (" #", "echo in $((40 + 2)); exit\n")

IMPORT = "banger kernel import mine --from ./build"
BUILD = "mkdir build && cp -r $FILES/vmlinux $FILES/modules build"
APP = "banger image pull registry.example.org/team/app"
IMAGES = Page(
    before={
        "": ("mkdir images && cd images && cp $FILES/tools.tar .",),
        IMPORT: (BUILD,),
        "banger image register mine --rootfs mine.ext4 --kernel vmlinux --modules lib/modules/6.1.0": (
            "mkdir -p lib/modules && cp -r $FILES/modules lib/modules/6.1.0 && cp $FILES/vmlinux .",
            "cp --sparse=always $FILES/rootfs.ext4 mine.ext4",
        ),
    },
    shows={
        "banger image pull debian-bookworm": "^debian-bookworm$",
        "banger image pull alpine": "^alpine$",
        f"{APP}:1.4 --name app --size 4G": "^app$",
        f"{APP}@sha256:…": "^app-[0-9a-f]{12}$",
        "banger vm run --image alpine": "^in 42$",
        "banger image list": r" app .*\n(.*\n)*.* tools ",
        "banger image list --available": r"^debian-docker ",
        "banger image show app": r"registry\.example\.org/team/app:1\.4",
        "banger vm run --image app --entrypoint": "^blue, as 1000: --all$",
        "banger vm run --image app --entrypoint -- --verbose": "^blue, as 1000: --verbose$",
        "banger vm exec web env": "^COLOUR=blue$",
        IMPORT: "^mine$",
    },
    refused={
        "banger image delete tools": Refused(
            by="delete first: held",
            setup=("banger vm create --quiet --no-start --name held --image tools",),
            undo=("banger vm delete held",),
        ),
        "banger kernel rm mine": Refused(
            by=r"in use by 1 image(.*\n)*.*\btry\b", undo=("banger image delete try",)
        ),
    },
    answers={"banger vm run --image alpine": (A_SHELL,)},
)


@pytest.fixture(scope="module")
def banger() -> Iterator[Instance]:
    yield from module_instance(CONFIG)


@pytest.fixture(scope="module")
def files(banger: Instance) -> Iterator[Path]:
    """What a reader has: a tree, an archive, a kernel with its modules, a root file system."""
    folder = Path(tempfile.mkdtemp(prefix="banger-files-"))
    try:
        tree = busybox_tree(folder / "root")
        (tree / "bin/serve").write_text(SERVE)
        (tree / "bin/serve").chmod(0o755)
        (folder / "vmlinux").symlink_to(artifacts().vmlinux)
        (folder / "modules").symlink_to(artifacts().modules_dir)
        (folder / "rootfs.ext4").symlink_to(artifacts().rootfs)
        config = {
            "entrypoint": "/bin/serve",
            "cmd": "--all",
            "env": ["COLOUR=blue", "PATH=/bin"],
            "user": "1000",
        }
        make_layout(folder / "layout", "app", [tree], config)
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def person(banger: Instance, files: Path) -> Iterator[Typist]:
    layout = files / "layout"
    subprocess.run(
        [
            *("skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:app"),
            f"oci-archive:{files}/tools.tar",
        ],
        check=True,
        timeout=60,
    )
    with registry(banger.home / "registry", port=PORT, run_in=banger.argv()) as address:
        push(layout, "app", f"{address}/library/alpine", run_in=banger.argv())
        push(layout, "app", f"{address}/team/app:1.4", run_in=banger.argv())
        with typist(banger) as at_a_prompt:
            at_a_prompt.type(f"FILES={files}")
            yield at_a_prompt


def test_images(person: Typist, files: Path) -> None:
    digest = str(manifest_of(files / "layout", "app")["digest"]).partition(":")[2]
    type_page(person, "docs/images.md", replace(IMAGES, fill={f"{APP}@sha256:…": digest}))
