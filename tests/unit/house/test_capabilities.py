"""The tests' own machinery: capabilities that are missing are named, and CI insists on some."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.limit(300)  # each runs a pytest of its own

CONFTEST = "from tests.conftest import *\n"
HERE = Path(__file__).parents[3]


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite of its own with the project's conftest, whose host lacks the capability `clang`."""
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{HERE / 'src'}")
    monkeypatch.delenv("CI", raising=False)
    pytester.makeini(
        "[pytest]\nmarkers =\n  needs(*names): x\n  limit(seconds): x\naddopts = --strict-markers\n"
    )
    pytester.makeconftest(
        CONFTEST
        + "import dataclasses\nfrom tests.capabilities import CAPABILITIES as C\n"
        + "C['clang'] = dataclasses.replace(C['clang'], probe=lambda: 'taken away')\n"
    )
    return pytester


def test_a_missing_capability_skips_and_is_named(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        "from tests.capabilities import require\n@require('clang')\ndef test_c(): assert False\n"
    )
    result = suite.runpytest_subprocess()
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["capabilities missing: clang", "*taken away*"])
    assert result.ret == 0


def test_in_ci_the_same_fails_the_run(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    suite.makepyfile("from tests.capabilities import demand\ndef test_c(): demand('clang')\n")
    result = suite.runpytest_subprocess()
    result.stdout.fnmatch_lines(["CI must have: clang"])
    assert result.ret == 1


def test_nothing_missing_is_said_too(suite: pytest.Pytester) -> None:
    suite.makepyfile("def test_c(): pass\n")
    result = suite.runpytest_subprocess()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["capabilities missing: none"])


def test_an_unknown_capability_is_a_mistake(suite: pytest.Pytester) -> None:
    suite.makepyfile("from tests.capabilities import require\n@require('clan')\ndef test_c(): pass\n")
    assert suite.runpytest_subprocess().ret != 0


def test_a_test_that_hangs_fails_at_its_limit_and_cleans_up(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        import asyncio, pathlib, pytest

        @pytest.fixture
        def thing():
            yield
            pathlib.Path("cleaned").touch()

        @pytest.mark.limit(2)
        def test_hangs(thing):
            asyncio.run(asyncio.Event().wait())

        def test_after(): assert pathlib.Path("cleaned").exists()
        """
    )
    result = suite.runpytest_subprocess()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*TestTookTooLong: the test took more than 2 s"])
