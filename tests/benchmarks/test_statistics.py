import math
from itertools import pairwise, product

import numpy as np
import pytest

from benchmarks.statistics import (
    logit_sqnr,
    logit_sqnr_interval,
    mcnemar_exact,
    median_interval,
    paired_drop_interval,
    paired_ratio_interval,
    percentile_intervals,
    t_quantile,
    wilson_interval,
)
from deploy_tools.errors import UserError


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    # Newcombe, Statistics in Medicine 17:857 (1998), table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes, total, low, high):
    found = wilson_interval(successes, total)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert found.estimate == successes / total


def test_wilson_at_the_ends_and_with_bad_counts():
    assert wilson_interval(0, 10).low == 0.0
    assert wilson_interval(10, 10).high == 1.0
    for counts in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(UserError):
            wilson_interval(*counts)


def test_tango_gives_the_published_interval():
    """Fagerland, Lydersen and Laake (2013), airway hyper-responsiveness: 1, 1, 7, 12."""
    found = paired_drop_interval(1, 7, 21)
    assert (round(found.low, 1), round(found.high, 1)) == (-51.7, -2.6)
    assert found.estimate == pytest.approx(100 * -6 / 21)


def test_tango_agrees_with_r_propcis():
    """PropCIs::scoreci.mp(25, 28, 618, 0.90) gives -0.0148 to 0.0247."""
    found = paired_drop_interval(28, 25, 618, confidence=0.90)
    assert (round(found.low, 2), round(found.high, 2)) == (-1.48, 2.47)


def test_tango_without_discordant_pairs_has_the_closed_form():
    z2 = 1.959963984540054**2
    found = paired_drop_interval(0, 0, 10_000)
    assert found.high == pytest.approx(100 * z2 / (10_000 + z2), rel=1e-9)
    assert found.low == pytest.approx(-found.high, rel=1e-9)


def test_tango_mirrors_and_stays_inside():
    for total, lost, gained in product((1, 5, 40), range(0, 41, 3), range(0, 41, 4)):
        if lost + gained > total:
            continue
        found, mirrored = (
            paired_drop_interval(*c, total) for c in ((lost, gained), (gained, lost))
        )
        assert -100 <= found.low <= found.estimate <= found.high <= 100
        assert found.low == pytest.approx(-mirrored.high, abs=1e-9)


def test_tango_ends_solve_the_score_equation_by_brute_force():
    """Maximize the trinomial likelihood over the nuisance chance on a grid, at both ends."""
    lost, gained, total = 12, 5, 100
    found = paired_drop_interval(lost, gained, total)
    for drop, sign in ((found.low / 100, 1), (found.high / 100, -1)):
        chance = np.linspace(max(0.0, -drop) + 1e-9, (1 - drop) / 2 - 1e-9, 400_001)
        likelihood = (
            lost * np.log(chance + drop)
            + gained * np.log(chance)
            + (total - lost - gained) * np.log(1 - 2 * chance - drop)
        )
        best = chance[np.argmax(likelihood)]
        variance = total * (2 * best + drop * (1 - drop))
        assert (lost - gained - total * drop) / math.sqrt(variance) == pytest.approx(
            sign * 1.959964, abs=1e-3
        )


def test_tango_covers_what_it_promises():
    generator = np.random.default_rng(5)
    inside, trials = 0, 400
    for _ in range(trials):
        lost, gained, _ = generator.multinomial(1000, (0.02, 0.015, 0.965))
        found = paired_drop_interval(int(lost), int(gained), 1000)
        inside += found.low <= 0.5 <= found.high
    assert 0.92 <= inside / trials <= 0.98


def test_tango_refuses_counts_that_do_not_fit():
    for counts in ((3, 3, 5), (-1, 0, 5), (0, 0, 0)):
        with pytest.raises(UserError):
            paired_drop_interval(*counts)


def test_mcnemar_equals_enumeration_and_the_published_value():
    assert round(mcnemar_exact(1, 7), 4) == 0.0703  # Fagerland et al. (2013)
    for pairs in range(1, 12):
        for lost in range(pairs + 1):
            few = min(lost, pairs - lost)
            tail = sum(math.comb(pairs, k) for k in range(few + 1)) / 2**pairs
            assert mcnemar_exact(lost, pairs - lost) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar_exact(0, 0) == 1.0


def test_mcnemar_with_many_pairs_neither_overflows_nor_vanishes():
    exact = 2 * sum(math.comb(4200, k) for k in range(2051)) / 2**4200
    assert mcnemar_exact(2050, 2150) == pytest.approx(exact, rel=1e-8)
    assert mcnemar_exact(0, 50_000) == 0.0


def test_logit_sqnr_is_the_ratio_of_energies():
    reference = np.array([[3.0, 4.0], [0.0, 5.0]], np.float32)
    noisy = reference + np.array([[0.5, 0.0], [0.0, 0.0]], np.float32)
    assert logit_sqnr(reference, noisy) == pytest.approx(10 * math.log10(50 / 0.25))
    assert logit_sqnr(reference, reference) == math.inf
    with pytest.raises(UserError, match="all zero"):
        logit_sqnr(np.zeros((2, 2), np.float32), noisy)
    with pytest.raises(UserError, match="shapes"):
        logit_sqnr(reference, noisy[:1])


def test_logit_sqnr_interval_covers_and_repeats():
    generator = np.random.default_rng(1)
    inside, trials = 0, 60
    for _ in range(trials):
        reference = generator.normal(size=(200, 5)).astype(np.float32)
        found = logit_sqnr_interval(reference, reference + 0.1 * generator.normal(size=(200, 5)))
        inside += found.low <= 20.0 <= found.high
    assert inside / trials >= 0.87
    again = [logit_sqnr_interval(reference, reference * 0.9, seed=4) for _ in range(2)]
    assert again[0] == again[1]


def test_logit_sqnr_interval_is_infinite_and_never_nan_where_logits_are_equal():
    reference = np.ones((50, 3), np.float32)
    assert logit_sqnr_interval(reference, reference).ends() == [math.inf, math.inf]
    one_differs = reference.copy()
    one_differs[0, 0] = 2.0
    found = logit_sqnr_interval(reference, one_differs)
    assert found.high == math.inf
    assert math.isfinite(found.low)
    assert math.isfinite(found.estimate)


def test_t_quantiles_are_the_tabulated_ones():
    for degrees, value in (
        (1, 12.7062),
        (2, 4.3027),
        (5, 2.5706),
        (9, 2.2622),
        (14, 2.1448),
        (30, 2.0423),
    ):
        assert t_quantile(degrees) == pytest.approx(value, abs=5e-5)


def test_paired_ratio_cancels_what_slows_a_whole_round():
    drift = np.array([1, 5, 2, 9, 1, 3, 7, 2], float)
    found = paired_ratio_interval(3 / drift, 1 / drift)
    assert (found.estimate, found.low, found.high) == pytest.approx((3, 3, 3))


def test_paired_ratio_covers_what_it_promises_with_heavy_tails():
    generator = np.random.default_rng(2)
    for rounds in (8, 15):
        inside, trials = 0, 300
        for seed in range(trials):
            noise = 0.02 * generator.normal(size=(2, rounds))
            noise += 0.2 * (generator.random((2, rounds)) < 0.1)
            a, b = np.exp(noise)
            found = paired_ratio_interval(2 * a, b, seed=seed, resamples=400)
            inside += found.low <= 2 <= found.high
        assert inside / trials >= 0.92


def test_paired_ratio_refuses_what_cannot_be_paired():
    for above, below in (
        ([1.0], [1.0]),
        ([1.0, 2.0], [1.0]),
        ([1.0, 2.0], [1.0, 0.0]),
        ([1, np.nan], [1, 1]),
    ):
        with pytest.raises(UserError):
            paired_ratio_interval(above, below)


def test_percentiles_draw_whole_rounds():
    """Two kinds of round: drawing single samples would give an interval near zero width."""
    rounds = [np.full(1000, value) for value in (1.0, 1.0, 1.0, 2.0, 2.0, 2.0)]
    p50, p90 = percentile_intervals(rounds, (50, 90))
    assert (p50.low, p50.high) == (1.0, 2.0)
    assert p90.estimate == 2.0


def test_percentiles_match_numpy_and_hold_their_estimate():
    rounds = list(np.random.default_rng(0).gamma(2, size=(10, 200)))
    found = percentile_intervals(rounds, (1, 50, 99), seed=7)
    assert [i.estimate for i in found] == pytest.approx(
        np.percentile(np.concatenate(rounds), (1, 50, 99))
    )
    assert all(i.low <= i.estimate <= i.high for i in found)
    assert all(a.high < b.low for a, b in pairwise(found))
    assert found == percentile_intervals(rounds, (1, 50, 99), seed=7)
    assert found != percentile_intervals(rounds, (1, 50, 99), seed=8)
    with pytest.raises(UserError):
        percentile_intervals([], (50,))


def test_median_interval_of_one_round_is_a_point():
    assert median_interval([3.0]).ends() == [3.0, 3.0]
    wide = median_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (wide.low, wide.estimate, wide.high) == (1.0, 3.0, 5.0)
