"""Commands and sessions as streams for Python programs: read what comes, write, wait, signal. Synchronous.

One poll loop over the guest's connection, run by whichever thread waits. One thread reads; write, signal,
kill and resize may be called by others meanwhile. Leaving a command's context kills it in the guest, leaving
a session's only detaches; after a crash of ours the agent does the same. Standard library only.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from typing import TypeVar

from banger.client.agentconnection import AgentConnection
from banger.client.dialogue import AttachDialogue, CommandDialogue, Dialogue, Lines
from banger.client.errors import GuestUnreachable
from banger.client.exchange import ANSWER_TIMEOUT_S
from banger.client.streams import hang_up
from banger.client.values import (
    MAX_OUTPUT_BYTES,
    CommandTimeout,
    Output,
    OutputTooLong,
    Result,
    StreamName,
)
from banger.errors import BangerError, ErrorCode
from banger.model.sessions import signal_number

SLICE_S = 1.0
"""The longest sleep: deadlines are looked at in between."""
RECEIVE = 256 << 10
MAX_UNREAD = 16 << 20
"""Output that is held while a thread writes and nobody reads."""
PART_S = 2.0
"""For our last words to be taken by the guest."""
S = TypeVar("S", bound="Stream")


class Late(Exception):
    """The deadline has passed."""


class Stream:
    """Something's output, piece by piece, and its input. The base of Process and of SessionStream."""

    def __init__(self, connection: AgentConnection, dialogue: Dialogue) -> None:
        self._socket = connection.socket
        self._socket.setblocking(False)
        self._dialogue = dialogue
        self._changed = threading.Condition()
        self._reading = False  # a thread is in poll for all of us
        self._version = 0  # counts what came and went: who looked before it changed need not wait
        self._reader: int | None = None  # who took output last
        self._answer_by = time.monotonic() + ANSWER_TIMEOUT_S
        if connection.early:
            dialogue.feed(connection.early)
        with self._changed:
            self._flush()

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Output]:
        """Each piece as it comes, to the end. Nothing more is read from the guest than is taken here."""
        while (piece := self.read()) is not None:
            yield piece

    def lines(self, stream: StreamName | None = "stdout") -> Iterator[str]:
        """Lines of one stream, without their ends; what comes on the other is dropped. None: of both.

        What is not UTF-8 becomes U+FFFD; a line longer than 1 MiB comes in pieces.
        """
        lines = Lines(stream)
        while (piece := self.read()) is not None:
            yield from lines.feed(piece)
        yield from lines.rest()

    def read(self, timeout: float | None = None) -> Output | None:
        """The next piece; None at the end. TIMEOUT when none came in `timeout` seconds."""
        deadline = _deadline(timeout)
        try:
            while True:
                with self._changed:
                    self._reader = threading.get_ident()
                    self._flush()
                    piece = self._dialogue.take()
                    if piece is not None:
                        self._tell()
                        return piece
                    if self._dialogue.ended:
                        self._end()
                        return None
                    version = self._version
                self._pump(deadline, version)
        except Late:
            raise BangerError(ErrorCode.TIMEOUT, f"nothing came within {timeout:g} s") from None

    def write(self, data: bytes | str) -> None:
        """All of it to the input; waits while the other end does not read. str: as UTF-8.

        WRONG_STATE when it has ended or takes no input; BUSY when its output, which no other thread reads,
        has grown past 16 MiB meanwhile.
        """
        view = memoryview(data.encode() if isinstance(data, str) else data)
        while True:
            with self._changed:
                if view or self._dialogue.failure is not None:
                    self._may_write()
                while view and (room := self._dialogue.room):
                    self._dialogue.put(bytes(view[:room]))
                    view = view[room:]
                    self._flush()
                if not view and (not self._dialogue.outgoing or self._dialogue.ended):
                    return
                version = self._version
                others = self._reader not in (None, threading.get_ident())
                if self._dialogue.held > MAX_UNREAD:
                    if not others:
                        raise BangerError(
                            ErrorCode.BUSY,
                            "the command waits for somebody to read its output",
                            hint="read it from another thread, or use exec(…, input=…)",
                        )
                    self._changed.wait(SLICE_S)
                    continue
            self._pump(None, version)

    def close_stdin(self) -> None:
        """The end of its input."""
        with self._changed:
            self._dialogue.end_input()
        self._send()

    def close(self) -> None:
        """Once is enough. What the end means is said by the class."""
        with self._changed:
            if self._socket.fileno() < 0:
                return
            ended = self._dialogue.ended
            self._dialogue.part()
        self._part()
        with self._changed:
            self._dialogue.fail(BangerError(ErrorCode.ABORTED, "the stream was closed"))
            self._dialogue.failure = None
            self._tell()
        if ended:
            self._socket.close()
        else:
            hang_up(self._socket)

    # underneath

    def _may_write(self) -> None:
        dialogue = self._dialogue
        if dialogue.failure is not None:
            raise dialogue.failure
        if dialogue.ended or dialogue.input_ended:
            why = "has ended" if dialogue.ended else "takes no input"
            raise BangerError(ErrorCode.WRONG_STATE, f"the command {why}")

    def _send(self) -> None:
        """What is to be said is said before this returns."""
        while True:
            with self._changed:
                self._flush()
                if not self._dialogue.outgoing or self._dialogue.ended:
                    return
                version = self._version
            self._pump(None, version)

    def _part(self) -> None:
        """Our last words; the guest may not take them."""
        deadline = time.monotonic() + PART_S
        poll = select.poll()
        while True:
            with self._changed:
                self._flush()
                if not self._dialogue.outgoing or time.monotonic() > deadline:
                    return
            poll.register(self._socket, select.POLLOUT)
            poll.poll(1000 * PART_S)

    def _flush(self) -> None:
        """Locked. As much as is taken at once."""
        outgoing = self._dialogue.outgoing
        try:
            while outgoing:
                del outgoing[: self._socket.send(outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            outgoing.clear()  # what it had said before is still to be read, and why it went

    def _tell(self) -> None:
        """Locked. Whoever waits looks again."""
        self._version += 1
        self._changed.notify_all()

    def _pump(self, deadline: float | None, version: int) -> None:
        """Wait until something came since `version`, or could be said; at most a slice. Late."""
        slice_s = SLICE_S
        if deadline is not None:
            slice_s = min(slice_s, deadline - time.monotonic())
            if slice_s <= 0:
                raise Late
        with self._changed:
            if self._dialogue.ended or self._version != version:
                return
            sending = bool(self._dialogue.outgoing)
            if self._reading and not sending:
                self._changed.wait(slice_s)
                return
            alone = not self._reading
            self._reading = True
        data: bytes | None = None
        failure: Exception | None = None
        try:
            poll = select.poll()
            poll.register(self._socket, (select.POLLIN if alone else 0) | (select.POLLOUT if sending else 0))
            ready = poll.poll(1000 * slice_s)
            if alone and ready and ready[0][1] & ~select.POLLOUT:
                data = self._socket.recv(RECEIVE)
        except BlockingIOError:
            pass
        except (OSError, ValueError) as error:  # ValueError: closed by another thread
            failure = error
        finally:
            if alone:
                with self._changed:
                    self._reading = False
                    self._came(data, failure)
                    self._tell()

    def _came(self, data: bytes | None, failure: Exception | None) -> None:
        dialogue = self._dialogue
        if failure is not None:
            dialogue.lost(failure)
        elif data is not None:
            dialogue.feed(data)
        if not dialogue.answered and not dialogue.ended and time.monotonic() > self._answer_by:
            dialogue.fail(GuestUnreachable("the guest's agent does not answer"))

    def _end(self) -> None:
        """Locked. All has been read: our last words go out, and what went wrong is raised."""
        self._dialogue.part()
        self._flush()
        self._socket.close()
        if self._dialogue.failure is not None:
            raise self._dialogue.failure


class Process(Stream):
    """A command in a guest. Leaving its context kills it there if it still runs."""

    def __init__(self, connection: AgentConnection, dialogue: CommandDialogue) -> None:
        super().__init__(connection, dialogue)
        self._command = dialogue
        self.args: tuple[str, ...] = dialogue.argv

    @property
    def pid(self) -> int:
        """In the guest; 0 until it is known."""
        return self._command.pid

    @property
    def returncode(self) -> int | None:
        """None until its end has been read; -N when signal N ended it."""
        return self._command.returncode

    def signal(self, signal: str | int) -> None:
        """To its process group: "INT", "SIGUSR1" or a number. One that has ended takes no notice."""
        number = signal_number(str(signal))
        with self._changed:
            self._command.send_signal(number)
        self._send()

    def kill(self) -> None:
        """SIGKILL to its process group."""
        self.signal("KILL")

    def resize(self, rows: int, cols: int) -> None:
        """Of the terminal that it was started with."""
        with self._changed:
            self._command.resize(rows, cols)
        self._send()

    def wait(self, timeout: float | None = None) -> int:
        """Its return code. Output that was not read is dropped. TIMEOUT leaves it running."""
        deadline = _deadline(timeout)
        try:
            self._collect(None, deadline, most=None)
        except Late:
            raise BangerError(ErrorCode.TIMEOUT, f"the command still runs after {timeout:g} s") from None
        return self._status()

    def communicate(
        self,
        input: bytes | str | None = None,
        timeout: float | None = None,
        *,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Result[bytes]:
        """Give it `input` and its end, read all it writes, wait. CommandTimeout and OutputTooLong kill it."""
        data = b"" if input is None else input.encode() if isinstance(input, str) else input
        taken: dict[StreamName, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        try:
            self._collect(memoryview(data), _deadline(timeout), most=max_output_bytes, taken=taken)
        except Late:
            self.close()
            raise CommandTimeout(
                self.args, timeout or 0.0, stdout=bytes(taken["stdout"]), stderr=bytes(taken["stderr"])
            ) from None
        except BaseException:
            self.close()
            raise
        return Result(self.args, self._status(), bytes(taken["stdout"]), bytes(taken["stderr"]))

    def _collect(
        self,
        input: memoryview | None,
        deadline: float | None,
        *,
        most: int | None,
        taken: dict[StreamName, bytearray] | None = None,
    ) -> None:
        """To the end. input None: it is left alone. taken None: what comes is dropped."""
        dialogue = self._command
        total = 0
        while True:
            with self._changed:
                self._reader = threading.get_ident()
                if input is not None and not dialogue.input_ended:
                    # not more at once than the guest's window: what is queued here is bounded by that
                    while input and (room := dialogue.room):
                        dialogue.put(bytes(input[:room]))
                        input = input[room:]
                    if not input and dialogue.started:
                        dialogue.end_input()
                self._flush()
                while (piece := dialogue.take()) is not None:
                    total += len(piece.data)
                    if most is not None and total > most:
                        raise OutputTooLong(self.args, most)
                    if taken is not None:
                        taken[piece.stream] += piece.data
                if dialogue.ended:
                    self._end()
                    return
                version = self._version
            self._pump(deadline, version)

    def _status(self) -> int:
        if self._command.returncode is None:
            raise BangerError(ErrorCode.ABORTED, "the command was killed when its stream was closed")
        return self._command.returncode


class SessionStream(Stream):
    """A session's output, and its input if it was asked for and nobody else has it. Leaving detaches."""

    def __init__(self, connection: AgentConnection, dialogue: AttachDialogue) -> None:
        super().__init__(connection, dialogue)
        self._attached = dialogue

    @property
    def has_stdin(self) -> bool:
        """Whether write() is for us: known once something was read or written."""
        return self._attached.writer

    @property
    def returncode(self) -> int | None:
        """None while the session runs, and until its end has been read."""
        return self._attached.returncode

    def wait_started(self, timeout: float = ANSWER_TIMEOUT_S) -> None:
        """Until the agent has let us in."""
        deadline = time.monotonic() + timeout
        try:
            while not (self._attached.started or self._attached.ended):
                self._pump(deadline, self._version)
        except Late:
            raise GuestUnreachable("the guest's agent does not answer") from None
        if self._attached.failure is not None:
            raise self._attached.failure

    def _may_write(self) -> None:
        super()._may_write()
        if self._attached.started and not self._attached.writer:
            raise BangerError(
                ErrorCode.WRONG_STATE,
                "the session's stdin is not ours",
                hint="attach(write=True), when nobody else has it and the session has one",
            )


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout
