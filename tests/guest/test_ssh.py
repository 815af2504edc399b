"""ssh into a real guest: `vm ssh`, and everything that speaks ssh after `ssh-config --install` (SPEC §3)."""

from __future__ import annotations

import hashlib
import io
import os
import pty
import select
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.capabilities import demand
from tests.guest.instance import BANGER, BOOT_TIMEOUT_S, Instance, Result, until
from tests.guest.typist import IF_SLOW

pytestmark = [pytest.mark.guest]

CONFIG = b"# mine, and not ended by a newline\r\nHost other\n\tPort 2222"
IN_HOME = 'mount --bind "$0" /etc/passwd && cd "$1" && shift && exec "$@"'


@dataclass(frozen=True)
class Home:
    """A home that root has in a mount namespace of its own: ssh goes by /etc/passwd, not by HOME."""

    folder: Path
    passwd: Path
    banger: Instance

    def run(self, *words: str, stdin: bytes = b"", timeout_s: float = 120) -> Result:
        shell = ["unshare", "--mount", "--propagation", "private", "sh", "-c", IN_HOME]
        done = subprocess.run(
            self.banger.argv(*shell, str(self.passwd), str(self.folder), *words),
            env={**self.banger.environment, "HOME": str(self.folder), "GIT_CONFIG_NOSYSTEM": "1"},
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))

    def ok(self, *words: str, stdin: bytes = b"") -> Result:
        result = self.run(*words, stdin=stdin)
        assert result.status == 0, f"{' '.join(words)}: {result.status}\n{result.text}\n{result.stderr}"
        return result


@pytest.fixture(scope="module")
def home(banger: Instance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home whose ssh configuration somebody has written to, with banger's Include in it."""
    folder = tmp_path_factory.mktemp("home")
    passwd = tmp_path_factory.mktemp("etc") / "passwd"
    passwd.write_text(f"root:x:0:0:root:{folder}:/bin/sh\n")
    config = folder / ".ssh" / "config"
    config.parent.mkdir(mode=0o700)
    config.write_bytes(CONFIG)
    config.chmod(0o640)
    made = Home(folder, passwd, banger)
    made.ok(BANGER, "ssh-config", "--install")
    yield made
    made.ok(BANGER, "ssh-config", "--uninstall")
    assert config.read_bytes() == CONFIG
    assert config.stat().st_mode & 0o7777 == 0o640
    assert sorted(path.name for path in config.parent.iterdir()) == ["config"], "ssh itself wrote there"


def in_guest(banger: Instance, guest: str, script: str) -> str:
    return banger.ok("vm", "exec", guest, "--", "sh", "-ec", script).text


def known(banger: Instance) -> list[str]:
    return Path(banger.paths.known_hosts).read_text().splitlines()


def test_a_guest_that_has_just_started_is_waited_for(banger: Instance, guest: str) -> None:
    """The agent answers long before sshd does; the host key is known before the first contact."""
    line = known(banger)[0].split()
    assert line[0].startswith(f"{guest}.vm,172.16.0.")
    assert line[1:3] == (banger.vm_dir(guest) / "ssh_host_ed25519_key.pub").read_text().split()[:2]
    assert Path(banger.paths.known_hosts).stat().st_mode & 0o777 == 0o600
    assert banger.ok("vm", "ssh", guest, "--", "hostname").text == f"{guest}\n"


def test_stdin_and_the_exit_status_are_sshs(banger: Instance, guest: str) -> None:
    result = banger.banger("vm", "ssh", guest, "--", "cat; echo err >&2; exit 7", stdin=b"a\0b\n")
    assert (result.status, result.stdout) == (7, b"a\0b\n"), result.stderr
    said = [line for line in result.stderr.splitlines() if not IF_SLOW.match(line)]
    assert said == ["err"]


def test_with_a_terminal(banger: Instance, guest: str) -> None:
    pid, master = pty.fork()
    if pid == 0:
        words = banger.argv(BANGER, "vm", "ssh", "-t", guest, "--", "tty")
        os.execvpe(words[0], words, banger.environment)
    seen = b""
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while time.monotonic() < deadline:
        if select.select([master], [], [], 1.0)[0]:
            try:
                data = os.read(master, 4096)
            except OSError:
                break
            if not data:
                break
            seen += data
    _, status = os.waitpid(pid, 0)
    os.close(master)
    assert os.waitstatus_to_exitcode(status) == 0, seen
    assert b"/dev/pts/" in seen


def test_it_needs_neither_the_daemon_nor_an_address(banger: Instance, guest: str) -> None:
    """A session goes on while the daemon is killed, and another begins with the guest's network down."""
    script = "ip link set eth0 down; while read -r line; do echo got $line; done"
    with banger.start("vm", "ssh", guest, "--", script, stdin=subprocess.PIPE) as session:
        assert session.stdin is not None
        assert session.stdout is not None
        try:
            session.stdin.write(b"one\n")
            session.stdin.flush()
            assert session.stdout.readline() == b"got one\n"
            os.kill(banger.daemon_pid(), signal.SIGKILL)
            session.stdin.write(b"two\n")
            session.stdin.flush()
            assert session.stdout.readline() == b"got two\n"
            state = banger.ok("vm", "ssh", guest, "--", "cat /sys/class/net/eth0/operstate").text
            assert state == "down\n"
            session.stdin.close()
            assert session.wait(60) == 0
        finally:
            session.kill()
            in_guest(banger, guest, "ip link set eth0 up")
    assert len(known(banger)) == 1, "the daemon that came after it knows the same"


def test_ssh_by_name(home: Home, guest: str) -> None:
    assert home.ok("ssh", f"{guest}.vm", "cat /etc/hostname").text == f"{guest}\n"


def test_scp_both_ways(home: Home, guest: str) -> None:
    data = os.urandom(1 << 20)
    (home.folder / "there").write_bytes(data)
    home.ok("scp", "-q", "there", f"{guest}.vm:there")
    home.ok("scp", "-q", f"{guest}.vm:there", "back")
    assert hashlib.sha256((home.folder / "back").read_bytes()).digest() == hashlib.sha256(data).digest()


def test_sftp(home: Home, guest: str) -> None:
    (home.folder / "note").write_text("by sftp\n")
    home.ok("sftp", "-b", "-", f"{guest}.vm", stdin=b"mkdir sftp\nput note sftp/note\nget sftp/note note2\n")
    assert (home.folder / "note2").read_text() == "by sftp\n"


def test_git_clone_and_push(home: Home, guest: str) -> None:
    in_guest(
        home.banger,
        guest,
        "cd /root; git init -q -b main repo; cd repo; echo hi >file; git add file;"
        " git -c user.name=g -c user.email=g@example.org commit -qm first; git checkout -q -b aside",
    )
    home.ok("git", "clone", "-q", "-b", "main", f"{guest}.vm:repo", "clone")
    assert (home.folder / "clone" / "file").read_text() == "hi\n"
    (home.folder / "clone" / "file").write_text("ho\n")
    author = ("-c", "user.name=h", "-c", "user.email=h@example.org")
    home.ok("git", "-C", "clone", *author, "commit", "-qam", "second")
    home.ok("git", "-C", "clone", "push", "-q")
    assert in_guest(home.banger, guest, "git -C /root/repo show main:file") == "ho\n"


def test_rsync(home: Home, guest: str) -> None:
    """The image has none, so the guest gets this host's, with its libraries."""
    demand("rsync")
    carried = io.BytesIO()
    with tarfile.open(fileobj=carried, mode="w") as tar:
        for path in with_libraries(shutil.which("rsync") or ""):
            tar.add(os.path.realpath(path), arcname=f"opt/rsync/{os.path.basename(path)}")
    home.banger.ok("vm", "exec", guest, "--", "tar", "-xC", "/", stdin=carried.getvalue())
    loader = next(path for path in with_libraries(shutil.which("rsync") or "") if "/ld-" in path)
    there = f"/opt/rsync/{os.path.basename(loader)} --library-path /opt/rsync /opt/rsync/rsync"
    tree = home.folder / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep" / "file").write_bytes(os.urandom(300_000))
    (tree / "link").symlink_to("deep/file")
    home.ok("rsync", "-a", f"--rsync-path={there}", "tree/", f"{guest}.vm:tree/")
    home.ok("rsync", "-a", f"--rsync-path={there}", f"{guest}.vm:tree/", "tree2/")
    assert (home.folder / "tree2" / "deep" / "file").read_bytes() == (tree / "deep" / "file").read_bytes()
    assert os.readlink(home.folder / "tree2" / "link") == "deep/file"


def with_libraries(program: str) -> Sequence[str]:
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    found = [word for line in said.splitlines() for word in line.split() if word.startswith("/")]
    return [program, *dict.fromkeys(found)]


def test_another_user(home: Home, guest: str) -> None:
    in_guest(
        home.banger,
        guest,
        "useradd -m -s /bin/sh dev; mkdir -m 700 ~dev/.ssh; cp /root/.ssh/authorized_keys ~dev/.ssh/;"
        " chown -R dev: ~dev/.ssh",
    )
    assert home.ok("ssh", f"dev@{guest}.vm", "whoami").text == "dev\n"
    assert home.banger.ok("vm", "ssh", "--user", "dev", guest, "--", "whoami").text == "dev\n"


def test_another_port(home: Home, guest: str) -> None:
    """A second sshd: what ssh asks for is the guest's own port, and the host key is the same."""
    # sshd goes into the background before it listens
    wait = "until ss -Hltn | grep -q ':2222 '; do :; done"
    in_guest(home.banger, guest, f"/usr/sbin/sshd -p 2222; {wait}")
    assert home.ok("ssh", "-p", "2222", f"{guest}.vm", "echo $SSH_CONNECTION").text.split()[-1] == "2222"


def test_other_host_keys_of_the_image_do_not_hide_bangers(banger: Instance, guest: str) -> None:
    in_guest(
        banger,
        guest,
        'cd /etc/ssh; ssh-keygen -q -t ecdsa -N "" -f other_key; cp sshd_config sshd_config.was;'
        " echo HostKey /etc/ssh/other_key >>sshd_config; systemctl restart ssh",
    )
    try:
        assert banger.ok("vm", "ssh", guest, "--", "echo in").text == "in\n"
    finally:
        in_guest(banger, guest, "cd /etc/ssh; mv sshd_config.was sshd_config; systemctl restart ssh")


def test_no_ssh_server(home: Home, guest: str) -> None:
    """One that does not run, and none at all: said at once, with what needs no ssh."""

    def booted() -> bool:
        said = home.banger.banger("vm", "exec", guest, "--", "systemctl", "is-system-running")
        return said.text.strip() in ("running", "degraded")

    until(booted, timeout_s=BOOT_TIMEOUT_S)
    in_guest(home.banger, guest, "systemctl stop ssh; mv /usr/sbin/sshd /usr/sbin/sshd.was")
    try:
        for words in ((BANGER, "vm", "ssh", guest), ("ssh", f"{guest}.vm")):
            result = home.run(*words)
            assert result.status == 255
            assert f"banger: the image of {guest} has no ssh server" in result.stderr
            assert f"banger vm shell {guest}" in result.stderr
        in_guest(home.banger, guest, "mv /usr/sbin/sshd.was /usr/sbin/sshd")
        result = home.run("ssh", f"{guest}.vm")
        assert f"banger: no ssh server listens in {guest} (port 22)" in result.stderr
    finally:
        in_guest(
            home.banger,
            guest,
            "mv /usr/sbin/sshd.was /usr/sbin/sshd 2>/dev/null || true; systemctl start ssh",
        )


def test_a_vm_that_is_not_there_or_does_not_run(home: Home) -> None:
    assert home.banger.banger("vm", "ssh", "nobody-here", "--", "true").status == 125
    result = home.run("ssh", "nobody-here.vm")
    assert result.status == 255
    assert "banger: " in result.stderr
    assert "nobody-here" in result.stderr


def test_a_host_key_changed_behind_bangers_back_is_refused(home: Home, guest: str) -> None:
    """And the next start puts it back, though sshd is told to use another one and to include nothing."""
    key = "/etc/ssh/ssh_host_ed25519_key"
    in_guest(
        home.banger,
        guest,
        f'rm {key}; ssh-keygen -q -t ed25519 -N "" -f {key}; systemctl restart ssh;'
        " cd /etc/ssh; sed -i '/^Include/d' sshd_config; echo HostKey /etc/ssh/other_key >>sshd_config; sync",
    )
    result = home.run("ssh", f"{guest}.vm", "echo in")
    assert (result.status, result.stdout) == (255, b""), result.stderr
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in result.stderr
    assert f"the ssh host key of {guest}.vm is not the one that banger made" in result.stderr
    assert f"banger vm restart {guest}" in result.stderr
    home.banger.ok("vm", "kill", guest)
    home.banger.ok("vm", "start", guest)
    said = home.banger.ok("vm", "ssh", guest, "--", "grep ^HostKey /etc/ssh/sshd_config").text
    assert said == f"HostKey {key}\nHostKey /etc/ssh/other_key\n"


def test_a_deleted_vm_is_forgotten(banger: Instance, guest: str) -> None:
    """The last one: the shared guest goes."""
    banger.ok("vm", "delete", guest)
    assert known(banger) == []
