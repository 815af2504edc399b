"""What every test gets: capabilities by mark, a time limit, and an order (quick folders first)."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from tests import capabilities, watchdog

ORDER = ("style", "unit", "fuzz", "web", "host", "guest", "crash", "lab", "bench")
"""Folders of tests/ in the order in which they run: what is quick and tells most comes first."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def built() -> None:
    """Kernel, image and tools are there. Fixtures that go where there is no network ask for this first."""
    from tests.artifacts import artifacts

    artifacts()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        folder = watchdog.folder_of(item)
        return ORDER.index(folder) if folder in ORDER else len(ORDER)

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with watchdog.watching(watchdog.limit_of(item)):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    capabilities.demand(*capabilities.demanded_by(item))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in capabilities.summary():
        terminalreporter.write_line(line)
    lacking = capabilities.missing_must(dict(os.environ))
    if lacking:
        terminalreporter.write_line(f"CI must have: {', '.join(lacking)}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.OK and capabilities.missing_must(dict(os.environ)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
