"""The tree against a model that does it the slow way: a mapping of whole paths, whiteouts before entries."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from banger.image.layertree import Folder, Inode, LayerTree, shown, walk
from banger.system.tarheaders import FILE, FOLDER, LINK, BadTar, Header

NAMES = ("a", "b", "c")
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map("/".join)


@dataclass(frozen=True)
class Step:
    what: str  # file, folder, link, whiteout, opaque
    path: str
    target: str = ""


STEPS = st.builds(
    Step, st.sampled_from(["file", "file", "folder", "link", "whiteout", "opaque"]), PATHS, PATHS
)
LAYERS = st.lists(st.lists(STEPS, max_size=7), min_size=1, max_size=4)

Model = dict[str, object]
"""path → None for a folder, else the file's identity."""


def header(step: Step, mode: int) -> Header:
    kind = {"folder": FOLDER, "link": LINK}.get(step.what, FILE)
    name = step.path
    if step.what == "whiteout":
        above, slash, last = step.path.rpartition("/")
        name = f"{above}{slash}.wh.{last}"
    elif step.what == "opaque":
        name = f"{step.path}/.wh..wh..opq"
    target = step.target if step.what == "link" else ""
    return Header(
        name=name.encode(), kind=kind, mode=mode, uid=0, gid=0, mtime=0, size=mode, target=target.encode()
    )


def below(model: Model, path: str) -> list[str]:
    return [other for other in model if other.startswith(path + "/")]


def replay(model: Model, layer: list[Step], number: int) -> bool:
    """A layer onto the model; False where an entry is impossible."""
    for step in layer:
        if step.what == "whiteout":
            for path in [step.path, *below(model, step.path)]:
                model.pop(path, None)
        elif step.what == "opaque":
            for path in below(model, step.path):
                del model[path]
    for position, step in enumerate(layer):
        if step.what in ("whiteout", "opaque"):
            continue
        parts = step.path.split("/")
        identity = model.get(step.target) if step.what == "link" else (number, position)
        if identity is None:
            return False
        for end in range(1, len(parts)):
            parent = "/".join(parts[:end])
            if model.setdefault(parent, None) is not None:
                return False
        if step.what == "folder":
            if model.get(step.path) is not None:
                del model[step.path]
            model.setdefault(step.path, None)
        else:
            for path in below(model, step.path):
                del model[path]
            model[step.path] = identity
    return True


@given(LAYERS)
def test_the_tree_is_the_model(layers: list[list[Step]]) -> None:
    # whiteouts first, as the model has it; how a whiteout behind its layer's entries acts: test_flatten
    layers = [sorted(layer, key=lambda step: step.what not in ("whiteout", "opaque")) for layer in layers]
    model: Model = {}
    tree = LayerTree(max_nodes=1000, max_index=1 << 20, max_steps=1000)
    for number, layer in enumerate(layers):
        if number:
            tree.next_layer()
        possible = replay(model, layer, number)
        try:
            for position, step in enumerate(layer):
                tree.apply(header(step, number * 100 + position), 3)
        except BadTar:
            assert not possible
            return
        assert possible
    found: dict[str, Inode] = {path.decode(): inode for path, inode in walk(tree.root)}
    assert set(found) == set(model)
    groups: dict[object, set[int]] = {}
    for path, identity in model.items():
        inode = found[path]
        assert isinstance(inode, Folder) == (identity is None)
        if identity is not None:
            groups.setdefault(identity, set()).add(id(inode))
            assert isinstance(identity, tuple)
            assert inode.size == identity[0] * 100 + identity[1]
    assert all(len(group) == 1 for group in groups.values())


@given(LAYERS, st.randoms(use_true_random=False))
def test_where_whiteouts_stand_in_a_layer_does_not_matter(layers: list[list[Step]], random: Random) -> None:
    """Layers of new files and whiteouts only: whatever the order, the outcome is the same."""
    outcomes: list[set[str]] = []
    for shuffled in (False, True):
        tree = LayerTree(max_nodes=1000, max_index=1 << 20, max_steps=1000)
        for number, layer in enumerate(layers):
            if number:
                tree.next_layer()
            # names of a layer's files are its own, so that no file stands where a folder is meant
            steps = [
                Step("file", f"{step.path}/{number}x") if step.what in ("file", "link", "folder") else step
                for step in layer
            ]
            if shuffled:
                random.shuffle(steps)
            for position, step in enumerate(steps):
                tree.apply(header(step, position), 3)
        outcomes.append({path.decode() for path, _ in walk(tree.root)})
    assert outcomes[0] == outcomes[1]


def test_a_name_that_repeats_whiteouts_costs_nothing() -> None:
    tree = LayerTree(max_nodes=30_000, max_index=10 << 20, max_steps=0)
    for number in range(20_000):
        tree.apply(header(Step("file", f"d/{number}"), 1), 3)
    for _ in range(20_000):  # as of this layer nothing is older: each has to be told so at once
        tree.apply(header(Step("opaque", "d"), 1), 3)
        tree.apply(header(Step("whiteout", "d"), 1), 3)
    tree.next_layer()
    for number in range(9_000):
        tree.apply(header(Step("opaque", "d"), 1), 3)
        tree.apply(header(Step("file", f"d/{number}"), 1), 3)
    folder = tree.find([b"d"])
    assert isinstance(folder, Folder)
    assert len(folder.children) == 9_000


def test_shown_is_safe() -> None:
    assert shown(b"a\x1b[2J\xff\n\xe2\x80\xae" + b"x" * 500).startswith("'a\\x1b[2J\\xff\\n\\u202ex")
    assert len(shown(b"\xff" * 10_000)) < 1000


def test_names_are_counted_where_a_folder_is_replaced() -> None:
    """A file over a folder takes the names below it from the inodes that have others."""
    tree = LayerTree(max_nodes=100, max_index=10_000, max_steps=1000)
    for name, kind, target in (
        (b"kept", FILE, b""),
        (b"d", FOLDER, b""),
        (b"d/e", FOLDER, b""),
        (b"d/e/hard", LINK, b"kept"),
        (b"d", FILE, b""),
    ):
        tree.apply(Header(name, kind, 0o644, 0, 0, 0, target=target), -1)
    assert [(path, inode.names) for path, inode in walk(tree.root)] == [(b"kept", 1), (b"d", 1)]
