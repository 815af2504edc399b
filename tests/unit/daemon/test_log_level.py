"""log_level, and BANGER_LOG_LEVEL over it: what the daemon's log leaves out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from banger.config.toml import load_settings
from banger.daemon.journal import close_journal, open_journal

LEVELS = ("debug", "info", "warning", "error")


@pytest.fixture
def root_level() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("by_environment", [False, True])
def test_what_is_below_the_level_is_not_written(
    level: str, by_environment: bool, tmp_path: Path, root_level: None
) -> None:
    config, journal = tmp_path / "config.toml", tmp_path / "daemon.log"
    config.write_text(f'log_level = "{"error" if by_environment else level}"\n')
    environ = {"BANGER_LOG_LEVEL": level} if by_environment else {}
    handler = open_journal(str(journal), load_settings(str(config), environ).log_level)
    try:
        for name in LEVELS:
            logging.getLogger("banger.test").log(logging.getLevelNamesMapping()[name.upper()], "%s", name)
    finally:
        close_journal(handler)
    said = [json.loads(line)["message"] for line in journal.read_text().splitlines()]
    assert said == list(LEVELS[LEVELS.index(level) :])
