"""Tables, JSON, colours and times on stdout. Tables are padded with two spaces and have no lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from banger.cli.escape import safe
from banger.model.references import SHOWN_ID_LENGTH
from banger.model.sizes import format_size

if TYPE_CHECKING:
    from banger.client import shapes

STATE_COLOURS = {"running": "32", "error": "31", "failed": "31", "starting": "33", "stopping": "33"}


def is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def may_colour(descriptor: int = 1) -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and is_terminal(descriptor)


def colour(text: str, code: str, *, descriptor: int = 1) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if code and may_colour(descriptor) else text


def out(text: str) -> None:
    """A line on stdout."""
    sys.stdout.write(text + "\n")


def print_json(value: object) -> None:
    import json

    # ascii: what a guest named cannot reach the terminal through JSON either
    out(json.dumps(value, indent=2))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, state_column: int = -1) -> None:
    cells = [[safe(cell) or "-" for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [headers, *cells]) for column in range(len(headers))]
    out("  ".join(header.ljust(width) for header, width in zip(headers, widths, strict=True)).rstrip())
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if state_column >= 0:
            padded[state_column] = colour(padded[state_column], STATE_COLOURS.get(row[state_column], ""))
        out("  ".join(padded).rstrip())


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """`name  value` lines; empty ones are left out."""
    shown = [(name, safe(value)) for name, value in fields if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        out(f"{name.ljust(width)}  {value}")


def age(timestamp: str, *, now_s: float | None = None) -> str:
    """`5 minutes ago` for an RFC 3339 time."""
    from datetime import datetime

    try:
        then = datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        return timestamp
    seconds = max(0, int((time.time() if now_s is None else now_s) - then))
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = seconds // length
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return f"{seconds} second{'' if seconds == 1 else 's'} ago"


def vm_row(vm: shapes.VM) -> list[str]:
    spec: dict[str, Any] = dict(vm.get("spec", {}))
    return [
        vm["id"][:SHOWN_ID_LENGTH],
        vm["name"],
        vm["state"],
        vm.get("image", ""),
        vm.get("runtime", {}).get("guest_ip", ""),
        str(spec.get("vcpu_count", "")),
        format_size(int(spec.get("memory_mib", 0)) << 20),
        format_size(int(spec.get("work_disk_size_bytes", 0))),
        vm.get("workspace", {}).get("repo_name", ""),
        age(vm.get("created_at", "")),
    ]


SHOWN_PORTS = 3


def published_ports(vm: shapes.VM) -> str:
    """For the table: `8080->80, 0.0.0.0:8443->443`, and how many more there are."""
    from banger.model.published import PortSpec, short_text

    texts = [short_text(PortSpec(**port)) for port in vm["spec"].get("published", [])]
    more = len(texts) - SHOWN_PORTS
    return ", ".join(texts[:SHOWN_PORTS]) + (f" +{more}" if more > 0 else "")


def published_states(vm: shapes.VM) -> list[str]:
    """A line each: where it leads, and why nobody listens of a VM that runs."""
    from banger.model.published import endpoint

    return [
        f"{endpoint(port['host_address'], port['host_port'])} -> {port['guest_port']}"
        + (f" (not now: {problem})" if (problem := port.get("problem")) else "")
        for port in vm["runtime"].get("published", [])
    ]


def workspace_fields(vm: shapes.VM) -> list[tuple[str, str]]:
    """What was brought into the guest, from where, how and when."""
    workspace = vm.get("workspace")
    if not workspace:
        return []
    branch = workspace.get("branch_name") or "no branch"
    prepared = workspace.get("prepared_at", "")
    facts = [branch, workspace.get("mode", ""), "read-only" if workspace.get("readonly") else ""]
    return [
        ("workspace", f"{workspace.get('guest_path', '')} ({', '.join(fact for fact in facts if fact)})"),
        ("repository", workspace.get("repo_root", "")),
        ("brought from", workspace.get("base_commit", "")),
        ("prepared", f"{prepared} ({age(prepared)})" if prepared else ""),
    ]


VM_COLUMNS = ("ID", "NAME", "STATE", "IMAGE", "IP", "VCPU", "MEM", "DISK", "WORKSPACE", "CREATED")
