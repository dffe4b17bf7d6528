"""Forms of the head, repeated pairs: the same logits, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from correction_samples import Graph, Images, logits, normal_images, resnet18
from correction_samples import quantized as quantize
from onnx import helper
from onnx_samples import saved

from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.static import StaticConfig
from deploy_tools.quantization.targets import TARGETS
from deploy_tools.rewrite.head import (
    with_flatten,
    with_global_average_pool,
    with_reduce_mean,
    with_reshape,
)
from deploy_tools.rewrite.pairs import without_repeated_pairs
from deploy_tools.runtimes import RuntimeConfig, open_session

IMAGES = normal_images(6, 3, 8, 8)


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def simulated(proto: onnx.ModelProto, images: Images) -> Images:
    """The logits by the file's own arithmetic."""
    return open_session(proto.SerializeToString(), RuntimeConfig(fusions=False)).run(images)[0]


def headed(*head: Any) -> onnx.ModelProto:
    """Conv, Relu and then: (kind, constant or None, attributes), each with one output."""
    graph = Graph(None, 3, 8, 8)
    tensor = graph.relu(graph.conv("a", graph.input, 3, 6))
    for place, (kind, constant, attributes) in enumerate(head):
        inputs = [tensor]
        if constant is not None:
            inputs.append(graph.const(f"c{place}", constant, np.int64))
        tensor = graph.node(kind, f"n{place}", *inputs, **attributes)
    return graph.model(graph.gemm("fc", tensor, 6, 5))


MEAN: Any = ("ReduceMean", [-1, -2], {"keepdims": 1})
POOL: Any = ("GlobalAveragePool", None, {})
RESHAPE: Any = ("Reshape", [0, -1], {})
FLATTEN: Any = ("Flatten", None, {"axis": 1})

FORMS = [
    (with_global_average_pool, (MEAN, RESHAPE), "GlobalAveragePool", "ReduceMean"),
    (with_global_average_pool, (("ReduceMean", [2, 3], {}), FLATTEN), "GlobalAveragePool", "Reduc"),
    (with_reduce_mean, (POOL, FLATTEN), "ReduceMean", "GlobalAveragePool"),
    (with_flatten, (POOL, RESHAPE), "Flatten", "Reshape"),
    (with_flatten, (POOL, ("Reshape", [-1, 6], {})), "Flatten", "Reshape"),
    (with_flatten, (POOL, ("Reshape", [0, 6], {})), "Flatten", "Reshape"),
    (with_reshape, (POOL, FLATTEN), "Reshape", "Flatten"),
]


@pytest.mark.parametrize(("rewrite", "head", "wanted", "gone"), FORMS)
def test_another_form_of_the_head_gives_the_same_logits(
    rewrite: Any, head: Any, wanted: str, gone: str
) -> None:
    proto = headed(*head)
    changed = rewrite(proto)
    onnx.checker.check_model(changed, full_check=True)
    assert wanted in kinds(changed)
    assert gone not in kinds(changed)
    assert len(kinds(changed)) == len(kinds(proto))
    assert logits(changed, IMAGES) == pytest.approx(logits(proto, IMAGES), abs=1e-5)
    assert [n.name for n in changed.graph.node] == [n.name for n in proto.graph.node]
    read = {tensor for node in changed.graph.node for tensor in node.input}
    assert {tensor.name for tensor in changed.graph.initializer} <= read
    assert proto == headed(*head)  # the given one is not changed


@pytest.mark.parametrize(
    ("rewrite", "head"),
    [
        (with_global_average_pool, (("ReduceMean", [1], {}), ("Flatten", None, {}))),
        (with_global_average_pool, (("ReduceMean", [2, 3], {"keepdims": 0}),)),
        (with_global_average_pool, (("ReduceMean", [1, 2], {}), ("Flatten", None, {}))),
        (with_flatten, (POOL, ("Reshape", [6, -1], {}), ("Transpose", None, {"perm": [1, 0]}))),
        (with_flatten, (POOL, ("Reshape", [-1, 3], {}))),
        (with_reshape, (POOL, ("Flatten", None, {"axis": 2}))),
    ],
)
def test_what_means_something_else_stays(rewrite: Any, head: Any) -> None:
    graph = Graph(None, 3, 8, 8)
    tensor = graph.relu(graph.conv("a", graph.input, 3, 6))
    for place, (kind, constant, attributes) in enumerate(head):
        more = [] if constant is None else [graph.const(f"c{place}", constant, np.int64)]
        tensor = graph.node(kind, f"n{place}", tensor, *more, **attributes)
    made = helper.make_graph(
        graph.nodes, "g",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None)],
        graph.tensors,
    )  # fmt: skip
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert rewrite(proto) == proto


def paired(second: tuple[float, int], between: str = "Flatten", channels: int = 6) -> Any:
    """Conv, pool, a pair of scale 0.05 and zero-point 10, `between`, a second pair, Gemm."""
    graph = Graph(None, 3, 8, 8)
    tensor = graph.node("GlobalAveragePool", "pool", graph.conv("a", graph.input, 3, channels))
    for name, (scale, zero) in (("one", (0.05, 10)), ("two", second)):
        graph.const(f"{name}.s", scale)
        graph.const(f"{name}.z", zero, np.uint8)
        given = [f"{name}.s", f"{name}.z"]
        ints = graph.node("QuantizeLinear", f"{name}/q", tensor, *given)
        tensor = graph.node("DequantizeLinear", f"{name}/dq", ints, *given)
        if name == "one":
            tensor = graph.node(between, "between", tensor)
    flat = tensor if between == "Flatten" else graph.node("Flatten", "flat", tensor)
    return graph.model(graph.gemm("fc", flat, channels, 5))


@pytest.mark.parametrize("between", ["Flatten", "Identity"])
def test_a_pair_on_the_grid_of_the_one_before_it_goes(between: str) -> None:
    proto = paired((0.05, 10), between)
    changed = without_repeated_pairs(proto)
    onnx.checker.check_model(changed, full_check=True)
    assert kinds(changed).count("QuantizeLinear") == kinds(changed).count("DequantizeLinear") == 1
    np.testing.assert_array_equal(simulated(changed, IMAGES), simulated(proto, IMAGES))
    assert {t.name for t in changed.graph.initializer} == {
        t.name for t in proto.graph.initializer
    } - {"two.s", "two.z"}


@pytest.mark.parametrize(
    ("second", "between"), [((0.06, 10), "Flatten"), ((0.05, 11), "Flatten"), ((0.05, 10), "Relu")]
)
def test_another_grid_or_arithmetic_between_keeps_the_pair(
    second: tuple[float, int], between: str
) -> None:
    proto = paired(second, between)
    assert without_repeated_pairs(proto) == proto


@pytest.mark.parametrize("target", TARGETS)
def test_a_written_file_stays_the_same_function(target: str, tmp_path: Path) -> None:
    model, images = saved(resnet18(), tmp_path / "m.onnx"), normal_images(4, 3, 32, 32)
    written = load_onnx(quantize(model, tmp_path / "q.onnx", images, StaticConfig(target)))
    wanted = simulated(written, images)
    for rewrite in (without_repeated_pairs, with_reshape, with_flatten):
        changed = rewrite(written)
        onnx.checker.check_model(changed, full_check=True)
        np.testing.assert_array_equal(simulated(changed, images), wanted)
