"""Successive halving: who is measured when, with how much time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from deploy_tools.tuning.halving import successive_halving


def halved(speeds: dict[str, float], keep: int = 1, noise: float = 0.0, seed: int = 0):
    """Halve with known speeds; returns the rungs and what was asked of `measure`."""
    asked: list[tuple[list[str], float]] = []
    generator = np.random.default_rng(seed)

    def measure(some: Sequence[str], seconds: float) -> dict[str, float]:
        asked.append((list(some), seconds))
        spread = noise * np.sqrt(len(some) / seconds)
        return {name: speeds[name] * np.exp(generator.normal(0, spread)) for name in some}

    return successive_halving(list(speeds), "default", measure, keep, 12.0), asked


SPEEDS = {"default": 1.0} | {f"c{n}": n / 10 for n in range(1, 16)}


def test_the_better_half_goes_on_and_the_default_with_it() -> None:
    rungs, asked = halved(SPEEDS)
    assert [len(some) for some, _ in asked] == [16, 8, 4 + 1, 3 + 1]
    assert all("default" in some for some, _ in asked)
    assert rungs[-1].best(1) == ["c15"]
    assert rungs[0].scores[0] == ("c15", 1.5)
    assert rungs[0].best(3) == ["c15", "c14", "c13"]


def test_every_rung_has_the_same_share_of_the_time() -> None:
    _, asked = halved(SPEEDS)
    assert [seconds for _, seconds in asked] == [3.0] * 4


def test_as_many_as_wanted_are_left() -> None:
    rungs, asked = halved(SPEEDS, keep=3)
    assert len(asked) == 3
    assert rungs[-1].best(3) == ["c15", "c14", "c13"]


def test_two_are_measured_once_and_one_not_at_all() -> None:
    rungs, asked = halved({"default": 1.0, "other": 0.5})
    assert len(asked) == 1
    assert rungs[-1].best(1) == ["default"]
    assert halved({"default": 1.0}) == ([], [])


def test_a_default_that_is_not_listed_is_measured_too() -> None:
    rungs = successive_halving(["x"], "default", lambda some, _: dict.fromkeys(some, 1.0), 1, 1.0)
    assert {name for name, _ in rungs[0].scores} == {"x", "default"}


@pytest.mark.parametrize("seed", range(5))
def test_noise_seldom_loses_the_best_by_much(seed: int) -> None:
    rungs, _ = halved(SPEEDS, noise=0.03, seed=seed)
    assert SPEEDS[rungs[-1].best(1)[0]] >= 1.3
