from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration import observers
from calibration.observers import BINS, EMPTY, TensorObserver, TensorStatistics
from deploy_tools.errors import UserError

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
ARRAYS = hnp.arrays(np.float32, st.integers(1, 200), elements=FINITE)
# Scales far apart, so that bins double many times.
SPREAD = st.lists(st.tuples(ARRAYS, st.integers(-60, 20)), min_size=1, max_size=6)


def observed(*parts: np.ndarray) -> TensorStatistics:
    observer = TensorObserver("t")
    for part in parts:
        observer.observe(part)
    return observer.statistics


def fields(statistics: TensorStatistics) -> tuple:
    values = {k: v for k, v in vars(statistics).items() if k != "counts"}
    return (*sorted(values.items()), statistics.counts.tolist())


def parts_of(spread: list[tuple[np.ndarray, int]]) -> list[np.ndarray]:
    return [np.ldexp(np.clip(a, -1e30, 1e30), k).astype(np.float32) for a, k in spread]


def reference(values: np.ndarray, statistics: TensorStatistics) -> list[int]:
    """Count value by value, in exact float64 arithmetic."""
    counts = [0] * len(statistics.counts)
    for value in values.tolist():
        counts[math.trunc(math.ldexp(value, -statistics.exponent)) - statistics.first] += 1
    return counts


@settings(deadline=None)
@given(ARRAYS)
def test_every_value_is_counted_in_its_bin(values):
    found = observed(values)
    assert found.count == found.counts.sum() == values.size
    assert (found.low, found.high) == (values.min(), values.max())
    assert found.zeros == np.count_nonzero(values == 0)
    assert found.counts.tolist() == reference(values, found)
    assert len(found.counts) <= BINS


@settings(deadline=None)
@given(SPREAD, st.randoms(use_true_random=False))
def test_order_and_batch_size_change_nothing(spread, random):
    parts = parts_of(spread)
    together = observed(np.concatenate(parts))
    random.shuffle(parts)
    assert fields(observed(*parts)) == fields(together)
    singly = np.concatenate(parts).reshape(-1, 1)
    assert fields(observed(*singly)) == fields(together)


@settings(deadline=None)
@given(SPREAD)
def test_merging_equals_seeing_both(spread):
    parts = parts_of(spread)
    merged = EMPTY
    for part in parts:
        merged = merged.merge(observed(part))
    together = observed(np.concatenate(parts))
    assert fields(merged) == fields(together)
    assert fields(together.merge(EMPTY)) == fields(together)


def test_chunks_are_all_seen(monkeypatch):
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    whole = observed(values)
    monkeypatch.setattr(observers, "_CHUNK", 77)
    assert fields(observed(values)) == fields(whole)


def test_bins_lie_on_the_side_where_the_values_are():
    """A tensor after a ReLU has at least half of all bins between zero and its maximum."""
    values = np.linspace(0, 1.5, 100_001, dtype=np.float32)
    found = observed(values)
    assert found.first == 0
    assert BINS / 2 < len(found.counts) <= BINS


def test_late_outlier_keeps_exact_counts():
    body = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    found = observed(body, np.array([1000.0], np.float32))
    assert found.counts.sum() == 5001
    assert found.high == 1000.0
    assert found.counts.tolist() == reference(np.append(body, np.float32(1000)), found)


def test_mean_and_energy_are_near_the_true_ones():
    values = np.random.default_rng(0).normal(1.0, 2.0, 50_000).astype(np.float32)
    found = observed(values)
    assert found.mean == pytest.approx(values.mean(), abs=found.width)
    assert found.energy == pytest.approx(np.square(values, dtype=np.float64).mean(), rel=1e-4)
    assert found.zero_share == 0.0


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "inf")])
def test_values_that_are_no_numbers_name_the_tensor(value, word):
    values = np.ones((2, 3), np.float32)
    values[1, 2] = value
    with pytest.raises(UserError, match=rf'tensor "conv7" has {word}'):
        TensorObserver("conv7").observe(values)


def test_memory_does_not_grow_with_the_values():
    observer = TensorObserver("t")
    for seed in range(20):
        observer.observe(np.random.default_rng(seed).normal(size=1000).astype(np.float32))
        assert observer.statistics.counts.nbytes <= 8 * BINS


def test_empty_and_zero_tensors():
    assert observed(np.zeros((0, 3), np.float32)).count == 0
    found = observed(np.zeros(7, np.float32), -np.zeros(2, np.float32))
    assert (found.count, found.zeros, found.low, found.high) == (9, 9, 0.0, 0.0)
