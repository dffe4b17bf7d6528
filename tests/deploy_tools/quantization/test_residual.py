"""Which input of an Add is the main branch."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from deploy_tools.data.spec import InputSpec
from deploy_tools.export import onnx_from_module
from deploy_tools.models import new_module
from deploy_tools.quantization.residual import main_branches


def graph(*nodes: onnx.NodeProto, weights: tuple[str, ...] = ("w",)) -> onnx.ModelProto:
    shape = [None, 2, 4, 4]
    return helper.make_model(
        helper.make_graph(
            list(nodes), "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            [helper.make_tensor(name, TensorProto.FLOAT, [1], [0.0]) for name in weights],
        )
    )  # fmt: skip


def conv(source: str, out: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, "w"], [out], name=out)


def node(op: str, source: str, out: str) -> onnx.NodeProto:
    return helper.make_node(op, [source], [out], name=out)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_longer_way_is_the_main_branch(swapped: bool) -> None:
    inputs = ["b", "s"][:: -1 if swapped else 1]
    proto = graph(
        conv("x", "stem"), conv("stem", "a"), node("Relu", "a", "r"), conv("r", "b"),
        conv("stem", "s"), helper.make_node("Add", inputs, ["y"], name="add"),
    )  # fmt: skip
    assert main_branches(proto) == {"add": "b"}


@pytest.mark.parametrize("swapped", [False, True])
def test_layers_count_before_nodes(swapped: bool) -> None:
    # A shortcut without parameters: more nodes than the main branch, and no layer.
    inputs = ["b", "s3"][:: -1 if swapped else 1]
    proto = graph(
        conv("x", "b"), node("Neg", "x", "s1"), node("Neg", "s1", "s2"), node("Neg", "s2", "s3"),
        helper.make_node("Add", inputs, ["y"], name="add"),
    )  # fmt: skip
    assert main_branches(proto) == {"add": "b"}


def test_branches_may_start_at_the_input_and_equal_ones_take_the_first() -> None:
    ends = [helper.make_node("Add", ["a", "b"], ["y"], name="add")]
    assert main_branches(graph(conv("x", "a"), conv("x", "b"), *ends)) == {"add": "a"}
    plain = helper.make_node("Add", ["x", "b"], ["y"], name="add")
    assert main_branches(graph(conv("x", "b"), plain)) == {"add": "b"}


def test_constants_and_doubles_are_no_residuals() -> None:
    constant = helper.make_node(
        "Constant", [], ["k"], value=helper.make_tensor("k", TensorProto.FLOAT, [1], [1.0])
    )
    proto = graph(
        conv("x", "a"), constant,
        helper.make_node("Add", ["a", "w"], ["b"], name="weight"),
        helper.make_node("Add", ["b", "k"], ["c"], name="constant"),
        helper.make_node("Add", ["c", "c"], ["y"], name="double"),
    )  # fmt: skip
    assert main_branches(proto) == {}


@pytest.mark.parametrize(
    ("arch", "size"), [("resnet18", 32), ("resnet50", 32), ("resnet20-cifar-a", 16)]
)
def test_in_every_block_the_main_branch_ends_with_its_last_convolution(
    arch: str, size: int, tmp_path
) -> None:
    torch.manual_seed(0)
    path = tmp_path / "m.onnx"
    spec = InputSpec(size=(size, size), mean=(0.5,) * 3, std=(0.5,) * 3)
    onnx_from_module(new_module(arch, 7), spec, path)
    proto = onnx.load(str(path))
    last = "conv3" if arch == "resnet50" else "conv2"
    mains = main_branches(proto)
    adds = [n for n in proto.graph.node if n.op_type == "Add"]
    assert len(mains) == len(adds) > 0
    for name, tensor in mains.items():
        assert tensor.endswith(f".{last}"), (name, tensor)
