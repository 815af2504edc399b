"""Only system/ spawns programs and calls kernel interfaces."""

from __future__ import annotations

import re

from tests.style import source

SPAWNS = re.compile(
    r"""
    ^(subprocess|pty|multiprocessing|ctypes|cffi)(\.|$)
    | ^os\.(system|popen|fork|forkpty|exec\w+|spawn\w+|posix_spawnp?)$
    | ^asyncio\.create_subprocess_\w+$ | ^asyncio\.subprocess(\.|$)
    | \.subprocess_(exec|shell)$
    | ProcessPoolExecutor$
    """,
    re.VERBOSE,
)
KERNEL = re.compile(
    r"""
    ^fcntl\.ioctl$ | ^pyroute2(\.|$)
    | ^os\.(pidfd_open|kill|killpg|unshare|setns|mknod|chroot|setuid|setgid|setresuid|setresgid|setgroups)$
    | ^signal\.pidfd_send_signal$
    | ^socket\.AF_(NETLINK|PACKET|VSOCK)$
    """,
    re.VERBOSE,
)

EXCEPTIONS: dict[str, tuple[frozenset[str], str]] = {
    "src/banger/client/start.py": (
        frozenset({"os.posix_spawn", "os.fork", "os.execv", "os.execve", "subprocess.Popen", "subprocess"}),
        "the client starts the daemon; it may import nothing but the standard library",
    ),
    "src/banger/client/client.py": (
        frozenset({"os.pidfd_open"}),
        "`daemon stop` waits for the daemon's end; standard library only, as above",
    ),
    "src/banger/client/copyextract.py": (
        frozenset({"os.mknod"}),
        "`vm cp -a` as root makes the devices that are in the copy; standard library only, as above",
    ),
    "src/banger/cli/daemon.py": (
        frozenset({"os.execv"}),
        "`daemon run` becomes the daemon, so that nothing of the CLI's imports stays in it",
    ),
    "src/banger/daemon/__main__.py": (
        frozenset({"os.fork"}),
        "the daemon leaves its starter before it imports anything",
    ),
    "src/banger/cli/vm_ssh.py": (
        frozenset({"os.execv", "os.execve", "os.execvp", "os.execvpe"}),
        "`vm ssh` becomes the system's ssh: its terminal, signals and exit status are the user's",
    ),
}
"""File → the names it may use although it is not in system/, and why."""


def uses(pattern: re.Pattern[str]) -> list[tuple[str, str, int]]:
    found = []
    for path in source.modules():
        if source.room_of(path) == "system":
            continue
        used = {*source.names_used(path), *((i.module, i.line) for i in source.imports(path))}
        allowed = EXCEPTIONS.get(source.name(path), (frozenset[str](), ""))[0]
        for dotted, line in sorted(used, key=lambda use: use[1]):
            if pattern.search(dotted) and not any(dotted.startswith(name) for name in allowed):
                found.append((source.name(path), dotted, line))
    return found


def test_only_system_spawns_programs() -> None:
    assert not (found := uses(SPAWNS)), "\n".join(f"{file}:{line}: {dotted}" for file, dotted, line in found)


def test_only_system_calls_kernel_interfaces() -> None:
    assert not (found := uses(KERNEL)), "\n".join(f"{file}:{line}: {dotted}" for file, dotted, line in found)


def test_the_gate_sees_what_it_should() -> None:
    """The pattern finds its like in system/, which is full of it."""
    seen = [
        dotted
        for path in source.modules()
        if source.room_of(path) == "system"
        for dotted, _line in source.names_used(path)
        if SPAWNS.search(dotted) or KERNEL.search(dotted)
    ]
    assert seen


def test_no_shell_anywhere() -> None:
    """Programs get argument vectors: nothing of ours is ever parsed by a shell on the host."""
    wrong = [
        f"{source.name(path)}:{number}"
        for path in source.modules()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\bshell\s*=\s*True\b", line)
    ]
    assert not wrong
