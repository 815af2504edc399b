"""What every test gets: capabilities by mark, a time limit, and an order (quick folders first)."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import hypothesis
import pytest

from banger.system import lockorder
from tests import capabilities, watchdog

ORDER = ("style", "unit", "fuzz", "web", "host", "guest", "crash", "lab", "bench")
"""Folders of tests/ in the order in which they run: what is quick and tells most comes first."""

MISSING = "capabilities missing"
"""Under this name a worker tells its run what it missed."""

PYTHONS_OWN = {signal.SIGPIPE, signal.SIGXFSZ}
"""What CPython itself ignores, and gives back to the programs that it starts."""

hypothesis.settings.register_profile(
    "banger",
    hypothesis.settings(),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("banger")
"""How long an example takes says how busy the host is; what hangs has the test's limit. The rest is as it
was: hypothesis itself draws the same examples each time where `CI` is set."""


def pytest_configure() -> None:
    """The order of locks is asserted in all that runs. And signals as a terminal gives them, whoever runs the
    suite: under nohup, or behind a shell's `&`, HUP and INT come ignored, every program started inherits
    that, and ours rightly keep to it. The same of the umask."""
    os.environ[lockorder.VARIABLE] = "1"
    os.umask(0o022)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - PYTHONS_OWN:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


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


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """A worker of `make test` has ended: what it missed counts as the run's."""
    capabilities.asked.update(getattr(node, "workeroutput", {}).get(MISSING, {}))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    told: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    if told is not None:  # a worker: the run's end is another's
        told[MISSING] = capabilities.asked
        return
    if exitstatus == pytest.ExitCode.OK and capabilities.missing_must(dict(os.environ)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
