"""The lint: every rule by the node and tensor that break it, and that each rule is a fact."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorrt_samples as samples
from onnx import TensorProto, helper
from tensorrt_samples import Make

from deploy_tools.engines.lint import COMMON_OPSET, findings_of, require_buildable
from deploy_tools.errors import UserError
from deploy_tools.runtimes.flavours import Flavour


@dataclass(frozen=True)
class Bad:
    """A file, what the lint finds in it, and what TensorRT for RTX 1.7 does with it."""

    make: Make
    rule: str
    node: str
    tensor: str
    words: str
    truth: str


Q, DQ = samples.PAIR
INPUT = ("", "input")
CASES = {
    # What the parser takes without an error, and misreads: the reason why there is a lint.
    "uint8 zero-point": Bad(lambda: samples.with_zero_point(np.uint8(0)), "zero-point", Q, samples.ZERO, "UINT8", "built, warned"),
    "uint8 zero-point in a Constant": Bad(lambda: samples.zero_point_of_a_constant(np.uint8), "zero-point", Q, samples.ZERO, "UINT8", "built, warned"),
    "no zero-point": Bad(samples.without_zero_point, "zero-point", Q, "q_output_conv1/relu_1", "no zero-point", "built"),
    "endless scale": Bad(lambda: samples.with_scale(np.float32(np.inf)), "scale", Q, samples.SCALE, "inf", "built"),
    "opset 28": Bad(lambda: samples.tiny(opset=28), "opset", "", "", "opset 28", "built"),
    "opset 8": Bad(lambda: samples.tiny(opset=8), "opset", "", "", "opset 8", "built"),
    "float64 scale": Bad(lambda: samples.with_scale(np.float64(0.01)), "scale", Q, samples.SCALE, "DOUBLE", "built"),
    # What it takes, and this tool cannot feed or wants otherwise.
    "fixed batch": Bad(lambda: samples.tiny(3), "fixed-batch", *INPUT, "batches of 3", "built"),
    "int64 input": Bad(lambda: samples.with_input_type(TensorProto.INT64), "input-type", *INPUT, "INT64", "built, warned"),
    "float64 input": Bad(lambda: samples.with_input_type(TensorProto.DOUBLE), "input-type", *INPUT, "DOUBLE", "built"),
    "float16 input": Bad(lambda: samples.with_input_type(TensorProto.FLOAT16), "input-type", *INPUT, "deploy-tools cast fp16", "built"),
    "float16 output": Bad(samples.half_output, "output-type", "", "half", "deploy-tools cast fp16", "built"),
    "reshape to a batch of 1": Bad(lambda: samples.fixed_reshape((1, -1)), "fixed-batch", "flat", "shape", "x.flatten(1)", "built"),
    # What it refuses, or fails to build.
    "int8 zero-point of 3": Bad(lambda: samples.with_zero_point(np.int8(3)), "zero-point", Q, samples.ZERO, "INT8 3", "refused"),
    "uint8 zero-point of 128": Bad(lambda: samples.with_zero_point(np.uint8(128)), "zero-point", Q, samples.ZERO, "UINT8 128", "refused"),
    "int16 zero-point": Bad(lambda: samples.with_zero_point(np.int16(0)), "zero-point", Q, samples.ZERO, "INT16", "refused"),
    "uint8 asked for": Bad(lambda: samples.without_zero_point(output_dtype=TensorProto.UINT8), "zero-point", Q, "q_output_conv1/relu_1", "quantizes to UINT8", "refused"),
    "computed zero-point": Bad(samples.computed_zero_point, "zero-point", Q, samples.ZERO, "is computed", "not built"),
    "one zero-point for eight scales": Bad(samples.one_zero_point_for_eight_scales, "zero-point", "DequantizeLinear_conv2.weight_1", "zero_point_conv2.weight_1", "another size", "refused"),
    "computed scale": Bad(samples.computed_scale, "scale", Q, samples.SCALE, "is computed", "crashed"),
    "scale 0": Bad(lambda: samples.with_scale(np.float32(0)), "scale", Q, samples.SCALE, "holds 0", "refused"),
    "scale below 0": Bad(lambda: samples.with_scale(np.float32(-0.5)), "scale", Q, samples.SCALE, "holds -0.5", "refused"),
    "scale nan": Bad(lambda: samples.with_scale(np.float32(np.nan)), "scale", Q, samples.SCALE, "holds nan", "refused"),
    "a scale a block": Bad(samples.blocked_weights, "scale", "DequantizeLinear_fc.weight_1", "scale_fc.weight_1", "a block", "not built"),
    "two types of scales": Bad(samples.half_weight_scale, "scale-types", "conv2", "dq_output_conv2.weight_1", "FLOAT16", "refused"),
    "int32 bias": Bad(samples.quantized_bias, "quantized-bias", "bias.dq", "bias.q", "INT32", "refused"),
    "uint8 weights": Bad(samples.uint8_weights, "quantized-weights", "DequantizeLinear_conv2.weight_1", "q_output_conv2.weight_1", "UINT8", "refused"),
    "operator of another runtime": Bad(samples.fused_operator, "foreign-operator", "conv2", "conv2", "com.microsoft", "refused"),
    "reshape to one batch": Bad(samples.fixed_reshape, "fixed-batch", "flat", "shape", "x.flatten(1)", "not built"),
    "batch norm in training": Bad(samples.training_norm, "training", "bn", "bn", "eval", "refused"),
    "batch norm in training, one output": Bad(lambda: samples.training_norm(1), "training", "bn", "bn", "eval", "refused"),
    "batch norm in training, opset 9": Bad(lambda: samples.training_norm(5, opset=9), "training", "bn", "bn", "eval", "refused"),
    "dropout in training": Bad(lambda: samples.dropout(True), "training", "drop", "dropped", "eval", "refused"),
    "pooling with dilations": Bad(lambda: samples.max_pool(dilations=[2, 2]), "pooling", "maxpool", "mp", "dilations", "refused"),
    "pooling with indices": Bad(lambda: samples.max_pool(("mp", "at")), "pooling", "maxpool", "at", "indices", "refused"),
    "in a branch": Bad(samples.in_a_branch, "pooling", "b.pool", "b", "dilations", "refused"),
}  # fmt: skip

GOOD: dict[str, Make] = {
    "float": samples.tiny,
    "pixels": lambda: samples.with_input_type(TensorProto.UINT8),
    "q/dq": samples.good,
    "zero-point through identity": lambda: samples.zero_point_of_a_constant(np.int8),
    "int8 without a zero-point": lambda: samples.without_zero_point(output_dtype=TensorProto.INT8),
    "int8 bias": lambda: samples.quantized_bias(np.int8),
    "opset 9": lambda: samples.tiny(opset=9),
    "dropout": lambda: samples.dropout(False),
    "pooling": lambda: samples.max_pool(ceil_mode=1),
    "reshape": lambda: samples.fixed_reshape((-1, 8)),
    "reshape there and back": samples.there_and_back,
    "branches": lambda: samples.in_a_branch(inner=False),
    "function": lambda: samples.in_a_function("Relu"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_file_is_found_by_node_and_tensor(name: str) -> None:
    case = CASES[name]
    found = findings_of(case.make(), 24)
    assert (found[0].rule, found[0].node, found[0].tensor) == (case.rule, case.node, case.tensor)
    assert case.words in found[0].message
    assert {finding.rule for finding in found} == {case.rule}, "one fault, one rule"


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_has_no_finding(name: str) -> None:
    assert findings_of(GOOD[name](), COMMON_OPSET + 1) == ()


def test_pixels_go_through_a_cast_to_floats_first() -> None:
    model = samples.with_input_type(TensorProto.UINT8)
    samples.insert(model, "x", helper.make_node("Identity", ["input"], ["same"], "same"))
    samples.node(model, "x").input[0] = "same"
    (found,) = findings_of(model, 24)
    assert (found.rule, found.node, found.tensor) == ("input-type", "same", "input")
    assert "read by Identity" in found.message


@pytest.mark.parametrize("op", ["Softmax", "Relu"])
def test_nodes_in_a_function_are_looked_at(op: str) -> None:
    assert findings_of(samples.in_a_function(op), 24) == ()
    hidden = samples.in_a_function("Mystery")
    hidden.functions[0].node[0].domain = "elsewhere"
    hidden.functions[0].opset_import.add(domain="elsewhere", version=1)
    assert [finding.rule for finding in findings_of(hidden, 24)] == ["foreign-operator"]


def test_an_opset_is_judged_by_the_version_of_tensorrt() -> None:
    model = samples.tiny(opset=22)
    assert [finding.rule for finding in findings_of(model, 20)] == ["opset"]
    assert findings_of(model, 24) == ()


def test_the_truth_about_every_case(tmp_path: Path) -> None:
    """The parser and the builder really do with these files what the lint says they do."""
    version = pytest.importorskip("tensorrt_rtx").__version__
    if not version.startswith("1.7."):
        pytest.skip(f"the table is about TensorRT for RTX 1.7, this is {version}")
    files: dict[str, Make] = {name: case.make for name, case in CASES.items()} | GOOD
    files["nncf"] = lambda: onnx.load(str(samples.NNCF))
    for name, make in files.items():
        onnx.save(make(), str(tmp_path / f"{name.replace('/', '')}.onnx"))
    script = Path(__file__).parent / "parse_trials.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    truth = json.loads(done.stdout.strip().splitlines()[-1])
    expected = {name: case.truth for name, case in CASES.items()}
    assert {name: truth[name] for name in expected} == expected
    assert {truth[name.replace("/", "")] for name in GOOD} == {"built"}
    assert truth["nncf"] == "built, warned"


def flavour(max_opset: int = 24) -> Flavour:
    """A flavour that no library is needed for: the lint asks for its opset and title only."""
    version = "1.7.1.116" if max_opset == 24 else "10.14.1"
    return Flavour("tensorrt-rtx" if max_opset == 24 else "tensorrt", sys, version)


def test_a_refusal_lists_nodes_and_tensors_and_the_way_out() -> None:
    path = Path("model.onnx")
    require_buildable(samples.good(), path, flavour())
    with pytest.raises(UserError) as caught:
        require_buildable(onnx.load(str(samples.NNCF)), path, flavour())
    message = str(caught.value)
    for words in (
        "model.onnx cannot become a TensorRT for RTX 1.7.1.116 engine",
        'node "QuantizeLinear_conv1/relu_1", tensor "zero_point_conv1/relu_1": is UINT8',
        "quantize static fp32.onnx",
        "--target tensorrt",
    ):
        assert words in message


def test_a_refusal_shows_every_rule_before_more_of_the_same() -> None:
    model = samples.training_norm()
    for number in range(9):
        samples.put(model, f"s{number}", np.float32(0))
        new = onnx.helper.make_node(
            "QuantizeLinear", ["input", f"s{number}"], [f"q{number}"], f"quantize{number}"
        )
        samples.insert(model, "conv1", new)  # fmt: skip
    with pytest.raises(UserError) as caught:
        require_buildable(model, Path("m.onnx"), flavour())
    message = str(caught.value)
    assert all(f"\n  {rule}:" in message for rule in ("zero-point", "scale", "training"))
    assert "and 14 more" in message


def test_the_opset_of_the_installed_version_counts() -> None:
    with pytest.raises(UserError, match="opset 22; this TensorRT knows 9 to 20"):
        require_buildable(samples.tiny(opset=22), Path("m.onnx"), flavour(20))
