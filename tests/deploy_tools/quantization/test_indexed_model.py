"""The writer with an index writes the same files, and looks at each thing a few times only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from correction_samples import Graph, normal_images, resnet18, two_convs
from correction_samples import quantized as quantize
from onnx_samples import saved, two_gemms
from work import work_of

from deploy_tools.quantization import static
from deploy_tools.quantization.indexed_model import IndexedModel, find_by_name
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.static import StaticConfig
from deploy_tools.quantization.targets import TARGETS


def deep(blocks: int) -> onnx.ModelProto:
    """A ResNet of two-layer blocks with four channels."""
    graph = Graph(None, 3, 8, 8)
    tensor = graph.relu(graph.conv("stem", graph.input, 3, 4))
    for block in range(blocks):
        main = graph.relu(graph.conv(f"{block}.a", tensor, 4, 4))
        main = graph.conv(f"{block}.b", main, 4, 4)
        tensor = graph.relu(graph.node("Add", f"{block}.add", main, tensor))
    return graph.model(graph.head(tensor, 4))


def grouped() -> onnx.ModelProto:
    """A grouped and a depthwise convolution, and a bias that two layers share."""
    graph = Graph(None, 3, 8, 8)
    first = graph.relu(graph.conv("a", graph.input, 3, 6))
    second = graph.relu(graph.conv("b", first, 6, 6, group=2))
    third = graph.node("Conv", "c", second, graph.const("c.weight", [[[[0.5]]]] * 6), "b.bias",
                       group=6)  # fmt: skip
    return graph.model(graph.head(third, 6))


def listed() -> onnx.ModelProto:
    """Every initializer is a graph input too, as old exporters have it."""
    proto = two_convs()
    for tensor in proto.graph.initializer:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(value)
    return proto


SAMPLES = {"resnet18": resnet18, "grouped": grouped, "two_convs": two_convs, "listed": listed}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sample", SAMPLES)
def test_the_same_file_byte_for_byte(
    sample: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = SAMPLES[sample]()
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim][1:]
    model, images = saved(proto, tmp_path / "m.onnx"), normal_images(4, *shape)
    config = StaticConfig(target)
    quantize(model, tmp_path / "indexed.onnx", images, config)
    with monkeypatch.context() as patch:
        patch.setattr(static, "index_model", _without_index)
        quantize(model, tmp_path / "plain.onnx", images, config)
    indexed, plain = ((tmp_path / f"{n}.onnx").read_bytes() for n in ("indexed", "plain"))
    assert indexed == plain


def _without_index(quantizer: Any) -> None:
    quantizer.model.finish = lambda: None


def test_work_grows_with_the_depth_and_not_with_its_square() -> None:
    ranges: Any = static._AnyRanges()
    work = {
        blocks: work_of(
            lambda blocks=blocks: static._quantized(
                prepared(deep(blocks)), ranges, StaticConfig("openvino")
            )
        )
        for blocks in (1, 4, 12)
    }
    first, second = work[4] - work[1], work[12] - work[4]
    assert second < 1.1 * (12 - 4) / (4 - 1) * first


def test_lookup_in_other_lists_is_the_library_s_own() -> None:
    tensors = list(two_gemms().graph.initializer)
    assert find_by_name("a.bias", tensors) is tensors[3]
    assert find_by_name("none", tensors) is None


def test_the_index_follows_every_change() -> None:
    base = pytest.importorskip("onnxruntime.quantization.onnx_model").ONNXModel(two_gemms())
    model = IndexedModel(base)
    model.replace_input_of_all_nodes("c/relu", "other")
    model.replace_output_of_all_nodes("a", "b2")
    model.replace_input_of_nodes("flat", "near", {"nobody"})
    model.add_nodes([onnx.helper.make_node("Relu", ["other"], ["more"], "more")])
    fresh = base.input_name_to_nodes()
    found = model.input_name_to_nodes()
    assert {k: [n.name for n in v] for k, v in found.items() if v} == {
        k: [n.name for n in v] for k, v in fresh.items()
    }
    assert [n.name for n in found["other"]] == ["flat", "more"]
    assert base.output_name_to_node()["b2"].name == "a"
    model.remove_initializer(model.get_initializer("a.bias"))
    assert model.get_initializer("a.bias") is None
    assert "a.bias" in {t.name for t in base.model.graph.initializer}
    model.finish()
    assert "a.bias" not in {t.name for t in base.model.graph.initializer}
    assert "a.bias" not in {t.name for t in model.initializer()}
    again = onnx.numpy_helper.from_array(np.ones(2, np.float32), "b.bias")
    model.remove_initializer(model.get_initializer("b.bias"))
    model.add_initializer(again)
    model.finish()
    assert model.get_initializer("b.bias") == again
    assert [t for t in base.model.graph.initializer if t.name == "b.bias"] == [again]
    model.remove_nodes([onnx.helper.make_node("Relu", [], [], "more")])
    assert "more" not in {node.name for node in base.model.graph.node}
