"""What is mounted, from /proc/self/mountinfo (proc_pid_mountinfo(5)). Called by helper/; changes nothing."""

from __future__ import annotations

import re

_ESCAPE = re.compile(r"\\([0-7]{3})")


def parse_mountinfo(text: str) -> list[str]:
    """The mount points, unescaped; lines that are none are passed over."""
    points: list[str] = []
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) >= 6:
            points.append(_ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4]))
    return points


def mount_points() -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return parse_mountinfo(file.read())
