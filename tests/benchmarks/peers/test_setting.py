"""The search for a tool's own best setting."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.peers.setting import Setting, Space, find_setting
from deploy_tools.errors import UserError


class Machine:
    """Rates by a rule; remembers what was measured side by side."""

    def __init__(self, rule) -> None:
        self.rule, self.asked = rule, []

    def __call__(self, settings):
        self.asked.append(list(settings))
        return {setting: self.rule(setting) for setting in settings}


def test_the_layout_comes_first_and_then_the_chunk() -> None:
    machine = Machine(lambda s: 10.0 * s.streams - abs(s.chunk - 32))
    found = find_setting(Space(), 2, "offline", 64, machine)
    assert machine.asked[0] == [Setting(2, 1, 8), Setting(1, 2, 8)]
    # With two streams a chunk of all 64 would leave one of them idle; 8 is known already.
    assert {s.chunk for s in machine.asked[1]} == {32, 16, 4, 2}
    assert all(s.streams == 2 for s in machine.asked[1])
    assert found.best == Setting(1, 2, 32)
    assert len(found.tried) == 6


def test_a_chunk_that_is_no_better_does_not_win() -> None:
    found = find_setting(Space(), 2, "offline", 64, Machine(lambda s: s.threads / s.chunk))
    assert found.best == Setting(2, 1, 2)
    best_first = find_setting(Space(), 2, "offline", 64, Machine(lambda s: -abs(s.chunk - 8)))
    assert best_first.best == Setting(2, 1, 8)


def test_one_image_after_the_other_chooses_threads_alone() -> None:
    machine = Machine(lambda s: 1.0 / s.threads)
    found = find_setting(Space(), 8, "single-stream", 1, machine)
    assert machine.asked == [[Setting(8), Setting(1), Setting(2), Setting(4)]]
    assert found.best == Setting(1)


def test_a_tool_with_one_stream_is_not_given_more() -> None:
    machine = Machine(lambda s: s.chunk)
    found = find_setting(Space(streams=False, divisors=(8, 1)), 4, "offline", 64, machine)
    assert machine.asked == [[Setting(4, 1, 8)], [Setting(4, 1, 64)]]
    assert found.best == Setting(4, 1, 64)


def test_streams_share_all_cores_and_fit_the_query() -> None:
    machine = Machine(lambda s: 1.0)
    find_setting(Space(), 6, "multi-stream", 8, machine)
    layouts = [(s.threads, s.streams, s.chunk) for s in machine.asked[0]]
    assert layouts == [(6, 1, 1), (3, 2, 1), (1, 4, 1)]
    find_setting(Space(divisors=(1, 2)), 4, "offline", 4, machine)
    assert [s.chunk for s in machine.asked[2]] == [4, 2, 1]


def test_a_query_that_no_divisor_fits_is_one_chunk() -> None:
    assert Space(divisors=(8, 2)).chunks(7) == [7]
    assert Space().chunks(1) == [1]


def test_settings_are_positive() -> None:
    with pytest.raises(UserError, match="at least 1"):
        Setting(0)
    assert str(Setting(2, 3, 4)) == "3 x 2 threads, chunks of 4"


@pytest.mark.parametrize("gain", [1.2, 0.9])
def test_whether_the_batch_is_fixed_comes_last(gain: float) -> None:
    machine = Machine(lambda s: s.threads / s.chunk * (gain if s.fixed else 1.0))
    found = find_setting(Space(fixed=True), 2, "offline", 64, machine)
    chosen = Setting(2, 1, 2)
    assert machine.asked[-1] == [chosen, replace(chosen, fixed=True)]
    assert found.best == replace(chosen, fixed=gain > 1)
    assert not any(s.fixed for asked in machine.asked[:-1] for s in asked)
    nothing = Machine(lambda s: 0.0)
    assert not any(
        s.fixed for s in find_setting(Space(fixed=True), 2, "offline", 64, nothing).tried
    )
