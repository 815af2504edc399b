"""config.toml → Settings. Whatever the file holds, the outcome is Settings or a BangerError, no traceback.

Used by the daemon (and by commands that run without it). Reads one file, writes nothing. The
first thing wrong, from the top, is the error: with file, line where it can be had, and the valid keys.
"""

from __future__ import annotations

import difflib
import errno
import ipaddress
import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence

import msgspec

from banger.config import checks
from banger.config.errors import ConfigError, Fault
from banger.config.keys import TABLES, TOP, Key, Table
from banger.config.lines import find_line
from banger.config.settings import Settings
from banger.errors import BangerError, ErrorCode

MAX_BYTES = 1 << 20
MAX_ENTRIES = 1024
_AT_LINE = re.compile(r" \(at line (\d+), column (\d+)\)$|\(at end of document\)$")


def load_settings(path: str, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in the file at `path`; the defaults when there is no such file.

    environ (default: the process's): HOME for `~/`, and BANGER_LOG_LEVEL, which wins over log_level.
    Raises ConfigError; PERMISSION_DENIED when the file cannot be read.
    """
    environ = os.environ if environ is None else environ
    settings = parse_settings(_read(path), path, home=environ.get("HOME", ""))
    level = environ.get("BANGER_LOG_LEVEL", "")
    if level:
        try:
            settings = msgspec.structs.replace(settings, log_level=checks.log_level(level))
        except Fault as fault:
            raise ConfigError("the environment", f"BANGER_LOG_LEVEL {fault.brief}", hint=fault.hint) from None
    return settings


def parse_settings(content: bytes, path: str, *, home: str = "") -> Settings:
    """The settings in the content of a file called `path`. Raises ConfigError."""
    text = _decode(content, path)
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(path, "is nested too deeply") from None
    except (ValueError, OverflowError) as error:  # TOMLDecodeError, and numbers Python will not read
        raise _syntax_error(str(error), path, text) from None
    return _Reader(path, text, home).settings(document)


class _Reader:
    """One file while it is checked."""

    def __init__(self, path: str, text: str, home: str) -> None:
        self._path = path
        self._text = text
        self._home = home

    def settings(self, document: dict[str, object]) -> Settings:
        tables = {table.name: table for table in TABLES}
        values: dict[str, object] = {}
        keys = {key.name: key for key in TOP}
        for name, value in document.items():
            if name in tables:
                table = tables[name]
                values[table.field] = self._many(table, value) if table.many else self._one(table, value)
            elif name in keys:
                values[keys[name].field] = self._value(keys[name], value)
            else:
                raise self._unknown(name, [*keys, *tables])
        settings = msgspec.convert(values, Settings)
        self._check_network(settings)
        self._check_duplicates(settings)
        return settings

    def _one(self, table: Table, value: object) -> dict[str, object]:
        if not isinstance(value, dict):
            raise self._error(
                f"{table.name} must be a table, not {checks.described(value)}",
                key=table.name,
                hint=f"write [{table.name}] on a line of its own, and its keys below",
            )
        return self._table(table, value)

    def _many(self, table: Table, value: object) -> list[dict[str, object]]:
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise self._error(
                f"{table.name} must be a list of tables, not {checks.described(value)}",
                key=table.name,
                hint=f"write [[{table.name}]] with two brackets, once for each entry",
            )
        if len(value) > MAX_ENTRIES:
            raise self._error(
                f"{table.name} has {len(value)} entries, {MAX_ENTRIES} are allowed", key=table.name
            )
        return [self._table(table, entry, number) for number, entry in enumerate(value, 1)]

    def _table(self, table: Table, entries: dict[str, object], number: int = 0) -> dict[str, object]:
        """number: which of many, from 1; 0 where there is but one."""
        keys = {key.name: key for key in table.keys}
        values: dict[str, object] = {}
        for name, value in entries.items():
            if name not in keys:
                raise self._unknown(name, list(keys), table=table, number=number)
            values[keys[name].field] = self._value(keys[name], value, table=table, number=number)
        for key in table.keys:
            if key.required and key.name not in entries:
                raise self._error(
                    f"{_place(table, number)}{key.name} is missing",
                    key="",
                    table=table,
                    number=number,
                    hint=_valid(list(keys)),
                )
        return values

    def _value(self, key: Key, value: object, *, table: Table | None = None, number: int = 0) -> object:
        try:
            return key.check(value, self._home)
        except Fault as fault:
            raise self._error(
                f"{_place(table, number)}{key.name}: {fault.brief}",
                key=key.name,
                table=table,
                number=number,
                hint=fault.hint,
            ) from None

    def _unknown(
        self, name: str, valid: Sequence[str], *, table: Table | None = None, number: int = 0
    ) -> ConfigError:
        shown = ascii(name if len(name) <= 80 else name[:77] + "...")
        return self._error(
            f"{_place(table, number)}unknown key {shown}",
            key=name,
            table=table,
            number=number,
            hint=_valid(valid, near=name[:80]),
        )

    def _check_network(self, settings: Settings) -> None:
        """The bridge's address must be one that a host of its network may have."""
        interface = ipaddress.IPv4Interface(f"{settings.bridge_ip}/{settings.cidr}")
        network = interface.network
        if interface.ip in (network.network_address, network.broadcast_address):
            kind = "network" if interface.ip == network.network_address else "broadcast"
            raise self._error(
                f"bridge_ip: {interface.ip} is the {kind} address of {network}",
                key="bridge_ip",
                hint=f"{network.network_address + 1} would do",
            )

    def _check_duplicates(self, settings: Settings) -> None:
        by_name = {table.name: table for table in TABLES}
        columns = {
            ("registry", "host"): [registry.host for registry in settings.registries],
            ("catalog", "name"): [entry.name for entry in settings.catalog],
            ("file_sync", "guest"): [entry.guest for entry in settings.file_sync],
        }
        for (name, key), found in columns.items():
            for number, value in enumerate(found, 1):
                first = found.index(value) + 1
                if first != number:
                    raise self._error(
                        f"{name} entry {number}: {key}: {value!a} is entry {first}'s already",
                        key=key,
                        table=by_name[name],
                        number=number,
                    )

    def _error(
        self, brief: str, *, key: str, table: Table | None = None, number: int = 0, hint: str | None = None
    ) -> ConfigError:
        line = find_line(self._text, key, table=table.name if table else "", number=number)
        return ConfigError(self._path, brief, line=line, key=key[:80], hint=hint)


def _place(table: Table | None, number: int) -> str:
    if table is None:
        return ""
    return f"{table.name} entry {number}: " if number else f"[{table.name}] "


def _valid(names: Sequence[str], near: str = "") -> str:
    """The valid keys, near misses first."""
    close = difflib.get_close_matches(near, names, n=3, cutoff=0.6) if near else []
    rest = [name for name in names if name not in close]
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{meant}valid keys: {', '.join([*close, *rest])}"


def _read(path: str) -> bytes:
    """Empty when there is no such file. Never hangs on a pipe, never reads without end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise _unreadable(error, path) from error
    except ValueError:  # a NUL in the path
        raise ConfigError(ascii(path), "is not a path") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ConfigError(path, "is not a file", hint="the configuration is a text file in TOML")
        content = b""
        while len(content) <= MAX_BYTES and (part := os.read(descriptor, MAX_BYTES)):
            content += part
    except OSError as error:
        raise _unreadable(error, path) from error
    finally:
        os.close(descriptor)
    if len(content) > MAX_BYTES:
        raise ConfigError(path, f"is larger than {MAX_BYTES >> 20} MiB", hint="is it the right file?")
    return content


def _unreadable(error: OSError, path: str) -> BangerError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return BangerError(
            ErrorCode.PERMISSION_DENIED,
            f"{path}: the configuration cannot be read: {error.strerror}",
            hint="make it readable for you (chmod u+r), or run as its owner",
            data={"file": path},
        )
    return ConfigError(path, f"the configuration cannot be read: {error.strerror}")


def _decode(content: bytes, path: str) -> str:
    try:
        # editors on other systems put a byte order mark in front
        return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(path, f"is not UTF-8: {error.reason}", line=line, hint="save it as UTF-8") from None


def _syntax_error(said: str, path: str, text: str) -> ConfigError:
    found = _AT_LINE.search(said)
    line = int(found[1]) if found and found[1] else (text.count("\n") + 1 if found else 0)
    message = _AT_LINE.sub("", said).strip().encode("ascii", "backslashreplace").decode()[:300]
    message = "".join(letter if letter.isprintable() else " " for letter in message)
    return ConfigError(
        path, f"not valid TOML: {message}", line=line, hint="see https://toml.io for how it is written"
    )
