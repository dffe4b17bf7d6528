"""What runs in INT8, what is fused and why not: on real builds, and on layers of other forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorrt_samples as samples
from onnx import helper, numpy_helper

from deploy_tools.engine_files import EngineLayer
from deploy_tools.engines.build import engine_from_onnx
from deploy_tools.engines.explain import Explanation, Row, explain_layers
from deploy_tools.engines.hints import hints_of


def wrong_weight_axis() -> onnx.ModelProto:
    proto = samples.good()
    samples.node(proto, "DequantizeLinear_conv2.weight_1").attribute[0].i = 1
    return proto


def wrong_gemm_axis() -> onnx.ModelProto:
    proto = samples.good()
    samples.node(proto, "DequantizeLinear_fc.weight_1").attribute[0].i = 1
    samples.put(proto, "scale_fc.weight_1", np.full(8, 0.01, np.float32))
    samples.put(proto, "zero_point_fc.weight_1", np.zeros(8, np.int8))
    return proto


def scale_a_channel() -> onnx.ModelProto:
    proto = samples.good()
    samples.put(proto, samples.SCALE, np.linspace(0.01, 0.02, 8, dtype=np.float32))
    samples.put(proto, samples.ZERO, np.zeros(8, np.int8))
    return proto


def float_weights() -> onnx.ModelProto:
    proto = samples.good()
    proto.graph.node.remove(samples.node(proto, "DequantizeLinear_conv2.weight_1"))
    proto.graph.initializer.append(
        numpy_helper.from_array(samples.value(samples.tiny(), "conv2.weight"), "conv2.weight")
    )
    samples.node(proto, "conv2").input[1] = "conv2.weight"
    return proto


def float_input() -> onnx.ModelProto:
    proto = samples.good()
    for name in samples.PAIR:
        proto.graph.node.remove(samples.node(proto, name))
    samples.node(proto, "conv2").input[0] = "conv1/relu"
    return proto


def float_layer() -> onnx.ModelProto:
    proto = float_weights()
    for name in samples.PAIR:
        proto.graph.node.remove(samples.node(proto, name))
    samples.node(proto, "conv2").input[0] = "conv1/relu"
    return proto


def between(op: str, **attributes: object) -> onnx.ModelProto:
    """Put an operator between conv2's DequantizeLinear and conv2."""
    proto = samples.good()
    conv = samples.node(proto, "conv2")
    samples.insert(
        proto, "conv2", helper.make_node(op, [conv.input[0]], ["moved"], "moved", **attributes)
    )
    conv.input[0] = "moved"
    return proto  # fmt: skip


def residual(quantized: tuple[str, ...]) -> onnx.ModelProto:
    """Add conv1/relu to conv2, with Q/DQ on these inputs of the Add."""
    proto = samples.good()
    sides = {"shortcut": "dq_output_conv1/relu_1", "main": "conv2"}
    if "shortcut" not in quantized:
        sides["shortcut"] = "conv1/relu"
    samples.insert(
        proto,
        "conv2/relu",
        helper.make_node("Add", ["conv2.side", sides["shortcut"]], ["sum"], "conv2/add"),
    )
    names = [samples.SCALE, samples.ZERO]
    if "main" in quantized:
        samples.insert(
            proto, "conv2/add", helper.make_node("QuantizeLinear", ["conv2", *names], ["q"], "q")
        )
        samples.insert(
            proto,
            "conv2/add",
            helper.make_node("DequantizeLinear", ["q", *names], ["conv2.side"], "dq"),
        )
    else:
        samples.node(proto, "conv2/add").input[0] = "conv2"
    samples.node(proto, "conv2/relu").input[0] = "sum"
    return proto  # fmt: skip


def explained(proto: onnx.ModelProto, folder: Path) -> Explanation:
    pytest.importorskip("tensorrt_rtx")
    path = folder / "model.onnx"
    onnx.save(proto, str(path))
    sidecar = engine_from_onnx(path, folder / "model.engine")
    return explain_layers(sidecar.layers, proto)


def row(explanation: Explanation, node: str) -> Row:
    return next(row for row in explanation.rows if row.node == node)


FLOAT: dict[str, tuple[Callable[[], onnx.ModelProto], str, str]] = {
    "input and weights": (float_layer, "conv2", "neither its input nor its weights have Q/DQ"),
    "input": (float_input, "conv2", 'its input "conv1/relu" has no Q/DQ'),
    "weights": (float_weights, "conv2", 'its weights "conv2.weight" have no Q/DQ'),
    "scale a channel": (scale_a_channel, "conv2", f'a scale a channel ("{samples.SCALE}")'),
    "axis of conv": (wrong_weight_axis, "conv2", "each index of axis 1, INT8 wants axis 0"),
    "axis of gemm": (wrong_gemm_axis, "fc", "each index of axis 1, INT8 wants axis 0"),
    "relu": (lambda: between("Relu"), "conv2", 'its input "moved" has no Q/DQ'),
    "average": (
        lambda: between("AveragePool", kernel_shape=[2, 2]), "conv2", 'its input "moved" has no',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOAT)
def test_a_layer_in_float_is_hinted_at_and_explained(name: str, tmp_path: Path) -> None:
    """The hint says it before the build; the build shows that it is true."""
    make, node, words = FLOAT[name]
    proto = make()
    hints = [hint for hint in hints_of(proto) if hint.rule == "float-layer"]
    assert [hint.node for hint in hints] == [node]
    assert words in hints[0].message
    found = explained(proto, tmp_path)
    assert row(found, node).precision == "fp32"
    assert words in row(found, node).reason
    assert found.summary == "2 of 3 convolutions and Gemms in INT8, 1 in FP32"
    assert [r.reason for r in found.products if r.node != node] == ["", ""]


@pytest.mark.parametrize(
    "make",
    [
        samples.good,
        lambda: samples.zero_point_of_a_constant(np.int8),
        lambda: between("MaxPool", kernel_shape=[2, 2]),
        lambda: between("Transpose", perm=[0, 1, 3, 2]),
        lambda: between("Identity"),
        lambda: residual(("shortcut",)),
    ],
)
def test_a_layer_in_int8_needs_no_reason(
    make: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    proto = make()
    assert [hint.rule for hint in hints_of(proto)] == ["fp32-rest"]
    found = explained(proto, tmp_path)
    assert found.summary == "3 of 3 convolutions and Gemms in INT8"
    assert not any(r.reason for r in found.products)
    assert found.note == "what is not INT8 runs in FP32: deploy-tools cast fp16 makes it FP16."
    assert row(found, "pool").reason == "TensorRT computes GlobalAveragePool in float"


@pytest.mark.parametrize(
    ("quantized", "words"),
    [((), "neither of its inputs has Q/DQ"), (("shortcut", "main"), "both of its inputs have Q/DQ")],
)  # fmt: skip
def test_a_residual_add_left_out_is_told(
    quantized: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    proto = residual(quantized)
    hints = [hint for hint in hints_of(proto) if hint.rule == "residual-add"]
    assert [(hint.node, hint.tensor) for hint in hints] == [("conv2/add", "sum")]
    assert words in hints[0].message
    assert "INT8 no faster than FP16" in hints[0].message
    assert words in row(explained(proto, tmp_path), "conv2/add").reason


def test_a_float_file_says_so_once(tmp_path: Path) -> None:
    found = explained(samples.tiny(), tmp_path)
    assert hints_of(samples.tiny()) == ()
    assert found.summary == "0 of 3 convolutions and Gemms in INT8, 3 in FP32"
    assert found.note == "The ONNX file has no Q/DQ, so nothing runs in INT8."
    assert found.reasons == ()
    assert row(found, "conv1").fused_with == ("conv1/relu",)
    assert row(found, "conv1/relu").fused_with == ("conv1",)
    assert row(found, "conv1").engine_layer == row(found, "conv1/relu").engine_layer != ""
    assert row(found, "flat").precision == "-"


def test_weights_with_q_dq_alone_run_in_float(tmp_path: Path) -> None:
    proto = samples.weights_alone()
    hints = [hint for hint in hints_of(proto) if hint.rule == "float-layer"]
    assert [hint.node for hint in hints] == ["conv1", "conv2", "fc"]
    found = explained(proto, tmp_path)
    assert found.summary == "0 of 3 convolutions and Gemms in INT8, 3 in FP32"
    assert "has no Q/DQ (its weights do)" in row(found, "conv1").reason
    assert "has no Q/DQ, so" not in found.note


@pytest.mark.parametrize("proto", [samples.good(), samples.tiny(), None])
def test_an_engine_whose_layers_are_not_listed(proto: onnx.ModelProto | None) -> None:
    found = explain_layers((), proto)
    assert found.summary == "TensorRT listed no layers"
    assert "what runs in which type is not known" in found.note
    assert {r.precision for r in found.rows} == ({"unknown"} if proto else set())
    assert found.reasons == ()
    assert found.to_dict()["int8_products"] == 0


def test_a_file_in_fp16_needs_no_hint_about_its_rest() -> None:
    proto = samples.good()
    for tensor in list(proto.graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            samples.put(proto, tensor.name, numpy_helper.to_array(tensor).astype(np.float16))
    assert hints_of(proto) == ()
    assert explain_layers(FUSED, proto).note == ""


def test_nodes_without_a_name_are_found_by_the_name_that_the_parser_gives(tmp_path: Path) -> None:
    proto = samples.good()
    samples.node(proto, "conv2").name = ""
    found = explained(proto, tmp_path)
    assert row(found, "node_of_conv2").precision == "int8"


def layer(name: str, kind: str, precision: str, *nodes: str) -> EngineLayer:
    return EngineLayer(name, kind, precision, (("x", precision),), (("y", precision),), nodes)


FUSED = (
    layer("q", "Reformat", "fp32", "QuantizeLinear_input_1"),
    layer("conv1 + relu", "CaskConvolution", "int8", "conv1", "conv1/relu", samples.PAIR[0]),
    layer("conv2 + relu", "CaskConvolution", "fp16", "conv2", "conv2/relu"),
    layer("pool", "Reduce", "fp16", "pool"),
    layer("fc before", "kgen", "int8", "fc"),
    layer("fc", "CaskGemm", "int8", "fc", "DequantizeLinear_pool_1"),
)  # fmt: skip


def test_layers_of_full_tensorrt_are_explained() -> None:
    """As the inspector of TensorRT 10 names them: whole convolutions with what they took in."""
    found = explain_layers(FUSED, samples.good())
    assert row(found, "conv1") == Row("conv1", "Conv", "int8", ("conv1/relu",), "conv1 + relu", "")
    assert row(found, "conv1/relu").precision == "int8"
    assert row(found, "fc").engine_layer == "fc"
    assert "its Q/DQ are in place, but the engine computes it in fp16" in row(found, "conv2").reason
    assert "its layer reads fp16 x" in row(found, "conv2").reason
    assert found.summary == "2 of 3 convolutions and Gemms in INT8, 1 in FP16"


def test_without_the_file_the_layers_speak_for_themselves() -> None:
    found = explain_layers(FUSED, None)
    assert [r.op for r in found.products] == ["Conv", "Conv", "Gemm"]
    assert row(found, "pool").op == "Reduce"
    assert found.note.startswith("The ONNX file is not at hand")
    assert not any("Quantize" in r.node for r in found.rows)
    assert found.summary == "2 of 3 convolutions and Gemms in INT8, 1 in FP16"


def test_a_node_that_no_layer_names_is_told() -> None:
    found = explain_layers(FUSED[:2], samples.good())
    assert row(found, "conv2").precision == "-"
    assert "no layer of the engine names it" in row(found, "conv2").reason
    assert found.summary == "1 of 3 convolutions and Gemms in INT8, 2 in no listed layer"


def test_it_prints_itself_and_goes_into_json() -> None:
    found = explain_layers(FUSED, samples.good())
    assert str(found).splitlines()[-1] == found.summary
    assert "conv1                            Conv               int8     conv1/relu" in str(found)
    table = found.to_dict()
    assert (table["products"], table["int8_products"]) == (3, 2)
    assert table["nodes"][0]["fused_with"] == ["conv1/relu"]


def test_one_reason_for_many_nodes_is_one_line() -> None:
    rows = tuple(Row(f"n{i}", "Add", "fp32", (), "l", "why") for i in range(5))
    assert Explanation(rows).reasons == ("n0, n1, n2 and 2 more: why",)
