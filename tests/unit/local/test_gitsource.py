"""What is refused before a VM is made, and that nothing of a repository's is run by looking at it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from banger.errors import BangerError, ErrorCode
from banger.local.account import Account
from banger.local.gitconfig import clean_url, quote
from banger.local.githead import host_moved
from banger.local.gitplan import plan
from banger.local.gitsource import examine
from banger.local.gittravel import open_travel
from tests.unit.local.gitrepos import Repo, arrive, fingerprint, make


def refused(path: Path | str, repo: Repo, **options: object) -> BangerError:
    with pytest.raises(BangerError) as caught:
        examine(str(path), account=repo.account(), **options)  # type: ignore[arg-type]
    assert caught.value.hint, caught.value.brief
    return caught.value


def test_what_is_no_repository(tmp_path: Path) -> None:
    repo = make(tmp_path)
    assert refused(tmp_path / "missing", repo).code is ErrorCode.NOT_FOUND
    assert "is no folder" in refused(repo.path / "a.txt", repo).brief
    (tmp_path / "plain").mkdir()
    assert "is not in a git repository" in refused(tmp_path / "plain", repo).brief
    assert "inside a repository's .git" in refused(repo.path / ".git/refs", repo).brief
    repo.git("clone", "-q", "--bare", ".", str(tmp_path / "bare.git"))
    assert "is a bare repository" in refused(tmp_path / "bare.git", repo).brief


def test_a_branch_without_a_commit(tmp_path: Path) -> None:
    repo = Repo(tmp_path / "site", tmp_path / "home")
    assert "branch main has no commit yet" in refused(repo.path, repo).brief


def test_object_ids_of_another_kind(tmp_path: Path) -> None:
    repo = Repo(tmp_path / "site", tmp_path / "home", init=False)
    repo.git("init", "-q", "--object-format=sha256")
    repo.commit()
    assert "sha256" in refused(repo.path, repo).brief


def test_a_broken_repository_is_said_in_gits_words(tmp_path: Path) -> None:
    repo = make(tmp_path)
    (repo.path / ".git/config").write_text("[core\n")
    with pytest.raises(BangerError, match="bad config line 1") as caught:
        examine(str(repo.path), account=repo.account())
    assert caught.value.code is ErrorCode.COMMAND_FAILED


@pytest.mark.parametrize("name", ["a..b", "-x", "a b", "x.lock", "@", "a/", "", "@{-1}", "a\nb", "ü:x"])
def test_names_of_branches(tmp_path: Path, name: str) -> None:
    repo = make(tmp_path)
    repo.git("switch", "-q", "-c", "other")
    repo.git("switch", "-q", "main")
    if name:
        assert "no name for a branch" in refused(repo.path, repo, branch=name).brief
    else:
        assert examine(str(repo.path), branch=name, account=repo.account()).branch_name == "main"


def test_refs_and_combinations(tmp_path: Path) -> None:
    repo = make(tmp_path)
    repo.commit("second")
    assert refused(repo.path, repo, branch="x", from_ref="nowhere").code is ErrorCode.NOT_FOUND
    assert refused(repo.path, repo, branch="x", from_ref="--all").code is ErrorCode.NOT_FOUND
    assert refused(repo.path, repo, branch="x", from_ref="HEAD:a.txt").code is ErrorCode.NOT_FOUND
    assert "--branch" in str(refused(repo.path, repo, from_ref="HEAD").hint)
    refused(repo.path, repo, mode="everything")
    refused(repo.path, repo, mode="metadata_only", readonly=True)
    refused(repo.path, repo, mode="metadata_only", include_untracked=True)
    refused(repo.path, repo, branch="x", from_ref="HEAD~1", include_untracked=True)
    repo.git("branch", "taken/deep", "HEAD~1")
    refused(repo.path, repo, branch="taken/deep", mode="full_copy")
    refused(repo.path, repo, branch="taken", mode="full_copy")
    refused(repo.path, repo, branch="taken/deep/er", mode="full_copy")
    source = examine(
        str(repo.path), branch="taken/deep", from_ref="taken/deep", mode="full_copy", account=repo.account()
    )
    assert (source.branch_name, source.local_files) == ("taken/deep", False)


def test_a_partial_clone(tmp_path: Path) -> None:
    origin = make(tmp_path, "origin")
    origin.write("a.txt", "two\n")
    origin.commit()
    origin.git("config", "uploadpack.allowFilter", "true")
    repo = Repo(tmp_path / "site", tmp_path / "home", init=False)
    repo.git("clone", "-q", "--filter=blob:none", f"file://{origin.path}", ".")
    before = fingerprint(repo.path)
    source = examine(str(repo.path), account=repo.account())
    with pytest.raises(BangerError) as caught, open_travel(source):
        pass
    error = caught.value
    assert "partial clone" in error.brief
    assert fingerprint(repo.path) == before  # nothing was fetched
    # the hint's command does it
    repo.git(*str(error.hint).partition(f"git -C {repo.path} ")[2].split())
    guest, _ = arrive(examine(str(repo.path), account=repo.account()), tmp_path / "guest")
    assert guest.git("fsck") == ""


def test_what_a_plan_says(tmp_path: Path) -> None:
    repo = make(tmp_path)
    repo.write("ä/b", "1234")
    repo.commit()
    repo.write("untracked/x", "")
    repo.write("untracked/y", "")
    repo.write(".env", "")
    found = plan(examine(str(repo.path), account=repo.account()))
    assert found.files == ("a.txt", "ä/b")
    assert found.bytes == 8
    assert found.untracked_left == (".env", "untracked/")
    found = plan(examine(str(repo.path), include_untracked=True, account=repo.account()))
    assert found.files == (".env", "a.txt", "untracked/x", "untracked/y", "ä/b")
    assert found.untracked_left == ()


# nothing of the repository's is run


HOOKS = (
    *("post-checkout", "post-index-change", "reference-transaction", "pre-auto-gc", "fsmonitor-watchman"),
    *("pre-commit", "post-commit", "commit-msg", "prepare-commit-msg", "post-rewrite"),
)


def trapped(repo: Repo, marks: Path, config: Path) -> None:
    """Everything that git can be told to run, each leaving a mark of its own."""
    marks.mkdir(exist_ok=True)

    def trap(name: str) -> str:
        script = marks.parent / f"trap-{name}"
        script.write_text(f'#!/bin/sh\ntouch "{marks}/{name}"\ncat\nexit 0\n')
        script.chmod(0o755)
        return str(script)

    settings = {
        "core.hooksPath": str(marks.parent / "hooks"),
        "core.fsmonitor": trap("fsmonitor"),
        "core.pager": trap("pager"),
        "core.editor": trap("editor"),
        "core.askPass": trap("askpass"),
        "core.sshCommand": trap("ssh"),
        "core.gitProxy": trap("proxy"),
        "core.alternateRefsCommand": trap("alternates"),
        "credential.helper": trap("credential"),
        "diff.external": trap("external"),
        "diff.evil.textconv": trap("textconv"),
        "diff.evil.command": trap("diffcommand"),
        "merge.evil.driver": trap("merge"),
        "gpg.program": trap("gpg"),
        "log.showSignature": "true",
        "uploadpack.packObjectsHook": trap("packhook"),
        "remote.origin.url": "ext::" + trap("ext"),
        "remote.origin.uploadpack": trap("uploadpack"),
        "remote.origin.promisor": "true",
        "protocol.ext.allow": "always",
        "alias.ls-files": "!" + trap("alias"),
        "alias.rev-parse": "!" + trap("alias"),
        "sequence.editor": trap("sequence"),
        "trailer.x.command": trap("trailer"),
    }
    for kind in ("clean", "smudge", "process"):
        settings[f"filter.evil.{kind}"] = settings[f"filter.a=b c.{kind}"] = trap(f"filter-{kind}")
    settings["filter.evil.required"] = "true"
    for key, value in settings.items():
        repo.git("config", "--file", str(config), key, value)
    hooks = marks.parent / "hooks"
    hooks.mkdir(exist_ok=True)
    own = repo.path / ".git/hooks"
    for name in HOOKS:
        for folder in (hooks, own):
            if folder.is_dir():
                shutil.copy(trap(f"hook-{name}"), folder / name)


@pytest.mark.parametrize("where", ["repository", "include", "user"])
@pytest.mark.parametrize("mode", ["shallow_overlay", "full_copy", "metadata_only", "from"])
def test_nothing_of_the_repository_is_run(tmp_path: Path, where: str, mode: str) -> None:
    repo = make(tmp_path)
    inner = make(tmp_path, "inner")
    repo.write(".gitattributes", "*.txt filter=evil diff=evil merge=evil\n*.md filter=a=b\n* ident\n")
    repo.write("b.txt", "two\n")
    repo.write("c.md", "three\n")
    repo.commit()
    repo.commit()
    repo.git("branch", "empty", repo.git("commit-tree", "-m", "x", repo.head("HEAD~1^{tree}")).strip())
    if mode == "full_copy":
        repo.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner.path), "sub")
        repo.git("commit", "-q", "-m", "sub")
    repo.write("b.txt", "changed\n")
    repo.write("a.txt", "staged\n")
    repo.git("add", "a.txt")
    os.utime(repo.path / "c.md", (1, 1))  # looks changed
    repo.write("new.txt", "untracked\n")
    marks = tmp_path / "marks"
    config = tmp_path / "home/.gitconfig" if where == "user" else repo.path / ".git/config"
    if where == "include":
        repo.git("config", "include.path", str(tmp_path / "included"))
        config = tmp_path / "included"
    trapped(repo, marks, config)
    if mode == "full_copy":
        module = repo.path / ".git/modules/sub"
        (module / "info").mkdir(exist_ok=True)
        (module / "info/attributes").write_text("* filter=evil diff=evil\n")
        Repo(repo.path / "sub", repo.home, init=False).write("a.txt", "changed in it\n")
        trapped(repo, marks, module / "config")
    before = fingerprint(repo.path)
    account = repo.account(GIT_EXTERNAL_DIFF="false", GIT_TRACE=str(marks / "trace"), GIT_DIR="/nowhere")
    options = {"branch": "x", "from_ref": "empty"} if mode == "from" else {"mode": mode}
    if mode in ("shallow_overlay", "full_copy"):
        options["include_untracked"] = True  # type: ignore[assignment]
    source = examine(str(repo.path), account=account, **options)  # type: ignore[arg-type]
    plan(source)
    guest, travel = arrive(source, tmp_path / "guest")
    assert os.listdir(marks) == []
    assert fingerprint(repo.path) == before
    host_moved(str(repo.path), source.head_commit, account)
    assert os.listdir(marks) == []
    kept = (guest.path / ".git/config").read_text()
    assert "trap" not in kept
    assert not (guest.path / ".git/hooks").exists()
    if mode in ("shallow_overlay", "full_copy"):
        assert any("filter 'evil'" in note for note in travel.plan.notes)
        brought = travel.workspace["brought_commit"]
        assert guest.git("show", f"{brought}:b.txt") == "changed\n"


def test_filtered_files_travel_as_they_lie(tmp_path: Path) -> None:
    """As large files do: what is stored is not what lies in the work tree, and the guest has no filter."""
    repo = make(tmp_path)
    repo.git("config", "filter.rot.clean", "tr a-y b-z")
    repo.git("config", "filter.rot.smudge", "tr b-z a-y")
    repo.write(".gitattributes", "*.rot filter=rot\n")
    repo.write("x.rot", "abc\n")
    repo.commit()
    assert repo.git("show", "HEAD:x.rot") == "bcd\n"
    assert repo.status() == [""]
    guest, travel = arrive(examine(str(repo.path), account=repo.account()), tmp_path / "guest")
    assert (guest.path / "x.rot").read_text() == "abc\n"
    brought = travel.workspace["brought_commit"]
    assert guest.git("show", f"{brought}:x.rot") == "abc\n"
    assert guest.git("diff", brought) == ""


# whether the host has moved


def test_host_moved(tmp_path: Path) -> None:
    repo = make(tmp_path)
    first = repo.head()
    account = repo.account()
    root = str(repo.path)
    assert host_moved(root, first, account) == first
    second = repo.commit()
    assert host_moved(root, first, account) == second
    repo.git("pack-refs", "--all")
    assert host_moved(root, first, account) == second
    repo.git("worktree", "add", "-q", "--detach", str(tmp_path / "linked"), first)
    assert host_moved(str(tmp_path / "linked"), first, account) == first
    repo.git("symbolic-ref", "refs/heads/alias", "refs/heads/main")
    repo.git("symbolic-ref", "HEAD", "refs/heads/alias")
    assert host_moved(root, first, account) == second
    repo.git("checkout", "-q", "--detach", first)
    assert host_moved(root, first, account) == first
    repo.git("symbolic-ref", "HEAD", "refs/heads/unborn")
    assert host_moved(root, first, account) == ""
    shutil.rmtree(repo.path / ".git")
    assert host_moved(root, first, account) == ""
    assert host_moved(str(tmp_path / "gone"), first, account) == ""


def test_host_moved_runs_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = make(tmp_path)
    monkeypatch.setattr("banger.local.git.Git.run", lambda *_: pytest.fail("git was run"))
    assert host_moved(str(repo.path), "", repo.account()) == repo.head()


def test_what_urls_may_say() -> None:
    assert clean_url("https://u:p@example.org/x") == "https://example.org/x"
    assert clean_url("https://token@example.org/x@y") == "https://example.org/x@y"
    assert clean_url("ssh://git:pw@example.org/x") == "ssh://git@example.org/x"
    assert clean_url("git@example.org:x") == "git@example.org:x"
    assert clean_url("/srv/x") == clean_url("file:///srv/x") == clean_url("../x") == clean_url("x") == ""
    assert clean_url("ext::sh -c x") == clean_url("ext://x") == clean_url("a::b") == clean_url("-x:y z") == ""
    assert quote('a"\\\n') == '"a\\"\\\\\\n"'


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_under_sudo_all_is_done_as_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = make(tmp_path)
    repo.write("private", "mine\n", 0o600)
    repo.commit()
    repo.write("private", "changed\n", 0o600)
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/tmp") and folder.is_relative_to("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o111)
    uid = 65534
    for one in (repo.path, repo.home, *repo.path.rglob("*")):
        os.chown(one, uid, uid, follow_symlinks=False)
    mine = tmp_path / "tmp"
    mine.mkdir(mode=0o777)
    mine.chmod(0o777)
    env = {"HOME": str(repo.home), "PATH": os.environ["PATH"], "TMPDIR": str(mine)}
    account = Account(home=str(repo.home), env=env, uid=uid, gid=uid)
    monkeypatch.setattr("pwd.getpwuid", lambda _uid: type("Entry", (), {"pw_name": "nobody"}))
    guest, travel = arrive(examine(str(repo.path), account=account), tmp_path / "guest")
    assert os.geteuid() == 0
    assert (guest.path / "private").read_text() == "changed\n"
    assert travel.workspace["brought_commit"] != travel.workspace["base_commit"]
    assert os.listdir(mine) == []
    assert {one.lstat().st_uid for one in repo.path.rglob("*")} == {uid}
    # what only root may read does not travel by way of the caller's repository
    (repo.path / "a.txt").unlink()
    repo.write("a.txt", "root's", 0o600)
    with pytest.raises(BangerError, match="cannot read"):
        arrive(examine(str(repo.path), account=account), tmp_path / "guest2")
    # one that is root's is refused for the caller, as git refuses it
    os.chown(repo.path, 0, 0)
    with pytest.raises(BangerError, match="belongs to somebody else") as caught:
        examine(str(repo.path), account=account)
    assert "safe.directory" in str(caught.value.hint)
