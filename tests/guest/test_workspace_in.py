"""A real repository's way into real guests: `vm run PATH`, `workspace prepare`; where commands start then.

One Debian guest for most of it; git there and a clone on this host must agree.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path

import pytest

from tests.capabilities import demand
from tests.fakes.ociregistry import busybox_tree, make_layout
from tests.guest.instance import Instance
from tests.unit.local.gitrepos import Repo

pytestmark = pytest.mark.guest

BLOB = random.Random(8).randbytes(4 << 20)
ODD = (b"na\xefve \xff name", b"two\nlines", "grüße/日本.txt".encode(), b"-rf", b" spaces ")


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """History, links, modes, odd names, line ends, a large file; local changes of each kind."""
    top = tmp_path_factory.mktemp("workspace")
    made = Repo(top / "app", top / "home-of-ann")
    made.write("README", "hello\n")
    made.write("run.sh", "#!/bin/sh\necho it runs\n", 0o755)
    made.write("windows.txt", "one\r\ntwo\r\n")
    made.write("big.bin", BLOB)
    made.write("gone", "soon\n")
    for name in ODD:
        made.write(name, name)
    (made.path / "link").symlink_to("README")
    (made.path / "dangling").symlink_to("/nowhere")
    made.write(".gitignore", "*.o\n")
    made.commit("first")
    for number in range(3):
        made.write("count", f"{number}\n")
        made.commit(f"count {number}")
    made.git("checkout", "-q", "-b", "side")
    made.write("side", "side\n")
    made.commit("aside")
    made.git("checkout", "-q", "main")
    made.git("merge", "-q", "--no-ff", "-m", "merged", "side")
    # nothing of this may run
    trap = trap_of(made)
    for hook in ("post-checkout", "pre-commit", "post-index-change", "reference-transaction"):
        made.write(f".git/hooks/{hook}", f"#!/bin/sh\necho {hook} >> {trap}\n", 0o755)
    made.git("config", "core.fsmonitor", f"echo fsmonitor >> {trap}; false")
    made.git("config", "filter.trap.clean", f"echo clean >> {trap}; cat")
    made.git("config", "filter.trap.smudge", f"echo smudge >> {trap}; cat")
    made.write(".git/info/attributes", "*.txt filter=trap\n")
    trap.unlink(missing_ok=True)
    # as it is now
    made.write("count", "local\n")
    made.write("staged", "staged\n")
    made.git("add", "--", "staged")
    trap.unlink(missing_ok=True)
    (made.path / "gone").unlink()
    made.write(".env", "SECRET=1\n")
    made.write("junk.o", "ignored\n")
    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """A small one that may change."""
    top = tmp_path_factory.mktemp("plain")
    made = Repo(top / "plain", top / "home-of-ann")
    made.path.chmod(0o755)  # whatever umask the tests are run with
    made.write("README", "plain\n")
    made.commit("first")
    return made


@pytest.fixture(scope="module")
def vm(banger: Instance, repo: Repo) -> str:
    """A guest that was made with the repository in it."""
    result = banger.banger("vm", "run", str(repo.path), "--name", "work", "-d")
    assert result.status == 0, banger.explain(("vm", "run"), result)
    files = len(ODD) + 10
    assert f"repository: {files} files, 4.0 MiB\n" in result.stderr, result.stderr
    assert "left behind: 1 untracked file (.env); --include-untracked brings them\n" in result.stderr
    # before this test's own git reads it
    assert not trap_of(repo).exists(), trap_of(repo).read_text()
    return "work"


def trap_of(repo: Repo) -> Path:
    """What hooks, filters and fsmonitor of the repository write to."""
    return repo.path.parent / "trapped"


def sh(banger: Instance, vm: str, script: str) -> str:
    return banger.ok("vm", "exec", vm, "--", "sh", "-c", script).text


def test_git_in_the_guest_agrees_with_the_hosts(banger: Instance, vm: str, repo: Repo) -> None:
    assert sh(
        banger, vm, "pwd; git fsck --full --strict 2>&1; git rev-parse HEAD; git branch --show-current"
    ) == (f"/root/repo\n{repo.head()}\nmain\n")
    status = sh(banger, vm, "git status --porcelain --untracked-files=all")
    assert sorted(status.splitlines()) == [" D gone", " M count", "A  staged"]
    log = "git log --format='%H %s' -- ."
    assert sh(banger, vm, log) == repo.git("log", "--format=%H %s", "--", ".")
    assert sh(banger, vm, "git ls-files -s") == repo.git("ls-files", "-s")


def test_files_are_as_they_are_on_the_host(banger: Instance, vm: str, repo: Repo) -> None:
    script = (
        "cat windows.txt; readlink link dangling; stat -c %a run.sh README; ./run.sh; sha256sum < big.bin"
    )
    assert sh(banger, vm, script).encode() == (
        b"one\r\ntwo\r\nREADME\n/nowhere\n755\n644\nit runs\n"
        + hashlib.sha256(BLOB).hexdigest().encode()
        + b"  -\n"
    )
    listed = banger.ok("vm", "exec", vm, "--", "sh", "-c", "git ls-files -z").stdout.split(b"\0")
    assert set(ODD) <= set(listed)
    for name in ODD:
        shown = banger.ok(
            "vm", "exec", vm, "--", "sh", "-c", 'cat -- "$(printf "%b" "$1")"', "x", escaped(name)
        )
        assert shown.stdout == name


def escaped(name: bytes) -> str:
    return "".join(f"\\0{byte:03o}" for byte in name)


def test_what_is_not_tracked_stays_at_home_and_so_do_hooks_and_filters(banger: Instance, vm: str) -> None:
    assert sh(banger, vm, "ls -A | grep -x -e .env -e junk.o || true") == ""
    assert "trap" not in sh(banger, vm, "cat .git/config; ls .git/hooks 2>/dev/null || true")


def test_the_record_is_shown(banger: Instance, vm: str, repo: Repo) -> None:
    workspace = banger.show(vm)["workspace"]
    assert isinstance(workspace, dict)
    assert workspace["repo_root"] == str(repo.path)
    assert (workspace["head_commit"], workspace["base_commit"]) == (repo.head(), repo.head())
    assert workspace["brought_commit"] != repo.head()
    assert workspace["branch_name"] == workspace["current_branch"] == "main"
    assert sh(banger, vm, "git rev-parse refs/banger/base").strip() == workspace["brought_commit"]
    assert " app " in banger.ok("vm", "list").text


def test_shell_and_sessions_start_in_it(banger: Instance, vm: str) -> None:
    assert banger.ok("vm", "shell", vm, stdin=b"pwd\n").text == "/root/repo\n"
    banger.ok("vm", "session", "start", vm, "--name", "where", "--", "pwd")
    assert banger.ok("vm", "session", "logs", "-f", vm, "where").text == "/root/repo\n"
    assert banger.ok("vm", "exec", "-u", "nobody", vm, "--", "true").stderr == ""


def test_a_second_one_takes_its_place_once_its_work_is_kept_and_follows_its_own_repository(
    banger: Instance, vm: str, plain: Repo
) -> None:
    refused = banger.banger("workspace", "prepare", vm, str(plain.path))
    assert refused.status == 1
    assert f"banger workspace prepare --replace {vm} {plain.path}" in refused.stderr
    sh(banger, vm, "echo precious > made-here; git add made-here; git commit -q -m 'made here'")
    made = sh(banger, vm, "git rev-parse HEAD").strip()
    replaced = banger.ok("workspace", "prepare", "--replace", vm, str(plain.path))
    assert replaced.text == f"{vm}:/root/repo\n"
    assert f"work of {vm} is kept: banger workspace pull {vm}" in replaced.stderr
    assert (
        sh(banger, vm, "ls -A; git status --porcelain; ls -A /root | grep banger-cp || true")
        == ".git\nREADME\n"
    )
    store = Path(banger.paths.work_dir) / str(banger.show(vm)["id"]) / "repo.git"
    banger.run_in_netns("git", "-C", str(store), "cat-file", "-e", made).require()

    # and follows its repository
    assert banger.ok("vm", "exec", vm, "--", "true").stderr == ""
    plain.write("README", "moved\n")
    before, after = plain.head(), plain.commit("the host moves on")
    moved = banger.ok("vm", "exec", vm, "--", "cat", "README")
    assert moved.text == "plain\n"
    assert f"warning: {plain.path} has moved on from {before[:7]} to {after[:7]}; " in moved.stderr
    assert len(moved.stderr.splitlines()) == 1
    sh(banger, vm, "echo mine > mine")
    refused = banger.banger("vm", "exec", "--auto-prepare", vm, "--", "true")
    assert refused.status == 125
    assert (
        f"banger workspace pull {vm}, then: banger workspace prepare --replace {vm} {plain.path}"
        in refused.stderr
    )
    sh(banger, vm, "rm mine")
    followed = banger.ok(
        "vm", "exec", "--auto-prepare", vm, "--", "sh", "-c", "cat README; git rev-parse HEAD"
    )
    assert followed.text == f"moved\n{after}\n"


def test_read_only_untracked_and_a_branch_of_the_guests_own(banger: Instance, vm: str, plain: Repo) -> None:
    plain.write(".env", "SECRET=1\n")
    words = ("--replace", "--readonly", "--include-untracked", "--branch", "fix")
    banger.ok("workspace", "prepare", *words, vm, str(plain.path))
    script = "cat .env; git branch --show-current; stat -c %a README .; test -w .git && echo writable"
    assert sh(banger, vm, script) == "SECRET=1\nfix\n444\n555\nwritable\n"
    (plain.path / ".env").unlink()


def test_metadata_only_has_the_history_and_no_file(banger: Instance, vm: str, plain: Repo) -> None:
    banger.ok("workspace", "prepare", "--replace", "--mode", "metadata_only", vm, str(plain.path))
    assert sh(banger, vm, "ls -A; git log --format=%H | head -1") == f".git\n{plain.head()}\n"
    head = plain.commit("the host moves on")
    assert banger.ok("vm", "exec", "--auto-prepare", vm, "--", "git", "rev-parse", "HEAD").text == f"{head}\n"


def test_a_full_copy_has_branches_tags_stash_and_submodules(
    banger: Instance, vm: str, tmp_path: Path
) -> None:
    inner = Repo(tmp_path / "inner", tmp_path / "home-of-ann")
    inner.write("inside", "inside\n")
    inner.commit("inner")
    outer = Repo(tmp_path / "outer", tmp_path / "home-of-ann")
    outer.write("outside", "outside\n")
    outer.commit("outer")
    outer.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner.path), "lib/inner")
    outer.commit("with a submodule")
    outer.git("tag", "v1")
    outer.git("branch", "other", "HEAD~1")
    outer.write("outside", "stashed\n")
    outer.git("stash", "-q")
    refused = banger.banger("workspace", "prepare", "--replace", vm, str(outer.path))
    assert refused.status == 1
    assert "--mode full_copy brings them along" in refused.stderr
    banger.ok("workspace", "prepare", "--replace", "--mode", "full_copy", vm, str(outer.path))
    script = "git fsck --full 2>&1; git status --porcelain; cat lib/inner/inside; git submodule status"
    assert sh(banger, vm, f"{script} | cut -d' ' -f-3") == f"inside\n {inner.head()} lib/inner\n"
    refs = "git rev-parse v1 other refs/stash"
    assert sh(banger, vm, refs) == outer.git("rev-parse", "v1", "other", "refs/stash")
    assert sh(banger, vm, "git -C lib/inner fsck --full 2>&1; git -C lib/inner status --porcelain") == ""


def test_dry_run_and_what_is_refused_make_no_vm(banger: Instance, plain: Repo, tmp_path: Path) -> None:
    before = [vm["id"] for vm in banger.vms()]
    dry = banger.ok("vm", "run", str(plain.path), "--dry-run")
    assert dry.text == "README\n"
    assert banger.banger("vm", "run", str(tmp_path), "--", "true").status == 125
    assert [vm["id"] for vm in banger.vms()] == before


def test_run_path_exits_as_the_command_and_goes_with_rm(banger: Instance, plain: Repo) -> None:
    before = [vm["id"] for vm in banger.vms()]
    done = banger.banger("vm", "run", "--rm", str(plain.path), "--", "sh", "-c", "pwd; cat README; exit 42")
    assert done.status == 42, banger.explain(("vm", "run"), done)
    assert done.text == "/root/repo\n" + (plain.path / "README").read_text()
    assert [vm["id"] for vm in banger.vms()] == before


@pytest.fixture(scope="module")
def bare(banger: Instance, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image without git, mv or rm: of busybox's commands there are few."""
    demand("umoci", "busybox")
    folder = tmp_path_factory.mktemp("bare")
    base = busybox_tree(folder / "base")
    make_layout(folder / "layout", "bare", [base], {})
    archive = shutil.make_archive(str(folder / "bare"), "tar", folder / "layout")
    banger.ok("image", "pull", "--file", archive, "--name", "bare")
    return "bare"


def test_a_folder_that_was_not_bangers_is_put_aside(
    banger: Instance, bare: str, plain: Repo, tmp_path: Path
) -> None:
    done = banger.ok("vm", "run", "--image", bare, "--name", "bare", str(plain.path), "--", "pwd")
    assert done.text == "/root/repo\n"
    assert banger.ok("vm", "exec", "bare", "--", "cat", "README", ".git/HEAD").text == (
        f"{(plain.path / 'README').read_text()}ref: refs/heads/main\n"
    )
    banger.ok("workspace", "prepare", "--replace", "bare", str(plain.path))
    assert banger.ok("vm", "exec", "bare", "--", "ls", "-A").text == ".git\nREADME\n"
    assert "banger-cp" not in banger.ok("vm", "exec", "bare", "--", "ls", "-A", "/root").text
    banger.ok("vm", "delete", "bare")
    # a folder that nobody brought
    banger.ok("vm", "run", "--image", bare, "--name", "bare", "-d")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "note").write_text("mine")
    banger.ok("vm", "cp", str(tmp_path / "own"), "bare:/root/repo")
    aside = banger.ok("workspace", "prepare", "--replace", "bare", str(plain.path)).stderr
    there = banger.ok("vm", "exec", "bare", "--", "ls", "/root").text.split()
    (before,) = [name for name in there if name.startswith("repo.before-")]
    assert f"what was at /root/repo is at /root/{before} now" in aside
    assert banger.ok("vm", "exec", "bare", "--", "cat", f"/root/{before}/note").text == "mine"
    banger.ok("vm", "delete", "bare")


def test_one_that_does_not_fit_leaves_the_vm_without_it(banger: Instance, bare: str, tmp_path: Path) -> None:
    big = Repo(tmp_path / "big", tmp_path / "home-of-ann")
    big.write("zeros", bytes(80 << 20))
    big.commit()
    small = ("--image", bare, "--disk-size", "64M", str(big.path))
    failed = banger.banger("vm", "run", "--name", "small", "-d", *small)
    assert failed.status == 1
    assert "the repository could not be brought into small: in the guest: " in failed.stderr
    again = f"banger vm set small --disk-size SIZE, then: banger workspace prepare small {big.path}"
    assert f"small runs without it: {again}\n" in failed.stderr
    assert "workspace" not in banger.show("small")
    left = banger.ok("vm", "exec", "small", "--", "ls", "-A", "/root").text.split()
    assert not [name for name in left if name == "repo" or "banger" in name]
    banger.ok("vm", "delete", "small")
