"""The lost-work list, through the CLI alone: a full disk, a hostile guest, large files, submodules, a killed
daemon, a kernel panic. Each is recovered with the command that the output itself names.

One guest and one boot; the repositories are clones of one. BANGER_TEST_BLOB_MIB: size of the large file.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.keptwork import commit, git, git_raw
from tests.guest.instance import Instance, Result
from tests.guest.test_workspace_out import state, typed

pytestmark = [pytest.mark.guest, pytest.mark.limit(900)]

VM = "lost"
PREFIX = f"refs/banger/{VM}/"
BLOB_MIB = int(os.environ.get("BANGER_TEST_BLOB_MIB", "200"))
DISK_MIB = 64 + 7 * BLOB_MIB
DAEMON_GROWTH_MIB = 24
"""While a large file goes through it, whatever that one's size."""
_NAMED = re.compile(r"banger ((?:vm |workspace )[^\n;,()]*[^\n;,() ])")
WHO = "set -e; cd /root/repo; git config user.name Ann; git config user.email ann@example.org\n"
LARGE = """
git config core.compression 0
printf changed | dd of=large bs=1 seek=1000000 conv=notrunc status=none; git commit -q -a -m large
git -C lib config user.name Ann; git -C lib config user.email ann@example.org
echo made > lib/made; git -C lib add made; git -C lib commit -q -m 'made inside'
git add lib; git commit -q -m 'lib made'; echo loose > lib/code
git rev-parse HEAD; git -C lib rev-parse HEAD
"""
CHANGE = """
git switch -q -c fix; echo one > committed; git add committed; git commit -q -m committed
echo two > staged; git add staged; echo three > code; echo four > untracked; sync
git rev-parse HEAD; git write-tree
"""
FILL = """
cd /root; fallocate -l $(($(df -k --output=avail . | tail -1) - 4096))K most
dd if=/dev/zero of=fill bs=1M && exit 1; dd if=/dev/zero of=fill2 bs=1k && exit 1; sync
cd repo; head -c 100000 code large lib/code /etc/services 2>/dev/null | git hash-object -w --stdin && exit 1
exit 0
"""
HOSTILE = """
echo fix > code; git commit -q -a -m fix; echo '* filter=evil diff=evil merge=evil' > .gitattributes
echo loose > loose; sync
id=$(git rev-parse HEAD)
mkdir -p .git/hooks .git/refs/heads/deep
for hook in fsmonitor reference-transaction post-index-change post-checkout pre-auto-gc post-update; do
  printf '#!/bin/sh\\necho hook > TRAP\\n' > .git/hooks/$hook; chmod 755 .git/hooks/$hook
done
for name in -rf x.lock '..' 'a..b' "$(printf 'red\\033[31m')" '%2e' 'sp ace'; do
  echo $id > ".git/refs/heads/deep/$name" 2>/dev/null || :
done
cat > .git/packed-refs <<END
$(git rev-parse HEAD~1) refs/banger/base
$id refs/banger/other/heads/planted
$id refs/heads/good
$id refs/heads/ok^2
$id refs/remotes/origin/planted
END
echo HOST/objects > .git/objects/info/alternates
cat >> .git/config <<END
[core]
 fsmonitor = "echo fsmonitor > TRAP"
 hooksPath = /root/repo/.git/hooks
 worktree = /etc
 sshCommand = "echo ssh > TRAP"
 pager = "echo pager > TRAP"
 editor = "echo editor > TRAP"
 alternateRefsCommand = "echo alternate > TRAP; echo $id"
 attributesFile = /root/repo/.gitattributes
[filter "evil"]
 clean = "echo clean > TRAP; cat"
 smudge = "echo smudge > TRAP; cat"
 process = "echo process > TRAP"
 required = true
[diff "evil"]
 command = "echo diff > TRAP"
 textconv = "echo textconv > TRAP; cat"
[diff]
 external = "echo external > TRAP"
[uploadpack]
 packObjectsHook = "echo packs > TRAP"
[remote "origin"]
 url = "ext::sh -c echo% url% >% TRAP"
 promisor = true
 fetch = +refs/*:refs/*
[include]
 path = HOST/config
END
"""
PLANT = """
cd /root/repo; g() { git -c core.fsmonitor= -c core.worktree=/root/repo "$@"; }
blob=$(printf '[core]\\n fsmonitor = echo > TRAP\\n' | g hash-object -w --stdin)
inner=$(printf '100644 blob %s\\tconfig\\n' $blob | g mktree)
tree=$(printf '040000 tree %s\\t.git\\n' $inner | g mktree)
made=$(g -c user.name=a -c user.email=a commit-tree $tree -m planted < /dev/null)
echo $made > .git/refs/heads/planted; sync
"""
TREE = """
cd /root/repo; cp .git/index /run/index-of-test; export GIT_INDEX_FILE=/run/index-of-test; git add -A
git write-tree; rm $GIT_INDEX_FILE
"""
BREAK = """
cd /root/repo; id=$(sed -n 's, refs/heads/good,,p' .git/packed-refs)
for name in refs/heads/../../../hooks/post-checkout config refs/../HEAD; do
  echo $id $name >> .git/packed-refs
done
sync
"""
HELD = """
import sys
from banger.client.client import Client
whole = Client.work_patch
def in_two(*words, **named):
    pieces = whole(*words, **named)
    yield next(pieces)
    print("begun", file=sys.stderr, flush=True)
    sys.stdin.readline()
    yield from pieces
Client.work_patch = in_two
from banger.cli.main import run
sys.exit(run(sys.argv[1:]))
"""
"""The command line, which goes on with a patch that has begun when it is told to: much more is to come then
than the daemon can have sent already."""
PANIC = "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger"


@dataclass(frozen=True)
class Made:
    """As the guest has it. index, tree: of what is staged, of all its files."""

    head: str
    index: str
    tree: str


class Lost:
    """The user's side: a folder with repositories, and the guest that they are brought to."""

    def __init__(self, banger: Instance, folder: Path) -> None:
        self.banger = banger
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        self.trap = folder / "trap"

    def run(self, *words: str) -> Result:
        done = self.banger.banger(*words, env={"HOME": str(self.home)})
        assert "\x1b" not in done.text + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def __call__(self, *words: str) -> Result:
        done = self.run(*words)
        assert done.status == 0, self.banger.explain(words, done)
        return done

    def named(self, said: str) -> Result:
        """The last command that an output names, run."""
        found = _NAMED.findall(said)
        assert found, said
        return self(*found[-1].split())

    def guest(self, script: str) -> list[str]:
        return self("vm", "exec", VM, "--", "sh", "-c", script).text.split()

    def changed(self) -> Made:
        head, index, tree = self.guest(WHO + CHANGE + TREE)
        return Made(head, index, tree)

    def repository(self, name: str, *, base: str = "base") -> Path:
        """A clone of `base`, or that: one commit, of one file."""
        made = self.folder / name
        if name != base:
            git(self.folder, "clone", "-q", str(self.folder / base), str(made))
            git(made, "remote", "remove", "origin")
            return made
        made.mkdir()
        git(made, "init", "-q", "-b", "main")
        commit(made, "code")
        return made

    def brought(self, repository: Path) -> Path:
        """To the guest, in place of the last."""
        self.guest("rm -rf /root/repo")
        self("workspace", "prepare", "--replace", "--mode", "full_copy", VM, str(repository))
        return repository

    def work(self) -> dict[str, object]:
        works: list[dict[str, object]] = json.loads(self("workspace", "list", "--json").text)
        return next(work for work in works if work["vm_name"] == VM)


def check_pulled(repository: Path, made: Made) -> None:
    """All of CHANGE is there, with the ids it has in the guest."""
    assert git(repository, "rev-parse", f"{PREFIX}heads/fix") == made.head
    assert git(repository, "rev-parse", f"{PREFIX}index^{{tree}}") == made.index
    assert git(repository, "rev-parse", f"{PREFIX}worktree^{{tree}}") == made.tree
    assert git(repository, "fsck", "--strict", "--no-dangling") == ""


@pytest.fixture(scope="module")
def lost(banger: Instance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lost]:
    made = Lost(banger, tmp_path_factory.mktemp("lost"))
    base = made.repository("base")
    made("vm", "run", "-d", "--name", VM, "--disk-size", f"{DISK_MIB}M", str(base))
    yield made
    assert not made.trap.exists(), made.trap.read_text()


@pytest.fixture(scope="module")
def app(lost: Lost) -> Path:
    """With a large file and a submodule, in the guest."""
    lib, app = lost.repository("library", base="library"), lost.repository("app")
    (app / "large").write_bytes(os.urandom(BLOB_MIB << 20))
    git(app, "add", "large")
    git(app, "submodule", "add", "-q", str(lib), "lib")
    git(app, "commit", "-q", "-m", "second")
    return lost.brought(app)


def memory_mib(pid: int, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) >> 10


def but_objects(found: dict[str, str]) -> dict[str, str]:
    """state, without what a pull adds to submodules."""
    return {name: what for name, what in found.items() if not re.search("/objects/|/refs/banger/", name)}


def test_a_full_disk_in_the_guest_keeps_nothing_back(lost: Lost) -> None:
    user = lost.folder / "base"
    made = lost.changed()
    before = state(user)
    lost.guest(FILL)
    lost.named(lost("workspace", "status", VM).text)
    assert lost.work()["how"] == "guest-files"
    check_pulled(user, made)
    assert state(user) == before
    assert lost("workspace", "export", "--no-keep", VM).text.startswith("diff --git ")
    lost.guest("rm /root/most /root/fill /root/fill2; sync")


@pytest.mark.parametrize("git_there", [True, False])
def test_a_hostile_guest_changes_and_runs_nothing_here(lost: Lost, git_there: bool) -> None:
    """Its git is asked at first; without one its files are judged by the host's."""
    secret = lost.repository(f"secret-{git_there}")
    places = {"TRAP": str(lost.trap), "HOST": str(secret / ".git")}
    user = lost.brought(lost.repository(f"hostile-{git_there}"))
    before, others = state(user), state(secret)
    # what is planted, and why its history is refused
    for script, reason in ((WHO + HOSTILE, ""), (PLANT, "hasDotgit"), (BREAK, "hasDotgit")):
        lost.guest(re.sub("TRAP|HOST", lambda found: places[found[0]], script))
        if not git_there:
            lost.guest("mv /usr/bin/git /run/git-of-test")
        status = lost("workspace", "status", VM)
        refused = f"The history cannot be kept, only the files are: {reason}"
        assert reason in status.stderr, status.stderr
        assert (refused[:30] in status.stderr) is bool(reason), status.stderr
        lost("workspace", "pull", "--no-keep", VM)
        patch = lost("workspace", "export", "--no-keep", VM).text
        assert patch.startswith("diff --git ")
        assert "\n+loose\n" in patch
        if not git_there:
            lost.guest("mv /run/git-of-test /usr/bin/git")
        assert (state(user), state(secret)) == (before, others)
        assert not lost.trap.exists(), lost.trap.read_text()
        assert git(user, "show", f"{PREFIX}worktree:loose") == "loose"
        refs = git(user, "for-each-ref", "--format=%(refname)").split("\n")
        # what came once stays, below old/ where its history is refused now
        assert "fix" in git(user, "log", "--format=%s", f"--glob={PREFIX}").split("\n")
        assert (f"{PREFIX}heads/good" in refs) is not bool(reason), refs
        assert [name for name in refs if not name.startswith(PREFIX)] == ["refs/heads/main"]
        assert git(user, "fsck", "--strict", "--no-dangling") == ""
    # the guest alone has that history: nothing that would lose it is done by the way
    delete = lost.run("vm", "delete", VM)
    assert delete.status == 1
    assert "only its files, not its history: " in delete.stderr
    assert f"banger vm delete --discard-work {VM}" in delete.stderr
    again = lost("workspace", "prepare", "--replace", "--mode", "full_copy", VM, str(user))
    assert "what was at /root/repo is at /root/repo.before-" in again.stderr
    assert lost.guest("cd /root/repo.before-*; cat loose; rm -rf /root/repo.before-*") == ["loose"]


def test_a_large_file_and_a_submodule_come_back_with_their_ids(lost: Lost, app: Path) -> None:
    head, inner = lost.guest(WHO + LARGE)
    daemon = lost.banger.daemon_pid()
    before = but_objects(state(app))
    Path(f"/proc/{daemon}/clear_refs").write_text("5")  # the highest use of memory begins anew
    used = memory_mib(daemon, "VmRSS")
    pulled = lost.named(lost("workspace", "status", VM).text)
    assert memory_mib(daemon, "VmHWM") - used < DAEMON_GROWTH_MIB
    assert but_objects(state(app)) == before
    assert git(app, "rev-parse", f"{PREFIX}heads/main") == head
    assert git(app / "lib", "rev-parse", f"{PREFIX}heads/main") == inner
    assert git(app / "lib", "show", f"{PREFIX}worktree:code") == "loose"
    for folder in (app, app / "lib"):
        assert git(folder, "fsck", "--strict", "--no-dangling") == ""
    typed(pulled.text, lost.folder)
    assert git(app, "rev-parse", "HEAD") == head
    with (app / "large").open("rb") as file:
        file.seek(1_000_000)
        assert file.read(7) == b"changed"


def test_a_daemon_killed_in_the_middle_of_an_export_costs_nothing(lost: Lost, app: Path) -> None:
    """Once while it keeps, once while the patch is on its way."""
    folder = lost.folder / "out"
    folder.mkdir()
    target = folder / "app.patch"
    lost.guest("cd /root/repo; echo more > more; head -c 8000000 /dev/urandom > random")
    patches: list[bytes] = []
    for words in ((), ("--no-keep",)):
        daemon = lost.banger.daemon_pid()
        command = (sys.executable, "-c", HELD, "workspace", "export", *words, VM, "-o", str(target))
        export = subprocess.Popen(
            lost.banger.argv(*command),
            env=lost.banger.environment,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert export.stderr is not None
        first = "begun" if words else f"keeping the work in {VM}"
        assert export.stderr.readline() == f"{first}\n".encode()
        assert len(os.listdir(folder)) == len(words), "what has come of the patch"
        os.kill(daemon, signal.SIGKILL)
        _, said = export.communicate(b"\n", timeout=120)
        assert export.returncode == 1, (words, said)
        assert os.listdir(folder) == []
        lost("workspace", "export", *words, VM, "-o", str(target))
        patches.append(target.read_bytes())
        target.unlink()
    assert patches[0] == patches[1]
    clone = lost.folder / "applied"
    git(lost.folder, "clone", "-q", "-n", str(app), str(clone))
    git(clone, "checkout", "-q", "lost-main~2")
    done = git_raw(clone, "apply", "--index", stdin=patches[0])
    assert done.returncode == 0, done.stderr
    assert git(clone, "write-tree") == lost.guest(TREE)[0]
    assert [path.name for path in Path(lost.banger.paths.work_dir).iterdir()] == [lost.work()["vm_id"]]


def test_a_kernel_panic_leaves_all_that_was_synced(lost: Lost, app: Path) -> None:
    made = lost.changed()
    before = but_objects(state(app))
    lost.banger.banger("vm", "exec", "-d", VM, "--", "sh", "-c", PANIC)
    lost.banger.until_state(VM, "error")
    lost.named(lost("workspace", "status", VM).text)
    assert lost.work()["how"] == "disk"
    check_pulled(app, made)
    assert but_objects(state(app)) == before
    deleted = lost("vm", "delete", VM)
    assert "has all of it already" in lost.named(deleted.stderr).text
    elsewhere = lost.folder / "elsewhere"
    git(lost.folder, "clone", "-q", str(app), str(elsewhere))
    typed(lost("workspace", "pull", VM, str(elsewhere)).text, lost.folder)
    assert git(elsewhere, "rev-parse", "HEAD") == made.head
    assert (elsewhere / "untracked").read_text() == "four\n"
    lost("workspace", "rm", "-f", VM)
