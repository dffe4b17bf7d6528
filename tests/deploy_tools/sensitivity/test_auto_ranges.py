"""Ranges chosen by the logits' error on held-out images, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from sensitivity_samples import Demo

from deploy_tools.errors import UserError
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.static import activation_tensors
from deploy_tools.sensitivity.auto_ranges import (
    AutoRangesConfig,
    _best,
    auto_ranges,
    split_held_out,
)
from deploy_tools.sensitivity.figures import clearly_more, logit_noise, noise_by_image
from deploy_tools.sensitivity.grids import grid_of
from deploy_tools.sensitivity.partial import PartialRuns, TensorTrial, WholeTrial


class Scaled:
    """Ranges of a table times a factor: a method that is known to be bad."""

    def __init__(self, table: object, factor: float, only: str = "") -> None:
        self._table, self._factor, self._only = table, factor, only

    def range_of(self, tensor: str, grid: str) -> tuple[float, float]:
        low, high = self._table.range_of(tensor, grid)
        factor = self._factor if self._only in ("", tensor) else 1.0
        return low * factor, high * factor


def test_the_candidate_with_the_least_error_is_chosen(demo: Demo) -> None:
    table = demo.table()
    tensor = "layer2.1.conv1/relu"
    candidates = {"huge": Scaled(table, 40.0), "good": table, "tiny": Scaled(table, 0.02)}
    chosen = auto_ranges(demo.model, candidates, demo.images(16), AutoRangesConfig(("u8",)))
    assert set(chosen) == set(activation_tensors(load_onnx(demo.model)))
    assert {grids["u8"] for grids in chosen.values()} == {"good"}
    tight = {"good": table, "half": Scaled(table, 0.5), "nine": Scaled(table, 0.9)}
    both = auto_ranges(demo.model, tight, demo.images(16))
    for kind in ("u8", "s8"):
        assert both[tensor][kind] == least(demo, tensor, tight, kind)


def least(demo: Demo, tensor: str, candidates: dict[str, object], kind: str) -> str:
    """By hand: the whole error of every candidate, the first where the least is not clear."""
    trials = {
        name: TensorTrial(name, tensor, grid_of(*ranges.range_of(tensor, kind), kind))
        for name, ranges in candidates.items()
    }
    every = [*trials.values(), WholeTrial("w")]
    runs = PartialRuns(prepared(load_onnx(demo.model)), every, 1)
    logits = runs.logits(demo.inputs[:16], every)
    best = min(trials, key=lambda name: logit_noise(logits["w"], logits[name]))
    first = next(iter(trials))
    errors = [noise_by_image(logits["w"], logits[name]) for name in (first, best)]
    gain = errors[0] - errors[1]
    return best if gain.mean() > gain.std(ddof=1) / 4 else first


def test_one_unusual_image_does_not_decide() -> None:
    random = np.random.default_rng(0)
    wanted = random.normal(0, 1, (40, 5)).astype(np.float32)
    noise = random.normal(0, 1, (40, 5)).astype(np.float32)
    near, far = (noise_by_image(wanted, wanted + factor * noise) for factor in (0.5, 1.0))
    assert far.sum() == pytest.approx(logit_noise(wanted, wanted + noise))
    assert clearly_more(far, near)
    assert not clearly_more(near, far)
    assert not clearly_more(far, far)
    worse = near.copy()
    worse[3] += 2500
    assert worse.mean() > 10 * near.mean()
    assert not clearly_more(worse, near)
    assert not clearly_more(far[:1], near[:1])


def test_a_clear_gain_is_not_passed_over_for_an_unclear_one() -> None:
    first = np.full(40, 10.0)
    clear = np.full(40, 9.0)
    unclear = np.concatenate([np.full(39, 10.2), [-70.0]])
    assert unclear.mean() < clear.mean()
    assert _best({"first": first, "unclear": unclear, "clear": clear}) == "clear"
    assert _best({"first": first, "unclear": unclear}) == "first"


def test_ties_go_to_the_first(demo: Demo) -> None:
    table = demo.table()
    candidates = {"one": table, "same": table}
    chosen = auto_ranges(demo.model, candidates, demo.images(8), AutoRangesConfig(("u8",)))
    assert {grids["u8"] for grids in chosen.values()} == {"one"}


def test_one_image_in_four_is_held_out() -> None:
    kept, held = split_held_out(range(100, 112))
    assert held == (103, 107, 111)
    assert sorted([*kept, *held]) == list(range(100, 112))
    with pytest.raises(UserError, match="cannot be split"):
        split_held_out(range(3))


def test_no_candidates_or_images_is_refused(demo: Demo) -> None:
    with pytest.raises(UserError, match="no ranges"):
        auto_ranges(demo.model, {}, demo.images(8))
    with pytest.raises(UserError, match="no images"):
        auto_ranges(demo.model, {"a": demo.table(), "b": demo.table("minmax")}, list)


def test_only_the_images_that_are_given_are_read(demo: Demo) -> None:
    read: list[int] = []

    def images() -> list[np.ndarray]:
        read.append(8)
        return [demo.inputs[:8]]

    candidates = {"a": demo.table(), "b": demo.table("minmax")}
    auto_ranges(demo.model, candidates, images, AutoRangesConfig(("u8",)))
    assert read == [8]
