"""A VM as an object: its life, commands in it, files, sessions, ports. Made by the SDK's Client.

Thread-safe: what is known of the VM is replaced as a whole. Leaving the context of one that was made by
`Client.run` deletes it; that of any other leaves it as it is. Standard library only.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from banger.client.agentconnection import AgentConnection, connect_agent
from banger.client.calls import CallClient
from banger.client.client import Operation
from banger.client.core import Core, port_body, spec_fields, words
from banger.client.dialogue import CommandDialogue
from banger.client.process import Process
from banger.client.session import Session
from banger.client.values import (
    MAX_OUTPUT_BYTES,
    CommandFailed,
    CommandTimeout,
    OnProgress,
    Result,
)
from banger.errors import BangerError
from banger.model.published import parse_published, parse_which

if TYPE_CHECKING:
    from banger.client import shapes
    from banger.client.copy import Copied

Argv = Sequence["str | os.PathLike[str]"]
Command = Callable[["shapes.Workspace | None"], CommandDialogue]
SIZE = (24, 80)
ASK_AGAIN_S = 0.2
MAX_FILE_BYTES = 64 << 20


class VM:
    """One VM. `info` is what was known when it was last asked; refresh() asks again."""

    def __init__(
        self, core: Core, record: shapes.VM, *, env: Mapping[str, str] | None = None, remove: bool = False
    ) -> None:
        self._core = core
        self._record = record
        self._env = dict(env or {})
        self._remove = remove

    def __repr__(self) -> str:
        return f"<banger.VM {self.name} {self.state}>"

    def __enter__(self) -> VM:
        return self

    def __exit__(self, _kind: object, failure: BaseException | None, _trace: object) -> None:
        if not self.ends_with_its_block:
            return
        try:
            self.delete()
        except BangerError as error:
            if failure is None:
                raise
            failure.add_note(f"banger: {self.name} could not be deleted: {error}")

    # what it is

    @property
    def ends_with_its_block(self) -> bool:
        """Made by run(), and by this process: in a forked child it is its parent's."""
        return self._remove and self._core.calls.is_ours

    @property
    def info(self) -> shapes.VM:
        """VMReply of docs/api.md."""
        return self._record

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""
        return self._record["id"]

    @property
    def name(self) -> str:
        """Given, or made up; also the guest's host name."""
        return self._record["name"]

    @property
    def state(self) -> str:
        """created, starting, running, stopping, stopped or error, as of the last refresh."""
        return self._record["state"]

    @property
    def image(self) -> str:
        """The name of what it was made from; "" where that is gone."""
        return self._record.get("image", "")

    @property
    def ip(self) -> str:
        """On the bridge; kept for the VM's life."""
        return self._record["runtime"].get("guest_ip", "")

    @property
    def dns_name(self) -> str:
        """As banger's own name server knows it while it runs: NAME.vm."""
        return self._record["runtime"].get("dns_name", "")

    @property
    def workspace(self) -> shapes.Workspace | None:
        """The repository that was brought in, if there is one: commands start there."""
        return self._record.get("workspace") or None

    def refresh(self) -> VM:
        """Ask again; itself. NOT_FOUND when it is gone."""
        with self._core.calls.client() as client:
            self._record = client.show_vm(self.id)
        return self

    # its life

    def start(self, *, progress: OnProgress | None = None) -> VM:
        """Boot it; itself. One that runs is left as it is."""
        return self._change(lambda client: client.start_vm(self.id), progress)

    def stop(self, *, progress: OnProgress | None = None) -> VM:
        """Shut the guest down in order; itself. No error when it does not run."""
        return self._change(lambda client: client.stop_vm(self.id), progress)

    def restart(self, *, progress: OnProgress | None = None) -> VM:
        """Stop and start; itself."""
        return self._change(lambda client: client.restart_vm(self.id), progress)

    def kill(self, signal: str = "TERM", *, progress: OnProgress | None = None) -> VM:
        """Signal the machine itself, as pulling its plug: TERM KILL INT HUP QUIT USR1 USR2 or ABRT."""
        return self._change(lambda client: client.kill_vm(self.id, signal=signal), progress)

    def delete(self, *, discard_work: bool = False, progress: OnProgress | None = None) -> None:
        """End it and remove all of it. One that is gone already is no error.

        Work in its workspace is kept first (see work()), or this fails with WORK_NOT_KEPT and the VM stays;
        discard_work: it is not, nor what was kept before.
        """
        self._core.delete(self.id, progress, discard_work=discard_work)

    def set(
        self,
        *,
        vcpu: int | None = None,
        memory: int | str | None = None,
        disk_size: int | str | None = None,
        nat: bool | None = None,
        progress: OnProgress | None = None,
    ) -> VM:
        """Change it; itself. What cannot change while it runs does at the next start."""
        fields = spec_fields(vcpu=vcpu, memory=memory, disk_size=disk_size, nat=nat)
        return self._change(lambda client: client.set_vm(self.id, **fields), progress)

    def publish(self, *ports: str | int) -> VM:
        """Ports of the guest's on this host, as `vm publish` takes them: 80, "8080:80"; itself."""
        bodies = [port_body(parse_published(str(port))) for port in ports]
        return self._change(lambda client: client.publish_ports(self.id, bodies), None)

    def unpublish(self, *ports: str | int, everything: bool = False) -> VM:
        """Take published ports back, by their port on the host; itself."""
        bodies: list[dict[str, Any]] = [parse_which(str(port))._asdict() for port in ports]
        return self._change(
            lambda client: client.unpublish_ports(self.id, bodies, everything=everything), None
        )

    # how it is

    def health(self) -> shapes.Health:
        """Whether it runs and its agent answers. One that does not run is not healthy."""
        with self._core.calls.client() as client:
            return client.health_vm(self.id)

    def stats(self) -> shapes.VMStats:
        """Its figures, taken now."""
        with self._core.calls.client() as client:
            return client.stats_vm(self.id)

    def ports(self) -> shapes.Ports:
        """Who listens in the guest, and what is published."""
        with self._core.calls.client() as client:
            return client.ports_vm(self.id)

    def logs(
        self,
        *,
        source: Literal["console", "monitor"] = "console",
        follow: bool = False,
        tail: int | None = None,
    ) -> Iterator[bytes]:
        """The console's log or the machine monitor's, in raw pieces; follow: without end."""
        with self._core.calls.client() as client:
            yield from client.logs(self.id, source=source, follow=follow, tail=tail)

    # commands

    @overload
    def exec(
        self,
        argv: Argv,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str = "",
        input: bytes | str | None = None,
        timeout: float | None = None,
        check: bool = True,
        text: Literal[False] = False,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Result[bytes]: ...

    @overload
    def exec(
        self,
        argv: Argv,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str = "",
        input: bytes | str | None = None,
        timeout: float | None = None,
        check: bool = True,
        text: Literal[True],
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Result[str]: ...

    def exec(
        self,
        argv: Argv,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str = "",
        input: bytes | str | None = None,
        timeout: float | None = None,
        check: bool = True,
        text: bool = False,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Result[bytes] | Result[str]:
        """Run a command to its end; what it wrote and how it ended. No shell parses it.

        input: its stdin, which is empty otherwise. timeout: seconds; then it is killed, and CommandTimeout.
        check: another status than 0 is CommandFailed. text: str instead of bytes, UTF-8 with U+FFFD for what
        is none. CommandNotStarted when there is no such program, whatever check says. Its output is held in
        memory: OutputTooLong, and it is killed, past max_output_bytes.
        """
        command = self._command(argv, cwd, env, user, stdin=input is not None)
        try:
            with self._open(command) as process:
                result = process.communicate(input, timeout, max_output_bytes=max_output_bytes)
        except CommandTimeout as late:
            if not text:
                raise
            raise late.as_text() from None
        return settled(result, check=check, text=text)

    def popen(
        self,
        argv: Argv,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str = "",
        stdin: bool = False,
        terminal: bool = False,
        size: tuple[int, int] = SIZE,
    ) -> Process:
        """Start a command, in a with block whose end kills it: its output as it comes, its input, signals.

        stdin: it gets what write() is given; else nothing. terminal: with one of `size` rows and columns, so
        that stderr comes with stdout.
        """
        command = self._command(argv, cwd, env, user, stdin=stdin, terminal=terminal, size=size)
        return self._open(command)

    # files

    def copy_in(
        self,
        source: str | os.PathLike[str],
        destination: str,
        *,
        owners: bool = False,
        follow: bool = False,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Copied:
        """A file or folder of this host's into the guest, by docker cp's rules (docs/copy.md).

        owners: keep owners, set-id bits and special files. follow: a link as source means what it points to.
        on_bytes: told the bytes so far, often.
        """
        from banger.client.copy import copy_in

        with self._core.calls.client() as client:
            return copy_in(
                client,
                self.id,
                os.fspath(source),
                destination,
                owners=owners,
                follow=follow,
                tick=on_bytes,
            )

    def copy_out(
        self,
        source: str,
        destination: str | os.PathLike[str],
        *,
        owners: bool = False,
        follow: bool = False,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Copied:
        """A file or folder of the guest's to this host. The files are the caller's, without set-id bits."""
        from banger.client.copy import copy_out

        with self._core.calls.client() as client:
            return copy_out(
                client,
                self.id,
                source,
                os.fspath(destination),
                owners=owners,
                follow=follow,
                tick=on_bytes,
            )

    def write_file(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Root's, in a folder that is there; whole or not at all. One that is there is replaced."""
        from banger.client.files import write_file

        with self._core.calls.client() as client:
            write_file(client, self.id, path, data.encode() if isinstance(data, str) else data, mode=mode)

    def read_file(self, path: str, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """NOT_FOUND; INVALID_ARGUMENT for a folder or anything longer than max_bytes."""
        from banger.client.files import read_file

        with self._core.calls.client() as client:
            return read_file(client, self.id, path, most=max_bytes)

    # sessions

    def session(
        self,
        argv: Argv,
        *,
        name: str = "",
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        user: str = "",
        tags: Mapping[str, str] | None = None,
        stdin: bool = False,
        terminal: bool = False,
        size: tuple[int, int] = SIZE,
    ) -> Session:
        """Start a command that outlives this program and the daemon; its logs are kept in the guest.

        One that cannot be launched is a session, too: its status is `failed`.
        """
        from banger.client.sessions import Sessions

        with self._core.calls.client() as client:
            record = Sessions(client, self.id).start(
                words(argv),
                name=name,
                env={**self._env, **(env or {})},
                cwd=cwd,
                user=user,
                tags=tags,
                stdin=stdin,
                terminal=terminal,
                size=size if terminal else (0, 0),
            )
        return Session(self._core, record)

    def sessions(self) -> list[Session]:
        """Oldest first."""
        from banger.client.sessions import Sessions

        with self._core.calls.client() as client:
            return [Session(self._core, record) for record in Sessions(client, self.id).list()]

    def get_session(self, reference: str) -> Session:
        """By full id, exact name or unique id prefix. NOT_FOUND."""
        from banger.client.sessions import Sessions

        with self._core.calls.client() as client:
            return Session(self._core, Sessions(client, self.id).show(reference))

    # its workspace

    def keep_work(self, *, ignored: bool = False, progress: OnProgress | None = None) -> shapes.Work:
        """Keep what is in its workspace and not on this host, now: on the host, in banger's own store.

        ignored: with the files that git ignores. It is what stop and delete do by themselves. WORK_NOT_KEPT.
        """
        return cast(
            "shapes.Work",
            self._core.operate(lambda client: client.keep_work(self.id, ignored=ignored), progress),
        )

    def work(self) -> shapes.Work:
        """What is kept of it: Work of docs/api.md. Of a VM that is gone: Client.list_work. NOT_FOUND."""
        with self._core.calls.client() as client:
            return client.show_work(self.id)

    def patch(self, *, base: str = "") -> Iterator[bytes]:
        """What was kept as a patch for `git apply`, in pieces: from a commit, or from what was brought in."""
        with self._core.calls.client() as client:
            yield from client.work_patch(self.id, base=base)

    # the network

    def connect(self, port: int, *, timeout: float = 0.0) -> socket.socket:
        """A connection to a TCP port on the guest's own loopback; needs neither NAT nor published ports.

        timeout: seconds to wait for somebody to listen there; then GUEST_ERROR.
        """
        from banger.client.forward import PortRefused, open_port

        deadline = time.monotonic() + timeout
        while True:
            with self._core.calls.client() as client:
                try:
                    return open_port(client, self.id, port)
                except PortRefused:
                    if time.monotonic() >= deadline:
                        raise
            time.sleep(ASK_AGAIN_S)

    # underneath

    def daemon(self) -> AbstractContextManager[CallClient]:
        """The daemon's routes themselves, for what has no method here: Client.daemon."""
        return self._core.calls.client()

    def _change(self, begin: Callable[[CallClient], Operation], progress: OnProgress | None) -> VM:
        self._record = cast("shapes.VM", self._core.operate(begin, progress))
        return self

    def _command(
        self,
        argv: Argv,
        cwd: str | None,
        env: Mapping[str, str] | None,
        user: str,
        *,
        stdin: bool,
        terminal: bool = False,
        size: tuple[int, int] = SIZE,
    ) -> Command:
        """What is asked of the agent once it is known whether there is a workspace. INVALID_ARGUMENT."""
        variables = {**self._env, **(env or {})}
        if terminal:
            variables.setdefault("TERM", "xterm-256color")
        command = words(argv)

        def dialogue(workspace: shapes.Workspace | None) -> CommandDialogue:
            folder = cwd
            if folder is None:
                # others cannot enter root's home
                folder = workspace.get("guest_path", "") if workspace and user in ("", "root", "0") else ""
            return CommandDialogue(
                command,
                variables,
                cwd=folder,
                user=user,
                stdin=stdin,
                terminal=terminal,
                size=size if terminal else (0, 0),
            )

        dialogue(None)  # what no command line can hold is refused before anything is asked
        return dialogue

    def _open(self, command: Command) -> Process:
        connection = self._reach()
        return Process(connection, command(connection.workspace))

    def _reach(self) -> AgentConnection:
        with self._core.calls.client() as client:
            return connect_agent(client, self.id)


def settled(result: Result[bytes], *, check: bool, text: bool) -> Result[bytes] | Result[str]:
    """What exec gives, or CommandFailed."""
    args, returncode, stdout, stderr = result
    if not text:
        if check and returncode:
            raise CommandFailed(args, returncode, stdout=stdout, stderr=stderr)
        return result
    decoded = Result(args, returncode, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"))
    if check and returncode:
        raise CommandFailed(args, returncode, stdout=decoded.stdout, stderr=decoded.stderr)
    return decoded
