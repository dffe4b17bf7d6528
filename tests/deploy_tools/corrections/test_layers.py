"""The layers that corrections may change, and their weights in one form."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from correction_samples import Graph, arrays, two_convs
from onnx import helper

from deploy_tools.corrections.layers import Parameters, attributes, layers_of


def every_form() -> onnx.ModelProto:
    """A Conv, a grouped one without a bias, a MatMul, a Gemm either way round."""
    graph = Graph(None, 3, 6, 6)
    first = graph.conv("plain", graph.input, 3, 8)
    second = graph.conv("grouped", first, 8, 4, kernel=1, group=2, bias=False, pads=[0] * 4)
    flat = graph.node("Flatten", "flat", graph.node("GlobalAveragePool", "pool", second))
    graph.const("mat.weight", np.arange(24).reshape(4, 6))
    last = graph.gemm("a", graph.node("MatMul", "mat", flat, "mat.weight"), 6, 7, trans=False)
    return graph.model(graph.gemm("b", last, 7, 5))


def test_every_layer_has_one_form() -> None:
    proto = every_form()
    found = {layer.name: layer for layer in layers_of(proto)}
    assert list(found) == ["plain", "grouped", "mat", "a", "b"]
    parameters = Parameters(proto)
    shapes = {name: parameters.weight(layer).shape for name, layer in found.items()}
    assert shapes == {
        "plain": (8, 3, 9), "grouped": (4, 4, 1), "mat": (6, 4, 1), "a": (7, 6, 1), "b": (5, 7, 1),
    }  # fmt: skip
    assert [layer.groups for layer in found.values()] == [1, 2, 1, 1, 1]
    assert [layer.transposed for layer in found.values()] == [False, False, True, True, False]
    assert parameters.bias(found["grouped"]) is None
    assert parameters.bias(found["mat"]) is None
    assert (found["a"].input, found["a"].output, found["a"].bias) == ("mat", "a", "a.bias")
    np.testing.assert_array_equal(
        parameters.weight(found["mat"])[:, :, 0], np.arange(24).reshape(4, 6).T
    )
    assert attributes(found["grouped"].node)["group"] == 2


def test_what_is_read_and_written_back_is_the_same_file() -> None:
    proto = every_form()
    before = proto.SerializeToString()
    parameters = Parameters(proto)
    for layer in layers_of(proto):
        parameters.set_weight(layer, parameters.weight(layer).astype(np.float64))
        bias = parameters.bias(layer)
        if bias is not None:
            parameters.set_bias(layer, bias)
    assert parameters.proto.SerializeToString() == before
    for layer in layers_of(proto):
        parameters.set_weight(layer, 2 * parameters.weight(layer))
    assert proto.SerializeToString() == before  # only the copy changes
    for name, values in arrays(parameters.proto).items():
        factor = 2 if name.endswith("weight") else 1
        np.testing.assert_array_equal(values, factor * arrays(proto)[name])


def shared_weights(graph: Graph) -> str:
    first = graph.conv("a", graph.input, 3, 3)
    return graph.node("Conv", "b", first, "a.weight", pads=[1] * 4)


def shared_bias(graph: Graph) -> str:
    first = graph.conv("a", graph.input, 3, 3)
    graph.const("b.weight", np.ones((3, 3, 1, 1)))
    return graph.node("Conv", "b", first, "b.weight", "a.bias")


def computed_weights(graph: Graph) -> str:
    graph.const("raw", np.ones((3, 3, 1, 1)))
    return graph.node("Conv", "a", graph.input, graph.node("Neg", "computed", "raw"))


def computed_bias(graph: Graph) -> str:
    graph.const("w", np.ones((3, 3, 1, 1)))
    graph.const("raw", np.ones(3))
    return graph.node("Conv", "a", graph.input, "w", graph.node("Neg", "computed", "raw"))


@pytest.mark.parametrize("build", [shared_weights, shared_bias, computed_weights, computed_bias])
def test_convolutions_that_are_left_out(build) -> None:  # type: ignore[no-untyped-def]
    graph = Graph(None, 3, 8, 8)
    output = build(graph)
    assert layers_of(graph.model(graph.head(output, 3)))[:-1] == ()


@pytest.mark.parametrize(
    ("changes", "bias"),
    [
        ({"alpha": 0.5}, (5,)),
        ({"beta": 2.0}, (5,)),
        ({}, (1,)),  # one value for all outputs
        ({}, ()),
        ({}, (5, 1)),  # one value a row
    ],
)
def test_gemms_that_are_left_out(changes: dict[str, float], bias: tuple[int, ...]) -> None:
    def gemm(bias: tuple[int, ...], **changes: float) -> onnx.ModelProto:
        # A batch of 5, so that a bias a row fits too.
        given = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [5, 4])
        made = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [5, 5])
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="y", transB=1, **changes)
        graph = Graph(None, 1, 1, 1)
        graph.const("w", np.ones((5, 4)))
        graph.const("b", np.ones(bias))
        return helper.make_model(helper.make_graph([node], "gemm", [given], [made], graph.tensors))

    assert [layer.name for layer in layers_of(gemm((5,)))] == ["y"]
    assert [layer.name for layer in layers_of(gemm((1, 5)))] == ["y"]
    assert layers_of(gemm(bias, **changes)) == ()


def test_a_transposed_input_and_a_weight_on_the_left_are_left_out() -> None:
    proto = two_convs()
    gemm = proto.graph.node[-1]
    gemm.attribute.add(name="transA", type=onnx.AttributeProto.INT, i=1)
    assert [layer.name for layer in layers_of(proto)] == ["a", "b"]
    graph = Graph(None, 2, 4, 4)
    graph.const("left", np.ones((4, 4)))
    graph.const("right", np.ones((4, 4)))
    graph.node("MatMul", "m", "left", "right")
    proto = graph.model(graph.node("MatMul", "y", graph.input, "m"), 2, 4, 4)
    assert layers_of(proto) == ()
