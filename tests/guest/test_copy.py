"""`vm cp` with a real guest: a Debian tree in and out, full disks, guests that die, what is left behind."""

from __future__ import annotations

import os
import re
import select
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from tests.guest.instance import BANGER, Instance, until
from tests.unit.agent.copying import tree

pytestmark = [pytest.mark.guest]

PARTS = ("etc", "usr/bin", "usr/sbin", "var/lib/dpkg")
"""Of the guest's own Debian, some 60 MB: with set-id programs, files of other groups, links of both kinds."""
LISTED = (
    "cd '{0}' && {{ find . ! -type d -printf '%P %y %m %U %G %T@ %s %n %l\\n';"
    " find . -type d -printf '%P %y %m %U %G %T@\\n'; }} | LC_ALL=C sort && "
)
SUMS = "find . -type f -size -1000k -print0 | LC_ALL=C sort -z | xargs -0 md5sum | md5sum"


def in_guest(banger: Instance, guest: str, script: str) -> str:
    return banger.ok("vm", "exec", guest, "--", "sh", "-ec", script).text


@pytest.fixture(scope="module")
def debian(banger: Instance, guest: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Debian tree on the host as root has it, with what Debian does not have besides."""
    top = tmp_path_factory.mktemp("debian") / "tree"
    for part in PARTS:
        (top / part).parent.mkdir(parents=True, exist_ok=True)
        banger.ok("vm", "cp", "-qa", f"{guest}:/{part}", str(top / part))
    (top / "dev").mkdir()
    os.mknod(top / "dev" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "dev" / "disk", stat.S_IFBLK | 0o660, os.makedev(254, 300))
    os.mkfifo(top / "dev" / "pipe", 0o600)
    with (top / "sparse").open("wb") as sparse:
        sparse.seek(300 << 20)
        sparse.write(b"island")
        sparse.truncate(400 << 20)
    (top / "foreign").write_text("whose")
    os.chown(top / "foreign", 70_000, 3_000_000_000)
    os.link(top / "foreign", top / "dev" / "hard")
    odd = os.fsencode(top) + b"/\xff\n\x1b[31m " + b"long" * 50
    with open(odd, "wb") as made:
        made.write(b"odd")
    return top


def test_a_debian_tree_goes_in_and_out_as_it_is(
    banger: Instance, guest: str, debian: Path, tmp_path: Path
) -> None:
    """Contents, modes, owners, times to the nanosecond, links, devices, holes: the Show of the issue."""
    banger.ok("vm", "cp", "-qa", str(debian), f"{guest}:tree")
    script = (LISTED + SUMS).format("/root/tree")
    listed = subprocess.run(
        ["sh", "-ec", (LISTED + SUMS).format(debian)], capture_output=True, check=True, timeout=60
    )
    assert in_guest(banger, guest, script).encode() == listed.stdout.decode("utf-8", "replace").encode()
    assert int(in_guest(banger, guest, "du -k tree/sparse").split()[0]) < 100
    banger.ok("vm", "cp", "-qa", f"{guest}:tree", str(tmp_path / "back"))
    expected = tree(debian)
    assert tree(tmp_path / "back") == expected
    assert len(expected) > 1500
    assert (
        sum(bool(entry[0] & 0o7000) for entry in expected.values() if isinstance(entry[0], int)) > 10
    )  # set-id
    assert (tmp_path / "back" / "sparse").stat().st_blocks < 200


def test_without_a_nothing_of_another_reaches_the_host(
    banger: Instance, guest: str, debian: Path, tmp_path: Path
) -> None:
    copied = banger.ok("vm", "cp", f"{guest}:tree", str(tmp_path / "mine"))
    assert "3 left out" in copied.stderr
    mine = tree(tmp_path / "mine")
    assert len(mine) == len(tree(debian)) - 3
    for path, (mode, owners, *_) in mine.items():
        assert isinstance(mode, int)
        assert owners == (os.geteuid(), os.getegid()), path
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode), path
        assert not mode & 0o7000, path


def test_what_goes_in_is_roots(banger: Instance, guest: str, debian: Path) -> None:
    banger.ok("vm", "cp", "-q", str(debian / "usr" / "bin" / "passwd"), f"{guest}:passwd")
    banger.ok("vm", "cp", "-q", str(debian / "foreign"), f"{guest}:foreign")
    shown = in_guest(banger, guest, "stat -c '%n %a %u %g' passwd foreign; rm passwd foreign")
    assert shown == "passwd 755 0 0\nforeign 644 0 0\n"


def test_archives_on_stdin_and_stdout(banger: Instance, guest: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("text")
    data = subprocess.run(
        ["tar", "-C", tmp_path, "-c", "a"], capture_output=True, check=True, timeout=30
    ).stdout
    in_guest(banger, guest, "mkdir /srv/in")
    banger.ok("vm", "cp", "-", f"{guest}:/srv/in", stdin=data)
    out = banger.ok("vm", "cp", f"{guest}:/srv/in", "-")
    assert (
        re.match(r"copied 3 entries, 2\.\d KiB in \d\.\d s, .*/s\n$", out.stderr) or "copied 3" in out.stderr
    )
    listed = subprocess.run(["tar", "t"], input=out.stdout, capture_output=True, check=True, timeout=30)
    assert [name.rstrip(b"/") for name in listed.stdout.split()] == [b"in", b"in/a", b"in/a/file"]
    refused = banger.banger("vm", "cp", "-", f"{guest}:/srv/nothing", stdin=data)
    assert (refused.status, refused.stderr.splitlines()[0]) == (
        1,
        "banger: in the guest: there is no folder /srv/nothing",
    )


def test_the_kernels_own_files_do_not_come_along(banger: Instance, guest: str, tmp_path: Path) -> None:
    in_guest(banger, guest, "mkdir -p /mnt/p && mount -t proc proc /mnt/p && touch /mnt/beside")
    banger.ok("vm", "cp", f"{guest}:/mnt", str(tmp_path))
    in_guest(banger, guest, "umount /mnt/p; rm -r /mnt/p /mnt/beside")
    assert sorted(path.name for path in (tmp_path / "mnt").rglob("*")) == ["beside", "p"]


def test_failures_say_what_and_leave_nothing(banger: Instance, guest: str, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(12 << 20))
    in_guest(banger, guest, "mkdir /srv/small && mount -t tmpfs -o size=4m none /srv/small")
    for source, destination, said in (
        (f"{tmp_path}/nothing", f"{guest}:", f"banger: {tmp_path}/nothing: No such file or directory"),
        (f"{guest}:/nothing", str(tmp_path), "banger: in the guest: /nothing: No such file or directory"),
        (f"{tmp_path}/big", f"{guest}:/no/folder", "banger: in the guest: there is no folder /no"),
        (
            f"{tmp_path}/big",
            f"{guest}:/srv/small",
            "banger: in the guest: cannot write /srv/small/big: No space left on device",
        ),
        (f"{tmp_path}/big", "no-such-vm:", "banger: no VM"),
    ):
        failed = banger.banger("vm", "cp", source, destination)
        assert failed.status == 1, failed.stderr
        assert failed.stderr.startswith(said), failed.stderr
        assert "Traceback" not in failed.stderr
    assert in_guest(banger, guest, "ls -A /srv/small; umount /srv/small; ls -d /root/.banger* || true") == ""
    assert [path.name for path in tmp_path.iterdir()] == ["big"]


def test_ctrl_c_cleans_up_in_the_guest(banger: Instance, guest: str) -> None:
    """Half of an archive from a pipe that stays open. The host's side: tests/unit/client/test_copy.py."""
    in_guest(banger, guest, "mkdir -p /srv/cut")
    process = banger.start("vm", "cp", "-", f"{guest}:/srv/cut", stdin=subprocess.PIPE)
    assert process.stdin is not None
    words = ["tar", "-c", "/usr/bin/env", "--transform", "s,.*,d/env,"]
    data = subprocess.run(words, capture_output=True, check=True, timeout=30).stdout
    process.stdin.write(data[: len(data) // 2])
    process.stdin.flush()
    until(lambda: "banger-cp" in in_guest(banger, guest, "ls -A /srv/cut"), timeout_s=60)
    # `ip netns exec` becomes the command: this is banger itself
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    until(lambda: not in_guest(banger, guest, "ls -A /srv/cut"), timeout_s=60)


def test_progress_on_a_terminal_and_quiet(banger: Instance, guest: str, tmp_path: Path) -> None:
    quiet = banger.ok("vm", "cp", "-q", f"{guest}:/etc/hostname", str(tmp_path))
    assert (quiet.stdout, quiet.stderr) == (b"", "")
    (tmp_path / "file").write_bytes(bytes(2 << 20))
    # a source that rests: however fast the host, there is something to show before the end
    words = (
        f"tar -C {tmp_path} -c file | (head -c 1000000; sleep 0.5; cat) | {BANGER} vm cp - {guest}:/var/tmp"
    )
    done = banger.run_in_netns("script", "-qec", words, "/dev/null", timeout_s=120)
    assert re.search(r"\r\x1b\[K.*[\d.]+ \w+  [\d.]+ \w+/s", done.text), done.text
    assert re.search(r"copied 1 entry, 2.0 MiB in [\d.]+ s, [\d.]+ \w+/s", done.text), done.text


def begin_half(banger: Instance, vm: str, folder: Path) -> subprocess.Popen[bytes]:
    """A copy into /root/half that stands in the middle of a file."""
    (folder / "big").write_bytes(bytes(1 << 20))
    words = ["tar", "-C", str(folder), "-c", "big"]
    data = subprocess.run(words, capture_output=True, check=True, timeout=30).stdout
    in_guest(banger, vm, "mkdir -p /root/half")
    process = banger.start("vm", "cp", "-", f"{vm}:half", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(data[:700_000])
    process.stdin.flush()
    until(lambda: "banger-cp" in in_guest(banger, vm, "ls -A /root/half"), timeout_s=60)
    return process


def test_a_guest_that_stops_in_the_middle(banger: Instance, tmp_path: Path) -> None:
    """Its disks are not held: it stops at once, and nothing half is on them."""
    banger.ok("vm", "run", "--name", "stops", "-d")
    process = begin_half(banger, "stops", tmp_path)
    banger.ok("vm", "stop", "stops")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.startswith(b"banger: in the guest: the guest shuts down\n"), said
    banger.ok("vm", "start", "stops")
    assert in_guest(banger, "stops", "ls -A /root/half") == ""
    assert "recovery" not in in_guest(banger, "stops", "dmesg | grep -i 'vdc' || true")
    banger.ok("vm", "delete", "stops")


def test_a_guest_that_dies_in_the_middle(banger: Instance, tmp_path: Path) -> None:
    banger.ok("vm", "run", "--name", "dies", "-d")
    banger.ok("vm", "exec", "dies", "--", "dd", "if=/dev/zero", "of=/srv/zeros", "bs=1M", "count=32")
    coming = banger.start("vm", "cp", "dies:/srv/zeros", "-")  # which nobody reads yet
    going = begin_half(banger, "dies", tmp_path)
    until(lambda: pending(coming), timeout_s=60)
    banger.ok("vm", "kill", "dies")
    for process in (coming, going):
        _, said = process.communicate(timeout=60)  # one that merely stands still is given up after 120 s
        assert process.returncode == 1, said
        assert said.startswith(b"banger: the connection to the guest broke before the copy ended\n"), said
    banger.ok("vm", "delete", "dies")


def pending(process: subprocess.Popen[bytes]) -> bool:
    """Something to read has come, which stays."""
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], 0)[0])
