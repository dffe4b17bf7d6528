"""Ranges from few images are widened, never beyond what a value can be."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calibration.collect import CalibrateConfig, ranges_from_statistics
from calibration.identity import StatisticsIdentity
from calibration.margin import ENOUGH, GROWTH, margin_of, with_margin
from calibration.observers import TensorObserver
from calibration.statistics import Statistics
from calibration.table import RangeTable


def statistics(images: int) -> Statistics:
    random = np.random.default_rng(0)
    seen = {}
    for name, values in {
        "input": random.uniform(-2, 3, 5000),
        "relu": np.maximum(random.normal(0, 1, 5000), 0),
        "add": random.normal(0, 1, 5000),
        "dead": np.zeros(100),
    }.items():
        observer = TensorObserver(name)
        observer.observe(values.astype(np.float32))
        seen[name] = observer.statistics
    return Statistics(StatisticsIdentity("m", "d", "p", tuple(sorted(seen))), images, "{}", seen)


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_few_images_widen_and_keep_the_sides(method: str) -> None:
    found = statistics(32)
    table = ranges_from_statistics(found, CalibrateConfig(method))
    wide = with_margin(table, found, {"input": (-2.5, 3.0)})
    factor = 1 + GROWTH * math.log(ENOUGH / 32)
    assert 1.1 < factor < 1.12
    for name in ("relu", "add"):
        for grid in ("u8", "s8"):
            low, high = table.range_of(name, grid)
            assert wide.range_of(name, grid) == pytest.approx((low * factor, high * factor))
    assert wide.range_of("relu", "u8")[0] == 0.0
    assert wide.range_of("dead", "u8") == table.range_of("dead", "u8") == (0.0, 0.0)
    # Pixels end where they end.
    low, _ = table.range_of("input", "u8")
    assert wide.range_of("input", "u8") == pytest.approx((max(low * factor, -2.5), 3.0))
    assert wide.range_of("input", "s8")[1] == 3.0
    assert wide.settings["margin"] == factor
    assert wide.key() != table.key()
    if method == "mse":
        assert wide.tensors["add"].clipped["u8"] < table.tensors["add"].clipped["u8"]


def test_enough_images_change_nothing() -> None:
    found = statistics(ENOUGH)
    table = ranges_from_statistics(found, CalibrateConfig("minmax"))
    assert with_margin(table, found, {}) is table
    assert margin_of(10 * ENOUGH) == margin_of(ENOUGH) == 1.0
    assert margin_of(32) > margin_of(256) > 1.0
    assert margin_of(0) < 1.3


def test_a_bound_never_narrows() -> None:
    found = statistics(32)
    table = ranges_from_statistics(found, CalibrateConfig("minmax"))
    wide = with_margin(table, found, {"add": (-0.1, 0.1)})
    assert wide.range_of("add", "u8") == table.range_of("add", "u8")
    assert wide.range_of("add", "s8") == table.range_of("add", "s8")


def test_a_widened_table_survives_its_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = statistics(32)
    table = with_margin(ranges_from_statistics(found, CalibrateConfig("minmax")), found, {})
    table.save(tmp_path / "t.json")
    assert RangeTable.load(tmp_path / "t.json").to_dict() == table.to_dict()
