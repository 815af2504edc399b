"""`[[file_sync]]` and git's identity on a real guest: there at its first start, from then on its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.conftest import module_instance
from tests.guest.instance import SMALL, Instance

pytestmark = pytest.mark.guest

CONFIG = (
    SMALL
    + """
[[file_sync]]
host = "~/notes"
guest = "~/.config/notes"

[[file_sync]]
host = "~/tools"
guest = "~/tools"
mode = "0755"

[[file_sync]]
host = "~/missing"
guest = "~/missing"
"""
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of who runs banger."""
    made = tmp_path_factory.mktemp("owner")
    (made / "notes").write_text("from the host\n")
    (made / "notes").chmod(0o644)
    os.utime(made / "notes", (1, 1_000_000_000))
    (made / "tools/deep").mkdir(parents=True)
    (made / "tools/deep/tool").write_text("#!/bin/sh\necho tool\n")
    (made / "tools/link").symlink_to("deep")
    (made / ".gitconfig").write_text('[user]\n\tname = "Änn Ösch"\n\temail = ann@example.org\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(made))
        yield made


@pytest.fixture(scope="module")
def banger(home: Path) -> Iterator[Instance]:
    yield from module_instance(CONFIG)


def test_files_arrive_once_and_what_does_not_is_said(banger: Instance, home: Path) -> None:
    made = banger.ok("vm", "run", "--name", "synced", "-d")
    warnings = [line for line in made.stderr.splitlines() if line.startswith("warning: file_sync")]
    assert warnings == [
        "warning: file_sync entry 2: '~/tools/link' is a symlink: skipped",
        "warning: file_sync entry 3: '~/missing' is not there: skipped",
    ]
    assert "synced: file_sync entry 3: '~/missing' is not there" in Path(banger.paths.daemon_log).read_text()

    asked = "stat -c '%A %u:%g %n' .config .config/notes tools tools/deep tools/deep/tool .hushlogin"
    found = banger.ok("vm", "exec", "synced", "--", "sh", "-c", f"cd && {asked}; stat -c %Y .config/notes")
    assert found.text.splitlines() == [
        "drwxr-xr-x 0:0 .config",
        "-rw------- 0:0 .config/notes",
        "drwxr-xr-x 0:0 tools",
        "drwxr-xr-x 0:0 tools/deep",
        "-rwxr-xr-x 0:0 tools/deep/tool",
        "-rw-r--r-- 0:0 .hushlogin",
        "1000000000",
    ]
    script = "cd && cat .config/notes && tools/deep/tool && ls tools && ls -d missing"
    said = banger.banger("vm", "exec", "synced", "--", "sh", "-c", script)
    assert said.text == "from the host\ntool\ndeep\n"
    assert "missing" in said.stderr

    who = "git config --global user.name; git config --global user.email"
    assert banger.ok("vm", "exec", "synced", "--", "sh", "-c", who).text == "Änn Ösch\nann@example.org\n"

    change = "echo mine >/root/.config/notes; git config --global user.email guest@example.org; sync"
    banger.ok("vm", "exec", "synced", "--", "sh", "-c", change)
    (home / "notes").write_text("changed on the host\n")
    again = banger.ok("vm", "restart", "synced")
    assert "file_sync" not in again.stderr
    script = "cat /root/.config/notes; git config --global user.email"
    assert banger.ok("vm", "exec", "synced", "--", "sh", "-c", script).text == "mine\nguest@example.org\n"


def test_what_cannot_fit_is_named(banger: Instance, home: Path) -> None:
    """No machine is started for it."""
    with open(home / "tools/huge", "wb") as file:
        file.truncate(1 << 40)
    refused = banger.banger("vm", "create", "--name", "full")
    (home / "tools/huge").unlink()
    assert refused.status == 1
    assert "file_sync entry 2: '~/tools/huge'" in refused.stderr
    assert "--disk-size" in refused.stderr
