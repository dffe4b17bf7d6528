"""Names of nodes and tensors are those of the layers, whatever the exporter numbered them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx_samples import two_gemms

from deploy_tools.onnx_names import name_after_weights
from deploy_tools.runtimes import open_session


def numbered() -> onnx.ModelProto:
    """Return the sample with names such as an exporter gives."""
    proto = two_gemms()
    names = {t: f"val_{i}" for i, n in enumerate(proto.graph.node) for t in n.output}
    names["logits"] = "logits"
    for number, node in enumerate(proto.graph.node):
        node.name = f"node_{number}"
        node.input[:] = [names.get(t, t) for t in node.input]
        node.output[:] = [names[t] for t in node.output]
    shape = helper.make_tensor_value_info("val_0", TensorProto.FLOAT, ["N", 3, 4, 4])
    proto.graph.value_info.append(shape)
    return proto


def test_names_are_those_of_the_weights() -> None:
    proto = numbered()
    name_after_weights(proto)
    expected = ["c", "c/relu", "c/flatten", "a", "a/relu", "b"]
    assert [node.name for node in proto.graph.node] == expected
    assert [node.output[0] for node in proto.graph.node] == [*expected[:-1], "logits"]
    assert [value.name for value in proto.graph.value_info] == ["c"]
    onnx.checker.check_model(proto, full_check=True)


def test_the_graph_computes_the_same() -> None:
    before, after = numbered(), numbered()
    name_after_weights(after)
    x = np.random.default_rng(0).normal(size=(3, 1, 4, 4)).astype(np.float32)
    results = [open_session(proto.SerializeToString()).run(x)[0] for proto in (before, after)]
    np.testing.assert_array_equal(*results)


def test_equal_kinds_after_one_layer_get_numbers() -> None:
    proto = numbered()
    relu = helper.make_node("Relu", ["val_1"], ["again"])
    proto.graph.node.insert(2, relu)
    proto.graph.node[3].input[0] = "again"
    name_after_weights(proto)
    names = [node.name for node in proto.graph.node]
    assert names[:4] == ["c", "c/relu", "c/relu_2", "c/flatten"]
    assert len(set(names)) == len(names)
    onnx.checker.check_model(proto, full_check=True)


def test_a_tensor_never_takes_the_name_of_an_input_or_weight() -> None:
    proto = numbered()
    proto.graph.input[0].name = "c"  # what the Conv would be called
    proto.graph.node[0].input[0] = "c"
    name_after_weights(proto)
    assert proto.graph.node[0].output[0] == "c_2"
    onnx.checker.check_model(proto, full_check=True)


def test_graphs_with_subgraphs_keep_their_names() -> None:
    proto = numbered()
    branch = helper.make_graph(
        [helper.make_node("Identity", ["val_0"], ["inside"])], "branch", [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
    )  # fmt: skip
    proto.graph.node.add(
        op_type="If", input=["condition"], output=["chosen"],
    ).attribute.extend(
        [helper.make_attribute("then_branch", branch), helper.make_attribute("else_branch", branch)]
    )  # fmt: skip
    names = [node.name for node in proto.graph.node]
    name_after_weights(proto)
    assert [node.name for node in proto.graph.node] == names
    assert proto.graph.node[0].output[0] == "val_0"
