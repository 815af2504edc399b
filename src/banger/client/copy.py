"""Copies between host and guest, as `docker cp` has them: straight at the guest's agent, as tar streams.

For the SDK and `banger vm cp`. What there is at the destination decides where a copy goes: into a folder that
is there, under the name given where there is none, with `/.` behind the source into the folder itself. A new
file or folder appears whole or not at all. owners: keep owners, set-id bits and special files (on the host as
root).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from banger.client.agentconnection import connect_agent
from banger.client.client import Client
from banger.client.copystream import FEATURE, REPLACE_FEATURE, CopyStream, Tick
from banger.client.streams import Output
from banger.errors import BangerError, ErrorCode
from banger.guest import wire

ARCHIVE_PIECE = wire.WIRE_MAX_COPY_PAYLOAD


class Copied(NamedTuple):
    """entries: files, folders, links. bytes: of the archive that went over. notes: what was left out."""

    entries: int
    bytes: int
    notes: tuple[str, ...]


def copy_in(
    client: Client,
    reference: str,
    source: str,
    destination: str,
    *,
    owners: bool = False,
    follow: bool = False,
    tick: Tick | None = None,
) -> Copied:
    """A file or folder of the host's into the guest. follow: a link as source means what it points to."""
    from banger.client.copywalk import Walk

    top, status, link = _open_source(source, follow=follow)
    try:
        flags = wire.COPY_FLAG_OWNERS if owners else 0
        if stat.S_ISDIR(status.st_mode):
            flags |= wire.COPY_FLAG_FOLDER
        name = _base_name(source)
        if not name:
            flags |= wire.COPY_FLAG_CONTENTS
        with _connected(client, reference, tick) as stream:
            stream.begin(wire.FRAME_COPY_IN, guest_path(destination), name=name, flags=flags)
            walk = Walk(stream, owners=owners, shown=source)
            taken, top = top, None
            walk.run(taken, status, link)
            stream.finish()
            return _copied(stream, walk.left_out)
    finally:
        if top is not None:
            os.close(top)


def copy_out(
    client: Client,
    reference: str,
    source: str,
    destination: str,
    *,
    owners: bool = False,
    follow: bool = False,
    tick: Tick | None = None,
) -> Copied:
    """A file or folder of the guest's to the host. The guest is hostile: see client/copyextract."""
    from banger.client.copyextract import Extraction
    from banger.client.copyfolders import Target

    with _connected(client, reference, tick) as stream:
        flags = wire.COPY_FLAG_FOLLOW if follow else 0
        mode = stream.begin(wire.FRAME_COPY_OUT, guest_path(source), flags=flags)
        folder, name = _find_target(destination, _base_name(source), is_folder=stat.S_ISDIR(mode))
        try:
            inside = os.path.isdir(destination) and name
            shown = os.path.join(destination, os.fsdecode(name)) if inside else destination
            extraction = Extraction(stream, Target(folder, name, shown, owners))
            extraction.run()
            return _copied(stream, extraction.left_out)
        finally:
            os.close(folder)


def unpack_in(
    client: Client,
    reference: str,
    descriptor: int,
    destination: str,
    *,
    owners: bool = False,
    tick: Tick | None = None,
) -> Copied:
    """A tar archive from a descriptor into a folder that is there in the guest."""
    flags = wire.COPY_FLAG_ARCHIVE | (wire.COPY_FLAG_OWNERS if owners else 0)
    with _connected(client, reference, tick) as stream:
        stream.begin(wire.FRAME_COPY_IN, guest_path(destination), flags=flags)
        while True:
            stream.wait_for_source(descriptor)
            piece = os.read(descriptor, ARCHIVE_PIECE)
            if not piece:
                break
            stream.send(piece)
        stream.finish()
        return _copied(stream, 0)


def unpack_from(
    client: Client,
    reference: str,
    produce: Callable[[Callable[[bytes | memoryview], object]], None],
    destination: str,
    *,
    owners: bool = False,
    replace: bool = False,
    aside: str = "",
    tick: Tick | None = None,
) -> Copied:
    """As unpack_in, of an archive that `produce` makes: it is called once, with what takes a piece.

    Pieces hold at most ARCHIVE_PIECE bytes. When produce raises, new folders of the archive are not there.
    replace: the archive's one folder takes the place of what has its name in the guest, in one step once it
    is whole; that is removed, or with `aside` called so then.
    """
    flags = wire.COPY_FLAG_ARCHIVE | (wire.COPY_FLAG_OWNERS if owners else 0)
    feature = FEATURE
    if replace:
        flags, feature = flags | wire.COPY_FLAG_REPLACE, REPLACE_FEATURE
    with _connected(client, reference, tick) as stream:
        name = os.fsencode(aside)
        stream.begin(wire.FRAME_COPY_IN, guest_path(destination), name=name, flags=flags, feature=feature)
        produce(stream.send)
        stream.finish()
        return _copied(stream, 0)


def is_there(client: Client, reference: str, path: str) -> bool:
    """Whether the guest has something of this name."""
    try:
        with _connected(client, reference, None) as stream:
            stream.begin(wire.FRAME_COPY_OUT, guest_path(path))
            raise _Enough
    except _Enough:
        return True
    except BangerError as error:
        if error.code is ErrorCode.NOT_FOUND and "agent_code" in error.data:
            return False
        raise


class _Enough(Exception):
    """Ends a copy that was begun for its answer alone."""


def pack_out(
    client: Client,
    reference: str,
    source: str,
    descriptor: int,
    *,
    follow: bool = False,
    tick: Tick | None = None,
) -> Copied:
    """A file or folder of the guest's as a tar archive on a descriptor, as the guest gives it: unchecked."""
    flags = wire.COPY_FLAG_EXACT_TIMES | (wire.COPY_FLAG_FOLLOW if follow else 0)
    with _connected(client, reference, tick) as stream:
        stream.begin(wire.FRAME_COPY_OUT, guest_path(source), name=_base_name(source), flags=flags)
        output = Output(descriptor)
        try:
            while stream.fill(1):
                stream.write_all(output, stream.view[stream.start : stream.end])
                stream.start = stream.end
        finally:
            output.close()
        return _copied(stream, 0)


def _connected(client: Client, reference: str, tick: Tick | None) -> CopyStream:
    return CopyStream(connect_agent(client, reference, purpose="cp"), tick=tick)


def _copied(stream: CopyStream, left_out: int) -> Copied:
    notes = list(stream.notes)
    if left_out:
        notes.append(f"{left_out} left out: sockets, and without -a devices and pipes")
    return Copied(stream.entries, stream.bytes, tuple(notes))


def guest_path(path: str) -> bytes:
    """As the agent is asked for it. INVALID_ARGUMENT."""
    encoded = os.fsencode(path)
    if b"\0" in encoded or len(encoded) > 4000:
        raise BangerError(ErrorCode.INVALID_ARGUMENT, f"no path: {path[:200]!a}")
    return encoded or b"~"


def _base_name(path: str) -> bytes:
    """What a copy of it is called in a folder; empty where its content is meant: `x/.`, `..`, `~`, `/`."""
    if path.endswith("/.") or path in ("", ".", "~"):
        return b""
    name = os.path.basename(os.path.normpath(path))
    return b"" if name in ("", ".", "..", "/") else os.fsencode(name)


def _open_source(source: str, *, follow: bool) -> tuple[int | None, os.stat_result, bytes]:
    """A descriptor for a file or folder, its status, a link's target. NOT_FOUND, PERMISSION_DENIED."""
    slashed = source.endswith(("/", "/."))
    try:
        status = os.stat(source, follow_symlinks=follow or slashed)
        if stat.S_ISLNK(status.st_mode):
            return None, status, os.fsencode(os.readlink(source))
        if slashed and not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(20, "is no folder")
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            return None, status, b""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        top = os.open(source, flags if follow or slashed else flags | os.O_NOFOLLOW)
        return top, os.fstat(top), b""
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        code = ErrorCode.NOT_FOUND if missing else ErrorCode.PERMISSION_DENIED
        raise BangerError(code, f"{source}: {error.strerror}") from error


def _find_target(destination: str, base: bytes, *, is_folder: bool) -> tuple[int, bytes]:
    """A folder's descriptor, and the name in it (empty: the folder itself), by docker cp's rules."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    path = os.fsencode(destination)
    slashed = path.endswith((b"/", b"/."))
    try:
        try:
            return os.open(path or b".", flags), base
        except FileNotFoundError:
            if slashed and not is_folder:
                raise BangerError(ErrorCode.NOT_FOUND, f"there is no folder {destination}") from None
        except NotADirectoryError:
            if is_folder or slashed:
                raise BangerError(
                    ErrorCode.INVALID_ARGUMENT, f"{destination} is there already and is no folder"
                ) from None
        if path.endswith(b"/."):
            path = path[:-2]
        if os.path.islink(path):
            path = os.path.realpath(path)
        folder, name = os.path.split(path.rstrip(b"/"))
        if name in (b"", b".", b".."):
            raise BangerError(ErrorCode.INVALID_ARGUMENT, f"no name for a copy: {destination}")
        return os.open(folder or b".", flags), name
    except FileNotFoundError:
        above = os.path.dirname(destination.rstrip("/"))
        raise BangerError(ErrorCode.NOT_FOUND, f"there is no folder {above}") from None
    except OSError as error:
        raise BangerError(ErrorCode.PERMISSION_DENIED, f"{destination}: {error.strerror}") from error
