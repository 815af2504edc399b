"""The transition table, as a machine: what can be reached, and that there is always a way out."""

from __future__ import annotations

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from banger.model.states import CLAIMS_LIFE, TRANSITIONS, VMState, may_become


def test_every_state_has_its_row() -> None:
    assert set(TRANSITIONS) == set(VMState)


@pytest.mark.parametrize("state", VMState)
def test_error_and_stopped_are_always_reachable(state: VMState) -> None:
    assert may_become(state, VMState.ERROR)
    assert may_become(state, VMState.STOPPED), "stop and kill of any VM end stopped (SPEC §2)"


def test_running_is_entered_from_a_start_or_a_failed_stop_only() -> None:
    assert {s for s in VMState if may_become(s, VMState.RUNNING)} == {VMState.STARTING, VMState.STOPPING}


def test_starting_is_never_entered_with_a_process_about() -> None:
    assert not {s for s in CLAIMS_LIFE if may_become(s, VMState.STARTING)}


def test_created_is_only_gone_back_to() -> None:
    assert {s for s in VMState if may_become(s, VMState.CREATED)} == {VMState.STARTING}


class Walk(RuleBasedStateMachine):
    """Any sequence of attempts: refused ones change nothing, allowed ones follow the table."""

    def __init__(self) -> None:
        super().__init__()
        self.state = VMState.CREATED
        self.path = [VMState.CREATED]

    @rule(wanted=st.sampled_from(VMState))
    def attempt(self, wanted: VMState) -> None:
        if may_become(self.state, wanted):
            self.state = wanted
            self.path.append(wanted)

    @invariant()
    def running_was_started(self) -> None:
        if VMState.RUNNING in self.path:
            assert VMState.STARTING in self.path[: self.path.index(VMState.RUNNING)]

    @invariant()
    def created_comes_back_only_until_it_ran(self) -> None:
        for before, after in zip(self.path, self.path[1:], strict=False):
            if after is VMState.CREATED:
                assert before is VMState.STARTING


TestWalk = Walk.TestCase
TestWalk.settings = hypothesis_settings(max_examples=50, stateful_step_count=20, deadline=None)
