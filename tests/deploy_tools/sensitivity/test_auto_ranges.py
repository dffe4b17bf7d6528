"""Ranges chosen by the logits' error on held-out images, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from sensitivity_samples import Demo

from deploy_tools.errors import UserError
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.static import activation_tensors
from deploy_tools.sensitivity.auto_ranges import AutoRangesConfig, auto_ranges, split_held_out
from deploy_tools.sensitivity.figures import logit_noise
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
    candidates = {"huge": Scaled(table, 40.0), "good": table, "tiny": Scaled(table, 0.05)}
    chosen = auto_ranges(demo.model, candidates, demo.images(16), AutoRangesConfig(("u8",)))
    assert set(chosen) == set(activation_tensors(load_onnx(demo.model)))
    assert {grids["u8"] for grids in chosen.values()} == {"good"}
    tight = {"good": table, "half": Scaled(table, 0.5), "nine": Scaled(table, 0.9)}
    both = auto_ranges(demo.model, tight, demo.images(16))
    for kind in ("u8", "s8"):
        assert both[tensor][kind] == least(demo, tensor, tight, kind)


def least(demo: Demo, tensor: str, candidates: dict[str, object], kind: str) -> str:
    """By hand: the whole error of every candidate."""
    trials = {
        name: TensorTrial(name, tensor, grid_of(*ranges.range_of(tensor, kind), kind))
        for name, ranges in candidates.items()
    }
    every = [*trials.values(), WholeTrial("w")]
    runs = PartialRuns(prepared(load_onnx(demo.model)), every, 1)
    logits = runs.logits(demo.inputs[:16], every)
    return min(trials, key=lambda name: logit_noise(logits["w"], logits[name]))


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
