"""The one gate for host programs: everything banger runs to completion runs here.

Argument vectors only, a clean environment, stdin closed unless given, output capped, always a
deadline. Each program leads a session of its own; a timeout or a cancelled caller kills the whole
group before the leader is reaped, so no pid can have changed hands. Used by every room that needs
a program; long-lived processes (monitors) go through system/process instead. After a crash of the
daemon a program may run on to its end; nothing here outlives its pipes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import subprocess
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from dataclasses import dataclass

from banger.system.errors import CommandError, CommandTimeout, MissingProgram
from banger.system.host_packages import package_of, search_path
from banger.system.programs import find

log = logging.getLogger("banger.run")

OUTPUT_LIMIT = 1 << 20
_CHUNK = 1 << 16
_LINE_LIMIT = 1 << 14

Stdin = bytes | int | AsyncIterable[bytes] | None
"""What a program reads: nothing, these bytes, this open descriptor (stays the caller's), or this stream."""


@dataclass(frozen=True, slots=True)
class Completed:
    """status: exit status, negative for a signal. stdout: its first, stderr: its last bytes, to the limit."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


def clean_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """PATH and a UTF-8 locale, plus what the caller gives; nothing of the daemon's own."""
    return {"PATH": search_path(), "LANG": "C.UTF-8", **(env or {})}


def resolve_program(program: str) -> str:
    """The program's absolute path; MissingProgram (HOST_UNSUITABLE) where there is none."""
    found = find(program)
    if found is None:
        raise MissingProgram(program, package_of(program.rpartition("/")[2]))
    return found


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    input: bytes | None = None,
    check: bool = True,
    output_limit: int = OUTPUT_LIMIT,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run a program to its end and return what it said.

    Raises CommandError when it fails and `check` is set, CommandTimeout past the deadline (seconds),
    MissingProgram when it is not installed. stdout and stderr are capped at output_limit bytes each.
    """
    return await _run(
        argv,
        timeout_s=timeout_s,
        cwd=cwd,
        env=env,
        stdin=input,
        check=check,
        output_limit=output_limit,
        pass_fds=pass_fds,
    )


async def run_to_fd(
    argv: Sequence[str],
    stdout: int,
    *,
    timeout_s: float,
    stdin: Stdin = None,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    pass_fds: Sequence[int] = (),
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """As run, but stdout goes to an open descriptor (which stays the caller's) and is not kept.

    on_line, where given, hears every line of stderr as it comes.
    """
    return await _run(
        argv,
        timeout_s=timeout_s,
        cwd=cwd,
        env=env,
        stdin=stdin,
        stdout_fd=stdout,
        check=check,
        pass_fds=pass_fds,
        on_line=on_line,
    )


async def stream_lines(
    argv: Sequence[str],
    on_line: Callable[[str], None],
    *,
    timeout_s: float,
    stdin: Stdin = None,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """As run, for long-running programs: on_line hears every line of stdout and stderr as it comes.

    A carriage return ends a line too (progress bars). on_line runs in the event loop; it must not block.
    """
    return await _run(
        argv,
        timeout_s=timeout_s,
        cwd=cwd,
        env=env,
        stdin=stdin,
        check=check,
        pass_fds=pass_fds,
        on_line=on_line,
    )


async def _run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    cwd: str | None,
    env: Mapping[str, str] | None,
    stdin: Stdin,
    check: bool,
    stdout_fd: int | None = None,
    output_limit: int = OUTPUT_LIMIT,
    pass_fds: Sequence[int] = (),
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    with _Child(
        argv,
        cwd=cwd,
        env=env,
        stdin=stdin,
        stdout=stdout_fd,
        output_limit=output_limit,
        pass_fds=pass_fds,
        on_line=on_line,
    ) as child:
        completed = await _finish(child, timeout_s=timeout_s)
    if check and completed.status:
        raise CommandError(completed.argv, completed.status, stderr=completed.stderr)
    return completed


async def _finish(child: _Child, *, timeout_s: float) -> Completed:
    """Wait for it; one that cannot be waited for is not left running."""
    try:
        async with asyncio.timeout(timeout_s):
            return await child.finish()
    except TimeoutError:
        child.kill()
        raise CommandTimeout(child.argv, timeout_s, stderr=child.stderr_tail) from None
    except BaseException:
        child.kill()
        raise


class _Child:
    """A running program with its pipes. Leaving its `with` kills what still runs, and reaps."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: Stdin = None,
        stdout: int | None = None,
        output_limit: int = OUTPUT_LIMIT,
        pass_fds: Sequence[int] = (),
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self.argv = tuple(argv)
        program = resolve_program(argv[0])
        line = shlex.join(argv)
        log.debug("$ %s", f"(cd {shlex.quote(cwd)} && {line})" if cwd else line)
        self._loop = asyncio.get_running_loop()
        self._stdin = stdin
        self._popen = subprocess.Popen(
            [program, *argv[1:]],
            stdin=stdin
            if isinstance(stdin, int)
            else subprocess.DEVNULL
            if stdin is None
            else subprocess.PIPE,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=clean_environment(env),
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            bufsize=0,
        )
        self._pidfd = os.pidfd_open(self._popen.pid)
        self._exit: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._out: _Output | None = None
        if self._popen.stdout is not None:
            self._out = _Output(self._popen.stdout.fileno(), output_limit, keep_tail=False, on_line=on_line)
        assert self._popen.stderr is not None
        self._err = _Output(self._popen.stderr.fileno(), output_limit, keep_tail=True, on_line=on_line)

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.kill()
        self._loop.remove_reader(self._pidfd)
        for output in (self._out, self._err):
            if output is not None:
                output.stop()
        # SIGKILL is sent or the program has ended: the kernel's own cleaning-up is all that is waited for
        self._popen.wait()
        os.close(self._pidfd)
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                pipe.close()

    @property
    def stderr_tail(self) -> bytes:
        return bytes(self._err.data)

    def kill(self) -> None:
        """SIGKILL to the whole group, unless the leader was reaped: then the number may be another's."""
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        if not self._exit.done():
            self._exit.set_result(None)

    async def finish(self) -> Completed:
        """Feed stdin, wait for the exit and for the end of both outputs."""
        pump = asyncio.ensure_future(self._pump())
        try:
            await asyncio.wait({pump, self._exit}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()  # a source that failed ends the program (in _finish_all)
            await self._exit
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
        for output in (self._out, self._err):
            if output is not None:
                await output.closed
        # a zombie until now; its own group's stragglers are not ours to judge once it said it is done
        status = self._popen.wait()
        return Completed(
            argv=self.argv,
            status=status,
            stdout=bytes(self._out.data) if self._out is not None else b"",
            stderr=bytes(self._err.data),
            truncated=self._out is not None and self._out.truncated,
        )

    async def _pump(self) -> None:
        pipe = self._popen.stdin
        if pipe is None:
            return
        os.set_blocking(pipe.fileno(), False)
        try:
            if isinstance(self._stdin, bytes):
                await self._write(pipe.fileno(), self._stdin)
            elif self._stdin is not None and not isinstance(self._stdin, int):
                async for chunk in self._stdin:
                    await self._write(pipe.fileno(), chunk)
        except BrokenPipeError:
            return  # the program wanted no more; its status tells whether that is an error
        finally:
            pipe.close()

    async def _write(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view[:_CHUNK]) :]
            except BlockingIOError:
                writable: asyncio.Future[None] = self._loop.create_future()
                self._loop.add_writer(fd, _resolve, writable)
                try:
                    await writable
                finally:
                    self._loop.remove_writer(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Output:
    """Reads one pipe to its end, keeping the first or the last `limit` bytes and telling lines."""

    def __init__(
        self, fd: int, limit: int, *, keep_tail: bool, on_line: Callable[[str], None] | None
    ) -> None:
        self.data = bytearray()
        self.truncated = False
        self._fd = fd
        self._limit = limit
        self._keep_tail = keep_tail
        self._on_line = on_line
        self._line = bytearray()
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._read)

    def stop(self) -> None:
        if not self.closed.done():
            self._loop.remove_reader(self._fd)
            self.closed.cancel()

    def _read(self) -> None:
        try:
            chunk = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return
        if chunk:
            self._keep(chunk)
        try:
            if self._on_line is not None:
                self._tell(chunk, self._on_line)
        except Exception as error:
            self._loop.remove_reader(self._fd)
            self.closed.set_exception(error)
            return
        if not chunk:
            self._loop.remove_reader(self._fd)
            self.closed.set_result(None)

    def _keep(self, chunk: bytes) -> None:
        if self._keep_tail:
            self.data += chunk
            over = len(self.data) - self._limit
        else:
            over = len(self.data) + len(chunk) - self._limit
            self.data += chunk[: max(0, len(chunk) - over)] if over > 0 else chunk
        if over > 0:
            self.truncated = True
            if self._keep_tail:
                del self.data[:over]

    def _tell(self, chunk: bytes, on_line: Callable[[str], None]) -> None:
        self._line += chunk.replace(b"\r", b"\n")
        *lines, rest = self._line.split(b"\n")
        if not chunk or len(rest) > _LINE_LIMIT:
            lines.append(rest[:_LINE_LIMIT])
            rest = bytearray()
        self._line = bytearray(rest)
        for line in lines:
            if line.strip():
                on_line(line.decode("utf-8", "replace"))
