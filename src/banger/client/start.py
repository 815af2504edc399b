"""Starting the daemon when it is not there: detached, once, and with its own words when it fails.

Used by client.py, and by nothing on the path of a command that finds a daemon. RUNTIME_DIR/start.lock
(flock) makes two starters one. After a crash of the starter the daemon goes on by itself.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import sys
import time

from banger.client.errors import DaemonUnreachable, error_from_body
from banger.client.http import connect_unix
from banger.config.paths import Paths
from banger.errors import BangerError, ErrorCode

START_TIMEOUT_S = 120.0
"""Reconcile tears down what a crash left: it may take SPEC's 30 s for a VM, several at once."""
READY_LINE = "banger-daemon: ready"
ERROR_LINE = "banger-daemon: error "
MAX_SAID = 64 << 10
DAEMON_PROGRAM = f"{os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}/daemon/__main__.py"
"""By its path: the daemon is the code beside this client, whatever else is installed."""


def is_up(paths: Paths) -> bool:
    """Whether somebody accepts connections on the daemon's socket."""
    try:
        connect_unix(paths.socket, 5.0).close()
    except OSError:
        return False
    return True


def start_daemon(paths: Paths, *, timeout_s: float = START_TIMEOUT_S) -> None:
    """Return when a daemon serves, ours or another's. Raises what the daemon says when it cannot."""
    deadline = time.monotonic() + timeout_s
    try:
        os.makedirs(paths.runtime_dir, mode=0o700, exist_ok=True)
        lock = os.open(f"{paths.runtime_dir}/start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BangerError(
            ErrorCode.HOST_UNSUITABLE,
            f"the folder for the daemon's socket cannot be used: {paths.runtime_dir}: {error.strerror}",
            hint="set BANGER_HOME to a folder of your own",
        ) from error
    try:
        _lock(lock, deadline)
        if not is_up(paths):
            _spawn_and_wait(paths, deadline)
    finally:
        os.close(lock)


def _lock(fd: int, deadline: float) -> None:
    """flock knows no deadline, so it is tried every 20 ms: the other starter is waiting for its daemon."""
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise DaemonUnreachable(
                    "another command is starting the daemon and does not get on"
                ) from None
            time.sleep(0.02)


def _spawn_and_wait(paths: Paths, deadline: float) -> None:
    read_end, write_end = os.pipe()
    try:
        argv = [sys.executable, "-I", DAEMON_PROGRAM, "--detached"]
        try:
            pid = os.posix_spawn(
                sys.executable,
                argv,
                _environment(paths),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, write_end, 1),
                    (os.POSIX_SPAWN_DUP2, write_end, 2),
                ],
                # a Ctrl-C at the terminal is for this command, not for the daemon it starts
                setsigmask=[],
                setpgroup=0,
            )
        except OSError as error:
            raise DaemonUnreachable(
                f"the daemon cannot be started: {error.strerror}: {sys.executable}"
            ) from error
        finally:
            os.close(write_end)
        os.waitpid(pid, 0)  # the first process ends as soon as it has forked (daemon/__main__.py)
        _wait_until_ready(read_end, paths, deadline=deadline)
    finally:
        os.close(read_end)


def _environment(paths: Paths) -> dict[str, str]:
    """The caller's own, but for the home: a client of another instance starts that instance's daemon."""
    environment = dict(os.environ)
    environment.pop("BANGER_HOME", None)
    if paths.home:
        environment["BANGER_HOME"] = paths.home
    return environment


def _wait_until_ready(fd: int, paths: Paths, *, deadline: float) -> None:
    said = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        left_ms = int((deadline - time.monotonic()) * 1000)
        if left_ms <= 0 or not poll.poll(left_ms):
            raise DaemonUnreachable(
                "the daemon does not get ready", hint=f"its log may say why: {paths.daemon_log}"
            )
        data = os.read(fd, 4096)
        said = (said + data)[-MAX_SAID:]
        text = said.decode("utf-8", "replace")
        for line in text.split("\n")[:-1]:
            if line == READY_LINE:
                return
            if line.startswith(ERROR_LINE):
                raise _error(line[len(ERROR_LINE) :])
        if not data:
            last = text.strip().splitlines()
            raise DaemonUnreachable(
                "the daemon ended as it started" + (f": {last[-1]}" if last else ""),
                details=text.strip() or None,
                hint=f"its log may say why: {paths.daemon_log}",
            )


def _error(text: str) -> BangerError:
    try:
        body = json.loads(text)
    except ValueError:
        body = {}
    known: dict[str, object] = body if isinstance(body, dict) else {}
    return error_from_body(known, fallback="the daemon cannot start")


def wait_gone(pidfd: int, timeout_s: float) -> bool:
    """Whether the process of this pidfd has ended, in time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(int(timeout_s * 1000)))
