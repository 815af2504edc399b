"""`workspace status`, `export`, `pull`, `list` and `rm` on real git and a daemon's routes about kept work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.cli import main, state
from banger.cli.vm_workspace_out import complete_work
from tests.fakes.keptwork import ENV, KeptWork, commit, git, git_raw, repository
from tests.fakes.workdaemon import WorkDaemon
from tests.unit.cli.terminals import program_on_a_terminal, read_until

BINARY = bytes(range(256)) * 3


class Said:
    def __init__(self, status: int, out: bytes, err: bytes) -> None:
        self.status = status
        self.out = out
        self.err = err.decode()

    @property
    def text(self) -> str:
        return self.out.decode()


class Desk:
    """A user at their repository, a guest with a clone, and the daemon between them."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[bytes]) -> None:
        self.folder = folder
        self.user = repository(folder / "user")
        self.guest = folder / "guest"
        git(folder, "clone", "-q", str(self.user), str(self.guest))
        self.work = KeptWork(self.guest, self.user)
        self.daemon = WorkDaemon(self.work)
        self._capture = capture

    def __call__(self, *argv: str, status: int = 0) -> Said:
        self._capture.readouterr()
        found = main.run(["vm", "workspace", *argv])
        said = self._capture.readouterr()
        state.quiet = False
        assert found == status, (said.out, said.err)
        return Said(found, said.out, said.err)


@pytest.fixture
def desk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Iterator[Desk]:
    made = Desk(tmp_path, capsysbinary)
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BANGER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(made.user)
    with made.daemon.serving(tmp_path / "home/run/bangerd.sock"):
        yield made


def typed(text: str, folder: Path) -> list[str]:
    """What a pull says to type, typed: every line that is four blanks in."""
    commands = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    for command in commands:
        done = subprocess.run(
            ["sh", "-c", command], cwd=folder, env=ENV, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
    return commands


def test_pull_says_what_came_and_the_commands_it_names_work(desk: Desk) -> None:
    git(desk.guest, "switch", "-q", "-c", "fix/it")
    wanted = commit(desk.guest, "four", message="Fix \x1b[31mit")
    (desk.guest / "five").write_text("not committed")
    (desk.guest / "one").unlink()
    said = desk("pull", "web")
    assert f"{desk.user}: 2 refs below refs/banger/web/\n" in said.text
    assert "Fix \\x1b[31mit" in said.text
    assert "\x1b" not in said.text
    commands = typed(said.text, desk.user)
    assert commands == [
        "git log --oneline HEAD..refs/banger/web/heads/fix/it",
        "git switch -c fix/it refs/banger/web/heads/fix/it",
        "git diff HEAD refs/banger/web/worktree",
        "git restore --source=refs/banger/web/worktree --worktree .",
    ]
    assert git(desk.user, "rev-parse", "HEAD") == wanted
    assert git(desk.user, "branch", "--show-current") == "fix/it"
    assert (desk.user / "five").read_text() == "not committed"
    assert not (desk.user / "one").exists()
    again = desk("pull", "web")
    assert f"{desk.user} has all of it already, below refs/banger/web/\n" in again.text


def test_work_on_the_users_own_branch_is_merged_or_a_branch_beside_it(desk: Desk, tmp_path: Path) -> None:
    wanted = commit(desk.guest, "four")
    elsewhere = tmp_path / "a clone"
    git(tmp_path, "clone", "-q", str(desk.user), str(elsewhere))
    said = desk("pull", "web", str(elsewhere))
    commands = [line[4:] for line in said.text.splitlines() if line.startswith("    ")]
    assert commands == [
        f"cd '{elsewhere}'",
        "git log --oneline HEAD..refs/banger/web/heads/main",
        "git merge refs/banger/web/heads/main",
        "git switch -c web-main refs/banger/web/heads/main",
    ]
    typed(said.text, elsewhere)
    assert git(elsewhere, "rev-parse", "main", "web-main").split() == [wanted, wanted]
    assert git(desk.user, "for-each-ref", "refs/banger") == ""


def test_a_stash_and_a_detached_head_can_be_used_as_the_output_says(desk: Desk) -> None:
    (desk.guest / "one").write_text("stashed")
    git(desk.guest, "stash")
    git(desk.guest, "checkout", "-q", "--detach")
    wanted = commit(desk.guest, "four")
    said = desk("pull", "web")
    typed(said.text, desk.user)
    assert git(desk.user, "branch", "--show-current") == "web"
    assert git(desk.user, "rev-parse", "HEAD") == wanted
    assert (desk.user / "one").read_text() == "stashed"


def test_pull_into_a_new_clone(desk: Desk, tmp_path: Path) -> None:
    wanted = commit(desk.guest, "four")
    said = desk("pull", "web", "--into", str(tmp_path / "new"))
    assert f"{tmp_path / 'new'}: a new clone of the work\n" in said.text
    typed(said.text, tmp_path / "new")
    assert git(tmp_path / "new", "rev-parse", "HEAD") == wanted
    assert "exists and is not empty" in desk("pull", "web", "--into", str(tmp_path / "new"), status=1).err
    assert "--into for a new one" in desk("pull", "web", ".", "--into", "x", status=2).err


def test_pull_from_where_the_base_is_not_names_into(desk: Desk, tmp_path: Path) -> None:
    commit(desk.guest, "four")
    other = repository(tmp_path / "other")
    commit(other, "different")
    desk.work.base = commit(desk.guest, "five")
    commit(desk.guest, "six")
    said = desk("pull", "web", str(other), status=1)
    assert "does not have the commit" in said.err
    assert "banger workspace pull web --into DIR" in said.err


def test_pull_as_json_is_raw(desk: Desk) -> None:
    wanted = commit(desk.guest, "four")
    told = json.loads(desk("pull", "web", "--json").out)
    assert told == {
        "path": str(desk.user),
        "prefix": "refs/banger/web/",
        "moved": [{"name": "heads/main", "before": "", "after": wanted}],
        "former": [],
        "submodules": [],
        "left_out": [],
    }


def test_what_is_left_out_is_said(desk: Desk, tmp_path: Path) -> None:
    commit(desk.guest, "four")
    strange = repository(tmp_path / "strange")
    commit(strange, "strange")
    git(desk.guest, "fetch", "-q", "--depth=1", f"file://{strange}", "main")
    desk.work.cut.append(git(desk.guest, "rev-parse", "FETCH_HEAD"))
    git(desk.guest, "branch", "theirs", "FETCH_HEAD")
    said = desk("pull", "web", status=1)
    assert "1 ref below refs/banger/web/" in said.text
    assert f"are not in {desk.user}: heads/theirs\n  banger workspace pull web --into DIR" in said.err
    typed(said.text, desk.user)
    assert "1 of 2 refs are pulled" in desk("status", "web").text


def test_a_rebase_in_the_guest_says_where_the_former_tip_is(desk: Desk) -> None:
    former = commit(desk.guest, "four")
    desk("pull", "web")
    git(desk.guest, "commit", "-q", "--amend", "-m", "another")
    said = desk("pull", "web").text
    (line,) = [line for line in said.splitlines() if line.startswith("what is in nothing newer is kept as ")]
    assert git(desk.user, "rev-parse", line.rpartition(" ")[2]) == former
    assert "moved" in said


def test_the_work_of_a_deleted_vm_is_pulled_exported_shown_and_removed(desk: Desk) -> None:
    wanted = commit(desk.guest, "four")
    desk.work.vm_exists = False
    desk.daemon.vms.clear()
    assert "web (deleted; its work is kept)" in desk("status", "web").text
    assert desk("export", "web").out == desk.work.patch()
    desk("pull", "web")
    assert git(desk.user, "rev-parse", "refs/banger/web/heads/main") == wanted
    assert desk("list").text.splitlines()[1].endswith("  deleted")
    assert "there is nobody to ask: give -f" in desk("rm", "web", status=2).err
    assert not any("keep" in line for line in desk.daemon.asked)
    done = desk("rm", "-f", "web", "web", "gone", status=1)
    assert (done.text, "no such VM: gone" in done.err) == ("web\n", True)
    assert desk.daemon.works == {}
    assert "no such VM: web" in desk("pull", "web", status=1).err


def test_the_work_of_a_vm_that_is_there_is_not_removed(desk: Desk) -> None:
    assert "VM web is there" in desk("rm", "-f", "web", status=1).err
    assert json.loads(desk("rm", "-f", "--json", "web", status=1).out) == []


def test_rm_asks_on_a_terminal(desk: Desk) -> None:
    desk.work.vm_exists = False
    env = {**os.environ, "TERM": "dumb"}
    words = [sys.executable, "-m", "banger", "workspace", "rm", "web"]
    for answer, left in ((b"n\n", {"web"}), (b"y\n", set[str]())):
        with program_on_a_terminal(*words, env=env) as (pid, ours):
            seen = read_until(ours, b"for good? [y/N]: ")
            assert b"NAME" in seen
            os.write(ours, answer)
            os.waitpid(pid, 0)
        assert set(desk.daemon.works) == left


def test_status_says_what_is_where_and_what_to_type(desk: Desk) -> None:
    assert desk("status", "web").text.endswith("nothing in it is new: there is nothing to pull\n")
    commit(desk.guest, "four")
    said = desk("status", "web")
    assert "keeping the work in web" in said.err
    fields = dict(line.split("  ", 1) for line in said.text.splitlines() if "  " in line)
    assert fields["in the guest"].strip().startswith("branch main at ")
    assert "1 new commit; 1 file untracked" in fields["in the guest"]
    assert fields["kept on this host"].strip().endswith("by the guest's git: 1 ref")
    assert fields["in your repository"].strip() == "not pulled yet"
    assert said.text.endswith("\nnext: banger workspace pull web\n")
    (row,) = [line for line in said.text.splitlines() if line.startswith("heads/main ")]
    assert row.endswith("missing")
    desk("pull", "web")
    commit(desk.user, "moved")
    said = desk("status", "web")
    assert "all of it, below refs/banger/web/" in said.text
    assert "it moved on since: it is at" in said.text
    command = said.text.splitlines()[-1].removeprefix("next: ")
    assert (
        "write four" in subprocess.run(["sh", "-c", command], capture_output=True, check=True).stdout.decode()
    )
    told = json.loads(desk("status", "web", "--json").out)
    assert told["repository"] == {
        "path": str(desk.user),
        "head": git(desk.user, "rev-parse", "HEAD"),
        "moved_on": True,
        "pulled": ["heads/main"],
        "present": ["heads/main"],
    }


def test_older_states_are_one_line_until_all_are_asked_for(desk: Desk) -> None:
    tip = commit(desk.guest, "four")
    older = [f"old/202611{day:02}T120000Z/worktree" for day in range(1, 15)]
    desk.work.old = dict.fromkeys(older, git(desk.guest, "commit-tree", "HEAD^{tree}", "-m", "older"))
    line = "… and 14 older states (old/…); --all lists them"
    for command in ("status", "pull"):
        git(desk.user, "update-ref", "-d", "refs/banger/web/heads/main")
        for name in older:
            git(desk.user, "update-ref", "-d", f"refs/banger/web/{name}")
        said = desk(command, "web").text.splitlines()
        assert line in said
        assert [row.split()[0] for row in said if row.startswith(("heads/", "old/"))] == ["heads/main"]
        if command == "pull":
            listed = git(desk.user, "for-each-ref", "--format=%(refname)", "refs/banger/web/old/")
            assert listed.splitlines() == [f"refs/banger/web/{name}" for name in older]
            for name in older:
                git(desk.user, "update-ref", "-d", f"refs/banger/web/{name}")
        said = desk(command, "web", "--all").text.splitlines()
        assert [row.split()[0] for row in said if row.startswith("old/")] == older
        assert line not in said
    told = json.loads(desk("status", "web", "--json").out)
    assert [ref["name"] for ref in told["refs"]] == ["heads/main", *older]
    desk.work.old = {older[0]: tip}
    said = desk("status", "web").text.splitlines()
    assert "… and 1 older state (old/…); --all lists it" in said


def test_status_where_the_repository_is_gone(desk: Desk, tmp_path: Path) -> None:
    commit(desk.guest, "four")
    desk.work.user = tmp_path / "gone"
    said = desk("status", "web")
    assert "not to be found: " in said.text
    assert "next: banger workspace pull web --into DIR" in said.text
    assert "problem" in json.loads(desk("status", "web", "--json").out)["repository"]


def test_what_cannot_be_kept_now_leaves_what_was_kept_before(desk: Desk) -> None:
    commit(desk.guest, "four")
    desk.daemon.keep_fails = {
        "code": "work_not_kept",
        "brief": "the work of web could not be kept: its disk is \x1b[31mred",
        "hint": "something else",
    }
    for command in ("pull", "export"):
        said = desk(command, "web", status=1)
        assert "could not be kept: its disk is \\x1b[31mred" in said.err
        hint = said.err.splitlines()[-1].partition(" is there: ")[2]
        assert hint == f"banger vm workspace {command} --no-keep web"
        desk(*hint.split()[3:])
    said = desk("status", "web", status=1)
    assert "what follows is what was kept" in said.err
    assert "all of it, below refs/banger/web/" in said.text


def changed_in_every_way(desk: Desk) -> None:
    """In the guest, all that a patch can carry."""
    commit(desk.user, "moves", "a long text\nof some lines\nthat is known again\n")
    (desk.user / "crlf").write_bytes(b"one\r\ntwo\r\n")
    (desk.user / "binary").write_bytes(BINARY)
    (desk.user / "link").symlink_to("one")
    (desk.user / 'new\nline \xe9\t"name').write_text("x\n")
    git(desk.user, "add", "-A")
    git(desk.user, "commit", "-q", "-m", "more")
    git(desk.guest, "pull", "-q", "origin", "main")
    desk.work.base = git(desk.guest, "rev-parse", "HEAD")
    commit(desk.guest, "committed")
    git(desk.guest, "mv", "moves", "moved")
    git(desk.guest, "commit", "-q", "-m", "rename")
    (desk.guest / "crlf").write_bytes(b"one\r\ntwo\r\nthree\r\n")
    (desk.guest / "binary").write_bytes(BINARY[::-1])
    (desk.guest / "link").unlink()
    (desk.guest / "link").symlink_to("two")
    (desk.guest / 'new\nline \xe9\t"name').write_text("y\n")
    (desk.guest / "two").chmod(0o755)
    (desk.guest / "three").unlink()
    (desk.guest / "untracked\n1").write_bytes(b"\0\1")
    (desk.guest / "empty").touch()


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            os.readlink(path).encode() if path.is_symlink() else path.read_bytes(),
        )
        for path in folder.rglob("*")
        if ".git" not in path.parts and (path.is_file() or path.is_symlink())
    }


def test_an_exported_patch_applies_and_makes_the_files_the_guests(desk: Desk, tmp_path: Path) -> None:
    changed_in_every_way(desk)
    to_file = tmp_path / "web.patch"
    assert desk("export", "web", "-o", str(to_file)).out == b""
    patch = desk("export", "web", "-o", "-").out
    assert patch == to_file.read_bytes() == desk("export", "web", "--no-keep").out
    done = git_raw(desk.user, "apply", stdin=patch)
    assert done.returncode == 0, done.stderr
    assert files(desk.user) == files(desk.guest)
    assert [path.name for path in tmp_path.iterdir() if "banger-" in path.name] == []


def test_an_empty_patch_says_so(desk: Desk) -> None:
    said = desk("export", "web")
    assert said.out == b""
    assert said.err.endswith("nothing in web differs from what was brought: the patch is empty\n")


def test_export_from_a_commit(desk: Desk) -> None:
    first = commit(desk.guest, "four")
    commit(desk.guest, "five")
    patch = desk("export", "web", "--base-commit", first).text
    assert "five" in patch
    assert "four" not in patch
    # older than what was brought: the user's own repository has it, the work that is kept has not
    older = git(desk.user, "rev-parse", "HEAD~1")
    assert not desk.work.has(older)
    whole = desk("export", "web", "--base-commit", "HEAD~1").out
    clone = desk.folder / "clone"
    git(desk.folder, "clone", "-q", str(desk.user), str(clone))
    git(clone, "checkout", "-q", older)
    assert git_raw(clone, "apply", stdin=whole).returncode == 0
    assert files(clone) == files(desk.guest)
    (desk.guest / "six").write_text("not committed")
    assert b"six" in desk("export", "web", "--base-commit", older).out
    assert git(desk.user, "for-each-ref", "refs/banger") == ""
    assert "no such VM: " + "12" * 20 in desk("export", "web", "--base-commit", "12" * 20, status=1).err
    for wrong in ("--output=/etc/x", "HEAD~999", "1234567", "\x1b[31m"):
        said = desk("export", "web", f"--base-commit={wrong}", status=2)
        assert "is no commit of the repository that was brought" in said.err


def test_export_that_breaks_off_prints_nothing_and_leaves_the_file_as_it_was(
    desk: Desk, tmp_path: Path
) -> None:
    commit(desk.guest, "four")
    desk.daemon.break_off = True
    place = tmp_path / "out.patch"
    place.write_text("before")
    assert desk("export", "web", status=1).out == b""
    desk("export", "web", "-o", str(place), status=1)
    assert place.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["guest", "home", "out.patch", "user"]
    desk.daemon.break_off = False
    assert "is a directory" in desk("export", "web", "-o", str(tmp_path), status=2).err
    assert "cannot be written" in desk("export", "web", "-o", str(tmp_path / "no/x"), status=1).err
    link = tmp_path / "link"
    link.symlink_to(place)
    desk("export", "web", "-o", str(link))
    assert place.read_bytes() == desk.work.patch()
    assert link.is_symlink()
    desk("export", "web", "-o", "/dev/null")


def test_a_patch_on_a_terminal_is_escaped(desk: Desk) -> None:
    (desk.guest / "one").write_text("\x1b]0;title\x07\n")
    env = {**os.environ, "TERM": "dumb"}
    words = [sys.executable, "-m", "banger", "workspace", "export", "web"]
    with program_on_a_terminal(*words, env=env) as (_pid, ours):
        seen = read_until(ours, b"title\\x07")
    assert b"\x1b]0" not in seen


def test_list(desk: Desk) -> None:
    commit(desk.guest, "four")
    header, row = desk("list").text.splitlines()
    assert header.split() == ["NAME", "REPOSITORY", "BRANCH", "COMMITS", "FILES", "KEPT", "VM"]
    assert row.split()[:5] == ["web", "user", "main", "1", "1"]
    assert row.split()[-1] == "there"
    assert desk("list", "-q").text == f"{desk.work.vm_id}\n"
    assert json.loads(desk("list", "--json").out) == [desk.work.work()]


def test_names_of_vms_and_of_kept_work_complete(desk: Desk) -> None:
    import click

    context = click.Context(click.Command("x"))
    parameter = click.Argument(["vm"])
    desk.daemon.vms = {"wide", "other"}
    assert [item.value for item in complete_work(context, parameter, "w")] == ["web", "wide"]


def test_notes_are_said_and_escaped(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    before = desk.work.work
    monkeypatch.setattr(desk.work, "work", lambda: {**before(), "notes": ["a file was too \x1b[31mlarge"]})
    for command in ("status", "pull", "export"):
        assert "warning: a file was too \\x1b[31mlarge\n" in desk(command, "web").err


@pytest.mark.parametrize("command", ["status", "export", "pull", "list", "rm"])
def test_help_has_examples(command: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main.run(["workspace", command, "--help"]) == 0
    said = capsysbinary.readouterr().out.decode()
    assert f"banger vm workspace {command}" in said
