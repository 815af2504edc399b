"""The workspace of a VM as its record keeps it: what a client says of it is checked here.

Used by VMService. Whoever can reach the daemon's socket is its own user, or root; what they say of their
repository is still only text and ids, bounded, for it ends on terminals and in arguments of git.
Pure.
"""

from __future__ import annotations

from banger.api.requests import SetWorkspace
from banger.errors import BangerError, ErrorCode
from banger.model.records import Workspace, now

GUEST_PATH = "/root/repo"
MODES = ("shallow_overlay", "full_copy", "metadata_only")
MAX_REFS = 10_000
MAX_PATH = 4096
MAX_NAME = 255
MAX_REF = 1000
"""Of a submodule's ref, which has its path in it."""
_ID_LENGTHS = (40, 64)
_HEX = frozenset("0123456789abcdef")
_FORBIDDEN = frozenset(" ~^:?*[\\")


def workspace_of(request: SetWorkspace, vm_id: str) -> Workspace:
    """The record, prepared now. INVALID_ARGUMENT names the field that is wrong."""
    if request.guest_path != GUEST_PATH:
        raise _wrong("guest_path", request.guest_path, f"is not {GUEST_PATH}")
    if request.mode not in MODES:
        raise _wrong("mode", request.mode, f"is not one of {', '.join(MODES)}")
    for field in ("source_path", "repo_root"):
        path: str = getattr(request, field)
        if not path.startswith("/") or "\0" in path or len(path) > MAX_PATH:
            raise _wrong(field, path, "is no absolute path")
    name = request.repo_name
    if not name or "/" in name or "\0" in name or len(name) > MAX_NAME or name in (".", ".."):
        raise _wrong("repo_name", name, "is no folder's name")
    for field in ("head_commit", "base_commit", "brought_commit"):
        check_commit(field, getattr(request, field), like=request.head_commit)
    for field in ("current_branch", "branch_name"):
        branch: str = getattr(request, field)
        if branch and not is_ref_name(branch):
            raise _wrong(field, branch, "is no branch's name")
    if len(request.refs) > MAX_REFS:
        raise BangerError(ErrorCode.INVALID_ARGUMENT, f"refs: more than {MAX_REFS}")
    for ref, commit in request.refs.items():
        if not is_ref_name(ref):
            raise _wrong("refs", ref, "is no ref's name")
        check_commit(f"refs: {ref[:80]!a}", commit)
    return Workspace(
        vm_id=vm_id,
        source_path=request.source_path,
        repo_root=request.repo_root,
        repo_name=name,
        guest_path=GUEST_PATH,
        mode=request.mode,
        readonly=request.readonly,
        head_commit=request.head_commit,
        current_branch=request.current_branch,
        branch_name=request.branch_name,
        base_commit=request.base_commit,
        brought_commit=request.brought_commit,
        include_untracked=request.include_untracked,
        prepared_at=now(),
    )


def check_commit(field: str, commit: str, *, like: str = "") -> None:
    """A full id; of the same kind as `like`."""
    lengths = (len(like),) if len(like) in _ID_LENGTHS else _ID_LENGTHS
    if len(commit) not in lengths or not _HEX.issuperset(commit):
        raise _wrong(field, commit, "is no commit's full id")


def is_ref_name(name: str) -> bool:
    """git-check-ref-format(1), one level allowed."""
    return (
        0 < len(name) <= MAX_REF
        and all(letter > " " and letter != "\x7f" and letter not in _FORBIDDEN for letter in name)
        and ".." not in name
        and "@{" not in name
        and name != "@"
        and not name.endswith(".")
        and all(
            part and not part.startswith((".", "-")) and not part.endswith(".lock")
            for part in name.split("/")
        )
    )


def _wrong(field: str, value: str, what: str) -> BangerError:
    return BangerError(ErrorCode.INVALID_ARGUMENT, f"{field}: {value[:80]!a} {what}")
