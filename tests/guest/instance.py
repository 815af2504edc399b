"""A banger instance of a test's own: home, bridge, ports; driven as a person does, through the CLI.

The daemon and its guests run in a network namespace of the test's own, entered by `ip netns exec`: what
happens there is not seen on the host, and what stays there is a leak that the test names.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from banger.config.paths import Paths
from banger.system import lockorder
from tests.artifacts import artifacts

SMALL = '[vm_defaults]\nvcpu = 1\nmemory_mib = 256\ndisk_size = "1G"\nsystem_overlay_size = "2G"\n'
T = TypeVar("T")
BANGER = str(Path(sys.executable).with_name("banger"))
BOOT_TIMEOUT_S = 240.0
"""A busy neighbour can make any emulated boot five times slower."""


@dataclass(frozen=True)
class Result:
    status: int
    stdout: bytes
    stderr: str

    def require(self) -> Result:
        assert self.status == 0, self.stderr
        return self

    @property
    def text(self) -> str:
        return self.stdout.decode("utf-8", "replace")


class Instance:
    def __init__(self, home: Path, *, netns: str, config: str = "") -> None:
        self.home = home
        self.netns = netns
        self.own_links: set[str] = set()
        """Links of the test's own in the namespace, while they are there."""
        self.paths: Paths = artifacts().seed_home(home)
        self.configure(config or SMALL)

    def configure(self, text: str) -> None:
        """What the next daemon reads."""
        Path(self.paths.config_file).write_text(text, encoding="utf-8")

    @property
    def environment(self) -> dict[str, str]:
        """Words and terminal are the same whoever runs the tests, and from wherever."""
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", lockorder.VARIABLE)}
        fixed = {"LANG": "C.UTF-8", "TERM": "xterm", "PYTHONDONTWRITEBYTECODE": "1"}
        return {**kept, **fixed, "BANGER_HOME": str(self.home)}

    def argv(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.netns, *words]

    def start(self, *words: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """A banger command that the test goes on beside."""
        return subprocess.Popen(
            self.argv(BANGER, *words),
            env=self.environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def banger(
        self,
        *words: str,
        stdin: bytes = b"",
        timeout_s: float = BOOT_TIMEOUT_S,
        env: Mapping[str, str] = {},
    ) -> Result:
        """env: added to the instance's."""
        done = subprocess.run(
            self.argv(BANGER, *words),
            env={**self.environment, **env},
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))

    def ok(self, *words: str, stdin: bytes = b"", timeout_s: float = BOOT_TIMEOUT_S) -> Result:
        result = self.banger(*words, stdin=stdin, timeout_s=timeout_s)
        assert result.status == 0, self.explain(words, result)
        return result

    def explain(self, words: Sequence[str], result: Result) -> str:
        """What a person would look at: output, the daemon's log, the consoles."""
        parts = [
            f"banger {' '.join(words)}: exit {result.status}",
            result.text[-2000:],
            result.stderr[-2000:],
        ]
        logs = [Path(self.paths.daemon_log), *Path(self.paths.vms_dir).glob("*/*.log")]
        for log in logs:
            with contextlib.suppress(OSError):
                parts.append(f"--- {log}\n{log.read_bytes()[-3000:].decode('utf-8', 'replace')}")
        return "\n".join(parts)

    def run_in_netns(self, *words: str, timeout_s: float = 60) -> Result:
        done = subprocess.run(
            self.argv(*words), env=self.environment, capture_output=True, timeout=timeout_s, check=False
        )
        return Result(done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))

    def vms(self) -> list[dict[str, object]]:
        listed: list[dict[str, object]] = json.loads(self.ok("vm", "list", "--json").text)
        return listed

    def show(self, name: str) -> dict[str, object]:
        shown: dict[str, object] = json.loads(self.ok("vm", "show", name, "--json").text)
        return shown

    def state(self, name: str) -> str:
        return str(self.show(name)["state"])

    def until_state(self, name: str, *states: str, timeout_s: float = BOOT_TIMEOUT_S) -> str:
        return until(lambda: ((s := self.state(name)) in states and s) or "", timeout_s=timeout_s)

    def vm_dir(self, name: str) -> Path:
        return Path(self.paths.vm_dir(str(self.show(name)["id"])))

    def daemon_pid(self) -> int:
        return int(json.loads(self.ok("daemon", "status", "--json").text)["pid"])

    def leftovers(self) -> list[str]:
        """What the namespace and the home hold that they should not, once no VM is left."""
        links = json.loads(self.run_in_netns("ip", "-json", "link", "show").stdout or b"[]")
        found = [f"link {link['ifname']}" for link in links if link["ifname"] != "lo"]
        found += [
            f"process {pid} {line}" for pid, line in processes_below(str(self.home), self.paths.vms_dir)
        ]
        with contextlib.suppress(FileNotFoundError):
            found += [f"folder {path}" for path in Path(self.paths.vms_dir).iterdir()]
        tables = self.run_in_netns("nft", "list", "tables").text.split("\n")
        found += [f"nft {table}" for table in tables if table.strip()]
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if str(self.home) in backing.read_text():
                    found.append(f"loop {backing}")
        found += [
            f"mount {line}"
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if str(self.home) in line
        ]
        return found

    def leftovers_without_daemon(self) -> list[str]:
        """As leftovers, after the daemon has been stopped: nothing at all may be left."""
        self.ok("daemon", "stop")
        return self.leftovers()

    def unexplained(self) -> list[str]:
        """Links, folders and processes that no VM in the list explains."""
        vms = self.vms()
        ids = {str(vm["id"]) for vm in vms}
        alive = {str(vm["id"]) for vm in vms if vm["state"] == "running"}
        taps = {
            str(runtime.get("tap_device", "")) for vm in vms if isinstance(runtime := vm["runtime"], dict)
        }
        found: list[str] = []
        for link in json.loads(self.run_in_netns("ip", "-json", "link", "show").stdout or b"[]"):
            name = str(link["ifname"])
            if name in {"lo", "br-fc", *self.own_links} or name in taps or name.startswith("tap-pool-"):
                continue
            found.append(f"link {name}")
        for path in Path(self.paths.vms_dir).glob("*"):
            if path.name not in ids:
                found.append(f"folder {path}")
        for pid, line in processes_below(self.paths.vms_dir):
            if not any(vm_id in line or self._cwd_of(pid).endswith(vm_id) for vm_id in alive):
                found.append(f"process {pid} {line}")
        return found

    @staticmethod
    def _cwd_of(pid: int) -> str:
        try:
            return os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            return ""

    def vm_dir_of_only(self) -> Path:
        """The folder of the one VM there is, found without asking the daemon (which would start it)."""
        folders = list(Path(self.paths.vms_dir).iterdir())
        assert len(folders) == 1, folders
        return folders[0]

    def close(self) -> None:
        """End the daemon and whatever a failed test left running."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.banger("daemon", "stop", timeout_s=60)
        for pid, _ in processes_below(str(self.home), str(self.home)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def until(ask: Callable[[], T], *, timeout_s: float) -> T:
    """Ask until the answer is true. For states that other processes bring about."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s"
        time.sleep(0.2)


def processes_below(*folders: str) -> list[tuple[int, str]]:
    """Processes, without this one, whose cwd or arguments lie below one of the folders."""
    found: list[tuple[int, str]] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            cwd = os.readlink(entry / "cwd")
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if any(cwd.startswith(folder) or folder in line for folder in folders):
            found.append((int(entry.name), line[:120]))
    return found


@contextlib.contextmanager
def network_namespace(*, resolver: str = "") -> Iterator[str]:
    """resolver: the address of the one that its /etc/resolv.conf names."""
    name = f"banger-test-{secrets.token_hex(4)}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=30)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True, timeout=30)
        with _resolv_conf(name, resolver) if resolver else contextlib.nullcontext():
            yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=30)


@contextlib.contextmanager
def _resolv_conf(netns: str, resolver: str) -> Iterator[None]:
    """What `ip netns exec` puts over /etc/resolv.conf."""
    folder = Path("/etc/netns", netns)
    with _alone_in_etc():
        folder.mkdir(parents=True)
    try:
        (folder / "resolv.conf").write_text(f"nameserver {resolver}\n")
        yield
    finally:
        with _alone_in_etc():
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):  # others have theirs there
                folder.parent.rmdir()


@contextlib.contextmanager
def _alone_in_etc() -> Iterator[None]:
    """The run's other worker may make and remove /etc/netns, too."""
    etc = os.open("/etc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(etc, fcntl.LOCK_EX)
        yield
    finally:
        os.close(etc)


@contextlib.contextmanager
def checked_instance(config: str = "", *, resolver: str = "") -> Iterator[Instance]:
    """In a home and a network namespace of its own; its VMs go in the end, and nothing is left behind."""
    home = Path(tempfile.mkdtemp(prefix="banger-guest-"))
    try:
        with instance(home, config=config, resolver=resolver) as made:
            yield made
            for vm in made.vms():
                made.ok("vm", "delete", str(vm["id"]))
            left = made.leftovers_without_daemon()
            assert not left, f"left on the host: {left}"
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def instance(home: Path, *, config: str = "", resolver: str = "") -> Iterator[Instance]:
    with network_namespace(resolver=resolver) as netns:
        made = Instance(home, netns=netns, config=config)
        try:
            yield made
        finally:
            made.close()
