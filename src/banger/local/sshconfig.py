"""What ssh is told about `NAME.vm`: the options, the `Host *.vm` block, and the Include in a user's config.

Owns SSH_DIR/config and the fenced lines in ~/.ssh/config; of that file every other byte stays as it is.
Used by the CLI, as the user. Standard library only, as `vm ssh` waits for it. The user's file is replaced
by one rename: after a crash it is the old one or the new one.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shlex
import sys

from banger.config.paths import Paths
from banger.errors import BangerError, ErrorCode

HINT_SCRIPT = f"{os.path.dirname(os.path.abspath(__file__))}/host_key_hint.sh"
MOST_BYTES = 4 << 20
MADE = "# This file was made by banger."
_AWKWARD = re.compile(r'[\x00-\x1f\x7f"\\%$*?\[\]{}~]')
"""What ssh's config would not take literally, in one version or another, even between quotes."""


class ConfigFault(BangerError):
    def __init__(self, brief: str, *, hint: str | None = None) -> None:
        super().__init__(ErrorCode.INVALID_CONFIG, brief, hint=hint)


def identity_file(paths: Paths) -> str:
    """The private key that guests let in: ssh_key_path, else banger's own."""
    own = f"{paths.ssh_dir}/id_ed25519"
    if not os.path.exists(paths.config_file):
        return own
    from banger.config.toml import load_settings  # a tenth of a second, for those who have a config

    return load_settings(paths.config_file).ssh_key_path or own


def program() -> list[str]:
    """How a later shell calls this banger, from wherever it is."""
    called = os.path.abspath(sys.argv[0])
    if os.path.basename(called) == "banger" and os.path.isfile(called) and os.access(called, os.X_OK):
        return [called]
    return [sys.executable, "-P", "-m", "banger"]


def proxy_command(paths: Paths) -> str:
    """ssh hands this to the user's shell, after it has put host and port in."""
    words = [f"BANGER_HOME={paths.home}"] if paths.home else []
    words = [*(["/usr/bin/env", *words] if words else []), *program(), "ssh-proxy", "--pass-fd"]
    return " ".join(shlex.quote(word).replace("%", "%%") for word in words) + " '%h' %p"


def options(paths: Paths) -> list[tuple[str, str]]:
    """ssh's options for a guest, as lines of its config: the same for `vm ssh` and for `Host *.vm`."""
    known = _quoted(paths.known_hosts)
    return [
        ("ProxyCommand", proxy_command(paths)),
        ("ProxyUseFdpass", "yes"),
        ("User", "root"),
        ("IdentityFile", _quoted(identity_file(paths))),
        ("IdentitiesOnly", "yes"),
        ("UserKnownHostsFile", known),
        ("GlobalKnownHostsFile", "/dev/null"),
        ("StrictHostKeyChecking", "yes"),
        ("HostKeyAlgorithms", "ssh-ed25519"),
        ("CheckHostIP", "no"),
        ("UpdateHostKeys", "no"),
        ("KnownHostsCommand", f"/bin/sh {_quoted(HINT_SCRIPT)} {known} %I %H %K"),
    ]


def _quoted(path: str) -> str:
    if _AWKWARD.search(path):
        raise ConfigFault(
            f"ssh's configuration cannot name {path!a}",
            hint="use a BANGER_HOME and an ssh_key_path of letters, digits and spaces",
        )
    return f'"{path}"' if re.search(r"[\s'#]", path) else path


def host_block(paths: Paths) -> str:
    """What `ssh-config` prints and what SSH_DIR/config holds."""
    lines = [f"    {name} {value}" for name, value in options(paths)]
    return "\n".join(["# banger's guests: ssh NAME.vm", "Host *.vm", *lines, ""])


def user_config() -> str:
    """The config file that ssh reads for this process's user: ssh goes by the account, not by HOME."""
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        raise ConfigFault(f"uid {os.geteuid()} has no account, so ssh has no config for it") from None
    return f"{home}/.ssh/config"


# the fence


def block(paths: Paths, *, made: bool = False) -> bytes:
    """The lines in the user's file. made: there was no file."""
    begin, end = _fences(paths)
    middle = [MADE] if made else []
    return os.fsencode("\n".join([begin, *middle, f"Include {_quoted(paths.ssh_config)}", end, ""]))


def _fences(paths: Paths) -> tuple[str, str]:
    where = paths.ssh_config
    return f"# >>> banger ssh-config {where} >>>", f"# <<< banger ssh-config {where} <<<"


def _pattern(paths: Paths) -> re.Pattern[bytes]:
    """A block of ours, also with line ends changed by an editor; never with more than Includes in it."""
    begin, end = (re.escape(os.fsencode(fence)) for fence in _fences(paths))
    between = rb"(?:(?!" + begin + rb")(?:#|Include )[^\n]*\n|\r?\n)*?"
    return re.compile(rb"^" + begin + rb"\r?\n" + between + end + rb"(?:\r?\n|\Z)", re.MULTILINE)


def without_block(content: bytes, paths: Paths) -> bytes:
    return _pattern(paths).sub(b"", content)


def with_block(content: bytes, paths: Paths) -> bytes:
    """At the top: an Include below a Host line would belong to that host."""
    return block(paths) + without_block(content, paths)


def is_installed(content: bytes, paths: Paths) -> bool:
    return _pattern(paths).match(content) is not None


# files


def install(paths: Paths, config: str) -> bool:
    """Write SSH_DIR/config, and its Include into the user's file. Whether that file changed."""
    os.makedirs(paths.ssh_dir, mode=0o700, exist_ok=True)
    _replace(paths.ssh_config, os.fsencode(host_block(paths)), mode=0o600)
    folder = os.path.dirname(config)
    if not os.path.isdir(folder):
        try:
            os.mkdir(folder, 0o700)
        except OSError as error:
            raise _trouble(folder, error) from error
    before = _read(config)
    made = before is None or (MADE.encode() in block_of(before, paths))
    after = block(paths, made=made) + without_block(before or b"", paths)
    if after == before:
        return False
    _replace(config, after, mode=0o600)
    return True


def uninstall(paths: Paths, config: str) -> bool:
    """Take that out again; a file that banger made and nobody has written to goes. Whether it changed."""
    before = _read(config)
    if before is not None:
        after = without_block(before, paths)
        if after == before:
            return False
        if not after and MADE.encode() in before:
            try:
                os.unlink(config)
            except OSError as error:
                raise _trouble(config, error) from error
        else:
            _replace(config, after, mode=0o600)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(paths.ssh_config)
    return before is not None


def block_of(content: bytes, paths: Paths) -> bytes:
    found = _pattern(paths).search(content)
    return found[0] if found else b""


def _read(path: str) -> bytes | None:
    """None when there is no such file."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _trouble(path, error) from error
    if len(content) > MOST_BYTES:
        raise ConfigFault(f"{path} is larger than {MOST_BYTES >> 20} MiB: that is no ssh configuration")
    return content


def _replace(path: str, content: bytes, *, mode: int) -> None:
    """By one rename. What is there keeps mode and owner, and a symlink stays one; mode is for a new file."""
    target = os.path.realpath(path)
    temporary = f"{target}.banger-{secrets.token_hex(4)}"
    try:
        there = os.stat(target) if os.path.exists(target) else None
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(content)
                file.flush()
                if there is not None and (there.st_uid, there.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.fileno(), there.st_uid, there.st_gid)
                os.fchmod(file.fileno(), mode if there is None else there.st_mode & 0o7777)
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise _trouble(path, error) from error


def _trouble(path: str, error: OSError) -> BangerError:
    return BangerError(ErrorCode.PERMISSION_DENIED, f"{path}: {error.strerror or error}")
