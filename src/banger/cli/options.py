"""Options and arguments that several commands share, their value types, and completion from the daemon."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from banger.cli import state
from banger.errors import BangerError
from banger.model.names import name_fault
from banger.model.sizes import check_vcpu_count, parse_disk_size, parse_memory_mib

F = TypeVar("F", bound=Callable[..., Any])
ENV_FILE_LIMIT = 1 << 20
SIGNALS = ("TERM", "KILL", "INT", "HUP", "QUIT", "USR1", "USR2", "ABRT")


class BadValue(click.BadParameter):
    """Wrong usage with a hint of its own."""

    def __init__(self, message: str, hint: str | None, *, ctx: click.Context | None = None) -> None:
        super().__init__(message, ctx=ctx)
        self.hint = hint

    def format_message(self) -> str:
        return self.message


class Checked(click.ParamType[Any]):
    """A value that one of model/'s functions reads; its message and hint are what the user sees."""

    def __init__(self, name: str, read: Callable[[str], object]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except BangerError as error:
            raise BadValue(error.brief, error.hint, ctx=ctx) from None


def _vcpu(text: str) -> int:
    stripped = text.strip()
    digits = stripped[1:] if stripped[:1] == "-" else stripped
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise BadValue(f"vcpu: {text[:40]!a} is not a number", "a VM has 1 or more vCPUs")
    return check_vcpu_count(int(stripped))


def _name(text: str) -> str:
    fault = name_fault(text)
    if fault:
        raise BadValue(fault, "a name is 1 to 63 of a-z, 0-9 and -, and neither begins nor ends with -")
    return text


VCPU = Checked("N", _vcpu)
MEMORY = Checked("SIZE", parse_memory_mib)
DISK = Checked("SIZE", parse_disk_size)
OVERLAY = Checked("SIZE", lambda text: parse_disk_size(text, what="system overlay size"))
NAME = Checked("NAME", _name)

MODES = ("shallow_overlay", "full_copy", "metadata_only")
"""How a repository travels into a guest; the first is the default."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _set_quiet(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    state.quiet = state.quiet or value


quiet_option = click.option(
    "--quiet", is_flag=True, expose_value=False, callback=_set_quiet, help="No progress."
)

short_quiet_option = click.option(
    "-q", "--quiet", is_flag=True, expose_value=False, callback=_set_quiet, help="No progress."
)


def _names(listing: Callable[[Any], Sequence[Any]], incomplete: str) -> list[CompletionItem]:
    """Names that begin so; nothing, and silently, when the daemon is down."""
    from banger.client.client import Client

    try:
        with Client(autostart=False, version="") as client:
            return [
                CompletionItem(item["name"])
                for item in listing(client)
                if item["name"].startswith(incomplete)
            ]
    except BangerError:
        return []


def complete_vm(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return _names(lambda client: client.list_vms(), incomplete)


def complete_image(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return _names(lambda client: client.list_images(), incomplete)


def complete_pullable(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What the catalog has."""
    return _names(lambda client: client.image_catalog(), incomplete)


def complete_any_image(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The images that are here, and what the catalog has beside them."""

    def listing(client: Any) -> list[dict[str, str]]:
        names = {one["name"] for one in [*client.list_images(), *client.image_catalog()]}
        return [{"name": name} for name in sorted(names)]

    return _names(listing, incomplete)


def complete_kernel(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return _names(lambda client: client.list_kernels(), incomplete)


def complete_pullable_kernel(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """What the kernels' catalog has."""
    return _names(lambda client: client.kernel_catalog(), incomplete)


def complete_any_kernel(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The kernels that are here, and what the catalog has beside them."""

    def listing(client: Any) -> list[dict[str, str]]:
        names = {one["name"] for one in [*client.list_kernels(), *client.kernel_catalog()]}
        return [{"name": name} for name in sorted(names)]

    return _names(listing, incomplete)


def complete_words(*words: str, paths: bool = False) -> Callable[..., list[CompletionItem]]:
    """Some words that are usual there; with paths, the host's files too."""

    def complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        items = [CompletionItem(word) for word in words if word.startswith(incomplete)]
        return [*items, CompletionItem(incomplete, type="file")] if paths else items

    return complete


def complete_folder(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="dir")]


vm_argument = click.argument("vm", metavar="VM", shell_complete=complete_vm)
vms_argument = click.argument("vms", metavar="VM...", nargs=-1, required=True, shell_complete=complete_vm)


def sizing_options(command: F) -> F:
    """--name --image --vcpu --memory --disk-size --system-overlay-size --nat/--no-nat --init"""
    for option in reversed(
        (
            click.option("--name", type=NAME, help="The VM's name; a readable one is made up when left out."),
            click.option(
                "--image",
                default="",
                metavar="IMAGE",
                shell_complete=complete_any_image,
                help="What it is made from: an image that is here, of the catalog, or of a registry.",
            ),
            click.option("--vcpu", type=VCPU, help="Virtual CPUs."),
            click.option("--memory", type=MEMORY, help="Such as 512M or 2G; at least 128M."),
            click.option("--disk-size", type=DISK, help="The work disk, at /root."),
            click.option("--system-overlay-size", type=OVERLAY, help="What / can grow by."),
            click.option(
                "--nat/--no-nat",
                default=None,
                help="Whether the guest reaches what is beyond this host.",
            ),
            click.option(
                "--init",
                default="",
                metavar="auto|agent|PATH",
                shell_complete=complete_words("auto", "agent"),
                help="The guest's init: the image's own if it has one (auto), banger's agent, or a path.",
            ),
        )
    ):
        command = option(command)
    return command


def create_fields(
    *,
    name: str | None,
    image: str,
    vcpu: int | None,
    memory: int | None,
    disk_size: int | None,
    system_overlay_size: int | None,
    nat: bool | None,
    init: str,
) -> dict[str, Any]:
    """The body of POST /v1/vms for these options; what was not said is left to the daemon."""
    fields: dict[str, Any] = {
        "name": name,
        "image": image,
        "vcpu_count": vcpu,
        "memory_mib": memory,
        "work_disk_size_bytes": disk_size,
        "system_overlay_size_bytes": system_overlay_size,
        "nat": nat,
        "init": init,
    }
    if init not in ("", "auto", "agent") and not init.startswith("/"):
        raise BadValue(f"init: {init[:80]!a} is not auto, agent or an absolute path in the image", None)
    return {key: value for key, value in fields.items() if value is not None and value != ""}


def environment_options(command: F) -> F:
    for option in reversed(
        (
            click.option("-e", "--env", multiple=True, metavar="K=V", help="Set it; K alone takes it along."),
            click.option(
                "--env-file", multiple=True, type=click.Path(dir_okay=False), help="Lines of K=V or K."
            ),
            click.option(
                "-w", "--cwd", "--workdir", "cwd", default="", metavar="DIR", help="Where in the guest."
            ),
            click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="As whom."),
            click.option("-t", "--tty", "terminal", is_flag=True, help="With a terminal."),
            click.option(
                "-i",
                "--interactive",
                is_flag=True,
                expose_value=False,
                help="Pass stdin on, which is so anyway; </dev/null keeps it.",
            ),
        )
    ):
        command = option(command)
    return command


def read_environment(env: Sequence[str], env_files: Sequence[str]) -> dict[str, str]:
    """The files' first, later ones winning. K alone is the caller's own K, left out if unset."""
    entries: dict[str, str] = {}
    for path in env_files:
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                text = file.read(ENV_FILE_LIMIT + 1)
        except OSError as error:
            raise BadValue(f"env-file: {path}: {error.strerror}", None) from None
        if len(text) > ENV_FILE_LIMIT:
            raise BadValue(f"env-file: {path}: longer than {ENV_FILE_LIMIT >> 20} MiB", None)
        # as docker reads it: a value is all that follows the first =, spaces at its end and quotes too
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
            entry = line.removesuffix("\r").lstrip()
            if entry and not entry.startswith("#"):
                _add(entries, entry, f"{path}:{number}")
    for entry in env:
        _add(entries, entry, "env")
    return entries


def _add(entries: dict[str, str], entry: str, where: str) -> None:
    key, equals, value = entry.partition("=")
    if not key or "\0" in entry or any(letter.isspace() for letter in key):
        raise BadValue(f"{where}: {entry[:80]!a} is not K=V", "for example --env LANG=C.UTF-8")
    if equals:
        entries[key] = value
    elif key in os.environ:
        entries[key] = os.environ[key]
    else:
        entries.pop(key, None)


def travel_options(command: F) -> F:
    """--mode --branch --from --readonly --include-untracked --dry-run --no-bootstrap"""
    for option in reversed(
        (
            click.option(
                "--mode",
                type=click.Choice(MODES),
                default=None,
                help="shallow_overlay (default): 50 commits of history, the tracked files as they are now; "
                "full_copy: all branches, tags, stashes, submodules; metadata_only: history, no files.",
            ),
            click.option(
                "--branch", default="", metavar="B", help="Make a branch in the guest, and be on it."
            ),
            click.option("--from", "from_ref", default="", metavar="REF", help="Where that branch begins."),
            click.option("--readonly", is_flag=True, help="Clear the write bits of its files and folders."),
            click.option(
                "--include-untracked", is_flag=True, help="Untracked files come along; ignored ones never do."
            ),
            click.option("--dry-run", is_flag=True, help="List what would travel, and do nothing."),
            click.option(
                "--no-bootstrap",
                is_flag=True,
                help="Leave the tools alone that its .mise.toml, mise.toml or .tool-versions names.",
            ),
        )
    ):
        command = option(command)
    return command
