"""What SPEC §2 promises of waiting is what is waited."""

from __future__ import annotations

from banger.model.deadlines import USUAL


def test_the_usual_ones_are_the_specs() -> None:
    assert USUAL.agent_s == 30
    assert USUAL.emulated_silence_s == 60
    assert USUAL.agent_answer_s == 2
    assert USUAL.stop_silence_s == 10
    assert USUAL.kill_s == 30
    assert USUAL.cleanup_s == 30
