"""Copies through the agent: what comes back is what was sent, and hostile or broken archives leave nothing.

The agent runs under sanitizers as an ordinary process; the host's side is the client's own. Who runs this
owns the files, so owners are kept only where that is root.
"""

from __future__ import annotations

import io
import os
import random
import socket
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banger.client.copy import copy_in, copy_out, pack_out, unpack_in
from banger.errors import BangerError, ErrorCode
from banger.guest import wire
from banger.guest.wire import Fields, encode_fields, encode_frame
from tests.capabilities import demand
from tests.unit.agent.conftest import TIMEOUT_S, Agent
from tests.unit.agent.copying import AgentsClient, leftovers, tree

ITS_FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
"""Each example has a folder of its own; and how long drawing it takes says how busy the host is."""


@pytest.fixture
def client(agent: Agent) -> AgentsClient:
    return AgentsClient(agent)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Both the guest's and the host's side of a copy; no temporary name may be left there."""
    made = tmp_path / "place"
    made.mkdir()
    yield made
    assert not leftovers(made)


def sample(top: Path) -> None:
    """One of everything that a plain user can make."""
    top.mkdir()
    (top / "empty").write_bytes(b"")
    (top / "text").write_text("hello\n")
    (top / "block").write_bytes(b"x" * 512)
    (top / "big").write_bytes(random.Random(1).randbytes(3 << 20))
    (top / "private").mkdir(mode=0o700)
    (top / "private" / "key").write_bytes(b"secret")
    (top / "private" / "key").chmod(0o600)
    (top / "read-only").mkdir()
    (top / "read-only" / "run").write_bytes(b"#!/bin/sh\n")
    (top / "read-only" / "run").chmod(0o555)
    (top / "link").symlink_to("text")
    (top / "dangling").symlink_to("/nowhere/" + "x" * 300)
    os.link(top / "text", top / "private" / "hard")
    os.link(top / "text", top / "read-only" / ("hard" * 50))
    deep = top.joinpath(*["deep-" + "d" * 60] * 12)
    deep.mkdir(parents=True)
    (deep / "leaf").write_text("leaf")
    os.mkdir(os.fsencode(top) + b"/n\xff\n\x1b[31m\xe9")
    with open(os.fsencode(top) + b"/n\xff\n\x1b[31m\xe9/ \\*", "wb") as odd:
        odd.write(b"odd")
    with (top / "sparse").open("wb") as sparse:
        sparse.truncate(64 << 20)
        sparse.seek(10 << 20)
        sparse.write(b"island")
        sparse.seek(40 << 20)
        sparse.write(b"y" * 100_000)
    with (top / "hole").open("wb") as hole:
        hole.truncate(5 << 30)
    os.utime(top / "text", ns=(1, 1_234_567_890_123_456_789))
    os.utime(top / "big", ns=(1, -1_500_000_000))
    os.utime(top / "link", ns=(1, 987_654_321_000_000_001), follow_symlinks=False)
    (top / "read-only").chmod(0o555)
    os.utime(top / "private", ns=(1, 5))


def same(left: Path, right: Path) -> None:
    one, other = tree_without_holes(left), tree_without_holes(right)
    assert one.keys() == other.keys()
    assert one == other


def tree_without_holes(top: Path) -> dict[bytes, tuple[object, ...]]:
    """The tree, but of the file that is a hole the size alone."""
    hole = top / "hole"
    size = hole.stat().st_size if hole.exists() else 0
    if size:
        assert hole.stat().st_blocks < 100
        status = hole.stat()
        os.truncate(hole, 0)
        os.utime(hole, ns=(1, status.st_mtime_ns))
    found = tree(top)
    if size:
        found[b"hole"] += (size,)
        times = hole.stat()
        os.truncate(hole, size)
        os.utime(hole, ns=(1, times.st_mtime_ns))
    return found


def test_all_kinds_come_back_as_they_were(client: AgentsClient, place: Path) -> None:
    sample(place / "source")
    copied = copy_in(client, "vm", str(place / "source"), str(place / "guest"), owners=True)
    same(place / "source", place / "guest")
    back = copy_out(client, "vm", str(place / "guest"), str(place / "host"), owners=True)
    same(place / "source", place / "host")
    assert copied.entries == back.entries == len(tree_without_holes(place / "source"))
    for side in ("guest", "host"):
        assert (place / side / "sparse").stat().st_blocks * 512 < 1 << 20
    same(place / "source", place / "guest")


name_bytes = st.binary(min_size=1, max_size=40).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
leaves = st.one_of(
    st.tuples(st.just("file"), st.binary(max_size=3000), st.integers(0, 0o777), st.integers(0, 2**62)),
    st.tuples(st.just("link"), name_bytes, st.just(0), st.integers(0, 2**62)),
    st.tuples(st.just("sparse"), st.lists(st.integers(0, 40), max_size=6), st.just(0o640), st.just(7)),
    st.tuples(st.just("hard"), st.integers(0, 5), st.just(0), st.just(0)),
)
trees = st.recursive(
    leaves,
    lambda children: st.dictionaries(name_bytes, children, max_size=5),
    max_leaves=12,
)


def make(path: bytes, node: object, files: list[bytes]) -> None:
    if isinstance(node, dict):
        os.mkdir(path)
        for name, below in node.items():
            make(path + b"/" + name, below, files)
        return
    assert isinstance(node, tuple)
    kind, content, mode, mtime = node
    if kind == "link":
        os.symlink(content, path)
    elif kind == "hard" and files:
        os.link(files[content % len(files)], path)
        return
    else:
        with open(path, "wb") as made:
            if kind == "file":
                made.write(content)
            elif kind == "sparse":
                for block in content:
                    made.seek(block * 65536)
                    made.write(b"data")
                made.truncate(50 * 65536)
        os.chmod(path, mode or 0o600)
        files.append(path)
    os.utime(path, ns=(0, mtime % 2_000_000_000_000_000_000), follow_symlinks=False)


@settings(max_examples=40, deadline=None, suppress_health_check=ITS_FIXTURES)
@given(st.dictionaries(name_bytes, trees, max_size=6))
def test_random_trees_come_back(client: AgentsClient, place: Path, nodes: dict[bytes, object]) -> None:
    with_own_folder = place / f"{time.monotonic_ns()}"
    with_own_folder.mkdir()
    make(os.fsencode(with_own_folder / "source"), nodes, [])
    copy_in(client, "vm", str(with_own_folder / "source"), str(with_own_folder / "guest"), owners=True)
    copy_out(client, "vm", str(with_own_folder / "guest"), str(with_own_folder / "host"), owners=True)
    original = tree(with_own_folder / "source")
    assert tree(with_own_folder / "guest") == original
    assert tree(with_own_folder / "host") == original


def test_sizes_past_octal(client: AgentsClient, place: Path) -> None:
    """Over 8 GiB, of which 9 GiB are not there: the header's number is in a record."""
    with (place / "huge").open("wb") as huge:
        huge.truncate(9 << 30)
        huge.seek(8 << 30)
        huge.write(b"end")
        huge.truncate(9 << 30)
    copy_in(client, "vm", str(place / "huge"), str(place / "guest"))
    copy_out(client, "vm", str(place / "guest"), str(place / "host"))
    for name in ("guest", "host"):
        status = (place / name).stat()
        assert (status.st_size, status.st_blocks < 1000) == (9 << 30, True)
        with (place / name).open("rb") as copied:
            copied.seek(8 << 30)
            assert copied.read(4) == b"end\0"


# where a copy goes


@pytest.fixture(params=["in", "out"])
def cp(request: pytest.FixtureRequest, client: AgentsClient) -> Callable[[str, str], None]:
    """A copy whose two sides are both here, one way or the other: the rules are the same."""
    copy = copy_in if request.param == "in" else copy_out

    def run(source: str, destination: str) -> None:
        copy(client, "vm", source, destination)

    return run


def test_a_file_goes_where_docker_puts_it(cp: Callable[[str, str], None], place: Path) -> None:
    file, folder = place / "file", place / "folder"
    file.write_text("new")
    folder.mkdir()
    cp(f"{file}", f"{place}/other")
    cp(f"{file}", f"{folder}")
    cp(f"{file}", f"{folder}/renamed")
    (folder / "old").write_text("old")
    cp(f"{file}", f"{folder}/old")
    (folder / "target").write_text("old")
    (folder / "link").symlink_to("target")
    cp(f"{file}", f"{folder}/link")
    assert (place / "other").read_text() == "new"
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(
        ("file", "renamed", "old", "target", "link"), "new"
    )
    assert (folder / "link").is_symlink()
    for source, destination, code in (
        (file, f"{place}/missing/", ErrorCode.NOT_FOUND),
        (file, f"{place}/missing/name", ErrorCode.NOT_FOUND),
        (file, f"{file}/", None),
        (f"{file}/", f"{place}/x", None),
        (f"{file}/.", f"{place}/x", None),
        (place / "nothing", f"{place}/x", ErrorCode.NOT_FOUND),
    ):
        with pytest.raises(BangerError) as failure:
            cp(f"{source}", destination)
        assert code is None or failure.value.code is code
        assert "place/" in failure.value.brief
    (folder / "is-folder").mkdir()
    (place / "is-folder").write_text("file")
    with pytest.raises(BangerError, match="is-folder"):
        cp(f"{place}/is-folder", f"{folder}")
    assert sorted(path.name for path in place.iterdir()) == ["file", "folder", "is-folder", "other"]


def test_a_folder_goes_where_docker_puts_it(cp: Callable[[str, str], None], place: Path) -> None:
    source = place / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("new")
    source.chmod(0o750)
    there = place / "there"
    there.mkdir(mode=0o755)
    cp(f"{source}", f"{place}/made")
    cp(f"{source}/", f"{place}/made-too/")
    cp(f"{source}/.", f"{place}/made-also")
    for name in ("made", "made-too", "made-also"):
        assert (place / name / "sub" / "file").read_text() == "new"
        assert (place / name).stat().st_mode & 0o7777 == 0o750
    cp(f"{source}", f"{there}")
    assert (there / "source" / "sub" / "file").read_text() == "new"
    (there / "source" / "sub" / "kept").write_text("kept")
    (there / "source" / "sub" / "file").write_text("old")
    cp(f"{source}", f"{there}/.")
    assert sorted(path.name for path in (there / "source" / "sub").iterdir()) == ["file", "kept"]
    assert (there / "source" / "sub" / "file").read_text() == "new"
    cp(f"{source}/.", f"{there}")
    assert (there / "sub" / "file").read_text() == "new"
    assert there.stat().st_mode & 0o7777 == 0o755, "a folder that was there keeps its mode"
    (place / "file").write_text("file")
    with pytest.raises(BangerError, match="/file"):
        cp(f"{source}", f"{place}/file")
    (there / "sub" / "file").unlink()
    (there / "sub" / "file").mkdir()
    with pytest.raises(BangerError, match="sub/file"):
        cp(f"{source}/.", f"{there}")
    (there / "sub" / "file").rmdir()
    (there / "sub").rmdir()
    (there / "sub").symlink_to(place)
    with pytest.raises(BangerError, match="sub"):
        cp(f"{source}/.", f"{there}")
    assert not (place / "file").is_dir()


def test_links_are_copied_or_followed(client: AgentsClient, place: Path) -> None:
    (place / "file").write_text("text")
    (place / "folder").mkdir()
    (place / "folder" / "below").write_text("below")
    (place / "to-file").symlink_to("file")
    (place / "to-folder").symlink_to("folder")
    for copy in (copy_in, copy_out):
        where = place / copy.__name__
        where.mkdir()
        copy(client, "vm", f"{place}/to-file", f"{where}")
        assert os.readlink(where / "to-file") == "file"
        copy(client, "vm", f"{place}/to-file", f"{where}/followed", follow=True)
        assert (where / "followed").read_text() == "text"
        copy(client, "vm", f"{place}/to-folder/", f"{where}/slashed")
        copy(client, "vm", f"{place}/to-folder", f"{where}/followed-folder", follow=True)
        for name in ("slashed", "followed-folder"):
            assert (where / name / "below").read_text() == "below"
            assert not (where / name).is_symlink()


def test_owners_set_id_bits_and_devices_are_for_root_and_a_only(client: AgentsClient, place: Path) -> None:
    demand("root")
    source = place / "source"
    source.mkdir()
    (source / "file").write_text("x")
    os.chown(source / "file", 1234, 70_000_000)
    (source / "file").chmod(0o6755)
    (source / "sticky").mkdir()
    (source / "sticky").chmod(0o1777)
    os.mkfifo(source / "pipe")
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    for copy in (copy_in, copy_out):
        plain, kept = place / f"{copy.__name__}-plain", place / f"{copy.__name__}-kept"
        copied = copy(client, "vm", f"{source}", f"{plain}")
        assert sorted(path.name for path in plain.iterdir()) == ["file", "sticky"]
        status = (plain / "file").stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 0, 0o755)
        assert copied.notes == ("2 left out: sockets, and without -a devices and pipes",)
        copy(client, "vm", f"{source}", f"{kept}", owners=True)
        assert tree(kept) == tree(source)


def test_sockets_are_left_out(client: AgentsClient, place: Path) -> None:
    (place / "source").mkdir()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(place / "source" / "socket"))
        assert copy_in(client, "vm", f"{place}/source", f"{place}/in").notes
        assert "source/socket" not in os.listdir(place / "in")
        assert copy_out(client, "vm", f"{place}/source", f"{place}/out").notes == (
            "a socket is left out: socket",
        )
    assert os.listdir(place / "in") == os.listdir(place / "out") == []


def test_a_file_that_the_kernel_makes_up(client: AgentsClient, place: Path) -> None:
    copy_out(client, "vm", "/proc/sys/kernel/ostype", f"{place}")
    assert (place / "ostype").read_text() == "Linux\n"


# archives on stdin and stdout


def archive(
    entries: list[tuple[tarfile.TarInfo, bytes]], *, format: int = tarfile.PAX_FORMAT, end: bool = True
) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=format, encoding="utf-8") as made:
        for info, content in entries:
            made.addfile(info, io.BytesIO(content) if info.isreg() else None)
        length = made.offset
    return data.getvalue() if end else data.getvalue()[:length]


def entry(name: str, content: bytes = b"", **more: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o644
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def unpack(client: AgentsClient, data: bytes, where: Path, *, owners: bool = False) -> None:
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:  # a pipe holds less than an archive
        os.close(reader)
        try:
            with open(writer, "wb") as out:
                out.write(data)
        finally:
            os._exit(0)
    os.close(writer)
    try:
        unpack_in(client, "vm", reader, str(where), owners=owners)
    finally:
        os.close(reader)
        os.waitpid(process, 0)


@pytest.mark.parametrize(
    "words", [("--format=gnu", "-S"), ("--format=posix", "-S"), ("--format=ustar",), ("--format=v7",)]
)
def test_archives_of_tar_are_read(client: AgentsClient, place: Path, words: tuple[str, ...]) -> None:
    (place / "source").mkdir()
    (place / "source" / "file").write_text("text")
    (place / "source" / "sub").mkdir()
    (place / "source" / "sub" / "more").write_bytes(random.Random(2).randbytes(100_000))
    os.link(place / "source" / "file", place / "source" / "sub" / "hard")
    (place / "source" / "link").symlink_to("file")
    if "-S" in words:
        (place / "source" / ("long" * 60)).write_text("long")
        with (place / "source" / "sparse").open("wb") as sparse:
            for island in range(30):
                sparse.seek(island << 20)
                sparse.write(b"island")
            sparse.truncate(31 << 20)
    data = subprocess.run(
        ["tar", "-C", place / "source", *words, "-c", "."], check=True, capture_output=True
    ).stdout
    (place / "guest").mkdir()
    unpack(client, data, place / "guest", owners=True)
    exact = "--format=posix" in words
    assert tree(place / "guest", times=exact) == tree(place / "source", times=exact)


def test_tar_reads_our_archives(client: AgentsClient, place: Path) -> None:
    sample(place / "source")
    (place / "source" / "hole").unlink()
    with (place / "archive").open("wb") as out:
        pack_out(client, "vm", f"{place}/source", out.fileno())
    with (place / "contents").open("wb") as out:
        pack_out(client, "vm", f"{place}/source/.", out.fileno())
    for name, top in (("archive", "source"), ("contents", "")):
        (place / f"of-{name}").mkdir()
        subprocess.run(["tar", "-C", place / f"of-{name}", "-xpf", place / name], check=True)
        assert tree(place / f"of-{name}" / top) == tree(place / "source")


@pytest.mark.parametrize(
    "hostile",
    [
        [entry("../escaped", b"x")],
        [entry("/escaped", b"x")],
        [entry("a/../../escaped", b"x")],
        [entry("a", type=tarfile.SYMTYPE, linkname=".."), entry("a/escaped", b"x")],
        [entry("a", type=tarfile.SYMTYPE, linkname="/tmp"), entry("a/escaped", type=tarfile.DIRTYPE)],
        [entry("f", b"x"), entry("f/escaped", b"x")],
        [entry("a", type=tarfile.LNKTYPE, linkname="../outside")],
        [entry("a", type=tarfile.LNKTYPE, linkname="/etc/passwd")],
        [
            entry("s", type=tarfile.SYMTYPE, linkname=".."),
            entry("a", type=tarfile.LNKTYPE, linkname="s/outside"),
        ],
        [entry("a", type=tarfile.LNKTYPE, linkname="")],
        [entry("", b"x")],
        [entry("a/" * 1000 + "b", b"x")],
    ],
)
def test_nothing_leads_out_of_the_target(
    client: AgentsClient, place: Path, hostile: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    (place / "outside").write_text("outside")
    (place / "guest").mkdir()
    with pytest.raises(BangerError):
        unpack(client, archive(hostile), place / "guest")
    assert sorted(path.name for path in place.iterdir()) == ["guest", "outside"]
    assert (place / "outside").stat().st_nlink == 1
    assert not list(place.rglob("escaped"))


def test_later_entries_of_a_name_count(client: AgentsClient, place: Path) -> None:
    (place / "guest").mkdir()
    (place / "guest" / "there").write_text("old")
    data = archive(
        [
            entry("new/file", b"first"),
            entry("new/file", b"second"),
            entry("there", b"first"),
            entry("there", type=tarfile.SYMTYPE, linkname="new/file"),
            entry("new/hard", type=tarfile.LNKTYPE, linkname="new/file"),
            entry("new/hard", type=tarfile.LNKTYPE, linkname="new/file"),
            entry("same", b"x"),
            entry("same", type=tarfile.LNKTYPE, linkname="same"),
        ]
    )
    unpack(client, data, place / "guest")
    assert (place / "guest" / "new" / "file").read_text() == "second"
    assert os.readlink(place / "guest" / "there") == "new/file"
    assert (place / "guest" / "new" / "hard").stat().st_nlink == 2
    assert (place / "guest" / "same").read_text() == "x"


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 700, 1024, 1536, 2000])
def test_a_cut_off_archive_leaves_nothing_half(client: AgentsClient, place: Path, cut: int) -> None:
    data = archive([entry("folder/first", b"a" * 10), entry("folder/second", b"b" * 1000)])
    (place / "guest").mkdir()
    (place / "guest" / "old").write_text("old")
    with pytest.raises(BangerError, match=r"cut off|broke off"):
        unpack(client, data[:cut], place / "guest")
    assert os.listdir(place / "guest") == ["old"]


@settings(max_examples=80, deadline=None, suppress_health_check=ITS_FIXTURES)
@given(st.randoms(use_true_random=False), st.integers(1, 30))
def test_damaged_archives_harm_nobody(
    client: AgentsClient, place: Path, dice: random.Random, damages: int
) -> None:
    """Whatever the bytes: an end, well or with an error; nothing half, and no sanitizer report."""
    info = entry("sparse", b"1\n0\n4\n" + bytes(506) + b"data")
    info[0].pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "sparse",
        "GNU.sparse.realsize": "1000",
    }
    data = bytearray(
        archive(
            [
                entry("d", type=tarfile.DIRTYPE, mode=0o755),
                entry("d/" + "n" * 150, b"content" * 100),
                entry("d/link", type=tarfile.SYMTYPE, linkname="x" * 120),
                info,
                entry("d/hard", type=tarfile.LNKTYPE, linkname="d/" + "n" * 150),
            ]
        )
    )
    for _ in range(damages):
        data[dice.randrange(len(data))] = dice.choice(b"\0 0179=/.\n\x80\xff")
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":  # past the checksum, where the parser is
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    where = place / f"{time.monotonic_ns()}"
    where.mkdir()
    failure = None
    try:
        unpack(client, bytes(data), where)
    except BangerError as error:
        failure = error.code
    assert failure is not ErrorCode.GUEST_UNREACHABLE
    assert not leftovers(where)
    for path in where.rglob("*"):
        assert path.lstat().st_size < 1 << 50


# a host that breaks the protocol, or goes


def dial(agent: Agent) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(TIMEOUT_S)
    connection.connect(f"{agent.vm_dir}/v.sock")
    connection.sendall(b"CONNECT 1024\n")
    assert connection.recv(5) == b"OK 1\n"
    return connection


def request_in(path: Path, flags: int = wire.COPY_FLAG_ARCHIVE) -> bytes:
    fields: list[tuple[int, bytes | str | int]] = [
        (wire.COPY_PATH, str(path)),
        (wire.COPY_NAME, "name"),
        (wire.COPY_FLAGS, flags),
    ]
    return encode_frame(wire.FRAME_COPY_IN, encode_fields(fields))


def data_frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + bytes((wire.FRAME_COPY_DATA,)) + data


def last_frame(connection: socket.socket) -> tuple[int, bytes]:
    reader = wire.FrameReader()
    last = (0, b"")
    while last[0] not in (wire.FRAME_ERROR, wire.FRAME_OK) and (data := connection.recv(65536)):
        for frame in reader.feed(data):
            last = (frame.type, frame.payload)
    return last


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\xff\xff\xff\x53",
        (wire.WIRE_MAX_COPY_PAYLOAD + 1).to_bytes(4, "little") + b"\x53",
        encode_frame(wire.FRAME_STDIN, b"x"),
        encode_frame(wire.FRAME_COPY_END, b"x"),
        data_frame(b"") + encode_frame(wire.FRAME_COPY_END),
        data_frame(b"garbage" * 100),
    ],
)
def test_malformed_frames_are_refused(agent: Agent, place: Path, sent: bytes) -> None:
    with dial(agent) as connection:
        connection.sendall(request_in(place) + sent)
        kind, payload = last_frame(connection)
    assert (kind, Fields(payload).text(wire.ERROR_CODE)) == (wire.FRAME_ERROR, "bad_request")
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    "fields",
    [
        [(wire.COPY_PATH, "x" * 5000)],
        [(wire.COPY_PATH, b"a\0b")],
        [(wire.COPY_PATH, "/tmp"), (wire.COPY_NAME, "a/b")],
        [(wire.COPY_PATH, "/tmp"), (wire.COPY_NAME, "..")],
        [(wire.COPY_PATH, "/tmp"), (wire.COPY_FLAGS, b"short")],
        [(wire.COPY_PATH, "y" * 4090)],
    ],
)
@pytest.mark.parametrize("kind", [wire.FRAME_COPY_IN, wire.FRAME_COPY_OUT])
def test_malformed_requests_are_refused(
    agent: Agent, kind: int, fields: list[tuple[int, bytes | str | int]]
) -> None:
    with dial(agent) as connection:
        connection.sendall(encode_frame(kind, encode_fields(fields)))
        answer, payload = last_frame(connection)
    assert (answer, Fields(payload).text(wire.ERROR_CODE)) == (wire.FRAME_ERROR, "bad_request")


def test_a_host_that_goes_leaves_nothing_half(agent: Agent, place: Path) -> None:
    data = archive([entry("folder/first", b"a" * 10), entry("folder/second", b"b" * 100_000)])
    for cut in (100, 2000, 50_000, len(data)):
        with dial(agent) as connection:
            connection.sendall(request_in(place) + data_frame(data[:cut]))
            deadline = time.monotonic() + TIMEOUT_S
            while cut > 2000 and not leftovers(place):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        deadline = time.monotonic() + TIMEOUT_S
        while list(place.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_reader_that_goes_ends_the_agents_part(agent: Agent, place: Path) -> None:
    (place / "big").write_bytes(bytes(8 << 20))
    before = agent.children()
    with dial(agent) as connection:
        connection.sendall(
            encode_frame(wire.FRAME_COPY_OUT, encode_fields([(wire.COPY_PATH, str(place / "big"))]))
        )
        connection.recv(100_000)
    deadline = time.monotonic() + TIMEOUT_S
    while len(agent.children()) > len(before):
        assert time.monotonic() < deadline
        time.sleep(0.01)
