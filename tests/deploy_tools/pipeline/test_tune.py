"""What tuning sees in a file before it measures."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper
from onnx_samples import two_gemms

from deploy_tools.pipeline.tune import scales_calls


def with_node(node: onnx.NodeProto) -> onnx.ModelProto:
    proto = two_gemms()
    proto.graph.node.append(node)
    return proto


def branch(node: onnx.NodeProto) -> onnx.NodeProto:
    """An If that holds a node two graphs deep."""
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    inner = helper.make_node(
        "If", ["c"], ["y"], then_branch=helper.make_graph([node], "a", [], out)
    )
    return helper.make_node(
        "If", ["c"], ["y"], else_branch=helper.make_graph([inner], "b", [], out)
    )


DYNAMIC = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
MATMUL = helper.make_node("DynamicQuantizeMatMul", ["x", "w", "s"], ["y"], domain="com.microsoft")


@pytest.mark.parametrize("node", [DYNAMIC, MATMUL], ids=lambda node: node.op_type)
def test_files_that_scale_the_images_of_a_call_together(node: onnx.NodeProto) -> None:
    assert not scales_calls(two_gemms())
    assert not scales_calls(with_node(helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])))
    assert scales_calls(with_node(node))
    assert scales_calls(with_node(branch(node)))
    proto = two_gemms()
    proto.functions.append(
        helper.make_function("own", "Layer", ["x"], ["y"], [node], [helper.make_opsetid("", 17)])
    )
    assert scales_calls(proto)
