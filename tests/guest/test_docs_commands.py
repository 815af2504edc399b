"""The commands of the written pages, typed in order as they stand there, at one real guest called web.

tests/unit/cli/test_docs_commands.py reads the commands of all pages; here each page is typed, or it is said
why not and which tests do the same. What only looks like it works on paper fails here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.docpages import PROJECT, code_lines, pages
from tests.guest.instance import SMALL, Instance
from tests.guest.pagetyping import Page, command_lines, type_page
from tests.guest.typist import Typist, normal, typist

pytestmark = pytest.mark.guest

STUBS = (
    "banger vm exec web -- mkdir -p src",
    r"""banger vm exec web -- sh -c 'printf "#!/bin/sh\necho made\n" > /bin/make'""",
    r"""banger vm exec web -- sh -c 'printf "#!/bin/sh\ncat; sleep 999\n" > /bin/sqlite3'""",
    "banger vm exec web -- chmod +x /bin/make /bin/sqlite3",
)
IN_WEB = (("root@web:~", "exit\n"),)
"""A shell in it is left again."""
IN_ITS_REPOSITORY = (":~/repo#", "echo tried > tried; exit\n")
TOML = re.compile(r"\[\[|\w+ = ")
OF_SSH = "what logging in takes, once more: tests/guest/test_ssh.py"
ONE_MORE = "boots a guest of its own, as many tests do"

APP = (
    "rm -rf ~/src && mkdir ~/src && git init -q ~/src/app && cd ~/src/app",
    "printf '#!/bin/sh\\necho all is well\\n' > test.sh && chmod +x test.sh && echo one > notes",
    "git add . && git commit -q -m First",
)
MOVE_ON = "sed -i 's/well.*/well again/' test.sh && git commit -q --allow-empty -a -m 'The host moves on'"
CHANGE = (
    "git switch -q -c fix && echo rough > fixed && git add fixed && git commit -q -m Rough",
    "echo fixed > fixed && git commit -q -a --amend -m Fixed && git tag v1",
    "echo stashed >> notes && git stash -q",
    "echo staged > staged && git add staged && echo true >> test.sh && echo untracked > untracked",
)
"""In the guest: commits, one of them amended, a tag, a stash, and a file of each kind."""
FILES = "cat fixed notes staged test.sh untracked"
SAME_FILES = f'test "$({FILES})" = "$(banger vm exec web -- {FILES})"'
PREFIX = "refs/banger/web"
LOG = f"git log --oneline HEAD..{PREFIX}/heads/fix"
DIFF = f"git diff HEAD {PREFIX}/worktree"
USES = (
    LOG,
    f"git switch -c fix {PREFIX}/heads/fix",
    DIFF,
    f"git restore --source={PREFIX}/worktree --worktree .",
    f"git stash apply {PREFIX}/stash",
)
"""In the order of the page, and of what pull says."""


def shown_below(name: str, command: str) -> str:
    """The pattern of the line that a page shows below a command: any ids of commits."""
    lines = [line.text for line in code_lines(PROJECT / name)]
    below = normal(lines[lines.index(command) + 1])
    return "^" + "[0-9a-f]{7,12}".join(re.escape(part) for part in below.split("COMMIT"))


WARNED = "banger vm exec web -- ./test.sh"
AUTO = "banger vm exec --auto-prepare web ./test.sh"
REPLACE = "banger workspace prepare --replace web ~/src/app"
WORKSPACES = Page(
    before={
        "": APP,
        "banger vm run --rm . -- ./test.sh": (
            "banger vm delete try 2>&1 | grep -x 'work of try is kept: banger workspace pull try'",
        ),
        "banger workspace prepare web ~/src/app": ("banger vm list -q | wc -l | grep -x 1",),
        "banger workspace status web": (f"banger vm exec web -- sh -c '{' && '.join(CHANGE)}'",),
        WARNED: (MOVE_ON,),
        REPLACE: ("! banger workspace prepare web ~/src/app",),
        AUTO: (
            f"banger vm exec web -- touch mine && {MOVE_ON}",
            "banger vm exec --auto-prepare web touch ran; test $? = 125",
            "banger vm exec web -- sh -c '! test -e ran && rm mine'",
        ),
        "banger workspace export web": (
            'test -z "$(git status --porcelain)" && test "$(git branch)" = "* main"',
            f"git rev-parse -q --verify {PREFIX}/tags/v1 && git rev-parse -q --verify {PREFIX}/index",
            f"git log --format=%s --glob={PREFIX}/reflog | grep -x Rough",
            f"git log --format=%s --glob={PREFIX}/old | grep -x Fixed",
        ),
        LOG: ("! banger workspace list | grep try",),
        "banger workspace pull web ~/src/clone": (
            "grep -x stashed notes && git checkout -q notes && " + SAME_FILES,
            "git clone -q ~/src/app ~/src/clone",
        ),
        "banger workspace export web | git apply": (
            f'test -z "$(git for-each-ref {PREFIX})"',
            "git reset -q --hard && git clean -q -f && git switch -q main",
        ),
        "banger workspace export web -o web.patch": (SAME_FILES,),
        "banger workspace export web --base-commit main": ("git apply -R --check web.patch",),
    },
    shows={
        "banger vm run --rm . -- ./test.sh": "^all is well$",
        "banger workspace prepare web ~/src/app": "^web:/root/repo$",
        "banger workspace status web": "^next: banger workspace pull web$",
        "banger workspace pull web": r"[\s\S]*".join(f"^ +{re.escape(command)}$" for command in USES),
        "banger vm exec web -- git diff refs/banger/base": r"^\+staged$",
        WARNED: shown_below("docs/workspaces.md", WARNED),
        REPLACE: "^work of web is kept: banger workspace pull web$",
        AUTO: "^all is well again$",
        "banger workspace export web": r"^\+untracked$",
        "banger workspace list": r"^try .* deleted$",
        "banger workspace rm try": "^try$",
        LOG: r"^[0-9a-f]+ Fixed$",
        DIFF: r"^\+untracked$",
        "banger workspace pull web ~/src/clone": rf"/src/clone: .* below {PREFIX}/$",
        "banger workspace pull web --into ~/src/work": "/src/work: a new clone of the work$",
        "banger workspace export web --base-commit main": r"^\+untracked$",
    },
    answers={
        "banger vm run --name try ~/src/app": (IN_ITS_REPOSITORY,),
        "banger workspace rm try": (("for good?", "y\n"),),
    },
)

TYPED = {
    "docs/sessions.md": Page(
        before={
            "": STUBS,
            "banger vm session send web db - < dump.sql": ("echo select > dump.sql",),
            "banger vm session list web --tag role=ci -q | xargs banger vm session stop web": (
                "banger vm session start web --tag role=ci -- sleep 999",
            ),
        },
        answers={"banger vm session start web -t --name work --attach -- bash -l": IN_WEB},
    ),
    "docs/copy.md": Page(
        before={"": ("mkdir copies && cd copies && mkdir site && touch site/index.html notes.txt",)}
    ),
    "docs/ports.md": Page(other={"banger vm run -d --name web -p 8080:80": ONE_MORE}),
    "docs/network.md": Page(other={"banger vm run --nat": ONE_MORE}),
    "docs/ssh.md": Page(
        before={
            "": ("mkdir -p site && touch site/index.html",),
            "git clone web.vm:repo": ("banger vm exec web -- git init -q /root/repo",),
            "ssh dev@web.vm": ("banger vm exec web -- rm -r /root/repo",),
        },
        answers={
            "banger vm ssh web": IN_WEB,
            "ssh web.vm": IN_WEB,
            "ssh -L 8080:localhost:80 web.vm": IN_WEB,
        },
        other={
            "banger vm ssh -t web -- top": OF_SSH,
            "sftp web.vm": OF_SSH,
            "banger vm ssh --user dev web": "an account that the image has not: tests/guest/test_ssh.py",
            "ssh dev@web.vm": "an account that the image has not: tests/guest/test_ssh.py",
            "rsync -a site/ web.vm:site/": "the image has none: tests/guest/test_ssh.py",
        },
    ),
    "docs/workspaces.md": WORKSPACES,
    "docs/files.md": Page(
        before={
            "": (
                "mkdir ~/bin && touch ~/bin/hello ~/.vimrc && ln -s hello ~/bin/link",
                "! banger vm exec web -- ls .vimrc",
            )
        },
        shows={
            "banger vm run --rm -- ls -l .vimrc bin": (
                r"^warning: file_sync entry 2: '~/bin/link' is a symlink: skipped$[\s\S]*"
                r"^-rw------- 1 root root .* \.vimrc$[\s\S]*^-rwxr-xr-x 1 root root .* hello$"
            ),
            "git config --global user.email": r"^ann@example\.org$",
            "banger vm exec web -- git config --global user.email": r"^ann@example\.org$",
        },
    ),
    "README.md": Page(
        before={"": ("mkdir -p site",)},
        shows={
            "banger vm run --rm -- uname -a": "^Linux ",
            "echo hi | banger vm exec web -- cat": "^hi$",
            "banger vm list; banger vm delete web": "^web$",
            "banger doctor": "^PASS ",
        },
        answers={
            "banger vm run": ((":~#", "exit\n"),),
            "banger vm shell web": IN_WEB,
            "banger ssh-config --install; ssh web.vm": IN_WEB,
        },
        other={
            "apt-get install -y git make": "a bare machine's first step, and that of every run in CI",
            "git clone <this repository> banger && cd banger": "a bare machine's second",
            "make run": "sets up what `make test` does, then boots and asks as the lines below do",
            "banger vm run ~/src/app": "docs/workspaces.md, with a name",
            "banger vm run --name web -d": "how the guest that all this is typed at was made",
            "banger net why web example.org:443": "the internet: tests/guest/test_docs_network.py",
            "banger vm run --image alpine": "a registry: tests/guest/test_docs_images.py",
            "banger vm run --image debian-docker": "tests/guest/test_docker.py",
        },
    ),
}

ELSEWHERE = {
    "docs/cli.md": "help, read by the unit test; each command has tests of its own",
    "docs/docker.md": "typed by test_docker.py",
    "docs/howto-ci.md": "a job's lines; its console block is the same",
    "docs/howto-move.md": "two hosts; its console block does it with two guests",
    "docs/images.md": "typed by test_docs_images.py",
    "docs/names.md": "typed by test_docs_network.py",
    "docs/net-why.md": "typed by test_docs_network.py",
}


def test_every_page_with_commands_is_typed_or_has_a_reason() -> None:
    for page in pages():
        name = str(page.relative_to(PROJECT))
        counted = (name in TYPED) + (name in ELSEWHERE)
        assert counted == bool(command_lines(name)), f"{name}: is typed nowhere, or there is nothing to type"


@pytest.fixture(scope="module")
def person(banger: Instance) -> Iterator[Typist]:
    with typist(banger) as at_a_prompt:
        at_a_prompt.type("banger vm run --name web -d")
        assert at_a_prompt.status == 0
        yield at_a_prompt


@pytest.mark.parametrize("name", TYPED)
def test_a_pages_commands_do_what_they_say(person: Typist, banger: Instance, name: str) -> None:
    toml = "\n".join(line.text for line in code_lines(PROJECT / name) if TOML.match(line.text))
    if name == "docs/files.md":  # what it says to write into config.toml
        banger.configure(f"{SMALL}\n{toml}\n")
    person.type("cd ~")
    type_page(person, name, TYPED[name])
