"""The leak check: what a test left on the host (DESIGN.md, house style 7).

`snapshot` before and after, `difference` names every object that is new. What belongs to other people
on the machine is not looked at: processes count when they are this process's descendants or work in the
test's folder; links and nft tables when they carry banger's names or marks, or are in a namespace made
for the test. Loops, dm targets and mounts count when they are over the test's folder, or marked.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

PREFIXES = ("tap-fc-", "tap-pool-", "br-fc")
LOOPS_GO_S = 60.0


@dataclass(frozen=True)
class Snapshot:
    """Each entry is a line that a person can act on."""

    found: frozenset[str]
    descriptors: dict[str, str] = field(default_factory=dict)


def snapshot(folder: Path, *, all_links: bool = False) -> Snapshot:
    """What there is now. folder: the test's own; all_links: the namespace is the test's own too."""
    gc.collect()
    wait_for_loops(folder)
    text = str(folder)
    found = [*_links(all_links), *_nft(all_links), *_block_devices(text), *_mounts(text)]
    found += [*_processes(text), *_sockets(text), *_vm_folders(folder)]
    return Snapshot(frozenset(found), _descriptors())


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """What is there after and was not before, one line each."""
    left = sorted(after.found - before.found)
    left += [
        f"descriptor {number} → {target}"
        for number, target in sorted(after.descriptors.items())
        if before.descriptors.get(number) != target
    ]
    return left


def wait_for_loops(folder: Path) -> None:
    """Until those over the folder's files that were detached are gone. Whoever lists loops opens each, also
    another test's daemon, and the kernel detaches a loop when the last has closed it."""
    deadline = time.monotonic() + LOOPS_GO_S
    while any(going for _, _, going in _loops(str(folder))) and time.monotonic() < deadline:
        time.sleep(0.01)


def _output(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, timeout=30, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def _links(everything: bool) -> list[str]:
    listed = json.loads(_output("ip", "-json", "-details", "link", "show") or "[]")
    return [
        f"link {link['ifname']} {link.get('ifalias', '(no mark)')} master {link.get('master', 'none')}"
        for link in listed
        if (everything and link["ifname"] != "lo")
        or link["ifname"].startswith(PREFIXES)
        or str(link.get("ifalias", "")).startswith("banger:")
    ]


def _nft(everything: bool) -> list[str]:
    tables = _output("nft", "list", "tables").splitlines()
    return [f"nft {table}" for table in tables if everything or "banger" in table]


def _loops(folder: str) -> list[tuple[str, str, bool]]:
    """Name, file, and whether it is detached once nobody has it open."""
    found: list[tuple[str, str, bool]] = []
    for loop in Path("/sys/block").glob("loop*/loop"):
        try:
            file = (loop / "backing_file").read_text("utf-8", "surrogateescape").strip()
            going = (loop / "autoclear").read_text().strip() == "1"
        except OSError:
            continue
        if file.startswith(f"{folder}/"):
            found.append((loop.parts[3], file, going))
    return found


def _block_devices(folder: str) -> list[str]:
    found = [f"loop {name} over {file}" for name, file, _ in _loops(folder)]
    for uuid in Path("/sys/block").glob("dm-*/dm/uuid"):
        try:
            if uuid.read_text().startswith("BANGER-"):
                found.append(f"dm {(uuid.parent / 'name').read_text().strip()}")
        except OSError:
            continue
    return found


def _mounts(folder: str) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    return [f"mount {line.split()[4]}" for line in lines if folder in line]


def _processes(folder: str) -> list[str]:
    """Our descendants, and whoever has its cwd in the folder or names it. Zombies count: nobody reaped."""
    parents: dict[int, int] = {}
    lines: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path(f"/proc/{entry}/stat").read_text("utf-8", "replace")
            argv = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            cwd = str(Path(f"/proc/{entry}/cwd").readlink())
        except OSError:
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        parents[int(entry)] = int(parent)
        # whether one that goes on runs or sleeps just now is no difference
        lines[int(entry)] = f"{'zombie ' if state == 'Z' else ''}{argv[:200]}(cwd {cwd})"
    found: list[str] = []
    for pid, line in lines.items():
        if pid != os.getpid() and (folder in line or _descends(pid, parents)):
            found.append(f"process {pid} {line}")
    return found


def _descends(pid: int, parents: dict[int, int]) -> bool:
    while pid > 1:
        pid = parents.get(pid, 0)
        if pid == os.getpid():
            return True
    return False


def _sockets(folder: str) -> list[str]:
    with open("/proc/self/net/unix", encoding="utf-8", errors="replace") as table:
        paths = {words[7] for line in table if len(words := line.split()) > 7}
    return [f"socket {path}" for path in paths if path.startswith(f"{folder}/")]


def _vm_folders(folder: Path) -> list[str]:
    """VM folders and half-made files of any instance below the test's folder."""
    found = [f"folder {path}" for path in folder.glob("**/state/vms/*")]
    return found + [f"file {path}" for path in folder.glob("**/*.tmp")]


def _descriptors() -> dict[str, str]:
    found: dict[str, str] = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = str(Path(f"/proc/self/fd/{number}").readlink())
        except OSError:
            continue  # the one that listed this folder
    return found
