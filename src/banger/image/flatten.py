"""An image's layers, replayed oldest first into one tree, and that as one clean tar.

Each layer is unpacked once, while its diff_id is checked, into a file without a name; then its headers are
read from there (tarheaders.py) and replayed (layertree.py). Contents stay where they lie until the tree's
tar is written (treetar.py): a file that a later layer replaces is never copied, and memory holds entries,
not bytes. Nothing is unpacked by path. Blocking; called in threads. A crash leaves nothing: the file has no
name.
"""

from __future__ import annotations

import hashlib
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from banger.image import compress
from banger.image.errors import ImageError, from_os_error, invalid
from banger.image.layertree import LayerTree, TooLarge, shown
from banger.image.oci.manifest import Layer
from banger.image.staging import require_space
from banger.image.treetar import Measure, measure, write_tree
from banger.system.tarheaders import BadTar, read_headers

_KINDS = ("none", "gzip", "zstd")
_READ = 256 << 10
_AHEAD = 8
"""Chunks of a MiB that wait between the unpacking thread and this one."""
_LOOK_EVERY = 64 << 20
_CHECK_EVERY = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an image may have at most. entries: in all layers together, replaced ones included; unpacked:
    bytes of the layers' tars and of sparse files' full sizes; ratio: unpacked to packed of a layer, from
    ratio_from bytes on; index, steps: see LayerTree."""

    entries: int = 1_000_000
    unpacked: int = 64 << 30
    ratio: int = 200
    ratio_from: int = 1 << 30
    index: int = 256 << 20
    steps: int = 20_000_000


LIMITS = Limits()


class Stopped(Exception):
    """Raised by a caller's `heard`, to end the work of a thread that nobody waits for any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flattened:
    """entries: read from the layers. content_bytes, inodes: see Measure. length: of the tar, bytes."""

    entries: int
    content_bytes: int
    inodes: int
    length: int


def flatten(
    layers: Sequence[Layer],
    out: IO[bytes],
    *,
    work: Path,
    limits: Limits = LIMITS,
    heard: Callable[[int], None] = lambda count: None,
) -> Flattened:
    """Write the image's files to `out` as one tar in the form that rootfs.rewrite and mke2fs -d take.

    layers: the oldest first, verified blobs. work: a folder on a disk with room for what they unpack to.
    heard: told the bytes unpacked so far; what it raises ends the work. IMAGE_INVALID names the layer and
    the entry; `out` is the caller's to throw away then.
    """
    with FlatTree(layers, work=work, limits=limits, heard=heard) as flat:
        found = flat.measure()
        try:
            length = write_tree(flat.tree.root, out)
        except OSError as error:
            raise from_os_error(error, "writing an image's files") from error
        return Flattened(
            entries=flat.entries, content_bytes=found.content_bytes, inodes=found.inodes, length=length
        )


class FlatTree:
    """The tree of an image's layers, with the files its contents lie in; leaving its `with` closes them.

    entries: how many were read from the layers.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        work: Path,
        limits: Limits = LIMITS,
        heard: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.tree = LayerTree(max_nodes=limits.entries, max_index=limits.index, max_steps=limits.steps)
        self.entries = 0
        self._layers = tuple(layers)
        self._work = work
        self._limits = limits
        self._heard = heard
        self._unpacked = 0
        self._sparse = 0
        self._open: list[IO[bytes]] = []
        self._spool = -1
        self._end = 0  # of what is in the spool

    def __enter__(self) -> FlatTree:
        try:
            spool = tempfile.TemporaryFile(dir=self._work, buffering=0)
            self._open.append(spool)
            self._spool = spool.fileno()
            for number, layer in enumerate(self._layers):
                if number:
                    self.tree.next_layer()
                self._replay(layer)
        except OSError as error:
            self.close()
            raise from_os_error(error, "unpacking an image's layers") from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        while self._open:
            self._open.pop().close()

    def measure(self) -> Measure:
        """IMAGE_INVALID for a tree that no file system could hold."""
        try:
            return measure(self.tree.root)
        except BadTar as error:
            raise self.refusal(error, error.entry) from error

    def keep(self, content: bytes) -> tuple[int, int]:
        """Lay content beside the layers': (descriptor, position) for an inode."""
        position = self._end
        self._append(content)
        return self._spool, position

    def refusal(self, error: BadTar, entry: bytes) -> ImageError:
        """The error that names the entry and its layer: the one being replayed, where it does not say."""
        name = f", entry {shown(entry)}" if entry else ""
        number = self.tree.layer if error.layer < 0 else error.layer
        return invalid(f"{self._named(number)}{name}: {error.why}")

    def _named(self, number: int) -> str:
        return f"layer {self._layers[number].digest}" if number < len(self._layers) else "the image"

    def _replay(self, layer: Layer) -> None:
        source, start, end = self._unpack(layer)
        name = b""
        try:
            for header in read_headers(source, start, end):
                name = header.name
                self.entries += 1
                if self.entries > self._limits.entries:
                    raise TooLarge(f"more than {self._limits.entries} entries")
                if self.entries % _CHECK_EVERY == 0:
                    self._heard(self._unpacked)
                if header.pieces is not None:
                    self._sparse += header.size
                    if self._unpacked + self._sparse > self._limits.unpacked:
                        raise TooLarge(f"more than {self._limits.unpacked >> 20} MiB of content")
                self.tree.apply(header, source)
                name = b""
        except BadTar as error:
            raise self.refusal(error, error.entry or name) from error
        except TooLarge as error:
            raise self.refusal(BadTar(str(error)), name) from error

    def _unpack(self, layer: Layer) -> tuple[int, int, int]:
        """The layer's tar: a descriptor and where in it; its diff_id is checked."""
        what = f"layer {layer.digest}"
        blob = layer.path.open("rb", buffering=0)
        self._open.append(blob)
        size = os.fstat(blob.fileno()).st_size
        kind = compress.recognise(os.pread(blob.fileno(), 6, 0))
        if kind not in _KINDS:
            raise invalid(f"{what} is compressed in a way that no registry knows: {kind}")
        left = self._limits.unpacked - self._unpacked
        chunks = compress.decompressed(_chunks(blob), kind, limit=left, what=what)
        digest = hashlib.sha256()
        begin, length, looked = self._end, 0, 0
        with _Ahead(chunks) as ahead:
            for chunk in ahead:
                digest.update(chunk)
                length += len(chunk)
                if length > self._limits.ratio_from and length > self._limits.ratio * size:
                    raise invalid(f"{what} unpacks to more than {self._limits.ratio} times its size")
                if kind != "none":
                    self._append(chunk)
                if length - looked >= _LOOK_EVERY:
                    looked = length
                    require_space(self._work, 0, what=f"unpacking {what}")
                self._heard(self._unpacked + length)
        if f"sha256:{digest.hexdigest()}" != layer.diff_id:
            raise invalid(f"{what} does not hold what the image's config says: its diff_id is another")
        self._unpacked += length
        if kind == "none":
            return blob.fileno(), 0, length
        self._open.remove(blob)
        blob.close()
        return self._spool, begin, begin + length

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self._spool, view, self._end)
            self._end += done
            view = view[done:]


def _chunks(blob: IO[bytes]) -> Iterator[bytes]:
    while chunk := blob.read(_READ):
        yield chunk


class _Ahead:
    """Chunks that a thread works out while the last ones are used; leaving its `with` ends the thread.

    zlib, zstd and sha256 let go of the interpreter, so that both work at once.
    """

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._ready: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="unpack", daemon=True)

    def __enter__(self) -> _Ahead:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._ready.get_nowait()  # room for the one that the thread may be waiting to hand over
            except queue.Empty:
                self._thread.join(0.01)

    def __iter__(self) -> Iterator[bytes]:
        while True:
            item = self._ready.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _work(self) -> None:
        last: BaseException | None = None
        try:
            for chunk in self._chunks:
                if self._stop.is_set():
                    return
                self._ready.put(chunk)
        except BaseException as error:  # handed over: the one who waits has to hear of it
            last = error
        self._ready.put(last)
