"""`banger daemon …`."""

from __future__ import annotations

import os
import sys

import click

from banger.cli.lazy import LazyGroup
from banger.cli.options import json_option
from banger.cli.render import age, out, print_fields, print_json
from banger.client.client import Client
from banger.config.paths import resolve_paths
from banger.errors import BangerError, ErrorCode

daemon = LazyGroup(
    "daemon",
    help="The process in the background that looks after the VMs; every command starts it when needed.",
    lazy={
        "status": ("banger.cli.daemon:status", "Whether it runs, and how."),
        "start": ("banger.cli.daemon:start", "Start it."),
        "stop": ("banger.cli.daemon:stop", "End it; VMs run on."),
        "run": ("banger.cli.daemon:run", "Be the daemon, in front, until a signal comes."),
    },
)


@click.command("status", help="Whether the daemon runs, and how. Exit status 1 when it does not.")
@json_option
def status(as_json: bool) -> int:
    paths = resolve_paths()
    try:
        with Client(paths, autostart=False, version="") as client:
            info = client.info()
    except BangerError as error:
        if error.code is not ErrorCode.DAEMON_UNREACHABLE:
            raise
        if as_json:
            print_json({"running": False, "socket": paths.socket, "log": paths.daemon_log})
        else:
            print_fields([("state", "not running"), ("socket", paths.socket), ("log", paths.daemon_log)])
        return 1
    if as_json:
        print_json({"running": True, **info, "socket": paths.socket, "log": paths.daemon_log})
        return 0
    print_fields(
        [
            ("state", "running"),
            ("pid", str(info["pid"])),
            ("version", info["version"]),
            ("instance", info["instance"]),
            ("started", f"{info['started_at']} ({age(info['started_at'])})"),
            ("operations", str(info["running_operations"])),
            *(("warning", warning) for warning in info.get("warnings", ())),
            ("socket", paths.socket),
            ("log", paths.daemon_log),
        ]
    )
    return 0


@click.command("start", help="Start the daemon if it is not running.")
def start() -> None:
    with Client() as client:
        out(f"running, pid {client.info()['pid']}")


@click.command("stop", help="End the daemon and wait until it is gone. VMs run on.")
def stop() -> None:
    with Client(autostart=False, version="") as client:
        stopped = client.stop_daemon()
    out("stopped" if stopped else "not running")


@click.command("run", help="Be the daemon, in front, until a signal comes.")
def run() -> None:
    import banger

    # a process of its own: nothing of the CLI's imports stays in a daemon that lives for weeks
    program = f"{os.path.dirname(os.path.abspath(banger.__file__))}/daemon/__main__.py"
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-I", program])
