"""Whether a guest's files are those of a folder on the host: an image, as other people's tools unpack it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.guest.instance import Instance

# the kernel's, the agent's and the work disk's places; empty ones in most images
_MOUNTED = ("dev", "proc", "sys", "run", "tmp", "root", "lib/modules", "usr/lib/modules")
_STORES = ("var/lib/docker", "var/lib/containerd", "var/lib/containers")
_ADDED = ("etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/ssh", "lost+found", "var/lib/banger", *_STORES)
_LIST = """
cd "$1" || exit
export QUOTING_STYLE=literal LC_ALL=C
prune="( {prune} ) -prune -o"
{find} . $prune -exec {stat} -c '%f %u:%g %h %s %Y %t:%T %N' {{}} +
{find} . $prune -type f -exec {sha256sum} {{}} +
"""


def assert_files_equal(
    banger: Instance,
    vm: str,
    reference: Path,
    *,
    added: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    tools: str = "busybox ",
) -> None:
    """Type, mode, owner, links, size, time, device, target and content of everything; of folders no size and
    no time. tools: what is before `find`, `stat` and `sha256sum`, on both sides; added: what the guest
    may have besides, and below that; without: paths to leave out.
    """
    left_out = (*_MOUNTED, *without)
    script = _LIST.format(
        prune=" -o ".join(f"-path ./{path}" for path in left_out),
        **{name: f"{tools}{name}" for name in ("find", "stat", "sha256sum")},
    )
    there = banger.ok("vm", "exec", vm, "-w", "/", "--", "sh", "-c", script, "sh", "/").stdout
    done = subprocess.run(
        ["sh", "-c", script, "sh", str(reference)],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = _entries(done.stdout), _entries(there)
    assert len(ours) > 3
    wrong = {path: (entry, theirs.get(path)) for path, entry in ours.items() if theirs.get(path) != entry}
    assert not wrong, dict(list(wrong.items())[:10])
    extra = {Path(path.decode("utf-8", "replace")) for path in theirs.keys() - ours.keys()}
    expected = [Path(path) for path in (*_ADDED, *added, *left_out)]
    strange = [
        path for path in extra if not any(path in one.parents or path.is_relative_to(one) for one in expected)
    ]
    assert strange == []


def _entries(listing: bytes) -> dict[bytes, tuple[bytes, ...]]:
    """path → what stat says, and its digest."""
    found: dict[bytes, tuple[bytes, ...]] = {}
    for line in listing.splitlines():
        words = line.split(b" ", 6)
        if len(words) == 7 and b":" in words[1]:
            mode, owner, links, size, moment, device, name = words
            path, arrow, target = name.partition(b" -> ")
            path = path.removeprefix(b"./")
            is_folder = int(mode, 16) & 0o170000 == 0o040000
            if path != b".":
                kept = (mode, owner) if is_folder else (mode, owner, links, size, moment, device)
                found[path] = (*kept, target if arrow else b"")
        else:
            digest, _, path = line.partition(b"  ")
            if digest.startswith(b"\\"):  # a backslash or line break in the name
                path = path.replace(b"\\\\", b"\\")
            path = path.removeprefix(b"./")
            found[path] = (*found[path], digest.lstrip(b"\\"))
    return found
