"""The noise model against real rounding, and the factors that it leads to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from deploy_tools.corrections import scales
from deploy_tools.corrections.scales import (
    ActivationNoise,
    Noise,
    WeightNoise,
    decibels_less,
    least_noise_factors,
)

RANDOM = np.random.default_rng(0)


def activation(peak: list[float], importance: list[float] | None = None, first: int = 0):  # type: ignore[no-untyped-def]
    ids = np.arange(first, first + len(peak))
    weights = np.ones(len(peak)) if importance is None else np.array(importance)
    return ActivationNoise(ids, np.array(peak, float), weights)


def layer(peaks, ids_in, ids_out, groups: int = 1, mean_square=None) -> WeightNoise:  # type: ignore[no-untyped-def]
    peaks = np.array(peaks, float)
    inner = len(ids_in)
    square = np.ones(inner) if mean_square is None else np.array(mean_square, float)
    return WeightNoise(
        peaks, np.array(ids_in), np.array(ids_out), np.ones(len(peaks)), square, groups, 1
    )


def noise_of(activations, weights, count: int, per_channel: bool = True) -> Noise:  # type: ignore[no-untyped-def]
    """The noise with all factors 1."""
    return least_noise_factors(activations, weights, np.zeros(count, bool), per_channel)[1]


def test_the_noise_of_an_activation_is_that_of_its_rounding() -> None:
    peak, importance = np.array([1.0, 7.0, 3.0]), np.array([4.0, 0.5, 2.0])
    values = RANDOM.uniform(0, 1, (3, 40000)) * peak[:, None]
    step = peak.max() / 255
    error = np.square(np.rint(values / step) * step - values).mean(1)
    predicted = noise_of([ActivationNoise(np.arange(3), peak, importance)], [], 3)
    assert predicted.weights == 0
    assert predicted.activations == pytest.approx((error * importance).sum(), rel=0.02)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_noise_of_weights_is_that_of_their_rounding(per_channel: bool, groups: int) -> None:
    out, inner, positions = 64, 48, 9
    weight = RANDOM.normal(size=(out, inner // groups, positions))
    weight *= RANDOM.uniform(0.3, 3, (out, 1, 1))
    inputs = RANDOM.normal(size=(groups, inner // groups, positions, 500))
    inputs *= np.linspace(0.1, 2, inner).reshape(groups, -1, 1, 1)
    peak = np.abs(weight).max((1, 2), keepdims=True)
    step = (peak if per_channel else peak.max()) / 127
    error = np.rint(weight / step) * step - weight
    importance = RANDOM.uniform(0, 2, out)
    split = error.reshape(groups, out // groups, -1)
    made = np.einsum("gok,gkn->gon", split, inputs.reshape(groups, -1, 500))
    happened = (np.square(made).mean(2).reshape(out) * importance).sum()
    one = WeightNoise(
        np.abs(weight).max(2), np.arange(inner), np.arange(inner, inner + out), importance,
        np.square(inputs).mean((2, 3)).reshape(inner), groups, positions,
    )  # fmt: skip
    predicted = noise_of([], [one], inner + out, per_channel)
    assert predicted.activations == 0
    assert predicted.weights == pytest.approx(happened, rel=0.1)


def test_channels_of_unequal_size_are_made_equal() -> None:
    peak = [100.0, 1.0, 10.0]
    factors, before, after = least_noise_factors([activation(peak)], [], np.ones(3, bool))
    assert factors[1] > 5 * factors[0]
    assert factors[2] > 5 * factors[0]
    # 3 x 100^2 shares of noise before, 100^2 + 1 + 10^2 at best.
    assert before.activations / after.activations > 0.97 * 3 * 100**2 / 10101


def test_a_channel_that_matters_more_gets_more_of_the_grid() -> None:
    factors, _, _ = least_noise_factors(
        [activation([1.0, 1.0], [100.0, 1.0]), activation([1.0, 1.0], [1.0, 100.0], 2)],
        [layer([[1.0, 1.0], [1.0, 1.0]], [0, 1], [2, 3])],
        np.ones(4, bool),
    )
    assert factors[0] >= factors[1] * 0.99
    assert factors[3] >= factors[2] * 0.99


def test_pinned_and_dead_channels_keep_one() -> None:
    free = np.array([True, False, True, True])
    factors, before, after = least_noise_factors(
        [activation([100.0, 1.0, 1.0, 0.0])], [], free
    )  # fmt: skip
    assert factors[1] == 1
    assert factors[3] == 1  # never seen: it might be of any size
    assert factors[2] > 2 * factors[0]
    assert after.activations < before.activations


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_hold_the_factors_back(per_channel: bool) -> None:
    """Without weights the small channel would grow a hundredfold; they would pay for it."""
    act = [activation([100.0, 1.0, 50.0, 50.0])]
    peaks = [[1.0, 1.0], [1.0, 1.0]]
    ratios, sums = [], []
    for share in (0.0, 0.25, 1.0, 100.0):
        weights = [layer(peaks, [0, 1], [2, 3], mean_square=[2000.0, 0.2])]
        factors, before, after = least_noise_factors(
            act, weights, np.array([True, True, False, False]), per_channel, share
        )  # fmt: skip
        ratios.append(factors[1] / factors[0])
        sums.append(
            (before.activations + share * before.weights)
            - (after.activations + share * after.weights)
        )
    assert ratios[0] > ratios[1] > ratios[3]
    assert ratios[0] > 10
    assert ratios[3] < 4
    assert min(sums) >= 0


def test_balanced_channels_are_left_alone() -> None:
    factors, before, after = least_noise_factors([activation([3.0, 3.0])], [], np.ones(2, bool))
    np.testing.assert_allclose(factors, [1, 1], rtol=1e-4)
    assert after.activations == pytest.approx(before.activations)


@pytest.mark.parametrize(
    ("activations", "weights"),
    [
        ([], []),
        ([activation([0.0, 0.0])], []),
        ([activation([0.0, 0.0])], [layer([[0.0, 0.0]], [0, 1], [2])]),
        ([activation([1.0, 0.0])], [layer([[0.0, 0.0]], [0, 1], [2])]),
        ([activation([1.0, 1e-30])], [layer([[1e-30, 1.0]], [0, 1], [2])]),
        ([activation([1.0, 2.0], [0.0, 0.0])], [layer([[1.0, 0.0]], [0, 1], [2])]),
        ([activation([5.0])], [layer([[1.0]], [0], [1])]),
    ],
)  # fmt: skip
def test_zeros_break_nothing(activations, weights) -> None:  # type: ignore[no-untyped-def]
    for per_channel in (True, False):
        factors, before, after = least_noise_factors(
            activations, weights, np.ones(3, bool), per_channel
        )
        assert np.isfinite(factors).all()
        assert (factors > 0).all()
        total = before.activations + before.weights
        assert 0 <= after.activations + after.weights <= total
        assert np.isfinite(total)


def test_no_factor_leaves_float32_far_behind() -> None:
    factors, _, _ = least_noise_factors([activation([1.0, 1e-7])], [], np.ones(2, bool))
    assert factors.max() <= 256.01
    assert factors.min() >= 1 / 256.01


def test_decibels() -> None:
    assert decibels_less(Noise(9.0, 1.0), Noise(0.5, 0.5)) == pytest.approx(10)
    assert decibels_less(Noise(9.0, 4.0), Noise(0.5, 2.0), 0.25) == pytest.approx(10)
    assert decibels_less(Noise(0.0, 0.0), Noise(0.0, 0.0)) == 0


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("norm", [12.0, 48.0, np.inf])
def test_the_largest_scaled_weight_is_that_of_the_p_norm(groups: int, norm: float) -> None:
    random = np.random.default_rng(4)
    peaks = np.exp(random.normal(scale=3, size=(6, 5)))
    peaks[0, 1:] = 0  # all but one
    peaks[4] = 0
    one = scales._Layer(layer(peaks, np.arange(5 * groups), np.arange(6), groups), per_channel=True)
    limit = scales._LIMIT
    into = torch.from_numpy(random.uniform(-limit, limit, size=(groups, 5)))
    into[0, 0] = limit  # the only weight that is there, made as small as it can be
    given = np.log(np.maximum(peaks, 1e-30)) - np.repeat(into.numpy(), 6 // groups, axis=0)
    whole = np.logaddexp.reduce(norm * given, axis=1) / norm if norm < np.inf else given.max(1)
    np.testing.assert_allclose(one._tops(into, norm).numpy(), whole, rtol=1e-12, atol=1e-12)


def test_all_factors_are_gathered_at_once() -> None:
    """The gradient of a gather is as long as all factors: one a tensor would be quadratic."""
    count = 40
    model = scales._Model(
        [scales._Activation(activation([1.0, 2.0], first=2 * i), 1e-3) for i in range(count)],
        [scales._Layer(layer([[1.0, 2.0]] * 2, [2 * i, 2 * i + 1], [0, 1]), False)
         for i in range(count)],
    )  # fmt: skip
    logs = torch.zeros(2 * count, dtype=torch.float64, requires_grad=True)
    waiting: list[Any] = [sum(model.sums(logs, 12.0)).grad_fn]  # type: ignore[union-attr]
    seen: dict[int, Any] = {}
    while waiting:
        node = waiting.pop()
        if node is not None and id(node) not in seen:
            seen[id(node)] = node
            waiting += [parent for parent, _ in node.next_functions]
    kinds = [type(node).__name__ for node in seen.values()]
    assert sum("Index" in kind for kind in kinds) == 1
    assert len(kinds) > count
