"""Work counted from graphs whose work is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.studies.multiply_adds import Work, work_of
from deploy_tools.errors import UserError


def model(nodes, weights, shape=("n", 4, 10, 10)) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros(dims, np.float32), name) for name, dims in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_convolutions_and_gemms_are_counted() -> None:
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "depthwise"], ["c"], group=6),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "g"], ["out"]),
    ]
    work = work_of(model(nodes, {"w": (6, 4, 3, 3), "depthwise": (6, 1, 3, 3), "g": (6, 7)}))
    first = 6 * 5 * 5 * 4 * 9  # 10 pixels a side at stride 2
    second = 6 * 3 * 3 * 9
    assert work == Work(first + second + 42, 6 * 4 * 9 + 6 * 9 + 42, 400)
    assert work.bytes_an_image(2) == (216 + 54 + 42) / 2 + 400


def test_the_public_network_has_its_published_work(demo_onnx: Path) -> None:
    """ResNet-20 of the CIFAR paper's size: 41 million multiply-adds at 32x32 with 3 channels."""
    work = work_of(onnx.load(str(demo_onnx)))
    image = onnx.load(str(demo_onnx)).graph.input[0].type.tensor_type.shape.dim
    channels, side = image[1].dim_value, image[2].dim_value
    first = side * side * 16 * channels * 9
    stage = [6 * 16 * 16 * 9 * side**2]
    for width, at in ((32, (side + 1) // 2), (64, (side + 3) // 4)):
        stage.append((width // 2 * width + 5 * width * width) * 9 * at**2)
    body = first + sum(stage) + 64 * 10
    # A projection on the shortcut, where the model has one, adds little.
    assert body <= work.multiply_adds < 1.05 * body
    assert 0.26e6 < work.weights < 0.29e6


def test_a_model_without_layers_says_so() -> None:
    with pytest.raises(UserError, match="no convolution"):
        work_of(model([helper.make_node("Relu", ["input"], ["out"])], {}))


def test_an_unknown_shape_says_so() -> None:
    nodes = [
        helper.make_node("Odd", ["input"], ["a"], domain="some"),
        helper.make_node("Conv", ["a", "w"], ["b"], name="conv"),
        helper.make_node("Relu", ["b"], ["out"]),
    ]
    odd = model(nodes, {"w": (6, 4, 3, 3)})
    odd.opset_import.append(helper.make_opsetid("some", 1))
    with pytest.raises(UserError, match="conv"):
        work_of(odd)
