"""Images made by umoci and skopeo, on a real registry on loopback: pulled, booted and entered.

Nothing is in them but a static busybox: no init, no passwd, no sshd. Each guest boots with banger's agent.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from banger.image.oci.manifest import this_platform
from tests.capabilities import require
from tests.fakes.ociregistry import (
    busybox_tree,
    make_index,
    make_layout,
    manifest_of,
    push,
    registry,
    token_server,
    unpacked,
)
from tests.guest.files import assert_files_equal
from tests.guest.instance import SMALL, Instance, until
from tests.realregistry import ANN

pytestmark = [require("docker-registry", "skopeo", "umoci", "htpasswd", "busybox"), pytest.mark.guest]

CONFIG = {
    "entrypoint": ["echo", "says"],
    "cmd": ["hello"],
    "env": ["COLOUR=dark blue", "PATH=/bin:/opt/bin"],
    "workingdir": "/srv/app",
    "user": "1000:1001",
}
ACCOUNT = "ann:hunter2-secret"


@pytest.fixture(scope="module")
def layout() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="banger-layout-"))
    try:
        base = busybox_tree(folder / "base")
        (base / "etc").mkdir()
        (base / "etc/gone").write_text("not for long")
        (base / "etc/kept").write_text("first")
        (base / "data").mkdir()
        (base / "data/a").write_text("a" * 10_000)
        os.link(base / "data/a", base / "data/b")
        second = folder / "second"
        (second / "etc").mkdir(parents=True)
        (second / "etc/kept").write_text("second")
        (second / "opt/bin").mkdir(parents=True)
        (second / "opt/bin/tool").write_text("#!/bin/sh\necho tool $1\n")
        (second / "opt/bin/tool").chmod(0o755)
        (second / "root").mkdir(mode=0o700)
        (second / "root/.seeded").write_text("from the image")
        bare = folder / "bare"
        (bare / "app").mkdir(parents=True)
        shutil.copy2(base / "bin/busybox", bare / "app/uname")
        tools = folder / "tools"
        (tools / "etc").mkdir(parents=True)
        (tools / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/srv:/bin/sh\n")
        (tools / "etc/group").write_text("root:x:0:\ncrew:x:1001:\nmore:x:7:app\n")
        target = folder / "layout"
        make_layout(target, "one", [base], CONFIG)
        make_layout(target, "two", [base, "/etc/gone", second], {"env": CONFIG["env"]})
        make_layout(target, "tools", [base, tools], {**CONFIG, "entrypoint": ["sh", "-c"], "user": "app"})
        here = this_platform().architecture
        for architecture in ("s390x", here):
            (folder / architecture).mkdir()
            (folder / architecture / "arch").write_text(architecture)
            make_layout(target, architecture, [base, folder / architecture], {}, architecture=architecture)
        make_index(target, "multi", {one: one for one in ("s390x", here)})
        make_layout(target, "bare", [bare], {"entrypoint": "/app/uname", "cmd": "-s"})
        yield target
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def address(banger: Instance, layout: Path) -> Iterator[str]:
    with registry(banger.home / "registry", run_in=banger.argv()) as found:
        for tag in ("one", "two", "bare"):
            push(layout, tag, f"{found}/team/{tag}:1", run_in=banger.argv(), zstd=tag == "two")
        push(layout, "multi", f"{found}/team/multi:1", run_in=banger.argv(), index=True)
        push(layout, "tools", f"{found}/team/tools:1", run_in=banger.argv())
        pinned = f"{found}/team/tools:1@{manifest_of(layout, 'tools')['digest']}"
        banger.configure(
            f'{SMALL}[[catalog]]\nname = "tools"\nreference = "{pinned}"\ndescription = "Ours"\n'
        )
        yield found


@pytest.fixture(scope="module")
def one(banger: Instance, address: str) -> str:
    """A guest whose image is pulled by its run."""
    banger.ok("vm", "run", "-d", "--name", "one", "--image", f"{address}/team/one:1")
    return "one"


def test_a_pull_makes_an_image_once(banger: Instance, address: str, one: str) -> None:
    image = json.loads(banger.ok("image", "show", "one-1", "--json").text)
    assert image["oci_reference"] == f"{address}/team/one:1"
    assert image["entrypoint"] + image["cmd"] == ["echo", "says", "hello"]
    again = banger.ok("image", "pull", f"{address}/team/one:1")
    assert again.text == "one-1\n"
    assert "up to date" in again.stderr
    assert json.loads(banger.ok("image", "show", f"{address}/team/one:1", "--json").text) == image
    assert banger.show(one)["image"] == "one-1"


def test_commands_get_the_images_env_and_workdir(banger: Instance, one: str) -> None:
    said = banger.ok("vm", "exec", one, "sh", "-c", 'echo "$COLOUR|$PATH|$HOME|$(pwd)|$(id -u)"').text
    assert said == "dark blue|/bin:/opt/bin|/root|/srv/app|0\n"
    said = banger.ok(
        "vm", "exec", one, "-w", "/bin", "-e", "COLOUR=red", "--", "sh", "-c", "echo $COLOUR; pwd"
    ).text
    assert said == "red\n/bin\n"
    banger.ok("vm", "session", "start", one, "--name", "s", "--", "sh", "-c", "echo $COLOUR; pwd")
    until(lambda: banger.ok("vm", "session", "logs", one, "s").text == "dark blue\n/srv/app\n", timeout_s=60)
    assert banger.ok("vm", "shell", one, stdin=b"echo $SHELL; pwd\n").text == "/bin/sh\n/srv/app\n"


def test_kernel_modules_are_there(banger: Instance, one: str) -> None:
    banger.ok("vm", "exec", one, "sh", "-c", "modprobe veth && [ -d /sys/module/veth ]")


def test_an_image_in_use_stays(banger: Instance, one: str) -> None:
    refused = banger.banger("image", "delete", "one-1")
    assert refused.status == 1
    assert f"delete first: {one}" in refused.stderr


def test_run_as_the_image_says(banger: Instance, address: str, one: str) -> None:
    """docker's rules: the words after -- take the place of the image's command; its user runs it."""
    run = ("vm", "run", "--rm", "--quiet", "--image", "one-1", "--entrypoint")
    assert banger.ok(*run, "--", "mine").text == "says mine\n"
    bare = ("--name", "bare", "--image", f"{address}/team/bare:1")
    assert banger.ok("vm", "run", "--quiet", *bare, "--entrypoint").text == "Linux\n"
    said = banger.banger("vm", "shell", "bare")
    assert said.status == 127
    assert "the guest has no shell" in said.stderr
    banger.ok("vm", "delete", "bare")


@contextmanager
def running(banger: Instance, reference: str, name: str) -> Iterator[str]:
    """A VM of that image, pulled by its run."""
    banger.ok("vm", "run", "-d", "--name", name, "--image", reference)
    yield name
    banger.ok("vm", "delete", name)


def test_its_files_are_the_images(banger: Instance, layout: Path, one: str, tmp_path: Path) -> None:
    assert_files_equal(banger, one, unpacked(layout, "one", tmp_path / "bundle"), added=("srv/app",))


def test_the_catalog_of_the_configuration(banger: Instance, layout: Path, address: str) -> None:
    """Pulled by its name at its digest; its user, by name, with their groups and home, runs what it says."""

    def listed() -> dict[str, object]:
        entries = json.loads(banger.ok("image", "list", "--available", "--json").text)
        (found,) = [entry for entry in entries if entry["name"] == "tools"]
        return dict(found)

    digest = manifest_of(layout, "tools")["digest"]
    assert listed() == {
        "name": "tools",
        "kind": "oci",
        "source": f"{address}/team/tools:1@{digest}",
        "description": "Ours",
        "here": False,
    }
    script = 'id -u; id -g; id -G; pwd; echo "$COLOUR $HOME"'
    said = banger.ok("vm", "run", "--rm", "--quiet", "--image", "tools", "--entrypoint", "--", script).text
    assert said == "1000\n1001\n1001 7\n/srv/app\ndark blue /srv\n"
    assert listed()["here"] is True
    shown = banger.ok("image", "show", "tools").text
    assert str(digest) in shown
    refused = banger.banger("image", "pull", f"{address}/team/one:1", "--name", "tools")
    assert refused.status == 1
    assert "there is an image tools already" in refused.stderr
    banger.ok("vm", "create", "--no-start", "--name", "stopped", "--image", "tools")
    refused = banger.banger("image", "delete", "tools")
    assert refused.status == 1
    assert "delete first: stopped" in refused.stderr
    banger.ok("vm", "delete", "stopped")
    banger.ok("image", "delete", "tools")


def test_an_index_gives_the_image_of_this_machine(
    banger: Instance, layout: Path, address: str, tmp_path: Path
) -> None:
    here = this_platform().architecture
    with running(banger, f"{address}/team/multi:1", "multi") as vm:
        assert banger.ok("vm", "exec", vm, "cat", "/arch").text == here
        assert_files_equal(banger, vm, unpacked(layout, here, tmp_path / "bundle"))
    shown = json.loads(banger.ok("image", "show", "multi-1", "--json").text)
    assert shown["oci_digest"] == manifest_of(layout, here)["digest"]
    assert shown["oci_pinned"] == manifest_of(layout, "multi")["digest"]


def test_layers_are_replayed(banger: Instance, layout: Path, address: str, tmp_path: Path) -> None:
    script = """
        cat /etc/kept; echo; [ -e /etc/gone ] && echo there
        [ /data/a -ef /data/b ] && stat -c '%h %s' /data/a
        tool 7; cat /root/.seeded; stat -c ' %a' /root
    """
    with running(banger, f"{address}/team/two:1", "two") as vm:
        said = banger.ok("vm", "exec", vm, "sh", "-c", script)
        assert_files_equal(banger, vm, unpacked(layout, "two", tmp_path / "bundle"))
    assert said.text == "second\n2 10000\ntool 7\nfrom the image 700\n", said.text


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_a_private_image_takes_the_users_login(
    banger: Instance, layout: Path, tmp_path: Path, kind: str
) -> None:
    account = f"{ANN.username}:{ANN.password}" if kind == "bearer" else ACCOUNT
    auth = base64.b64encode(account.encode()).decode()
    within = banger.argv()
    with (
        token_server(tmp_path / "tokens", run_in=within) if kind == "bearer" else nullcontext() as tokens,
        registry(
            banger.home / kind,
            port=5001,
            run_in=within,
            account="" if tokens else account,
            tokens=tokens,
        ) as address,
    ):
        push(layout, "one", f"{address}/mine/app", run_in=within, account=account)
        run = ("vm", "run", "--rm", "--quiet", "--image", f"{address}/mine/app", "--", "echo", "in")
        refused = banger.banger(*run)
        assert refused.status == 125
        assert "login" in refused.stderr
        (tmp_path / "config.json").write_text(json.dumps({"auths": {address: {"auth": auth}}}))
        assert banger.banger(*run, env={"DOCKER_CONFIG": str(tmp_path)}).require().text == "in\n"
    banger.ok("image", "delete", "app")
    secret = account.partition(":")[2].encode()
    state = Path(banger.paths.state_dir)
    kept = [state / "bangerd.log", *state.glob("banger.db*"), *state.glob("images/*/image.json")]
    assert not any(auth.encode() in path.read_bytes() for path in kept)
    assert kind == "bearer" or not any(secret in path.read_bytes() for path in kept)


def test_archives_and_the_cache(banger: Instance, layout: Path, tmp_path: Path) -> None:
    subprocess.run(
        [
            "skopeo",
            "--insecure-policy",
            "copy",
            "-q",
            f"oci:{layout}:one",
            f"docker-archive:{tmp_path}/app.tar:x:1",
        ],
        check=True,
        timeout=60,
    )
    assert banger.ok("image", "pull", "--file", str(tmp_path / "app.tar")).text == "app\n"
    assert "up to date" in banger.ok("image", "pull", "--file", str(tmp_path / "app.tar")).stderr
    would = banger.ok("image", "cache", "prune", "--dry-run").text
    assert would.startswith("would free ")
    assert banger.ok("image", "cache", "prune").text == would.replace("would free", "freed")
    assert banger.ok("image", "cache", "prune").text == "freed 0.0 MiB in 0 blobs\n"
    banger.ok("image", "delete", "app")


def test_registered_files_boot_and_are_copied_in(banger: Instance, one: str, tmp_path: Path) -> None:
    image = json.loads(banger.ok("image", "show", "one-1", "--json").text)
    rootfs = tmp_path / "mine.ext4"
    subprocess.run(["cp", "--sparse=always", image["rootfs_path"], rootfs], check=True, timeout=60)
    files = ("--rootfs", str(rootfs), "--kernel", image["kernel_path"], "--modules", image["modules_dir"])
    mine = json.loads(banger.ok("image", "register", "mine", *files, "--json").text)
    assert mine["managed"] is False
    run = ("vm", "run", "--rm", "--quiet", "--image", "mine", "--", "uname", "-s")
    assert banger.ok(*run).text == "Linux\n"
    banger.ok("image", "promote", "mine")
    rootfs.unlink()
    assert json.loads(banger.ok("image", "show", "mine", "--json").text)["id"] == mine["id"]
    assert banger.ok(*run).text == "Linux\n"
    banger.ok("image", "delete", "mine")
    assert not Path(banger.paths.images_dir, str(mine["id"])).exists()


def test_an_image_boots_a_kernel_of_ones_own(banger: Instance, address: str) -> None:
    source = Path(banger.paths.kernels_dir, "debian-bookworm")
    assert banger.ok("kernel", "import", "own", "--from", str(source)).text == "own\n"
    image = (f"{address}/team/bare:1", "--name", "with-own", "--kernel", "own", "--size", "2G")
    banger.ok("image", "pull", *image)
    shown = json.loads(banger.ok("image", "show", "with-own", "--json").text)
    assert Path(shown["rootfs_path"]).stat().st_size == 2 << 30
    run = ("vm", "run", "--rm", "--quiet", "--image", "with-own", "--entrypoint", "--", "-r")
    release = json.loads(Path(source, "kernel.json").read_text())["record"]["kernel_version"]
    assert banger.ok(*run).text == f"{release}\n"
    banger.ok("image", "delete", "with-own")
    banger.ok("kernel", "rm", "own")
