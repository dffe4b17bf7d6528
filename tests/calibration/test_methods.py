from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration.methods import GRIDS, METHODS, clipped_share, method_named, range_for
from calibration.methods.density import Density, fold
from calibration.methods.mse import expected_squared_error
from calibration.observers import TensorObserver, TensorStatistics
from deploy_tools.errors import UserError

RNG = np.random.default_rng(7)
HEAVY = RNG.standard_t(3, 300_000).astype(np.float32)
SAMPLES = {
    "normal": RNG.normal(size=200_000),
    "heavy": HEAVY,
    "heavy after a ReLU": np.maximum(HEAVY, 0),
    "shifted": RNG.normal(2.0, 1.0, 200_000),
    "negative": -np.abs(RNG.normal(size=50_000)),
    "far from zero": RNG.uniform(100.0, 101.0, 20_000),
    "tiny values": RNG.normal(scale=1e-20, size=20_000),
    "few values": RNG.normal(size=40),
}


def seen(values: np.ndarray) -> TensorStatistics:
    observer = TensorObserver("t")
    observer.observe(np.asarray(values, np.float32))
    return observer.statistics


def squared_error(values: np.ndarray, grid: str, low: float, high: float) -> float:
    """Quantize every value as a runtime does; the reference for what the histogram predicts."""
    values = np.asarray(values, np.float64)
    if grid == "s8":
        scale = high / 127
        found = np.clip(np.round(values / scale), -127, 127) * scale
    else:
        scale = (high - low) / 255
        zero = np.round(-low / scale)
        found = (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale
    return float(np.mean((values - found) ** 2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", SAMPLES)
def test_ranges_hold_zero_and_stay_within_what_was_seen(method, grid, name):
    values = SAMPLES[name].astype(np.float32)
    low, high = range_for(seen(values), grid, method, {})
    assert low <= 0.0 <= high
    assert low < high
    largest = float(np.abs(values).max())
    if grid == "s8":
        assert low == -high
        assert high <= largest
    else:
        assert low >= min(values.min(), 0.0)
        assert high <= max(values.max(), 0.0)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from(sorted(METHODS)),
    st.sampled_from(GRIDS),
)
def test_no_tensor_is_too_strange(values, method, grid):
    low, high = range_for(seen(values), grid, method, {})
    assert np.isfinite([low, high]).all()
    assert low <= 0.0 <= high
    assert (low == high == 0.0) == (not values.any())


@pytest.mark.parametrize("method", METHODS)
def test_constants(method):
    assert range_for(seen(np.zeros(10)), "u8", method, {}) == (0.0, 0.0)
    assert range_for(seen(np.zeros(10)), "s8", method, {}) == (0.0, 0.0)
    assert range_for(seen(np.full(10, 3.0)), "u8", method, {}) == (0.0, 3.0)
    assert range_for(seen(np.full(10, -3.0)), "u8", method, {}) == (-3.0, 0.0)
    assert range_for(seen(np.full(10, -3.0)), "s8", method, {}) == (-3.0, 3.0)


def test_minmax_is_exact():
    values = np.array([-0.3, 0.0, 1.7], np.float32)
    assert range_for(seen(values), "u8", "minmax", {}) == (values[0], values[2])
    assert range_for(seen(values), "s8", "minmax", {}) == (-values[2], values[2])


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_leaves_the_asked_share_outside(percentile):
    statistics = seen(HEAVY)
    low, high = range_for(statistics, "u8", "percentile", {"percentile": percentile})
    outside = 1 - percentile / 100
    assert np.mean(low > HEAVY) == pytest.approx(outside / 2, rel=0.02)
    assert np.mean(high < HEAVY) == pytest.approx(outside / 2, rel=0.02)
    _, high = range_for(statistics, "s8", "percentile", {"percentile": percentile})
    assert np.mean(np.abs(HEAVY) > high) == pytest.approx(outside, rel=0.02)


def test_percentile_counts_zeros_and_stays_one_sided():
    values = SAMPLES["heavy after a ReLU"]
    low, high = range_for(seen(values), "u8", "percentile", {"percentile": 99.0})
    assert low == 0.0
    assert high == pytest.approx(np.percentile(values, 99.5), abs=2 * seen(values).width)


def test_percentile_of_100_is_minmax():
    settings_ = {"percentile": 100.0}
    for name, values in SAMPLES.items():
        statistics = seen(values)
        expected = range_for(statistics, "u8", "minmax", {})
        assert range_for(statistics, "u8", "percentile", settings_) == pytest.approx(expected), name


def test_percentile_does_not_silence_a_tensor_of_almost_only_zeros():
    values = np.zeros(1_000_000, np.float32)
    values[:20] = np.arange(1, 21)
    low, high = range_for(seen(values), "u8", "percentile", {"percentile": 99.99})
    assert low == 0.0
    assert 19.0 <= high <= 20.0


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ["normal", "heavy", "heavy after a ReLU", "shifted", "negative"])
@pytest.mark.parametrize("share", [1.0, 0.6, 0.2])
def test_predicted_error_is_the_real_one(grid, name, share):
    values = SAMPLES[name]
    statistics = seen(values)
    low, high = (share * bound for bound in range_for(statistics, grid, "minmax", {}))
    density = Density.of(statistics)
    found = expected_squared_error(
        density if grid == "u8" else fold(density), grid, low if grid == "u8" else 0.0, high
    )
    assert found == pytest.approx(squared_error(values, grid, low, high), rel=0.03)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", [n for n in SAMPLES if n != "few values"])
def test_mse_beats_every_other_method_and_a_fine_scan(grid, name):
    values = SAMPLES[name]
    statistics = seen(values)
    best = squared_error(values, grid, *range_for(statistics, grid, "mse", {}))
    for other in METHODS:
        assert best <= 1.01 * squared_error(values, grid, *range_for(statistics, grid, other, {}))
    low, high = range_for(statistics, grid, "minmax", {})
    scan = [squared_error(values, grid, s * low, s * high) for s in np.geomspace(0.02, 1, 60)]
    assert best <= 1.01 * min(scan)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", ["heavy", "heavy after a ReLU"])
def test_entropy_really_searches(grid, name):
    """The trap: as many bins as levels give exactly min-max. Outliers must be cut off here."""
    statistics = seen(SAMPLES[name])
    bounds = range_for(statistics, grid, "entropy", {})
    assert bounds[1] < 0.7 * range_for(statistics, grid, "minmax", {})[1]
    assert 0.0 < clipped_share(statistics, bounds) < 0.002


def test_entropy_cuts_nothing_off_an_even_distribution():
    statistics = seen(RNG.uniform(0.0, 1.0, 2_000_000))
    assert range_for(statistics, "u8", "entropy", {})[1] > 0.98
    assert range_for(statistics, "s8", "entropy", {})[1] > 0.98


@pytest.mark.parametrize("grid", GRIDS)
def test_entropy_bears_a_value_that_repeats(grid):
    """The background of images: one value for a third of all, and a tail that must not be cut."""
    values = np.maximum(RNG.laplace(size=500_000), -0.3)
    statistics = seen(values)
    bounds = range_for(statistics, grid, "entropy", {})
    assert bounds[0] <= np.float32(-0.3)
    assert clipped_share(statistics, bounds) < 0.002
    alone = np.concatenate([np.full(1000, 7.0), np.full(1000, 2.0)])
    assert range_for(seen(alone), "u8", "entropy", {}) == (0.0, 7.0)


def test_entropy_follows_the_published_loop():
    """The divergence from prefix sums equals the sum written out, bin by bin."""
    from calibration.methods import entropy

    mass = RNG.poisson(3.0, 1100).astype(np.float64)
    density = Density(0, 1.0, mass, 0, 0.0, 1100.0)
    for start, end, levels in ((0, 700, 128), (0, 1100, 256), (37, 1001, 256)):
        p = mass[start:end].copy()
        p[0] += mass[:start].sum()
        p[-1] += mass[end:].sum()
        q = np.zeros_like(p)
        size = end - start
        for level in range(levels):
            part = slice(level * size // levels, (level + 1) * size // levels)
            filled = p[part] > 0
            if filled.any():
                q[part][filled] = mass[start:end][part].sum() / filled.sum()
        p, q = p / p.sum(), q / q.sum()
        expected = np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0]))
        sums = entropy._PrefixSums(density)
        found = sums.divergence(np.array([start]), np.array([end]), levels)
        assert found[0] == pytest.approx(expected, rel=1e-9)


def test_affine_grid_uses_both_ends():
    """Values around 2 have most of their weight on one side; one level must not serve -high."""
    low, high = range_for(seen(SAMPLES["shifted"]), "u8", "mse", {})
    assert -low < 0.5 * high


def test_fold_is_the_density_of_absolute_values():
    values = np.array([-3.5, -3.5, -0.25, 0.0, 0.75, 1.5, 3.5])
    folded = fold(Density.of(seen(values)))
    direct = Density.of(seen(np.abs(values)))
    assert (folded.low, folded.high, folded.zeros) == (0.0, 3.5, 1)
    for limit in (0.2, 0.5, 1.0, 2.0, 3.4, 3.6):
        assert folded.mass_below(limit) == direct.mass_below(limit)
    width = seen([-2.0, 2.0]).width
    inside = fold(Density.of(seen([-2.0, -100.5 * width, 2.0])))
    assert inside.mass_below(101 * width) - inside.mass_below(100 * width) == 1.0


def test_clipped_share():
    statistics = seen(np.arange(1, 1001))
    assert clipped_share(statistics, (0.0, 900.0)) == pytest.approx(0.1, abs=0.002)
    assert clipped_share(statistics, (0.0, 1000.0)) == 0.0
    assert clipped_share(seen(np.zeros(4)), (0.0, 0.0)) == 0.0


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match='Did you mean "entropy"'):
        method_named("entrpy")
    with pytest.raises(UserError, match="u16"):
        range_for(seen(np.ones(3)), "u16", "minmax", {})
