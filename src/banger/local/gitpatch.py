"""`workspace export --base-commit` from a commit that the user's repository has, and what is kept has not.

The kept work meets the user's objects in a repository of banger's own, as for a pull, and the difference is
taken there. Nothing in the user's repository changes. For the CLI; blocking.
"""

from __future__ import annotations

from banger.local.account import Account, this_account
from banger.local.gitplaces import lines_of, open_repository, present
from banger.local.gitpull import MOST_BYTES, Pack, take_tips
from banger.local.kepttips import Kept
from banger.local.tempgit import TempRepository, temporary

_DIFF = ("diff-tree", "-r", "-p", "--binary", "--full-index", "--no-ext-diff", "--no-textconv", "--no-color")
_WORDS = ("--no-renames", "--ignore-submodules=none")


def patch_from(
    kept: Kept, pack: Pack, folder: str, *, base: str, account: Account | None = None
) -> bytes | None:
    """From the commit `base` to the files as they were kept; None when nobody here has that commit."""
    account = this_account() if account is None else account
    found = open_repository(folder, account)
    with temporary(account) as room:
        middle = TempRepository.create(f"{room}/repo.git", account, object_format=found.object_format)
        middle.borrow(found.objects)
        have = present(middle, [base, kept.base, *kept.cut])
        if base not in have:
            return None
        tips = {name: commit for name, commit in kept.tips.items() if name == "worktree"}
        if kept.head and not tips:
            tips["HEAD"] = kept.head
        cut = lines_of(commit for commit in kept.cut if commit not in have)
        if found.shallow or cut:
            middle.write("shallow", found.shallow + cut)
        if tips and not present(middle, tips.values()):
            have.discard(base)  # where the store has it, it knows that; else it is of no use to it
            middle.receive(pack(sorted(have)), most_bytes=MOST_BYTES, on_bytes=lambda _count: None)
        take_tips(middle, tips, have)
        end = next(iter(tips.values()), kept.base)
        return middle.run(*_DIFF, *_WORDS, base, end).stdout
