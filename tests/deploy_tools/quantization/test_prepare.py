"""Files of other exporters: nodes without names, weights in Constant nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx_samples import saved, two_gemms

from deploy_tools.errors import UserError
from deploy_tools.quantization.cast import fp16_from_onnx
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx
from deploy_tools.runtimes import RuntimeConfig, open_session


def unnamed(model: Path, path: Path) -> Path:
    proto = onnx.load(str(model))
    for node in proto.graph.node:
        node.name = ""
    onnx.save(proto, str(path))
    return path


def with_constants(model: Path, path: Path) -> Path:
    """The same model, every initializer a Constant node."""
    proto = onnx.load(str(model))
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in proto.graph.initializer]
    nodes += proto.graph.node
    del proto.graph.initializer[:]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, str(path))
    return path


def logits(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    return open_session(path, RuntimeConfig(fusions=False)).run(images)[0]


def test_names_are_unique_and_those_given_are_kept() -> None:
    proto = two_gemms()
    proto.graph.node[0].name = ""
    proto.graph.node[1].name = proto.graph.node[2].name = "twice"
    names = [node.name for node in prepared(proto).graph.node]
    assert len(set(names)) == len(names)
    assert names[0] == f"node_of_{proto.graph.node[0].output[0]}"
    assert names[3:] == [node.name for node in proto.graph.node[3:]]
    assert proto.graph.node[0].name == "", "the original is left alone"


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"value_float": 0.5}, np.float32(0.5)),
        ({"value_floats": [0.5, 2.0]}, np.float32([0.5, 2.0])),
        ({"value_int": 3}, np.int64(3)),
        ({"value_ints": [1, -1]}, np.int64([1, -1])),
        ({"value": numpy_helper.from_array(np.float32([[1, 2]]))}, np.float32([[1, 2]])),
    ],
)
def test_constants_become_initializers(given: dict[str, Any], value: Any) -> None:
    proto = two_gemms()
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["k"], **given))
    graph = prepared(proto).graph
    assert all(node.op_type != "Constant" for node in graph.node)
    (found,) = [numpy_helper.to_array(t) for t in graph.initializer if t.name == "k"]
    assert found.dtype == value.dtype
    np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
@pytest.mark.parametrize("other", [unnamed, with_constants])
def test_the_same_model_in_another_form_is_quantized_alike(
    demo_onnx: Path, demo_ranges: Any, demo_images: NDArray[np.float32], tmp_path: Path,
    other: Callable[[Path, Path], Path], target: str,
) -> None:  # fmt: skip
    found = {}
    for name, model in (("a", demo_onnx), ("b", other(demo_onnx, tmp_path / "other.onnx"))):
        path = tmp_path / f"{name}.onnx"
        summary = qdq_from_onnx(model, demo_ranges, path, StaticConfig(target, last_gemm=False))
        assert summary.quantized_layers == 21
        found[name] = (sorted(summary.activations), logits(path, demo_images[:16]))
    assert found["a"][0] == found["b"][0]
    np.testing.assert_array_equal(found["a"][1], found["b"][1])


@pytest.mark.parametrize("other", [unnamed, with_constants])
def test_the_same_model_in_another_form_is_cast_alike(
    demo_onnx: Path, demo_images: NDArray[np.float32], tmp_path: Path,
    other: Callable[[Path, Path], Path],
) -> None:  # fmt: skip
    fp16_from_onnx(demo_onnx, tmp_path / "a.onnx")
    report = fp16_from_onnx(other(demo_onnx, tmp_path / "o.onnx"), tmp_path / "b.onnx")
    assert report.tensors == 44
    np.testing.assert_array_equal(
        logits(tmp_path / "a.onnx", demo_images[:16]), logits(tmp_path / "b.onnx", demo_images[:16])
    )


def test_constants_beyond_fp16_are_refused(tmp_path: Path) -> None:
    proto = two_gemms()
    relu = next(node for node in proto.graph.node if node.op_type == "Relu")
    source = relu.input[0]
    relu.input[0] = "scaled"
    place = list(proto.graph.node).index(relu)
    for node in (
        helper.make_node("Mul", [source, "big"], ["scaled"], name="mul"),
        helper.make_node("Constant", [], ["big"], value_float=1e6),
    ):
        proto.graph.node.insert(place, node)
    with pytest.raises(UserError, match=r'"big" .* beyond FP16'):
        fp16_from_onnx(saved(proto, tmp_path / "m.onnx"), tmp_path / "h.onnx")


@pytest.mark.parametrize("operator", ["Min", "Max"])
def test_operators_that_the_converter_keeps_in_fp32(tmp_path: Path, operator: str) -> None:
    proto = two_gemms()
    relu = next(node for node in proto.graph.node if node.op_type == "Relu")
    proto.graph.initializer.append(numpy_helper.from_array(np.float32([0.25]), "limit"))
    relu.op_type = operator
    relu.input.append("limit")
    model = saved(proto, tmp_path / "m.onnx")
    fp16_from_onnx(model, tmp_path / "h.onnx")
    images = np.random.default_rng(0).normal(size=(4, 1, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(
        logits(tmp_path / "h.onnx", images), logits(model, images), rtol=0.02, atol=0.02
    )


def test_weights_quantized_from_float_keep_their_float(
    demo_onnx: Path, demo_ranges: Any, demo_images: NDArray[np.float32], tmp_path: Path
) -> None:
    # What QAT exports write: QuantizeLinear on the float weight instead of an INT8 one.
    qdq_from_onnx(demo_onnx, demo_ranges, tmp_path / "q.onnx", StaticConfig("tensorrt"))
    proto = onnx.load(str(tmp_path / "q.onnx"))
    stored = {t.name: t for t in proto.graph.initializer}
    last = next(n for n in proto.graph.node if n.output[0].startswith("conv1.weight_Dequ"))
    scale = numpy_helper.to_array(stored[last.input[1]])
    integers = numpy_helper.to_array(stored[last.input[0]])
    floats = integers.astype(np.float32) * scale.reshape(-1, 1, 1, 1)
    proto.graph.initializer.append(numpy_helper.from_array(floats, "float_weight"))
    quantize = helper.make_node(
        "QuantizeLinear", ["float_weight", *last.input[1:]], ["again"], name="q", axis=0
    )
    last.input[0] = "again"
    proto.graph.node.insert(0, quantize)
    onnx.save(proto, str(tmp_path / "qat.onnx"))
    fp16_from_onnx(tmp_path / "qat.onnx", tmp_path / "h.onnx")
    ours, expected = (logits(tmp_path / n, demo_images[:16]) for n in ("h.onnx", "q.onnx"))
    assert 10 * np.log10(np.square(expected).sum() / np.square(ours - expected).sum()) > 25
