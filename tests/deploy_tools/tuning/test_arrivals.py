"""The queue on paper, against what queueing theory and the real search say."""

from __future__ import annotations

import numpy as np
import pytest

from deploy_tools.tuning.arrivals import predicted_rate


def fixed(ms: float):
    return np.full(50, ms / 1e3)


def test_a_call_that_is_too_slow_alone_keeps_no_rate() -> None:
    assert predicted_rate(fixed(5), 1, 0.004) == 0
    assert predicted_rate(np.array([0.001] * 95 + [0.1] * 5), 1, 0.05) == 0  # 5 % are late


def test_a_few_slow_calls_may_be_chance() -> None:
    # 1 of 20: probable where one in a hundred is slow. 3 of 20: not.
    rate = predicted_rate(np.array([0.001] * 19 + [0.1]), 1, 0.05)
    assert 0.8 * 1000 < rate <= 1000
    assert predicted_rate(np.array([0.001] * 17 + [0.1] * 3), 1, 0.05) == 0
    assert predicted_rate(np.array([0.1]), 1, 0.05) == 0  # nothing else is known
    many = np.array([0.001] * 200_000 + [0.1] * 3000)
    assert predicted_rate(many, 1, 0.05) == 0
    assert predicted_rate(many[:-1500], 1, 0.05) > 0


def test_a_generous_limit_allows_nearly_the_capacity() -> None:
    assert 0.9 * 1000 < predicted_rate(fixed(1), 1, 0.1) <= 1000
    assert 0.9 * 2000 < predicted_rate(fixed(1), 2, 0.1) <= 2000


def test_a_tight_limit_allows_little() -> None:
    rates = [predicted_rate(fixed(1), 1, limit / 1e3) for limit in (1.01, 2, 5, 20)]
    assert rates == sorted(rates)
    # P(wait <= 0.01 ms) is about 1 - load: 1 % may wait longer, so the load is about 1 %.
    assert 3 < rates[0] < 30


def test_a_known_queue() -> None:
    # M/M/1: P(T > t) = exp(-(m - r) t), so p99 = 5 ms at m = 1000 is kept up to r = m - ln(100) / t.
    times = np.random.default_rng(0).exponential(0.001, 100_000)
    limit = 0.02
    assert predicted_rate(times, 1, limit) == pytest.approx(1000 - np.log(100) / limit, rel=0.1)


def test_two_slow_streams_keep_a_limit_that_one_fast_one_keeps_better() -> None:
    # The same capacity: the fast one wins where the limit is near the slow one's time.
    assert predicted_rate(fixed(1), 1, 0.003) > predicted_rate(fixed(2), 2, 0.003)


def test_the_same_seed_gives_the_same() -> None:
    assert predicted_rate(fixed(1), 1, 0.005, 3) == predicted_rate(fixed(1), 1, 0.005, 3)
