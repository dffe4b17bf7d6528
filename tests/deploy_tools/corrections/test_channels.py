"""Channels may be scaled as long as the logits stay: for every operator, and never beyond."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from correction_samples import Graph, Images, arrays, logits, normal_images, resnet18, two_convs

from deploy_tools.corrections.channels import channels_of, scaled

SHAPE = (3, 8, 8)
Build = Callable[[Graph], tuple[str, int]]


def rescaled(proto: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Scale every channel that may be scaled by a factor of its own between 1/8 and 8."""
    channels = channels_of(proto)
    random = np.random.default_rng(seed).uniform(-1, 1, len(channels.free))
    return scaled(proto, channels, np.where(channels.free, 8.0**random, 1.0))


def assert_same_logits(proto: onnx.ModelProto, images: Images) -> onnx.ModelProto:
    other = rescaled(proto)
    wanted = logits(proto, images)
    np.testing.assert_allclose(logits(other, images), wanted, atol=3e-5 * np.abs(wanted).max())
    return other


def changed(before: onnx.ModelProto, after: onnx.ModelProto) -> set[str]:
    old = arrays(before)
    return {name for name, values in arrays(after).items() if not np.array_equal(values, old[name])}


def pool(kind: str) -> Build:
    def build(graph: Graph) -> tuple[str, int]:
        first = graph.conv("a", graph.input, 3, 4)
        return graph.node(kind, "p", first, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), 4

    return build


def unary(op: str) -> Build:
    return lambda graph: (graph.node(op, "u", graph.conv("a", graph.input, 3, 4)), 4)


def grouped(group: int, inner: int, out: int) -> Build:
    def build(graph: Graph) -> tuple[str, int]:
        first = graph.relu(graph.conv("a", graph.input, 3, inner))
        return graph.conv("b", first, inner, out, group=group), out

    return build


def residual(graph: Graph) -> tuple[str, int]:
    first = graph.relu(graph.conv("a", graph.input, 3, 4))
    main = graph.conv("c", graph.relu(graph.conv("b", first, 4, 6)), 6, 4)
    return graph.relu(graph.node("Add", "add", main, first)), 4


def slice_and_pad(graph: Graph) -> tuple[str, int]:
    """The parameter-free shortcut of the CIFAR ResNets: every second pixel, zero channels."""
    first = graph.relu(graph.conv("a", graph.input, 3, 4))
    main = graph.conv("b", first, 4, 8, strides=[2, 2])
    graph.const("starts", [0, 0], np.int64)
    graph.const("ends", [2**63 - 1] * 2, np.int64)
    graph.const("axes", [2, 3], np.int64)
    graph.const("steps", [2, 2], np.int64)
    small = graph.node("Slice", "small", first, "starts", "ends", "axes", "steps")
    graph.const("pads", [0, 2, 0, 0, 0, 2, 0, 0], np.int64)
    return graph.node("Add", "add", main, graph.node("Pad", "wide", small, "pads")), 8


def concat(graph: Graph) -> tuple[str, int]:
    first = graph.conv("a", graph.input, 3, 4)
    second = graph.conv("b", graph.input, 3, 2)
    return graph.node("Concat", "both", first, second, axis=1), 6


def split(graph: Graph) -> tuple[str, int]:
    first = graph.conv("a", graph.input, 3, 6)
    graph.const("sizes", [2, 4], np.int64)
    graph.node("Split", "parts", first, "sizes", outputs=2, axis=1)
    return graph.node("Add", "add", graph.conv("b", "parts", 2, 4), "parts.1"), 4


def channel_slice(graph: Graph) -> tuple[str, int]:
    first = graph.conv("a", graph.input, 3, 6)
    for name, value in (("starts", 1), ("ends", 6), ("axes", 1), ("steps", 2)):
        graph.const(name, [value], np.int64)
    return graph.node("Slice", "some", first, "starts", "ends", "axes", "steps"), 3


def gate(graph: Graph) -> tuple[str, int]:
    """Squeeze and excite."""
    first = graph.conv("a", graph.input, 3, 4)
    squeezed = graph.node("GlobalAveragePool", "squeeze", first)
    small = graph.relu(graph.conv("b", squeezed, 4, 2, kernel=1))
    factor = graph.node("Sigmoid", "gate", graph.conv("c", small, 2, 4, kernel=1))
    return graph.node("Mul", "gated", factor, first), 4


SCALED: dict[str, Build] = {
    "max pool": pool("MaxPool"),
    "average pool": pool("AveragePool"),
    "relu": unary("Relu"),
    "leaky relu": unary("LeakyRelu"),
    "identity": unary("Identity"),
    "grouped": grouped(2, 4, 6),
    "depthwise": grouped(4, 4, 4),
    "depth multiplier": grouped(4, 4, 8),
    "residual": residual,
    "slice and pad": slice_and_pad,
    "concat": concat,
    "split": split,
    "channel slice": channel_slice,
    "gate": gate,
}


@pytest.mark.parametrize("name", SCALED)
def test_known_operators_are_scaled_and_keep_the_logits(name: str) -> None:
    graph = Graph(None, *SHAPE)
    output, channels = SCALED[name](graph)
    proto = graph.model(graph.head(output, channels))
    after = assert_same_logits(proto, normal_images(4, *SHAPE))
    assert {"a.weight", "a.bias", "fc.weight"} <= changed(proto, after)


@pytest.mark.parametrize("trans", [True, False])
@pytest.mark.parametrize("flatten", ["Flatten", "Reshape", "Squeeze", "ReduceMean", "kept"])
def test_heads(trans: bool, flatten: str) -> None:
    graph = Graph(None, *SHAPE)
    tensor = graph.relu(graph.conv("a", graph.input, 3, 4))
    count = 4
    if flatten == "Flatten":  # (N, 4, 8, 8) -> (N, 256): 64 columns a channel
        tensor, count = graph.node("Flatten", "flat", tensor), 256
    elif flatten == "Reshape":
        graph.const("shape", [-1, 256], np.int64)
        tensor, count = graph.node("Reshape", "flat", tensor, "shape"), 256
    elif flatten == "Squeeze":
        graph.const("axes", [2, 3], np.int64)
        pooled = graph.node("GlobalAveragePool", "pool", tensor)
        tensor = graph.node("Squeeze", "flat", pooled, "axes")
    else:
        graph.const("axes", [2, -1], np.int64)
        tensor = graph.node(
            "ReduceMean", "mean", tensor, "axes", keepdims=int(flatten == "kept")
        )  # fmt: skip
        tensor = graph.node("Flatten", "flat", tensor) if flatten == "kept" else tensor
    tensor = graph.node("Relu", "hidden/relu", graph.gemm("hidden", tensor, count, 6, trans))
    graph.const("m.weight", np.random.default_rng(0).normal(size=(6, 7)))
    tensor = graph.node("MatMul", "m", tensor, "m.weight")
    proto = graph.model(graph.gemm("fc", tensor, 7, 5, trans))
    after = assert_same_logits(proto, normal_images(4, *SHAPE))
    assert {"a.weight", "hidden.weight", "m.weight", "fc.weight"} <= changed(proto, after)


def reshaped_and_back(graph: Graph) -> tuple[str, int]:
    """A channel shuffle: the channels after it are in another order."""
    first = graph.conv("a", graph.input, 3, 4)
    graph.const("wide", [-1, 2, 2, 8, 8], np.int64)
    graph.const("back", [-1, 4, 8, 8], np.int64)
    wide = graph.node("Reshape", "r1", first, "wide")
    turned = graph.node("Transpose", "t", wide, perm=[0, 2, 1, 3, 4])
    return graph.node("Reshape", "r2", turned, "back"), 4


def by_constant(op: str) -> Build:
    def build(graph: Graph) -> tuple[str, int]:
        graph.const("c", np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1))
        return graph.node(op, "y", graph.conv("a", graph.input, 3, 4), "c"), 4

    return build


def padded_with_ones(graph: Graph) -> tuple[str, int]:
    first = graph.conv("a", graph.input, 3, 4)
    graph.const("pads", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    graph.const("one", 1.0)
    return graph.node("Pad", "p", first, "pads", "one"), 4


def concat_of_rows(graph: Graph) -> tuple[str, int]:
    first = graph.conv("a", graph.input, 3, 4)
    return graph.node("Concat", "c", first, graph.conv("b", graph.input, 3, 4), axis=2), 4


def slice_from_behind(graph: Graph) -> tuple[str, int]:
    first = graph.conv("a", graph.input, 3, 6)
    for name, value in (("starts", 0), ("ends", 4), ("axes", -3)):
        graph.const(name, [value], np.int64)
    return graph.node("Slice", "s", first, "starts", "ends", "axes"), 4


def shared(graph: Graph) -> tuple[str, int]:
    first = graph.conv("a", graph.input, 3, 3)
    return graph.node("Conv", "b", first, "a.weight", pads=[1] * 4), 3


def clipped(graph: Graph) -> tuple[str, int]:
    graph.const("low", 0.0)
    graph.const("high", 0.5)
    return graph.node("Clip", "y", graph.conv("a", graph.input, 3, 4), "low", "high"), 4


def tokens(graph: Graph) -> tuple[str, int]:
    """A MatMul along the last axis: 4 channels of 16 positions are 4 tokens of 16 features."""
    first = graph.conv("a", graph.input, 3, 4, strides=[2, 2])
    graph.const("shape", [-1, 4, 16], np.int64)
    graph.const("m.weight", np.random.default_rng(0).normal(size=(16, 9)))
    graph.const("back", [-1, 4, 3, 3], np.int64)
    mixed = graph.node("MatMul", "m", graph.node("Reshape", "r", first, "shape"), "m.weight")
    return graph.node("Reshape", "b", mixed, "back"), 4


def added_to_a_row(graph: Graph) -> tuple[str, int]:
    """(N, 8, 8, 8) + (1, 8) from the images: the second one's axis 1 are the columns."""
    first = graph.conv("a", graph.input, 3, 8)
    pooled = graph.node("GlobalMaxPool", "g", graph.conv("b", graph.input, 3, 8))
    row = graph.node("Flatten", "row", pooled)
    graph.const("zero", [0], np.int64)
    graph.const("one", [1], np.int64)
    row = graph.node("Slice", "first", row, "zero", "one", "zero")
    return graph.node("Add", "add", first, row), 8


PINNED: dict[str, tuple[Build, set[str]]] = {
    "sigmoid": (unary("Sigmoid"), {"a"}),
    "hard swish": (unary("HardSwish"), {"a"}),
    "clip": (clipped, {"a"}),
    "times a constant": (by_constant("Mul"), {"a"}),
    "plus a constant": (by_constant("Add"), {"a"}),
    "channel shuffle": (reshaped_and_back, {"a"}),
    "pad with ones": (padded_with_ones, {"a"}),
    "concat of rows": (concat_of_rows, {"a", "b"}),
    "slice from behind": (slice_from_behind, {"a"}),
    "shared weights": (shared, {"a"}),
    "tokens": (tokens, {"a"}),
    "added to a row": (added_to_a_row, {"a", "b"}),
}


@pytest.mark.parametrize("name", PINNED)
def test_what_is_not_understood_keeps_its_channels(name: str) -> None:
    build, pinned = PINNED[name]
    graph = Graph(None, *SHAPE)
    output, count = build(graph)
    # Behind it a layer that may be scaled, so that the factors are not all 1.
    proto = graph.model(graph.head(graph.relu(graph.conv("z", output, count, 6)), 6))
    after = assert_same_logits(proto, normal_images(4, *SHAPE))
    assert {"z.weight", "fc.weight"} <= changed(proto, after)
    channels = channels_of(proto)
    for tensor in pinned:
        assert len(channels.ids[tensor]) > 0
        assert not channels.free[channels.ids[tensor]].any(), tensor
    assert not changed(proto, after) & {f"{tensor}.weight" for tensor in pinned}


def test_the_input_and_the_logits_keep_their_channels() -> None:
    channels = channels_of(two_convs())
    assert not channels.free[channels.ids["input"]].any()
    assert not channels.free[channels.ids["fc"]].any()
    assert channels.free[channels.ids["a"]].all()
    # An output in the middle of the graph is one too.
    proto = two_convs()
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info("a/relu", onnx.TensorProto.FLOAT, ["N", 8, 8, 8])
    )
    channels = channels_of(proto)
    assert not channels.free[channels.ids["a"]].any()
    assert channels.free[channels.ids["b"]].all()


def test_channels_that_an_add_joins_have_one_factor() -> None:
    graph = Graph(None, *SHAPE)
    output, channels = slice_and_pad(graph)
    found = channels_of(graph.model(graph.head(output, channels)))
    ids = found.ids
    np.testing.assert_array_equal(ids["b"][2:6], ids["a"])
    np.testing.assert_array_equal(ids["add"], ids["b"])
    np.testing.assert_array_equal(ids["wide"], ids["b"])
    assert len(set(ids["b"].tolist())) == 8
    assert found.free[ids["b"]].all()


def test_unknown_channel_counts_pin() -> None:
    proto = two_convs()
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "C"
    after = assert_same_logits(proto, normal_images(2, *SHAPE))
    assert "a.weight" not in changed(proto, after)


def test_a_torchvision_resnet_keeps_its_logits() -> None:
    proto = resnet18()
    after = assert_same_logits(proto, normal_images(4, 3, 32, 32))
    assert {name for name in arrays(proto) if name.endswith("weight")} <= changed(proto, after)


def test_the_public_resnet_keeps_its_logits(public_onnx: Path, public_images: Images) -> None:
    proto = onnx.load(str(public_onnx))
    assert {"Slice", "Pad"} <= {node.op_type for node in proto.graph.node}
    after = assert_same_logits(proto, public_images[:16])
    weights = {n.input[1] for n in proto.graph.node if n.op_type in ("Conv", "Gemm")}
    assert weights <= changed(proto, after)
