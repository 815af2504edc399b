"""A repository's tools, from a mirror to a real guest: a second namespace is the internet that NAT leads to.

The mise there is a small shell script that writes down what it is asked. One guest for all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import pytest

from tests.guest.instance import BANGER, SMALL, Instance, checked_instance
from tests.guest.screen import at_a_terminal
from tests.guest.test_nat import SERVER, internet
from tests.unit.local.gitrepos import Repo

pytestmark = pytest.mark.guest

MISE = r"""#!/bin/sh
echo "$PWD: mise $*" >>/root/asked
[ "$1" = install ] || exit 0
[ -f .tool-versions ] || [ -f mise.toml ] || exit 9
mkdir -p ~/.local/share/mise/shims
printf '#!/bin/sh\necho made by %s\n' "$(cat .tool-versions mise.toml 2>/dev/null)" \
    >~/.local/share/mise/shims/maker
chmod +x ~/.local/share/mise/shims/maker
printf 'mise \033[31minstalled\033[0m maker\n'
"""
URL = f"http://{SERVER}:8080/mise-linux-{{arch}}"
ARCH = {"x86_64": "x64", "aarch64": "arm64"}
VM = "tooled"


def configured(url: str = "", sha256: str = "") -> str:
    return f'{SMALL}\n[tooling]\nmise_url = "{url}"\nmise_sha256 = "{sha256}"\n'


@pytest.fixture(scope="module")
def banger() -> Iterator[Instance]:
    """As everywhere, with an internet that has mise."""
    with checked_instance(configured()) as made, internet(made):
        machine = os.uname().machine
        (made.home / "internet" / f"mise-linux-{ARCH.get(machine, machine)}").write_text(MISE)
        yield made
        for vm in made.vms():
            made.ok("vm", "delete", "--discard-work", str(vm["id"]))


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    top = tmp_path_factory.mktemp("tooling")
    made = Repo(top / "app", top / "home-of-ann")
    made.write(".tool-versions", "maker 1.0\n")
    made.commit("it is built with maker")
    return made


def sh(made: Instance, script: str) -> str:
    return made.ok("vm", "exec", VM, "--", "sh", "-lc", script).text


def test_without_nat_no_vm_is_made(banger: Instance, repo: Repo) -> None:
    for words in ((), ("--no-nat",), ("-d",)):
        refused = banger.banger("vm", "run", str(repo.path), *words)
        assert refused.status == (1 if words == ("-d",) else 125), refused
        assert "the repository's tools (.tool-versions) are fetched by the guest" in refused.stderr
        assert "--nat gives it one, --no-bootstrap goes without the tools" in refused.stderr
    assert banger.vms() == []
    dry = banger.ok("vm", "run", str(repo.path), "--dry-run")
    assert "would be bootstrapped: mise install, for .tool-versions; needs --nat\n" in dry.stderr


def test_another_mise_than_the_configured_one_is_not_run(banger: Instance, repo: Repo) -> None:
    banger.configure(configured(URL, "0" * 64))
    failed = banger.banger("vm", "run", str(repo.path), "--name", VM, "-d", "--nat")
    assert failed.status == 1, banger.explain(("vm", "run"), failed)
    said = f"its sha256 is {hashlib.sha256(MISE.encode()).hexdigest()}, and mise_sha256 says {'0' * 64}\n"
    assert said in failed.stderr
    assert f"tools could not be installed in {VM}: what was fetched is not what mise_sha" in failed.stderr
    assert f"{VM} runs: banger vm session logs {VM} bootstrap\n" in failed.stderr
    assert said in banger.ok("vm", "session", "logs", VM, "bootstrap").text
    assert sh(banger, "ls -A /root/.local/bin; ls /root/asked 2>/dev/null || true; ls -A") == (
        ".git\n.tool-versions\n"
    )


def test_a_vm_without_nat_and_one_without_mise(banger: Instance, repo: Repo) -> None:
    banger.configure(configured())
    again = ("workspace", "prepare", "--replace", VM, str(repo.path))
    failed = banger.banger(*again)
    assert failed.status == 1
    assert f"tools could not be installed in {VM}: the guest has no mise, and mise_url" in failed.stderr
    assert f"set mise_url in [tooling] of {banger.paths.config_file}, " in failed.stderr
    banger.ok("vm", "set", VM, "--no-nat")
    refused = banger.banger(*again)
    assert refused.status == 1
    assert f"banger vm set {VM} --nat gives it one, --no-bootstrap goes without" in refused.stderr
    banger.ok("vm", "session", "rm", VM, "bootstrap")
    assert "tools" not in banger.ok(*again, "--no-bootstrap").stderr
    assert banger.ok("vm", "session", "list", VM, "-q").text == ""
    banger.ok("vm", "set", VM, "--nat")


def test_workspace_prepare_installs_before_it_returns(banger: Instance, repo: Repo) -> None:
    banger.configure(configured(URL, hashlib.sha256(MISE.encode()).hexdigest()))
    done = banger.ok("workspace", "prepare", "--replace", VM, str(repo.path))
    assert done.text == f"{VM}:/root/repo\n"
    lines = done.stderr.splitlines()
    at = lines.index("tools: installing those of .tool-versions")
    assert lines[at + 1].startswith(f"fetching mise from http://{SERVER}:8080/mise-linux-"), lines
    assert lines[at + 2 : at + 4] == ["mise \\x1b[31minstalled\\x1b[0m maker", "the tools are there"]
    assert sh(banger, "maker; cat /root/asked") == (
        "made by maker 1.0\n/root/repo: mise install\n/root/repo: mise reshim\n"
    )


def test_in_the_foreground_before_the_command(banger: Instance, repo: Repo) -> None:
    """With NAT by the configured default; the command finds the tools."""
    banger.ok("vm", "delete", "--discard-work", VM)
    (repo.path / ".tool-versions").unlink()
    repo.write("mise.toml", "maker 2.0\n")
    repo.commit("by another file")
    banger.configure(configured(URL).replace("[vm_defaults]", "[vm_defaults]\nnat = true"))
    done = banger.banger("vm", "run", str(repo.path), "--rm", "--", "maker")
    assert done.status == 0, banger.explain(("vm", "run"), done)
    assert done.text == "made by maker 2.0\n"
    assert "the tools are there\n" in done.stderr
    assert banger.vms() == []


def test_in_the_background_of_a_shell(banger: Instance, repo: Repo) -> None:
    argv = banger.argv(BANGER, "vm", "run", str(repo.path), "--name", VM)
    with at_a_terminal(argv, {**banger.environment, "TERM": "xterm", "LANG": "C.UTF-8"}) as screen:
        screen.resize(24, 200)
        screen.until("~/repo#", timeout_s=240)
        what = "tools: installing those of mise.toml in the background: "
        assert what + f"banger vm session logs -f {VM} bootstrap" in screen.text
        log = banger.ok("vm", "session", "logs", "-f", VM, "bootstrap").text
        assert log.endswith("mise \x1b[31minstalled\x1b[0m maker\nthe tools are there\n"), log
        screen.type("maker\r")
        screen.until("made by maker 2.0")
        screen.type("exit 0\r")
        assert screen.status() == 0
