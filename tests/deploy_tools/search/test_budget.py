"""What a budget asks, and how far an assignment is from it."""

from __future__ import annotations

import math

import pytest

from deploy_tools.errors import UserError
from deploy_tools.search.budget import Budget, Judged, parse_agreement, parse_drop


def judged(agreement: float, drop: float = 0.0, sqnr: float = 30.0) -> Judged:
    return Judged(1000, agreement, (agreement - 0.01, 1.0), drop, (drop - 0.5, drop + 0.5), sqnr)


@pytest.mark.parametrize(("text", "value"), [("0.1pp", 0.1), ("0.1", 0.1), (" 2 PP", 2.0), ("0pp", 0.0)])  # fmt: skip
def test_a_drop_is_in_percentage_points(text: str, value: float) -> None:
    assert parse_drop(text) == value


@pytest.mark.parametrize(("text", "value"), [("99.5", 0.995), ("99.5%", 0.995), ("100", 1.0)])
def test_an_agreement_is_in_percent(text: str, value: float) -> None:
    assert parse_agreement(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["0.1%", "-1", "x", "nan", "101", ""])
def test_another_drop_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--max-drop"):
        parse_drop(text)


@pytest.mark.parametrize("text", ["0.995", "0", "101", "99,5", "inf"])
def test_another_agreement_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--min-agreement"):
        parse_agreement(text)


def test_the_larger_miss_counts() -> None:
    budget = Budget(max_drop_pp=0.1, min_agreement=0.995)
    assert budget.met(judged(0.995, 0.1))
    assert budget.missing_pp(judged(0.990, 0.2)) == pytest.approx(0.5)
    assert budget.missing_pp(judged(0.996, 0.4)) == pytest.approx(0.3)
    assert not budget.met(judged(0.9949))
    assert Budget(0.5).met(judged(0.5, 0.5))
    with pytest.raises(UserError, match="--min-agreement or --max-drop"):
        Budget()


def test_rounding_does_not_miss_a_budget() -> None:
    for misses in range(1, 60):
        share = 1 - misses / 1000
        assert Budget(min_agreement=parse_agreement(f"{100 - misses / 10}")).met(judged(share))


def test_it_says_what_was_reached() -> None:
    said = Budget(0.1, 0.995).said(judged(0.991, 0.25))
    assert "drop +0.25 pp [-0.25, +0.75] of at most 0.1" in said
    assert "agreement 99.10 % [98.10, 100.00] of at least 99.5" in said
    assert "1000 images" in said
    assert judged(1.0, sqnr=math.inf).to_dict()["sqnr_db"] is None
