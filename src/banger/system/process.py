"""Processes that outlive the daemon: launching, knowing again, signalling, waiting.

A process is named by boot id, pid and start time together (DESIGN.md). Everything that acts on one
opens a pidfd first and reads /proc/PID/stat after: what was checked is then what is acted on. A
launched process writes its own stat line into a file before its program runs, so that no crash of
the daemon can leave one unrecorded. Called by helper/, and by vm/ for the carrier of published ports;
nothing here is left after a crash but the processes themselves and their pid files, which
`read_pid_file` and `search` find again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import shlex
import signal
import subprocess
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from banger.errors import ErrorCode
from banger.model.records import ProcessIdentity
from banger.system.errors import KernelError
from banger.system.run import clean_environment, resolve_program

log = logging.getLogger("banger.process")

# $1 is the pid file; the rest is the program. `read` takes the shell's own stat line; exec keeps pid
# and start time, so that line is the program's too. The name in it is the shell's: never used. The boot id
# comes first: after a reboot pids and start times are given out again, and the file is still there.
_RECORD_THEN_EXEC = (
    "read -r b </proc/sys/kernel/random/boot_id && read -r s </proc/self/stat || exit 126; "
    'printf "%s\\n%s\\n" "$b" "$s" >"$1" || exit 126; shift; exec "$@"'
)
_WRAPPER_NAME = "banger-launch"
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW
_STAT_LIMIT = 4096
_ARGV_LIMIT = 1 << 16


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """What /proc/PID/stat says. state: one letter. start_time: ticks since boot. cpu_ticks: user + system."""

    pid: int
    state: str
    parent: int
    start_time: int
    cpu_ticks: int
    vsz_bytes: int
    rss_bytes: int

    @property
    def ended(self) -> bool:
        return self.state in "ZXx"


@functools.cache
def boot_id() -> str:
    """The running kernel's boot id; constant for a boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def parse_stat(line: str) -> ProcessStat:
    """One line of /proc/PID/stat. ValueError when it is not one (empty, cut off, from elsewhere).

    The program's name is in parentheses and may hold anything, so fields count from the last `)`.
    """
    head, paren, tail = line.strip().rpartition(")")
    pid_text = head.partition(" (")[0]
    fields = tail.split()
    if not paren or not pid_text.isascii() or not pid_text.isdigit() or len(fields) < 22:
        raise ValueError("not a line of /proc/PID/stat")
    return ProcessStat(
        pid=int(pid_text),
        state=fields[0],
        parent=int(fields[1]),
        start_time=int(fields[19]),
        cpu_ticks=int(fields[11]) + int(fields[12]),
        vsz_bytes=int(fields[20]),
        rss_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
    )


def read_stat(pid: int) -> ProcessStat | None:
    """The process's stat, or None when there is none of that pid."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return parse_stat(file.read())
    except (FileNotFoundError, ProcessLookupError):
        return None


def identify(pid: int, *, role: str) -> ProcessIdentity | None:
    """The identity of a living process, or None."""
    stat = read_stat(pid)
    if stat is None or stat.ended:
        return None
    return ProcessIdentity(role=role, pid=pid, start_time=stat.start_time)


def open_same(identity: ProcessIdentity) -> int | None:
    """A pidfd of exactly this process, alive; None when it is gone or another. Caller closes. Raises OSError
    where that cannot be found out."""
    if identity.pid <= 0:
        return None
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        if error.errno != errno.EINVAL:  # out of descriptors, say: not known is not gone
            raise
        log.debug("pidfd_open(%d): %s", identity.pid, error)  # the id is a thread's
        return None
    try:
        stat = read_stat(identity.pid)
    except BaseException:
        os.close(pidfd)
        raise
    if stat is None or stat.ended or stat.start_time != identity.start_time:
        os.close(pidfd)
        return None
    return pidfd


def is_same(identity: ProcessIdentity) -> bool:
    """Whether this very process is alive (a zombie is not). The boot id is the caller's to compare."""
    pidfd = open_same(identity)
    if pidfd is None:
        return False
    os.close(pidfd)
    return True


def send_signal(identity: ProcessIdentity, signum: int) -> bool:
    """Signal exactly this process; False when it is gone."""
    pidfd = open_same(identity)
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, signal.Signals(signum))
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


async def wait_gone(identity: ProcessIdentity, *, timeout_s: float | None) -> bool:
    """Wait until this process has ended; False when the time (seconds) is over first. Reaps our own child."""
    pidfd = open_same(identity)
    if pidfd is None:
        reap(identity.pid)
        return True
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(pidfd, _finish, ended)
    try:
        async with asyncio.timeout(timeout_s):
            await ended
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    reap(identity.pid)
    return True


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_children: set[int] = set()
"""Pids launched by this process and not reaped yet: none of them can have been given to another."""
_ended: OrderedDict[int, tuple[int, int | None]] = OrderedDict()
"""The last children reaped: pid → (start time or 0, status), so that each of several waiters hears it."""
_ENDED_KEPT = 1024
_start_times: dict[int, int] = {}


def reap(pid: int) -> None:
    """Take in a child of ours that has ended, so that it is no zombie; nothing for any other pid."""
    if pid not in _children:
        return
    try:
        reaped, wait_status = os.waitpid(pid, os.WNOHANG)
        status = os.waitstatus_to_exitcode(wait_status)
    except ChildProcessError:  # SIGCHLD is ignored, or somebody reaps for us
        reaped, status = pid, None
    if reaped:
        _children.discard(pid)
        _ended[pid] = (_start_times.pop(pid, 0), status)
        while len(_ended) > _ENDED_KEPT:
            _ended.popitem(last=False)


def exit_status(identity: ProcessIdentity) -> int | None:
    """How a child of ours ended (negative: the signal); None while it runs or when it was not our child."""
    reap(identity.pid)
    start_time, status = _ended.get(identity.pid, (0, None))
    return status if start_time == identity.start_time else None


def launch(
    argv: Sequence[str],
    *,
    role: str,
    cwd: str,
    stdout: str,
    env: Mapping[str, str] | None = None,
    stdin: int = subprocess.DEVNULL,
) -> ProcessIdentity:
    """Start a process that outlives us: own session, cwd, stdin empty (or an open descriptor, which stays the
    caller's), stdout and stderr appended to a file.

    `stdout` and the pid file, `<role>.pid`, are in cwd. The pid file has boot id and stat line before
    argv[0] runs; it may still be empty when this returns, which is at once: what the program makes of
    itself is for the caller to see. A missing program, or a folder that cannot be written, is an error.
    Takes a fraction of a millisecond, so it need not go to a thread.
    """
    program = resolve_program(argv[0])
    pid_file = f"{role}.pid"
    log.debug("$ (cd %s && %s >>%s 2>&1 &)", shlex.quote(cwd), shlex.join(argv), shlex.quote(stdout))
    try:
        # made anew: an earlier run's line must not be taken for this one's
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{cwd}/{pid_file}")
        os.close(os.open(f"{cwd}/{pid_file}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600))
        output = os.open(f"{cwd}/{stdout}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | _OPEN, 0o600)
        try:
            child = subprocess.Popen(
                ["/bin/sh", "-c", _RECORD_THEN_EXEC, _WRAPPER_NAME, pid_file, program, *argv[1:]],
                cwd=cwd,
                env=clean_environment(env),
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            os.close(output)
    except OSError as error:
        raise KernelError(
            ErrorCode.HOST_UNSUITABLE, f"cannot start {os.path.basename(program)}: {error}"
        ) from error
    # It outlives us and is reaped by pid; Popen must neither wait for it nor warn about it.
    child.returncode = 0
    _children.add(child.pid)
    stat = read_stat(child.pid)  # a child not yet reaped: it is there, if only as a zombie
    if stat is None:
        raise KernelError(ErrorCode.INTERNAL, f"{os.path.basename(program)} was reaped by someone else")
    _start_times[child.pid] = stat.start_time
    return ProcessIdentity(role=role, pid=child.pid, start_time=stat.start_time)


def executable(pid: int) -> str:
    """The path of the program that the process runs; "" when it cannot be read."""
    try:
        return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    except OSError:
        return ""


def read_pid_file(path: str, *, role: str) -> ProcessIdentity | None:
    """The identity a launched process wrote; None where there is none (yet), or it was before a reboot."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _OPEN)
        with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
            boot, _, line = file.read(_STAT_LIMIT).partition("\n")
        stat = parse_stat(line)
    except (OSError, ValueError):
        return None
    if boot != boot_id():
        return None
    return ProcessIdentity(role=role, pid=stat.pid, start_time=stat.start_time)


@dataclass(frozen=True, slots=True)
class FoundProcess:
    """A living process as /proc shows it. cwd: "" where it may not be read; a deleted folder's own name."""

    pid: int
    start_time: int
    cwd: str
    argv: tuple[str, ...]

    @property
    def launch_role(self) -> str:
        """The role, while it is still launch()'s shell and about to become the program; else ""."""
        if len(self.argv) > 4 and self.argv[2:4] == (_RECORD_THEN_EXEC, _WRAPPER_NAME):
            return self.argv[4].removesuffix(".pid")
        return ""


def search(*folders: str) -> list[FoundProcess]:
    """Living processes whose cwd is in or below one of the folders (absolute paths), or whose arguments name
    one.

    Reads all of /proc: tens of microseconds a process. This process is left out. Blocking.
    """
    inside = tuple(folder.rstrip("/") + "/" for folder in folders)
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            cwd = str(Path(f"/proc/{name}/cwd").readlink()).removesuffix(" (deleted)")
        except OSError:
            cwd = ""  # gone, a zombie, or another user's
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read(_ARGV_LIMIT).decode("utf-8", "surrogateescape").split("\0")
        except OSError:
            continue
        argv = tuple(words[:-1])
        if not f"{cwd}/".startswith(inside) and not any(one in f"{word}/" for word in argv for one in inside):
            continue
        stat = read_stat(int(name))
        if stat is not None and not stat.ended:
            found.append(FoundProcess(pid=stat.pid, start_time=stat.start_time, cwd=cwd, argv=argv))
    return found
