"""A grid is the writer's, and putting values on it is what QuantizeLinear does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization.quant_utils import compute_scale_zp

from deploy_tools.runtimes import open_session
from deploy_tools.sensitivity.grids import Grid, grid_of

RANGES = [(-1.3, 2.7), (0.0, 6.1), (-3.0, 0.0), (-0.001, 900.0), (0.0, 0.0), (-2.5, 2.5)]


@pytest.mark.parametrize("bounds", RANGES)
@pytest.mark.parametrize("kind", ["u8", "s8"])
def test_a_range_gives_the_scale_and_zero_point_of_the_writer(
    bounds: tuple[float, float], kind: str
) -> None:
    low, high = (np.array(end, np.float32) for end in bounds)
    first, last = (0, 255) if kind == "u8" else (-127, 127)
    signed = np.int8 if kind == "s8" else np.uint8
    zero, scale = compute_scale_zp(
        low, high, np.array(first, signed), np.array(last, signed), symmetric=kind == "s8"
    )
    grid = grid_of(float(low), float(high), kind)
    assert (grid.scale, grid.zero_point) == (float(scale), int(zero))


@pytest.mark.parametrize("kind", ["u8", "s8"])
def test_nearest_is_a_quantize_and_dequantize_pair(kind: str) -> None:
    values = np.random.default_rng(0).normal(0, 2, (2, 3, 8, 8)).astype(np.float32)
    values[0, 0, 0] = np.linspace(-100, 100, 8)  # beyond both ends
    grid = grid_of(-1.7, 2.9, kind)
    found = grid.nearest(values)
    assert np.array_equal(found, through_onnxruntime(values, grid))
    assert np.abs(found).max() < 5.0
    assert 0 < np.abs(found - values)[np.abs(values) < 1].max() <= grid.scale / 2 * 1.0001


def test_halves_go_to_the_even_level() -> None:
    grid = Grid(1.0, 0, 0, 255)
    found = grid.nearest(np.array([0.5, 1.5, 2.5, -3.0, 300.0], np.float32))
    assert found.tolist() == [0.0, 2.0, 2.0, 0.0, 255.0]


def through_onnxruntime(values: np.ndarray, grid: Grid) -> np.ndarray:
    make = onnx.helper.make_node
    dtype = np.int8 if grid.lowest < 0 else np.uint8
    stored = [
        numpy_helper.from_array(np.array(grid.scale, np.float32), "s"),
        numpy_helper.from_array(np.array(grid.zero_point, dtype), "z"),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [make("QuantizeLinear", ["x", "s", "z"], ["q"]), make("DequantizeLinear", ["q", "s", "z"], ["y"])],
        "pair",
        [onnx.helper.make_tensor_value_info("x", kind, values.shape)],
        [onnx.helper.make_tensor_value_info("y", kind, values.shape)],
        stored,
    )  # fmt: skip
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )
    return open_session(model.SerializeToString()).run(values)[0]
