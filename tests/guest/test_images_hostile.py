"""Images that somebody made to do harm, on a real registry: each is refused with its reason.

Nothing is left of them. They are written here byte by byte, because no tool makes them; the reason names the
entry, the blob or the document.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.capabilities import require
from tests.fakes.ociregistry import registry
from tests.fakes.proxy import within
from tests.fakes.pushed import digest, upload
from tests.fakes.registry import tar_of
from tests.guest.instance import Instance

pytestmark = [require("docker-registry"), pytest.mark.guest]

LONG = "n" * 300


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, target: str = "", **fields: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def tar(*entries: tarfile.TarInfo) -> bytes:
    """Of entries without content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for one in entries:
            archive.addfile(one)
    return out.getvalue()


@dataclass(frozen=True)
class Hostile:
    """layers: tars, packed as gzip. says: what the refusal has in it; LAYER stands for the last one's digest,
    SHORT for its beginning.

    packed: makes a layer's blob of its tar. config, layer, diff_id: laid over what would be right.
    """

    name: str
    layers: tuple[bytes, ...]
    says: tuple[str, ...]
    packed: Callable[[bytes], bytes] = lambda data: gzip.compress(data, mtime=0)
    config: Mapping[str, Any] = field(default_factory=dict)
    layer: Mapping[str, Any] = field(default_factory=dict)
    diff_id: Callable[[], str] | None = None


FINE = tar(entry("etc", tarfile.DIRTYPE, mode=0o755), entry("etc/fine"))
SPARSE = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40)}
HOSTILE = [
    Hostile("another-content", (FINE,), ("layer LAYER", "diff_id"), diff_id=lambda: digest(b"else")),
    Hostile("climbs", (FINE, tar(entry("a/../../../../etc/cron.d/owned"))), ("LAYER", "'a/../../", '".."')),
    Hostile(
        "climbs-by-link",
        (tar(entry("hard", tarfile.LNKTYPE, target="../../etc/shadow")),),
        ("'hard'", '".."'),
    ),
    Hostile(
        "links-to-the-host",
        (tar(entry("h", tarfile.LNKTYPE, target="/etc/shadow")),),
        ("'h'", "'/etc/shadow'"),
    ),
    Hostile(
        "through-a-file",
        (FINE, tar(entry("to", tarfile.SYMTYPE, target="/etc/fine"), entry("to/owned"))),
        ("LAYER", "entry 'to/owned'", "no folder"),
    ),
    Hostile(
        "symlinks-in-a-ring",
        (
            tar(
                entry("a", tarfile.SYMTYPE, target="b"),
                entry("b", tarfile.SYMTYPE, target="/a"),
                entry("a/x"),
            ),
        ),
        ("entry 'a/x'", "loop of symlinks"),
    ),
    Hostile(
        "whites-out-what-is-above",
        (FINE, tar(entry("etc/.wh..."))),
        ("LAYER", "'etc/.wh...'", "whiteout of nothing"),
    ),
    Hostile("whites-out-itself", (FINE, tar(entry(".wh.."))), ("'.wh..'", "whiteout of nothing")),
    Hostile("whites-out-outside", (FINE, tar(entry("../.wh.etc"))), ("'../.wh.etc'", '".."')),
    Hostile(
        "grows-beyond-all-bounds",
        (tar(entry("huge", pax_headers=SPARSE)),),
        ("LAYER", "entry 'huge'", "more than 65536 MiB"),
    ),
    Hostile("a-name-too-long", (tar(entry(f"etc/{LONG}")),), ("LAYER", "'etc/nnn", "more than 255 bytes")),
    Hostile("speaks-to-terminals", (tar(entry("\x1b[2J\n/../x")),), (r"'\x1b[2J\n/../x'",)),
    Hostile(
        "a-device-of-no-kernel",
        (tar(entry("d", tarfile.CHRTYPE, devmajor=70_000)),),
        ("entry 'd'", "device 70000:0"),
    ),
    Hostile("ends-early", (FINE,), ("LAYER", "gzip"), packed=lambda data: gzip.compress(data)[:-20]),
    Hostile("no-tar", (b"#!/bin/sh\n" * 100,), ("LAYER", "wrong checksum")),
    Hostile("of-no-known-type", (FINE,), ("application/x.evil",), layer={"mediaType": "application/x.evil"}),
    Hostile("larger-than-it-says", (FINE,), ("SHORT", "its manifest says 20"), layer={"size": 20}),
    Hostile("runs-a-number", (FINE,), ("config of", "Entrypoint"), config={"config": {"Entrypoint": 7}}),
    Hostile(
        "a-word-with-a-zero", (FINE,), ("config of", "zero byte"), config={"config": {"Env": ["A=b\0c"]}}
    ),
    Hostile("more-words-than-fit", (FINE,), ("config of",), config={"config": {"Cmd": ["x"] * 5000}}),
    Hostile(
        "more-layers-than-ids",
        (FINE,),
        ("1 layers", "speaks of 2"),
        config={"rootfs": {"type": "layers", "diff_ids": [digest(b""), digest(b"1")]}},
    ),
    Hostile("for-another-machine", (FINE,), ("linux/s390x",), config={"architecture": "s390x"}),
]


def blocks(data: bytes) -> bytes:
    """A tar's entries without its end, so that others can follow."""
    return data[: -(-len(data.rstrip(b"\0")) // 512) * 512]


def often(data: bytes, times: int, *, members: int = 1) -> Callable[[bytes], bytes]:
    """A blob that is gzip of data so many times over: members of gzip behind each other, quickly made."""
    return lambda _plain: gzip.compress(data * (times // members), 1, mtime=0) * members


def digest_of_many(data: bytes, times: int) -> str:
    """Of so much that it is not put together."""
    hasher = hashlib.sha256()
    for _ in range(16):
        hasher.update(data * (times // 16))
    return f"sha256:{hasher.hexdigest()}"


ONE = blocks(tar(entry("etc/fine")))
MANY = 1_000_016
ATTRIBUTES = {"SCHILY.xattr.com.example": "a" * 1_000_000}
FAR = "a/../" * 500
STAIRS = [
    entry("a", tarfile.DIRTYPE),
    *(entry(f"s{number}", tarfile.SYMTYPE, target=f"{FAR}s{number + 1}") for number in range(38)),
    entry("s38", tarfile.SYMTYPE, target="a"),
]
BOMBS = [
    Hostile(
        "of-much-nothing",
        (FINE,),
        ("layer LAYER", "more than 200 times its size"),
        packed=often(bytes(1 << 20), 17 * 64, members=17),
    ),
    Hostile(
        "of-entries",
        (FINE,),
        ("layer LAYER", "entry 'etc/fine'", "more entries", "than an image can have"),
        packed=often(ONE, MANY, members=16),
        diff_id=lambda: digest_of_many(ONE, MANY),
    ),
    Hostile(
        "of-attributes",
        (blocks(tar(entry("etc/fine", pax_headers=ATTRIBUTES))) * 300,),
        ("layer LAYER", "entry 'etc/fine'", "names, link targets and attributes"),
    ),
    Hostile(
        "of-stairs",
        (tar(*STAIRS, *(entry(f"s0/{number}") for number in range(1000))),),
        ("layer LAYER", "entry 's0/", "more symlinks on the way"),
    ),
]


@pytest.fixture(scope="module")
def address(banger: Instance) -> Iterator[str]:
    with registry(banger.home / "registry", run_in=banger.argv()) as found:
        yield found


def push(banger: Instance, address: str, image: Hostile) -> str:
    """Tools refuse to push some of these. The last layer's digest."""
    blobs = [image.packed(layer) for layer in image.layers]
    diff_ids = [image.diff_id() if image.diff_id else digest(layer) for layer in image.layers]
    layers = list(zip(blobs, diff_ids, strict=True))
    # only this by the clock of `within`: to make a bomb takes its time
    within(
        banger.netns,
        lambda: upload(address, image.name, layers, config=image.config, described=image.layer),
    )
    return digest(blobs[-1])


@pytest.mark.parametrize("image", HOSTILE + BOMBS, ids=[image.name for image in HOSTILE + BOMBS])
def test_it_is_refused(banger: Instance, address: str, image: Hostile) -> None:
    layer = push(banger, address, image)
    says = [words.replace("LAYER", layer).replace("SHORT", layer[:19]) for words in image.says]
    check_refused(banger, image.name, says, f"{address}/{image.name}")


def check_refused(
    banger: Instance, name: str, says: Sequence[str], *words: str, env: Mapping[str, str] = {}
) -> None:
    """With these words, in text that harms no terminal; and nothing is left."""
    refused = banger.banger("image", "pull", *words, env=env, timeout_s=600)  # a bomb's million of entries
    assert refused.status == 1, refused.stderr
    last = refused.stderr[refused.stderr.index("banger: ") :]
    for wanted in says:
        assert wanted in last
    assert "\x1b" not in refused.stderr
    assert name not in banger.ok("image", "list").text
    images = Path(banger.paths.images_dir)
    assert [path.name for path in images.glob(".*") if not path.name.startswith(".lock-")] == []
    assert list(Path(banger.paths.cache_dir, "blobs").rglob("*.part")) == []


def saved(*, config: bytes = b"", **changes: Any) -> bytes:
    """A docker archive of one layer. changes: to what manifest.json says of the image."""
    layer = {"type": "layers", "diff_ids": [digest(FINE)]}
    config = config or json.dumps({"os": "linux", "rootfs": layer}).encode()
    image = {"Config": "c.json", "RepoTags": ["app:v1"], "Layers": ["layer.tar"], **changes}
    return tar_of({"manifest.json": json.dumps([image]).encode(), "c.json": config, "layer.tar": FINE})


FILES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "no-archive": (b"#!/bin/sh\n" * 100, ("no-archive", "no tar file")),
    "nothing": (b"", ("nothing", "no tar file")),
    "something-else": (FINE, ("neither an OCI layout nor a docker archive",)),
    "names-the-hosts": (saved(Config="../../../../etc/passwd"), ("no file", "etc/passwd")),
    "links-to-the-hosts": (
        tar(entry("manifest.json", tarfile.SYMTYPE, target="/etc/passwd")),
        ("no file '/etc/passwd'",),
    ),
    "links-in-a-ring": (
        tar(
            *(
                entry(a, tarfile.LNKTYPE, target=b)
                for a, b in (("manifest.json", "b"), ("b", "manifest.json"))
            )
        ),
        ("lead in circles",),
    ),
    "holds-a-device": (tar(entry("manifest.json", tarfile.CHRTYPE)), ("member of kind",)),
    "more-layers": (saved(Layers=["layer.tar"] * 2), ("2 layers", "speaks of 1")),
    "layers-without-end": (saved(Layers=["layer.tar"] * 5000), ("manifest.json", "length <= 256")),
    "another-content": (
        saved(Layers=["c.json"]),
        ("something else than its config says",),
    ),
    "large-words": (
        saved(config=b'{"os":"' + b"x" * (5 << 20) + b'"}'),
        ("'c.json'", "larger than 4096 KiB"),
    ),
    "cut-off": (gzip.compress(saved())[:-40], ("gzip",)),
    "speaks": (saved(RepoTags=["\x1b[2J"], Layers=["\x1b]0;x\x07"]), (r"'\x1b]0;x\x07'",)),
    "many-members": (tar(*(entry("x") for _ in range(20_001))), ("more than 20000 members",)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_refused(banger: Instance, tmp_path: Path, name: str) -> None:
    data, says = FILES[name]
    (tmp_path / name).write_bytes(data)
    check_refused(banger, name, says, "--file", str(tmp_path / name))


def test_what_is_no_file_holds_nobody_up(banger: Instance, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        check_refused(banger, "strange", [f"{path} is no file"], "--file", str(path), "--name", "strange")


def test_a_symlink_out_of_the_image_leads_into_it(banger: Instance, address: str, tmp_path: Path) -> None:
    """As everywhere, its target is the image's own: what lies behind it never meets the host."""
    (tmp_path / "kept").write_text("the host's")
    links = [
        entry("out", tarfile.SYMTYPE, target=f"/../../..{tmp_path}"),
        entry("out/kept"),
        entry("out/owned"),
    ]
    image = Hostile("escapes", (FINE, tar(*links), tar(entry("out/.wh.kept"))), ())
    push(banger, address, image)
    assert banger.ok("image", "pull", f"{address}/escapes").text == "escapes\n"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "the host's"
    shown = json.loads(banger.ok("image", "show", "escapes", "--json").text)
    listed = banger.run_in_netns("debugfs", "-R", f"ls -p {tmp_path}", shown["rootfs_path"]).text
    assert "/owned/" in listed
    assert "/kept/" not in listed
    banger.ok("image", "delete", "escapes")
