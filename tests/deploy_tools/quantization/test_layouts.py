"""Residual Adds with a main branch in float, and which activations a configuration quantizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from correction_samples import SeenRanges, logits, normal_images, resnet18, sqnr_db, two_convs
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_samples import saved

from deploy_tools.errors import UserError
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.layouts import around_zero
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.residual import main_branches
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx, quantized_tensors

Images = NDArray[np.float32]
FIRST = "layer1.0.conv2/add"


def behind_pair(proto: onnx.ModelProto, tensor: str) -> str:
    """Return the float tensor whose Q/DQ pair makes `tensor`, "" where none does."""
    producers = {name: node for node in proto.graph.node for name in node.output}
    last = producers.get(tensor)
    if last is None or last.op_type != "DequantizeLinear":
        return ""
    return str(producers[last.input[0]].input[0])


def main_inputs(path: Path, model: Path) -> dict[str, bool]:
    """Whether each residual Add of a Q/DQ file reads its main branch quantized, by node name."""
    proto = onnx.load(str(path))
    mains = main_branches(prepared(load_onnx(model)))
    found = {}
    for node in proto.graph.node:
        if node.name in mains:
            others = [behind_pair(proto, tensor) for tensor in node.input]
            assert sum(map(bool, others)) >= 1, "the shortcut is quantized"
            assert mains[node.name] in (*others, *node.input)
            found[node.name] = mains[node.name] in others
    return found


def test_the_named_add_reads_its_main_branch_in_float(
    demo_onnx: Path, demo_ranges: Any, tmp_path: Path
) -> None:
    path = tmp_path / "q.onnx"
    full = qdq_from_onnx(demo_onnx, demo_ranges, path)
    assert all(main_inputs(path, demo_onnx).values())
    config = StaticConfig(float_branches=(FIRST, "layer3.1.conv2/add"))
    summary = qdq_from_onnx(demo_onnx, demo_ranges, path, config)
    quantized = main_inputs(path, demo_onnx)
    assert len(quantized) == 9
    assert {name for name, is_so in quantized.items() if not is_so} == set(config.float_branches)
    # The two pairs are gone, and nothing else is.
    mains = main_branches(load_onnx(demo_onnx))
    gone = set(full.activations) - set(summary.activations)
    assert gone == {mains[name] for name in config.float_branches}
    assert summary.quantized_share == 1.0
    read = {tensor for node in onnx.load(str(path)).graph.node for tensor in node.input}
    assert {t.name for t in onnx.load(str(path)).graph.initializer} <= read


def test_floats_in_front_of_the_adds_make_the_file_better(
    demo_onnx: Path, demo_ranges: Any, demo_images: Images, tmp_path: Path
) -> None:
    found = []
    wanted = logits(demo_onnx, demo_images)
    for branches in ((), (FIRST,), ("all",)):
        qdq_from_onnx(
            demo_onnx, demo_ranges, tmp_path / "q.onnx", StaticConfig(float_branches=branches)
        )
        found.append(sqnr_db(wanted, logits(tmp_path / "q.onnx", demo_images)))
        if branches == ("all",):
            assert not any(main_inputs(tmp_path / "q.onnx", demo_onnx).values())
    assert found[1] > found[0] - 0.1
    assert found[2] > found[0] + 0.5


def test_an_unknown_add_is_refused(demo_onnx: Path, demo_ranges: Any, tmp_path: Path) -> None:
    for target in ("ort-cpu", "tensorrt"):
        for name in ("layer1.0.conv2/ad", "layer1.0.conv2"):
            config = StaticConfig(target, float_branches=(name,))
            with pytest.raises(UserError, match=f'"{name}" is no residual Add') as caught:
                qdq_from_onnx(demo_onnx, demo_ranges, tmp_path / "q.onnx", config)
            assert f'Did you mean "{FIRST}"' in caught.value.hint
    assert not any(tmp_path.iterdir())


def test_tensorrt_has_all_of_them_anyway(demo_onnx: Path, demo_ranges: Any, tmp_path: Path) -> None:
    for name, branches in (("a", ()), ("b", (FIRST,)), ("c", ("all",))):
        config = StaticConfig("tensorrt", float_branches=branches)
        qdq_from_onnx(demo_onnx, demo_ranges, tmp_path / name, config)
        assert not any(main_inputs(tmp_path / name, demo_onnx).values())
    first, *others = ((tmp_path / name).read_bytes() for name in "abc")
    assert others == [first, first]


def test_a_branch_that_ends_in_its_own_activation_is_refused(tmp_path: Path) -> None:
    """Conv-Relu-Add: the writer drops the Relu, whose clamp is the quantization of its output."""
    proto = resnet18()
    (add,) = [node for node in proto.graph.node if node.name == "layer1.0.add"]
    relu = onnx.helper.make_node("Relu", [add.input[0]], ["extra"], name="extra")
    add.input[0] = "extra"
    proto.graph.node.insert(list(proto.graph.node).index(add), relu)
    model = saved(proto, tmp_path / "m.onnx")
    images = normal_images(2, 3, 32, 32)
    ranges = SeenRanges(model, images)
    with pytest.raises(UserError, match=r"main branch of \"layer1\.0\.add\" ends in an activation"):
        qdq_from_onnx(
            model, ranges, tmp_path / "q.onnx", StaticConfig(float_branches=("layer1.0.add",))
        )
    qdq_from_onnx(model, ranges, tmp_path / "q.onnx")
    # Asked for all, those that can are taken.
    qdq_from_onnx(model, ranges, tmp_path / "q.onnx", StaticConfig(float_branches=("all",)))
    quantized = main_inputs(tmp_path / "q.onnx", model)
    assert len(quantized) == 8
    assert {name for name, is_so in quantized.items() if is_so} == {"layer1.0.add"}


CONFIGS = [
    StaticConfig(),
    StaticConfig("arm", per_channel=False),
    StaticConfig("tensorrt"),
    StaticConfig("tensorrt", first_conv=False, last_gemm=False),
    StaticConfig(float_branches=("all",)),
    StaticConfig(first_conv=False),
    StaticConfig(last_gemm=False),
]
NAMED = [
    StaticConfig(float_branches=(FIRST,)),
    StaticConfig(exclude=("layer1.0.conv2",)),
    StaticConfig(exclude=("layer1.0.conv2",), float_branches=(FIRST,)),
    StaticConfig(exclude=("layer1.0.conv1", "layer1.0.conv1/relu", "layer1.0.conv2")),
    StaticConfig("tensorrt", exclude=("layer1.0.conv1", "layer1.0.conv2")),
    StaticConfig(exclude=("layer2.0.conv2/add", "layer2.0.conv2/relu")),
]


@pytest.mark.parametrize("config", [*CONFIGS, *NAMED], ids=str)
def test_the_tensors_that_are_quantized_are_known_beforehand(
    demo_onnx: Path, demo_ranges: Any, tmp_path: Path, config: StaticConfig
) -> None:
    found = quantized_tensors(prepared(load_onnx(demo_onnx)), config)
    written = qdq_from_onnx(demo_onnx, demo_ranges, tmp_path / "q.onnx", config).activations
    assert len(found) > 15
    assert set(found) == set(written)
    assert len(found) == len(set(found))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("build", [resnet18, two_convs])
def test_the_same_for_other_graphs(tmp_path: Path, build: Any, config: StaticConfig) -> None:
    if build is two_convs and config.float_branches:
        config = StaticConfig()
    model = saved(build(), tmp_path / "m.onnx")
    size = 32 if build is resnet18 else 8
    ranges = SeenRanges(model, normal_images(2, 3, size, size))
    found = quantized_tensors(prepared(load_onnx(model)), config)
    written = qdq_from_onnx(model, ranges, tmp_path / "q.onnx", config).activations
    assert set(found) == set(written)


def test_they_come_in_graph_order_and_mistakes_are_named(demo_onnx: Path) -> None:
    proto = prepared(load_onnx(demo_onnx))
    before = proto.SerializeToString()
    found = quantized_tensors(proto, StaticConfig())
    assert proto.SerializeToString() == before
    order = ["input", *(tensor for node in proto.graph.node for tensor in node.output)]
    assert list(found) == [tensor for tensor in order if tensor in set(found)]
    with pytest.raises(UserError, match=r"layer1\.0\.conv9"):
        quantized_tensors(proto, StaticConfig(exclude=("layer1.0.conv9",)))


def pair_of(proto: onnx.ModelProto, tensor: str) -> tuple[float, NDArray[Any]]:
    """Return scale and zero-point of the pair that quantizes a tensor."""
    stored = {value.name: numpy_helper.to_array(value) for value in proto.graph.initializer}
    (node,) = (
        n for n in proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == tensor
    )
    return float(stored[node.input[1]]), stored[node.input[2]]


def test_openvino_gets_shortcuts_without_zero_points(tmp_path: Path) -> None:
    model, images = saved(resnet18(), tmp_path / "m.onnx"), normal_images(16, 3, 32, 32)
    path = tmp_path / "q.onnx"
    ranges = SeenRanges(model, images)
    qdq_from_onnx(model, ranges, path, StaticConfig("openvino"))
    proto = onnx.load(str(path))
    projections = [node.output[0] for node in proto.graph.node if node.name.endswith(".down")]
    assert len(projections) == 3
    for tensor in projections:
        low, high = ranges.range_of(tensor, "u8")
        scale, zero = pair_of(proto, tensor)
        assert low < 0 < high
        assert (zero.dtype, zero) == (np.int8, 0)
        assert np.isclose(scale, max(-low / 128, high / 127))
    # The input keeps its zero-point, since a coarser one costs accuracy, and the rest starts at 0.
    for tensor in quantized_tensors(load_onnx(model), StaticConfig("openvino")):
        _, zero = pair_of(proto, tensor)
        if tensor not in projections:
            assert zero.dtype == np.uint8
            assert (zero != 0) == (tensor == proto.graph.input[0].name)


def test_around_zero_ends_where_the_range_does_or_beyond() -> None:
    assert around_zero(-1.0, 2.0) == (-2.0, 2.0)
    low, high = around_zero(-128.0, 1.0)
    assert (low, high) == (-127.0, 127.0)  # its grid has one step more below
    assert around_zero(-0.0, 0.0) == (0.0, 0.0)
    step = 77 / 2**13  # the range that QAT hands back gives its scale again
    assert around_zero(-128 * step, 127 * step) == (-127 * step, 127 * step)
