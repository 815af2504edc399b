"""`banger image pull` of a Debian-sized image, to what boots, against skopeo copy, umoci unpack, mke2fs -d.

The image is banger's own Debian in a docker-registry on loopback: one gzip layer, or BENCH_PULL_LAYERS. Each
round brings all of it: cache and image are removed outside the clock. By hand no kernel is laid beside the
root file system, and e2fsck checks nothing; banger does both. tar is there beside umoci, which also takes
every file's hash. At most 5 rounds. CPU: of banger the daemon's, with its programs. Memory: the peak of the
largest process (banger: of the daemon; its mke2fs is not counted). A second pull, of the same tag and of the
same digest, is counted at a proxy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.harness import Sample, p50, peak_kib, rounds, timed
from bench.home import BANGER, Home, home
from tests.artifacts import artifacts
from tests.fakes.ociregistry import make_layout, push, registry
from tests.fakes.proxy import Proxy, proxy

MAX_ROUNDS = 5
LAYERS = int(os.environ.get("BENCH_PULL_LAYERS", "1"))
BY_HAND, BY_TAR, OURS = "skopeo, umoci, mke2fs", "skopeo, tar, mke2fs", "banger"
UNTAR = 'for digest in $(grep -o "sha256:[0-9a-f]*" "$1/manifest.json" | tail -n +2); do'
UNTAR += ' tar -xpzf "$1/${digest#sha256:}" --numeric-owner --xattrs -C "$2"; done'
PORT = 5000
REGISTRY = f"127.0.0.1:{PORT}"


def make_image(folder: Path) -> int:
    """Into folder/layout as `debian`, in LAYERS layers; the size of its files in bytes."""
    root = folder / "root"
    root.mkdir()
    debugfs = artifacts().e2fsprogs.debugfs
    argv = [debugfs, "-R", f"rdump / {root}", str(artifacts().rootfs)]
    subprocess.run(argv, check=True, capture_output=True, timeout=600)
    size = sum(path.lstat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    parts = [root]
    for number in range(1, LAYERS):
        part = folder / f"part{number}"
        (part / "usr").mkdir(parents=True)
        parts.insert(0, part)
    if LAYERS > 1:
        for number, path in enumerate(sorted((root / "usr").iterdir())):
            if not path.is_symlink() and number % LAYERS:
                path.rename(parts[number % LAYERS - 1] / "usr" / path.name)
    make_layout(folder / "layout", "debian", parts, {})
    for part in parts:
        shutil.rmtree(part)
    return size


class Case:
    def __init__(self, made: Home, folder: Path, registry_at: Proxy) -> None:
        self.home = made
        self.folder = folder
        self.registry = registry_at
        self.peaks: dict[str, list[int]] = {BY_HAND: [], BY_TAR: [], OURS: []}

    def by_hand(self, case: str) -> Sample:
        made = self.folder / "by-hand"
        made.mkdir()
        env = {**self.home.env, "TMPDIR": str(made), "MKE2FS_CONFIG": "/dev/null"}
        target = f"dir:{made}/dir" if case == BY_TAR else f"oci:{made}/layout:debian"
        steps = {
            "copy": _skopeo("copy", "-q", "--src-tls-verify=false", f"docker://{REGISTRY}/debian", target)
        }
        root = f"{made}/bundle/rootfs"
        if case == BY_TAR:
            # what knows nothing of whiteouts, and so would do for this image and for few others
            os.makedirs(root)
            steps["unpack"] = ["sh", "-ec", UNTAR, "sh", f"{made}/dir", root]
        else:
            steps["unpack"] = ["umoci", "unpack", "--image", f"{made}/layout:debian", f"{made}/bundle"]
        steps["mke2fs"] = [artifacts().e2fsprogs.mke2fs, "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"]
        steps["mke2fs"] += ["-d", root, f"{made}/rootfs.ext4", "1024m"]
        taken = {name: timed(_measured(argv, made / "memory"), env) for name, argv in steps.items()}
        self.peaks[case].append(max(int(line) for line in (made / "memory").read_text().split()))
        shutil.rmtree(made)
        return Sample(
            sum(sample.wall_ms for sample in taken.values()),
            sum(sample.cpu_ms for sample in taken.values()),
            {name: sample.wall_ms for name, sample in taken.items()},
        )

    def ours(self) -> Sample:
        daemon = self.home.daemon_pid()
        Path(f"/proc/{daemon}/clear_refs").write_text("5")  # VmHWM begins anew
        before = _cpu_ms(daemon)
        began = time.perf_counter()
        subprocess.run(
            [BANGER, "image", "pull", "--quiet", f"{REGISTRY}/debian"],
            env=self.home.env,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=900,
        )
        elapsed = (time.perf_counter() - began) * 1000
        self.peaks[OURS].append(peak_kib(daemon))
        sample = Sample(elapsed, _cpu_ms(daemon) - before)
        self.home.run("image", "delete", "debian")
        self.home.run("image", "cache", "prune")
        return sample

    def again(self) -> str:
        """What the registry is asked for, and sends, when the image is here."""
        address = self.registry.address
        self.home.run("image", "pull", f"{address}/debian")
        digest = self.home.client().show_image("debian").get("oci_digest", "")
        self.home.run("image", "pull", f"{address}/debian@{digest}", "--name", "pinned")
        lines = []
        for what, words in (
            ("tag", (f"{address}/debian",)),
            ("digest", (f"{address}/debian@{digest}", "--name", "pinned")),
        ):
            self.registry.forget()
            began = time.perf_counter()
            self.home.run("image", "pull", *words)
            elapsed = (time.perf_counter() - began) * 1000
            asked = ", ".join(f"`{request}`" for request in self.registry.requests) or "nothing"
            blobs = sum("/blobs/" in request for request in self.registry.requests)
            lines.append(
                f"Again by {what}: {elapsed:.0f} ms, asked: {asked}; {blobs} blobs,"
                f" {self.registry.received} bytes with headers."
            )
        return "\n".join(lines)


def _skopeo(*words: str) -> list[str]:
    return ["skopeo", "--insecure-policy", *words]


def _measured(argv: Sequence[str], into: Path) -> list[str]:
    """The program, whose peak memory in KiB goes into a line of the file."""
    script = "import os,resource,subprocess,sys;s=subprocess.call(sys.argv[2:]);"
    script += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,file=open(sys.argv[1],'a'));"
    return ["python3", "-I", "-S", "-c", script + "sys.exit(s)", str(into), *argv]


def _cpu_ms(pid: int) -> float:
    """Of the process and of its children that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) * 1000 / os.sysconf("SC_CLK_TCK")


def run(count: int) -> str:
    folder = Path(tempfile.mkdtemp(prefix="bench-pull-", dir=artifacts().home.parent))
    count = max(1, min(count, MAX_ROUNDS))
    try:
        size = make_image(folder)
        with registry(folder / "registry", port=PORT), proxy(PORT) as before, home() as made:
            push(folder / "layout", "debian", f"{REGISTRY}/debian")
            packed = sum(
                path.stat().st_size for path in (folder / "layout/blobs").rglob("*") if path.is_file()
            )
            shutil.rmtree(folder / "layout")
            made.run("image", "list")  # starts the daemon
            case = Case(made, folder, before)
            cases: dict[str, Callable[[], Sample]] = {
                BY_HAND: lambda: case.by_hand(BY_HAND),
                BY_TAR: lambda: case.by_hand(BY_TAR),
                OURS: case.ours,
            }
            taken = rounds(cases, count)
            again = case.again()
    finally:
        shutil.rmtree(folder)
    head = f"{size >> 20} MiB of files, {packed >> 20} MiB in {LAYERS} layers.\n\n"
    lines = [
        "| case | p50 s | ratio | by rounds | cpu s | peak MiB | parts (p50 s) |",
        "|---|---|---|---|---|---|---|",
    ]
    base = p50([sample.wall_ms for sample in taken[BY_HAND]])
    for name, samples in taken.items():
        wall = p50([sample.wall_ms for sample in samples])
        cpu = p50([sample.cpu_ms for sample in samples])
        parts = ", ".join(
            f"{part} {p50([s.parts[part] for s in samples]) / 1000:.1f}" for part in samples[0].parts
        )
        by_rounds = p50([s.wall_ms / b.wall_ms for s, b in zip(samples, taken[BY_HAND], strict=True)])
        lines.append(
            f"| {name} | {wall / 1000:.1f} | {wall / base:.2f} | {by_rounds:.2f} | {cpu / 1000:.1f}"
            f" | {max(case.peaks[name]) / 1024:.0f} | {parts} |"
        )
    return head + "\n".join(lines) + "\n\n" + again
