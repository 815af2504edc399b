"""The `banger` command: global options, the nouns, and the one place where failures become an exit status."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

import click

from banger.cli import state
from banger.cli.escape import safe, safe_block
from banger.cli.lazy import GUEST_COMMAND, LazyGroup
from banger.errors import BangerError, ErrorCode

HELP = """Real Linux machines (microVMs) in one command, on this host.

\b
banger vm run                          a fresh machine and a shell in it
banger vm run --rm -- uname -a         one command in a machine that goes away
banger vm run --name web -d            one that stays; banger vm exec web -- CMD
banger vm run ~/src/app                your git repository in it, at /root/repo
"""

NOUNS = {
    "vm": ("banger.cli.vm:vm", "Make, start, enter, list and remove VMs."),
    "ps": ("banger.cli.vm_list:ps", "List the running VMs (-a: all)."),
    "workspace": ("banger.cli.vm_workspace:workspace", "A git repository in a VM, and its way out."),
    "image": ("banger.cli.image:image", "What VMs are made from."),
    "kernel": ("banger.cli.kernel:kernel", "The kernels that VMs boot."),
    "net": ("banger.cli.net:net", "Why a VM does not reach somebody."),
    "host": ("banger.cli.host:host", "What banger has made on this host."),
    "daemon": ("banger.cli.daemon:daemon", "The process in the background; it is started when needed."),
    "doctor": ("banger.cli.doctor:doctor", "Check whether this host can run VMs, and say what to do."),
    "version": ("banger.cli.version:version", "Versions of the command and of the daemon."),
    "ssh-config": ("banger.cli.ssh_config:ssh_config", "Make `ssh NAME.vm` work, and scp, rsync and git."),
    "ssh-proxy": ("banger.cli.ssh_proxy:ssh_proxy", "What ssh reaches guests through."),
    "completion": ("banger.cli.completion:completion", "The completion script for bash, zsh or fish."),
}


def _globals(debug: bool, quiet: bool) -> None:
    state.debug = state.debug or debug or os.environ.get("BANGER_DEBUG", "") not in ("", "0")
    state.quiet = state.quiet or quiet


banger = LazyGroup(
    "banger",
    lazy=NOUNS,
    help=HELP,
    params=[
        click.Option(["--debug"], is_flag=True, help="Say more about failures."),
        click.Option(["--quiet"], is_flag=True, help="No progress."),
    ],
    callback=_globals,
    hidden=frozenset({"ssh-proxy"}),
)


def main() -> NoReturn:
    if sys.stdin is None or sys.stdout is None or sys.stderr is None:
        _hold_standard_streams()
    leave(run(sys.argv[1:]))


def _hold_standard_streams() -> None:
    """Started with some of 0, 1, 2 closed: /dev/null there, so that no socket of ours is taken for one."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # becomes the lowest free one: this
            setattr(sys, name, open(number, mode))  # noqa: SIM115


def leave(status: int) -> NoReturn:
    """End the process without taking the interpreter apart, which is a tenth of a short command's time:
    all that is left is the kernel's to free. Handlers registered with atexit are called."""
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:  # closed outputs: as the interpreter itself treats them
        sys.exit(status)
    os._exit(status & 0xFF)


def run(argv: list[str]) -> int:
    """One command, to its exit status. Prints `banger: <what failed>` and a hint."""
    try:
        if "_BANGER_COMPLETE" in os.environ:
            from banger.cli.completion import register

            register()
        status = banger.main(argv, prog_name="banger", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.UsageError as fault:
        return _usage(fault)
    except click.ClickException as fault:
        say(f"banger: {safe(fault.format_message())}")
        return state.failure_status
    except BangerError as error:
        return _failed(error)
    except (KeyboardInterrupt, click.Abort):
        say("")
        return 130
    except BrokenPipeError:
        # whoever read our output has gone (`banger vm list | head -1`): nothing more can be said to them
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        return 141
    except Exception as error:
        if state.debug:
            raise
        say(f"banger: internal error: {type(error).__name__}: {safe(str(error))}")
        say("  this is a bug of banger's; --debug shows where")
        return state.failure_status


def _usage(fault: click.UsageError) -> int:
    if isinstance(fault, click.exceptions.NoArgsIsHelpError):
        say(fault.format_message())
        return 2
    say(f"banger: {safe(fault.format_message())}")
    hint = getattr(fault, "hint", None)
    if isinstance(hint, str) and hint:
        say(f"  {safe(hint)}")
    elif fault.ctx is not None:
        say(f"  {fault.ctx.command_path} --help")
    has_guest_command = fault.ctx is not None and bool(fault.ctx.meta.get(GUEST_COMMAND))
    return state.GUEST_COMMAND_FAILURE if has_guest_command else 2


def _failed(error: BangerError) -> int:
    say(f"banger: {safe(error.brief)}")
    if error.hint:
        say(f"  {safe(error.hint)}")
    if state.debug:
        say(f"  code: {error.code.value}")
        for name, value in error.data.items():
            say(f"  {safe(name)}: {safe(str(value))}")
        if error.details:
            say(safe_block(error.details))
    if error.code is ErrorCode.INTERNAL and not state.debug and "op_id" in error.data:
        say(f"  operation {safe(str(error.data['op_id']))}")
    return state.failure_status


def say(line: str) -> None:
    """On stderr; when that is closed there is nobody to tell."""
    try:
        sys.stdout.flush()
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
