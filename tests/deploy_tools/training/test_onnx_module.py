"""The ONNX graph in torch computes what onnxruntime computes, and its weights can be trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_samples import two_gemms, weight
from torch import Tensor

from deploy_tools.errors import UserError
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx
from deploy_tools.runtimes import RuntimeConfig, open_session
from deploy_tools.training.onnx_module import OnnxModule, logits_of, with_weights

SIMULATED = RuntimeConfig(fusions=False, threads=1)


def graph(nodes: list[onnx.NodeProto], opset: int = 20, **constants: Any) -> onnx.ModelProto:
    """A graph (N, 4, 7, 7) -> "y"; constants are initializers by name."""
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 7, 7])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.array(v), k) for k, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )


def one(op: str, *others: str, opset: int = 20, **rest: Any) -> onnx.ModelProto:
    """A graph of one node that reads x and constants; `rest`: constants (arrays), attributes."""
    arrays = {k: v for k, v in rest.items() if isinstance(v, np.ndarray)}
    attributes = {k: v for k, v in rest.items() if k not in arrays}
    node = helper.make_node(op, ["x", *others], ["y"], name="n", **attributes)
    return graph([node], opset, **arrays)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


SMALL = np.array(0.25, np.float32)
CASES = {
    "conv": one("Conv", "w", "b", w=floats(6, 4, 3, 3), b=floats(6), pads=[1, 1, 1, 1]),
    "conv, strides": one("Conv", "w", w=floats(6, 4, 3, 3), strides=[2, 3]),
    "conv, groups": one("Conv", "w", w=floats(6, 2, 3, 3), group=2),
    "conv, dilations": one("Conv", "w", w=floats(6, 4, 3, 3), dilations=[2, 1]),
    "conv, uneven pads": one("Conv", "w", w=floats(6, 4, 3, 3), pads=[0, 1, 2, 0]),
    "clip": one("Clip", "a", "b", a=np.array(-0.5, np.float32), b=np.array(0.7, np.float32)),
    "clip, one end": one("Clip", "", "b", b=np.array(0.7, np.float32)),
    "clip, attributes": one("Clip", opset=6, min=-0.2, max=0.3),
    "relu": one("Relu"),
    "sigmoid": one("Sigmoid"),
    "add": one("Add", "a", a=floats(4, 1, 1)),
    "mul": one("Mul", "a", a=floats(1, 4, 7, 7)),
    "max pool": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "max pool, ceil": one("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "max pool, uneven pads": one("MaxPool", kernel_shape=[3, 3], pads=[0, 1, 2, 0]),
    "max pool, dilations": one("MaxPool", kernel_shape=[2, 2], dilations=[2, 3]),
    "average pool": one("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "average pool, pads counted": one(
        "AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "average pool, ceil": one("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "global average pool": one("GlobalAveragePool"),
    "mean": one("ReduceMean", "a", a=ints(-1, -2), keepdims=0),
    "mean, kept": one("ReduceMean", "a", a=ints(2, 3)),
    "mean, attribute": one("ReduceMean", opset=13, axes=[2, 3], keepdims=0),
    "mean of all": one("ReduceMean"),
    "mean of nothing": one("ReduceMean", noop_with_empty_axes=1),
    "reshape": one("Reshape", "a", a=ints(0, 2, -1)),
    "flatten": one("Flatten"),
    "flatten at 0": one("Flatten", axis=0),
    "flatten from behind": one("Flatten", axis=-1),
    "slice": one("Slice", "s", "e", "a", "p", s=ints(0, 1), e=ints(7, 2**40), a=ints(2, 3), p=ints(2, 3)),
    "slice, from behind": one("Slice", "s", "e", s=ints(0, -3), e=ints(9, -1)),
    "pad": one("Pad", "p", p=ints(0, 1, 0, 2, 0, 3, 1, 0)),
    "pad, value": one("Pad", "p", "v", p=ints(0, 0, 1, 0, 0, 0, 0, 1), v=SMALL),
    "concat": graph([helper.make_node("Concat", ["x", "x"], ["y"], axis=1)]),
    "identity": one("Identity"),
    "dropout": one("Dropout"),
    "leaky relu": one("LeakyRelu", alpha=0.2),
    "leaky relu, default": one("LeakyRelu"),
    "global max pool": one("GlobalMaxPool"),
    "max": one("ReduceMax", "a", a=ints(2, 3)),
    "max of all": one("ReduceMax", keepdims=0),
    "squeeze": graph([
        helper.make_node("GlobalAveragePool", ["x"], ["g"]),
        helper.make_node("Squeeze", ["g", "a"], ["y"]),
    ], a=ints(2, 3)),
    "cast": graph([
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]),
    "constant": graph([
        helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]),
    "gemm": graph([
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], transB=1),
    ], w=floats(5, 196), b=floats(5)),
    "gemm, all attributes": graph([
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], transA=1, alpha=0.5, beta=2.0),
    ], w=floats(3, 5), b=floats(5)),
    "gemm, bias of two dimensions": graph([
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"]),
    ], w=floats(196, 5), b=floats(3, 5)),
    "matmul": graph([
        helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"]),
    ], w=floats(196, 5)),
    "u8 pair": graph([
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ], s=SMALL / 7, z=np.array(77, np.uint8)),
    "s8 pair, a channel": graph([
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1),
    ], s=np.array([0.1, 0.01, 0.03, 1.0], np.float32), z=np.array([0, 3, -20, 127], np.int8)),
    "pair without zero-point": graph([
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
    ], s=SMALL / 7),
    "int32 bias": graph([
        helper.make_node("DequantizeLinear", ["b", "s"], ["f"]),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ], s=SMALL / 2**29, b=np.array([2**31 - 65, -(2**31), 16777217, 5, 6, 7, 8], np.int32)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_what_onnxruntime_computes(name: str) -> None:
    proto = CASES[name]
    images = np.random.default_rng(7).normal(size=(3, 4, 7, 7)).astype(np.float32)
    expected = open_session(proto.SerializeToString(), SIMULATED).run(images)[0]
    found = OnnxModule(proto)(torch.from_numpy(images)).detach().numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (one("Softplus"), '"n" is of operator Softplus'),
        (one("Conv", "w", w=floats(6, 4, 3, 3), auto_pad=b"SAME_UPPER"), '"n" (Conv) has auto_pad'),
        (one("Conv", "w", w=floats(6, 4, 3)), "is not two-dimensional"),
        (one("Squeeze"), "does not name its axes"),
        (one("MaxPool", kernel_shape=[3, 3], pads=[0, 1, 2, 0], ceil_mode=1), "uneven pads"),
        (one("AveragePool", kernel_shape=[3, 3], pads=[0, 1, 2, 0]), "uneven pads"),
        (one("Pad", "p", p=ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"), "mode reflect"),
        (one("Slice", "s", "e", "a", "p", s=ints(-1), e=ints(-9), a=ints(3), p=ints(-1)), "backwards"),
        (graph([
            helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Reshape", ["x", "s"], ["y"]),
        ]), "Shape"),
        (graph([
            helper.make_node("Identity", ["c"], ["s"]),
            helper.make_node("Reshape", ["x", "s"], ["y"], name="r"),
        ], c=ints(0, -1)), '"r" (Reshape) computes its input "s"'),
    ],
)  # fmt: skip
def test_what_it_does_not_know_is_refused_by_name(proto: onnx.ModelProto, message: str) -> None:
    with pytest.raises(UserError, match="cannot be run in torch") as caught:
        OnnxModule(proto)
    assert message in str(caught.value)


def test_a_graph_with_two_inputs_is_refused() -> None:
    proto = one("Relu")
    proto.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    with pytest.raises(UserError, match="one input, it has: x, z"):
        OnnxModule(proto)


def test_the_shipped_model_has_the_logits_of_onnxruntime(
    demo_onnx: Path, fashion_images: Callable[[int, int], Tensor]
) -> None:
    images = fashion_images(0, 200)
    found = logits_of(OnnxModule(onnx.load(str(demo_onnx))), images, batch=64)
    expected = open_session(demo_onnx, SIMULATED).run(images.numpy())[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_every_node_of_a_qdq_file_agrees_on_the_same_inputs(
    target: str,
    demo_onnx: Path,
    fashion_images: Callable[[int, int], Tensor],
    seen_ranges: Any,
    tmp_path: Path,
) -> None:
    """Node by node: over the whole network one value on the edge between two steps is enough
    to make a difference, and the order of float sums decides on which side it falls."""
    images = fashion_images(0, 40)
    path = tmp_path / "q.onnx"
    qdq_from_onnx(demo_onnx, seen_ranges(demo_onnx, images), path, StaticConfig(target))
    proto = onnx.load(str(path))
    module = OnnxModule(proto)
    for node in module.nodes:
        kind = TensorProto.FLOAT
        if node.op == "QuantizeLinear":
            kind = helper.np_dtype_to_tensor_dtype(node.constants[node.inputs[2]].dtype)
        if node.outputs[0] != module.output_name:
            proto.graph.output.append(helper.make_tensor_value_info(node.outputs[0], kind, None))
    session = open_session(proto.SerializeToString(), SIMULATED)
    outputs = dict(zip(session.output_names, session.run(images.numpy()), strict=True))
    values = {k: torch.from_numpy(v) for k, v in outputs.items()} | {module.input_name: images}
    checked = 0
    for at, node in enumerate(module.nodes):
        start = module._start(images)
        inputs = [values.get(name, start.get(name)) if name else None for name in node.inputs]
        with torch.no_grad():
            found = module.run_node(at, [v.float() if name in values else v for name, v in zip(node.inputs, inputs, strict=True)])  # fmt: skip
        expected = values[node.outputs[0]].float()
        exact = node.op.endswith("Linear")
        torch.testing.assert_close(found, expected, rtol=0, atol=0 if exact else 2e-5)
        checked += exact
    assert checked > 40


def test_weights_are_parameters_with_their_names_and_get_gradients() -> None:
    module = OnnxModule(two_gemms())
    names = {"c.weight", "c.bias", "a.weight", "a.bias", "b.weight", "b.bias"}
    assert set(module.weight_names) == names
    assert len(list(module.parameters())) == len(names)
    module(torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))).sum().backward()
    for name in names:
        gradient = module.weight(name).grad
        assert gradient is not None
        assert gradient.abs().sum() > 0


def test_any_tensor_can_be_asked_for_and_an_unknown_one_is_refused() -> None:
    module = OnnxModule(two_gemms())
    images = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    values = module.values(images, ("input", "c/relu", "logits"))
    assert values["input"] is images
    assert values["c/relu"].min() == 0
    assert torch.equal(values["logits"], module(images))
    with pytest.raises(UserError, match='no tensor "nothing"'):
        module.values(images, ("nothing",))


def test_values_come_as_they_are_made_and_no_node_runs_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = OnnxModule(two_gemms())
    images = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    ran: list[str] = []
    run = module.run_node

    def recorded(at: int, inputs: Any) -> Tensor:
        ran.append(module.nodes[at].name)
        return run(at, inputs)

    monkeypatch.setattr(module, "run_node", recorded)
    order = []
    for name, value in module.each_value(images, ("a", "input", "c/relu", "c/relu")):
        order.append((name, tuple(value.shape), len(ran)))
    assert order == [("input", (2, 1, 4, 4), 0), ("c/relu", (2, 3, 4, 4), 2), ("a", (2, 8), 4)]
    assert ran == ["c", "c/relu", "flat", "a"]
    assert dict(module.each_value(images, ())) == {}
    with pytest.raises(UserError, match='no tensor "none"'):
        dict(module.each_value(images, ("a", "none")))


def test_new_weights_change_initializers_and_nothing_else() -> None:
    proto = two_gemms()
    changed = with_weights(proto, {"c.bias": torch.tensor([1.0, 2.0, 3.0])})
    found = {t.name: numpy_helper.to_array(t) for t in changed.graph.initializer}
    assert found["c.bias"].tolist() == [1.0, 2.0, 3.0]
    before = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert all(np.array_equal(found[k], v) for k, v in before.items() if k != "c.bias")
    assert list(changed.graph.node) == list(proto.graph.node)
    assert list(changed.metadata_props) == list(proto.metadata_props)
    for wrong in ({"c.bias": torch.zeros(4)}, {"nothing": torch.zeros(3)}):
        with pytest.raises(UserError, match="no initializer"):
            with_weights(proto, wrong)
    assert np.array_equal(before["a.bias"], numpy_helper.to_array(weight("a.bias", 8)))
