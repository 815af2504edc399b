"""The `banger` command with a clock in it, for bench/exec.py: as .venv/bin/banger, and marks at its end.

Marks are seconds of CLOCK_MONOTONIC by name, in the file BENCH_MARKS names. Taking them is in the figures.
"""

from __future__ import annotations

import time

MARKS = {"interpreter": time.monotonic()}

import click  # noqa: E402, F401

MARKS["click"] = time.monotonic()

import atexit  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402

from banger.cli.main import main  # noqa: E402


def mark(name: str) -> None:
    MARKS.setdefault(name, time.monotonic())


def watch() -> None:
    """Before the command has imported what it needs: the modules are those of vm exec."""
    import banger.cli.vm
    import banger.cli.vm_exec  # noqa: F401
    from banger.client import agentconnection, guest
    from banger.client.client import Client
    from banger.guest import wire

    mark("modules")
    connect_vm, handshake, take = Client.connect_vm, agentconnection._handshake, guest.Exec._take

    def timed_connect_vm(self: Client, reference: str, *, purpose: str = "exec") -> object:
        mark("words")
        try:
            return connect_vm(self, reference, purpose=purpose)
        finally:
            mark("daemon")

    def timed_handshake(path: str, port: int) -> object:
        try:
            return handshake(path, port)
        finally:
            mark("handshake")

    def timed_take(self: guest.Exec, kind: int, payload: bytes) -> None:
        if kind == wire.FRAME_STARTED:
            mark("STARTED")
        elif kind == wire.FRAME_EXIT:
            mark("EXIT")
        take(self, kind, payload)

    for owner, name, value in (
        (Client, "connect_vm", timed_connect_vm),
        (agentconnection, "_handshake", timed_handshake),
        (guest.Exec, "_take", timed_take),
    ):
        setattr(owner, name, value)


def write() -> None:
    mark("command")
    with open(os.environ["BENCH_MARKS"], "w", encoding="ascii") as marks:
        json.dump(MARKS, marks)


watch()
atexit.register(write)
main()
