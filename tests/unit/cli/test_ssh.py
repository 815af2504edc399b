"""ssh-config, ssh-proxy and vm ssh: the real commands, with real agents in place of guests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.cli.conftest import CLI, Instance

FAKE_SSH = """#!/bin/sh
for word; do printf '%s\\n' "$word"; done
exit 42
"""


@contextmanager
def echo_service() -> Iterator[int]:
    """One connection: a greeting, then what it gets until it ends. The port."""
    with socket.socket() as listener:
        listener.settimeout(60)
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(60)
                connection.sendall(b"SSH-2.0-echo\r\n")
                while data := connection.recv(65536):
                    connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def vm(banger: Instance) -> str:
    banger("vm", "create", "--name", "sshd")
    return "sshd"


@pytest.mark.parametrize("option", [(), ("--pass-fd",)])
def test_the_proxy_carries_bytes(banger: Instance, vm: str, option: tuple[str, ...]) -> None:
    """--pass-fd too, where a client gives it pipes: one that knows no ProxyUseFdpass."""
    data = os.urandom(3 << 20)
    with echo_service() as port:
        done = banger("ssh-proxy", *option, f"{vm}.vm", str(port), stdin=data)
    assert done.stdout == b"SSH-2.0-echo\r\n" + data
    assert done.stderr == b""


def test_the_proxy_hands_the_connection_over(banger: Instance, vm: str) -> None:
    """As ssh does with ProxyUseFdpass: one byte with a descriptor, and the proxy is gone."""
    ours, theirs = socket.socketpair()
    with ours, echo_service() as port:
        ours.settimeout(60)
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-I", CLI, "ssh-proxy", "--pass-fd", f"{vm}.vm", str(port)],
                env=banger.env,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
            )
        data, descriptors, _flags, _address = socket.recv_fds(ours, 1, 1)
        assert (data, len(descriptors)) == (b"\0", 1)
        assert child.wait(60) == 0
        with socket.socket(fileno=descriptors[0]) as connection:
            assert connection.getblocking()
            connection.settimeout(60)
            seen = b""
            connection.sendall(b"hello")
            while len(seen) < len(b"SSH-2.0-echo\r\nhello"):
                seen += connection.recv(100)
            assert seen == b"SSH-2.0-echo\r\nhello"


def test_the_proxy_says_who_is_not_there(banger: Instance, vm: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
        said = banger("ssh-proxy", f"{vm}.vm", port, status=1).stderr.decode()
    assert f"banger: no ssh server listens in {vm} (port {port})" in said
    assert f"banger vm shell {vm}" in said
    assert "nobody" in banger("ssh-proxy", "nobody.vm", status=1).stderr.decode()
    assert banger("ssh-proxy", "x.vm", "0", status=2).stdout == b""


def test_vm_ssh_becomes_ssh(banger: Instance, vm: str, tmp_path: Path) -> None:
    program = tmp_path / "ssh"
    program.write_text(FAKE_SSH)
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    words = banger("vm", "ssh", vm, status=42, PATH=path).stdout.decode().splitlines()
    assert words[-3:] == ["-l", "root", f"{vm}.vm"]
    assert f"UserKnownHostsFile={banger.home}/state/ssh/known_hosts" in words
    assert "StrictHostKeyChecking=yes" in words
    words = (
        banger("vm", "ssh", "-t", "--user", "dev", vm, "--", "-x", "a b", status=42, PATH=path)
        .stdout.decode()
        .splitlines()
    )
    assert words[-7:] == ["-l", "dev", "-t", f"{vm}.vm", "--", "-x", "a b"]


def test_vm_ssh_says_what_is_wrong(banger: Instance, vm: str, tmp_path: Path) -> None:
    banger("vm", "create", "--name", "asleep", "--no-start")
    assert "not running" in banger("vm", "ssh", "asleep", status=1).stderr.decode()
    assert "not running" in banger("vm", "ssh", "asleep", "--", "true", status=125).stderr.decode()
    assert "no such user" in banger("vm", "ssh", "-l", "-oX", vm, status=2).stderr.decode()
    said = banger("vm", "ssh", vm, status=1, PATH=str(tmp_path)).stderr.decode()
    assert "ssh cannot be run" in said
    assert f"banger vm shell {vm}" in said


def test_ssh_config(banger: Instance, tmp_path: Path) -> None:
    file = tmp_path / ".ssh" / "config"
    printed = banger("ssh-config").stdout.decode()
    assert printed.startswith("# banger's guests: ssh NAME.vm\nHost *.vm\n")
    assert f"BANGER_HOME={banger.home}" in printed
    shown = json.loads(banger("ssh-config", "--json").stdout)
    assert shown["host"] == "*.vm"
    assert shown["options"]["IdentitiesOnly"] == "yes"
    first = json.loads(banger("ssh-config", "--install", "--file", str(file), "--json").stdout)
    include = f"{banger.home}/state/ssh/config"
    assert first == {"file": str(file), "include": include, "installed": True, "changed": True}
    assert Path(include).read_text() == printed
    again = banger("ssh-config", "--install", "--file", str(file)).stdout.decode()
    assert again == f"{file} includes {include} already\n"
    banger("ssh-config", "--uninstall", "--file", str(file))
    assert not file.exists()
    assert "nothing of banger's" in banger("ssh-config", "--uninstall", "--file", str(file)).stdout.decode()
    banger("ssh-config", "--install", "--uninstall", status=2)


def test_the_proxys_own_call_works_from_anywhere(banger: Instance, tmp_path: Path) -> None:
    """What stands in ProxyCommand is found whatever the folder, PATH and environment are."""
    command = json.loads(banger("ssh-config", "--json").stdout)["options"]["ProxyCommand"]
    done = subprocess.run(
        ["/bin/sh", "-c", "exec " + command.replace("'%h' %p", "--help")],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ssh-proxy" in done.stdout
