"""`banger vm session list` and `show`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from banger.cli.escape import safe_block
from banger.cli.options import json_option
from banger.cli.render import age, out, print_fields, print_json, print_table
from banger.cli.vm_session import session_argument, vm_of_session
from banger.client.client import Client
from banger.client.sessions import Sessions
from banger.model.references import SHOWN_ID_LENGTH
from banger.model.sessions import has_tags, tag_words

if TYPE_CHECKING:
    from banger.client import shapes

COLUMNS = ("ID", "NAME", "STATUS", "EXIT", "COMMAND", "CREATED")
SHOWN_COMMAND = 40


def command_line(session: shapes.Session) -> str:
    """As one would type it."""
    return shlex.join([session.get("command", ""), *session.get("args", [])])


def _row(session: shapes.Session, *, whole: bool) -> list[str]:
    command = command_line(session)
    if not whole and len(command) > SHOWN_COMMAND:
        command = command[: SHOWN_COMMAND - 1] + "…"
    return [
        session["id"] if whole else session["id"][:SHOWN_ID_LENGTH],
        session["name"],
        session["status"],
        str(session.get("exit_code", "")),
        command,
        age(session.get("created_at", "")),
    ]


@click.command("list", help="List a VM's sessions, oldest first, those that have ended too.")
@vm_of_session
@click.option("-q", "ids", is_flag=True, help="Ids only.")
@click.option("--tag", "tags", multiple=True, metavar="K[=V]", help="Only those with this tag.")
@click.option("--no-trunc", "whole", is_flag=True, help="Whole ids and commands.")
@json_option
def list_command(vm: str, ids: bool, tags: tuple[str, ...], whole: bool, as_json: bool) -> None:
    with Client() as client:
        sessions = [s for s in Sessions(client, vm).list() if has_tags(s.get("tags", {}), tags)]
    if as_json:
        print_json(sessions)
    elif ids:
        for session in sessions:
            out(session["id"])
    else:
        rows = [_row(session, whole=whole) for session in sessions]
        print_table(COLUMNS, rows, state_column=COLUMNS.index("STATUS"))


@click.command("show", help="All about one session.")
@vm_of_session
@session_argument
@json_option
def show(vm: str, reference: str, as_json: bool) -> None:
    with Client() as client:
        session = Sessions(client, vm).show(reference)
    if as_json:
        print_json(session)
        return

    def moment(text: str) -> str:
        return f"{text} ({age(text)})" if text else ""

    def number(value: int | None) -> str:
        return "" if value is None else str(value)

    print_fields(
        [
            ("id", session["id"]),
            ("name", session["name"]),
            ("status", session["status"]),
            ("exit code", number(session.get("exit_code"))),
            ("exit signal", number(session.get("exit_signal"))),
            ("command", command_line(session)),
            ("left out", _left_out(session.get("left_out", 0))),
            ("folder", session.get("cwd", "")),
            ("user", session.get("user", "")),
            ("environment", shlex.join(f"{k}={v}" for k, v in session.get("env", {}).items())),
            ("tags", " ".join(tag_words(session.get("tags", {})))),
            ("streams", session.get("attach_mode", "")),
            ("attached", _attached(session)),
            ("pid", number(session.get("guest_pid"))),
            ("launch", session.get("launch_stage", "")),
            ("launch message", session.get("launch_message", "")),
            ("last error", _last_error(session)),
            ("kept in", session.get("guest_state_dir", "")),
            ("said", _said(session)),
            ("created", moment(session.get("created_at", ""))),
            ("started", moment(session.get("started_at", ""))),
            ("ended", moment(session.get("ended_at", ""))),
        ]
    )
    raw = session.get("launch_raw_log", "")
    if raw:
        out("launch log")
        for line in safe_block(raw).splitlines():
            out(f"  {line}")


def _left_out(count: int) -> str:
    return f"{count} arguments and variables, too long to be shown" if count else ""


def _last_error(session: shapes.Session) -> str:
    error = session.get("last_error", "")
    return error if error != session.get("launch_message") else ""


def _attached(session: shapes.Session) -> str:
    readers = session.get("readers", 0)
    if not readers:
        return ""
    return f"{readers}, one of them writes" if session.get("writer") else str(readers)


def _said(session: shapes.Session) -> str:
    if "stdout_bytes" not in session:
        return ""
    return f"{session['stdout_bytes']} bytes on stdout, {session.get('stderr_bytes', 0)} on stderr"
