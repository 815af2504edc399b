"""A real dnsmasq for tests, as the host's resolver: Debian's, with the recipe of docs/names.md."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.docpages import PROJECT


def recipe() -> list[str]:
    """Its lines of configuration, as the page has them."""
    after = (PROJECT / "docs/names.md").read_text(encoding="utf-8").partition("**dnsmasq**")[2]
    return [line.strip() for line in after.split("\n\n")[1].splitlines()]


@contextmanager
def dnsmasq(config: Path, lines: Sequence[str], *options: str, run_in: Sequence[str] = ()) -> Iterator[None]:
    """Entered once it has said that it has its port. config: where its lines are written; run_in: how the
    command line begins (`ip netns exec X`)."""
    config.write_text("\n".join(lines) + "\n")
    argv = [*run_in, "dnsmasq", "--keep-in-foreground", f"--conf-file={config}", "--no-resolv", "--no-hosts"]
    argv += ["--user=root", "--pid-file", "--log-facility=-", *options]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said: list[str] = []
            while ": started, " not in (line := process.stderr.readline()):
                assert line, said
                said.append(line)
            yield
        finally:
            process.kill()
