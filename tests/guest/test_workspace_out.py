"""Work out of a real guest: changed there in every way that git knows, told of, exported, pulled, twice.

One guest. Everything that is typed on the host's side is what the output of the command before says.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.keptwork import ENV, commit, git, git_raw
from tests.guest.instance import Instance, Result

pytestmark = pytest.mark.guest

VM = "desk"
PREFIX = f"refs/banger/{VM}/"
FILES = {
    "kept": b"kept\n",
    "staged": b"staged\n",
    "unstaged": b"unstaged\n",
    "gone": b"gone\n",
    "moves": b"a long text\nof some lines\nthat is known again\n",
    "mode": b"#!/bin/sh\n",
    "windows": b"one\r\ntwo\r\n",
    "binary": bytes(range(256)) * 40,
    "stashed": b"stashed\n",
    "fought": b"over\n",
}
CHANGE = """
set -e
cd /root/repo
git config user.name Ann; git config user.email ann@example.org
git switch -q -c fix
echo one > committed; git add committed; git commit -q -m "first $(printf '\\033[31m')red"
echo two >> committed; git commit -q -a --amend -m amended
git commit -q --allow-empty -m "empty"
git branch topic/deep; git tag light; git tag -a -m annotated heavy
git switch -q -c aside; echo aside > aside; git add aside; git commit -q -m aside; git switch -q fix
echo changed > stashed; git stash -q
git mv moves moved; git commit -q -m rename
echo staged now > staged; git add staged; echo and more >> staged
echo now > unstaged; rm gone; chmod 755 mode; ln -s /etc/passwd link
printf 'one\\r\\ntwo\\r\\nthree\\r\\n' > windows
head -c 100000 /dev/urandom > binary
mkdir new; echo untracked > "new/a file"; : > empty
printf x > "$(printf 'two\\nlines')"
"""
REFS = "cd /root/repo; git for-each-ref --format='%(objectname) %(refname)'; git rev-parse HEAD"
TREE = """
cd /root/repo; cp .git/index /run/index-of-test; export GIT_INDEX_FILE=/run/index-of-test
git add -A; git write-tree; rm $GIT_INDEX_FILE
"""
INDEX = "cd /root/repo; sha256sum .git/index; git status --porcelain -z | sha256sum"
REBASE = """
set -e
cd /root/repo
git stash push -q --include-untracked
git switch -q fix
git rebase -q --force-rebase --onto HEAD~3 HEAD~2
git switch -q -c other main; echo theirs > fought; git commit -q -a -m theirs
git switch -q --detach fix; echo ours > fought; git commit -q -a -m ours
git merge other && exit 9
git ls-files -u | grep -q fought
"""


class Desk:
    """A user with a repository whose hooks are traps, and the guest it was brought to."""

    def __init__(self, banger: Instance, folder: Path) -> None:
        self.banger = banger
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        self.trap = folder / "trap"
        self.user = folder / "app"
        self.user.mkdir()
        git(self.user, "init", "-q", "-b", "main")
        for name, data in FILES.items():
            (self.user / name).write_bytes(data)
        git(self.user, "add", "-A")
        git(self.user, "commit", "-q", "-m", "first")
        self.base = commit(self.user, "second")
        for hook in ("reference-transaction", "post-merge", "post-checkout", "fsmonitor"):
            path = self.user / ".git/hooks" / hook
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\necho {hook} >> {self.trap}\n")
            path.chmod(0o755)
        git(self.user, "config", "core.fsmonitor", str(self.user / ".git/hooks/fsmonitor"))

    def __call__(self, *words: str, status: int = 0) -> Result:
        done = self.banger.banger(*words, env={"HOME": str(self.home)})
        assert done.status == status, self.banger.explain(words, done)
        assert "\x1b" not in done.stderr
        return done

    def guest(self, script: str) -> str:
        return self("vm", "exec", VM, "--", "sh", "-c", script).text

    def refs(self, folder: Path | None = None) -> dict[str, str]:
        listed = git(folder or self.user, "for-each-ref", "--format=%(refname) %(objectname)", PREFIX)
        return {n.removeprefix(PREFIX): oid for n, oid in map(str.split, listed.splitlines())}

    def guests_refs(self) -> dict[str, str]:
        *refs, head = self.guest(REFS).split("\n")[:-1]
        return {**{name: oid for oid, name in (line.split(" ") for line in refs)}, "HEAD": head}


def state(folder: Path) -> dict[str, str]:
    """Work tree, index, branches, configuration and reflogs: what nothing here may touch."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name.startswith((".git/objects", ".git/refs/banger")):
            continue
        content = str(path.readlink()) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
        found[name] = f"{path.lstat().st_mode:o} {path.lstat().st_mtime_ns} {content}"
    return found


def typed(said: str, folder: Path) -> str:
    """The commands that an output names, typed into a shell; hooks of the test's own repository aside."""
    commands = [line[4:] for line in said.splitlines() if line.startswith("    ")]
    script = "\n".join(
        ["set -e", 'git() { command git -c core.hooksPath=/dev/null -c core.fsmonitor=false "$@"; }']
    )
    done = subprocess.run(
        ["sh", "-c", "\n".join([script, *commands])], cwd=folder, env=ENV, capture_output=True, check=False
    )
    assert done.returncode == 0, (commands, done.stderr)
    return done.stdout.decode()


@pytest.fixture(scope="module")
def desk(banger: Instance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    made = Desk(banger, tmp_path_factory.mktemp("desk"))
    made("vm", "run", "-d", "--name", VM, str(made.user))
    yield made
    assert not made.trap.exists(), made.trap.read_text()


def test_all_that_git_knows_comes_out(desk: Desk) -> None:
    assert "there is nothing to pull" in desk("workspace", "status", "--no-keep", VM).text
    desk.guest(CHANGE)
    (desk.user / "kept").write_text("edited on the host meanwhile\n")
    theirs, tree, index = desk.guests_refs(), desk.guest(TREE).strip(), desk.guest(INDEX)
    before = state(desk.user)

    said = desk("workspace", "status", VM).text
    assert "3 new commits" in said, said
    assert "first \\x1b[31mred" in said  # amended since: a reflog has it
    assert said.endswith(f"next: banger workspace pull {VM}\n")
    told = json.loads(desk("workspace", "status", "--no-keep", VM, "--json").text)
    assert (told["branch"], told["head"], told["how"]) == ("fix", theirs["HEAD"], "guest-git")
    # gone, unstaged, staged, mode, windows, binary
    assert (told["changes"]["staged"], told["changes"]["unstaged"], told["changes"]["untracked"]) == (1, 6, 4)
    assert told["repository"]["moved_on"] is False

    patch = desk("workspace", "export", "--no-keep", VM, "-o", str(desk.folder / "all.patch"))
    assert patch.text == ""
    clone = desk.folder / "applied"
    git(desk.folder, "clone", "-q", "-n", str(desk.user), str(clone))
    git(clone, "checkout", "-q", desk.base)
    done = git_raw(clone, "apply", "--index", str(desk.folder / "all.patch"))
    assert done.returncode == 0, done.stderr
    assert git(clone, "write-tree") == tree

    older = desk("workspace", "export", "--no-keep", VM, "--base-commit", "HEAD~1")
    git(clone, "checkout", "-q", "-f", f"{desk.base}~1")
    assert git_raw(clone, "apply", "--index", stdin=older.stdout).returncode == 0
    assert git(clone, "write-tree") == tree

    pulled = desk("workspace", "pull", VM)
    assert state(desk.user) == before
    refs = desk.refs()
    for name, oid in theirs.items():
        kept = name.removeprefix("refs/")
        if name.startswith(("refs/heads/", "refs/tags/", "refs/stash")) and oid != desk.base:
            assert refs[kept] == oid, name
    assert git(desk.user, "rev-parse", f"{PREFIX}worktree^{{tree}}") == tree
    subjects = git(desk.user, "log", "--format=%s", f"--glob={PREFIX}")
    assert "first \x1b[31mred" in subjects  # of the reflog
    assert git(desk.user, "-c", "core.fsmonitor=false", "fsck", "--strict", "--no-dangling") == ""

    again = desk("workspace", "pull", VM)
    assert "has all of it already" in again.text
    assert desk.refs() == refs
    assert desk.guest(INDEX) == index
    assert f"all of it, below {PREFIX}" in desk("workspace", "status", "--no-keep", VM).text

    git(desk.user, "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "checkout", "-q", "kept")
    typed(pulled.text, desk.folder)
    off = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
    assert git(desk.user, *off, "branch", "--show-current") == "fix"
    git(desk.user, *off, "add", "-A")


def test_rebased_on_both_sides_and_in_conflict(desk: Desk) -> None:
    off = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
    git(desk.user, *off, "reset", "-q", "--hard", desk.base)
    git(desk.user, *off, "switch", "-q", "main")
    git(desk.user, *off, "commit", "-q", "--amend", "-m", "rewritten on the host")
    git(desk.user, *off, "reflog", "expire", "--expire=now", "--all")
    former = desk.refs()
    desk.guest(REBASE)
    theirs = desk.guests_refs()
    said = desk("workspace", "status", VM).text
    assert "detached at " in said
    assert "1 in conflict" in said
    assert "it moved on since" in said
    before = state(desk.user)
    desk("workspace", "pull", VM)
    assert state(desk.user) == before
    refs = desk.refs()
    assert refs["HEAD"] == theirs["HEAD"]
    assert refs["heads/fix"] == theirs["refs/heads/fix"] != former["heads/fix"]
    assert refs["heads/other"] == theirs["refs/heads/other"]
    conflict = git(desk.user, "show", f"{PREFIX}worktree:fought")
    assert re.search(r"<<<<<<<(.|\n)*ours(.|\n)*=======(.|\n)*theirs", conflict)
    reachable = set(git(desk.user, "rev-list", f"--glob={PREFIX}").split())
    plain = {oid for name, oid in former.items() if not name.startswith("tags/")}
    assert plain <= reachable, [name for name, oid in former.items() if oid not in reachable]
    assert set(former.values()) - plain <= set(refs.values())
    assert "has all of it already" in desk("workspace", "pull", "--no-keep", VM).text


def test_after_the_vm_is_gone(desk: Desk) -> None:
    elsewhere = desk.folder / "elsewhere"
    git(desk.folder, "clone", "-q", "--no-local", str(desk.folder / "applied"), str(elsewhere))
    last = desk.guest(
        "cd /root/repo; git merge --abort; git commit -q --allow-empty -m last; git rev-parse HEAD"
    ).strip()
    said = desk("vm", "delete", VM)
    hint = re.search(r"banger (workspace pull \S+)", said.stderr)
    assert hint is not None, said.stderr
    desk(*hint[1].split())
    assert desk.refs()["HEAD"] == last
    pulled = desk("workspace", "pull", VM, str(elsewhere))
    typed(pulled.text, desk.folder)
    assert git(elsewhere, "rev-parse", "HEAD") == last
    made = desk("workspace", "pull", VM, "--into", str(desk.folder / "new"))
    typed(made.text, desk.folder)
    assert git(desk.folder / "new", "rev-parse", "HEAD") == last
    assert git(desk.folder / "new", "fsck", "--strict", "--no-dangling") == ""
    assert "(deleted; its work is kept)" in desk("workspace", "status", VM).text
    assert desk("workspace", "export", VM).text.startswith("diff --git ")
    assert desk("workspace", "list").text.splitlines()[1].endswith("deleted")
    desk("workspace", "rm", "-f", VM)
    assert desk("workspace", "list", "-q").text == ""
    assert f"{VM}" in desk("workspace", "pull", VM, status=1).stderr
