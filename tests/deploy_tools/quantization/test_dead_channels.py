"""Weight channels of zeros: their biases come out as fine as those of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from correction_samples import SeenRanges, normal_images, two_convs
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_samples import saved

from deploy_tools.quantization.dead_channels import FALLBACK
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx

BIAS = 0.2345678


def with_dead(channels: list[int], bias: float = BIAS) -> onnx.ModelProto:
    """`two_convs`, channels of its second convolution without weights but with a bias."""
    proto = two_convs()
    (node,) = [n for n in proto.graph.node if n.op_type == "Conv" and n.name.startswith("b")]
    for position, value in ((1, 0.0), (2, bias)):
        (tensor,) = [t for t in proto.graph.initializer if t.name == node.input[position]]
        values = numpy_helper.to_array(tensor).copy()
        values[channels] = value
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return proto


def parameters(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the weight scales of the second convolution of a Q/DQ file and its bias."""
    proto = onnx.load(str(path))
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    producers = {tensor: n for n in proto.graph.node for tensor in n.output}
    (node,) = [n for n in proto.graph.node if n.op_type == "Conv" and n.name.startswith("b")]
    pair = producers.get(node.input[2])
    if pair is None:
        return stored[producers[node.input[1]].input[1]], stored[node.input[2]]
    whole, scale, _ = (stored[name] for name in pair.input)
    np.testing.assert_allclose(
        scale, stored[producers[node.input[1]].input[1]] * stored[producers[node.input[0]].input[1]]
    )
    return stored[producers[node.input[1]].input[1]], whole.astype(np.float64) * scale


@pytest.mark.parametrize("target", ["ort-cpu", "arm", "openvino", "tensorrt"])
@pytest.mark.parametrize("channels", [[3], [0, 5, 11], list(range(12))])
def test_the_bias_of_a_dead_channel_is_fine(
    tmp_path: Path, target: str, channels: list[int]
) -> None:
    model = saved(with_dead(channels), tmp_path / "m.onnx")
    qdq_from_onnx(
        model,
        SeenRanges(model, normal_images(8, 3, 8, 8)),
        tmp_path / "q.onnx",
        StaticConfig(target),
    )
    scale, bias = parameters(tmp_path / "q.onnx")
    alive = np.delete(scale, channels)
    assert (scale[channels] == (alive.max() if alive.size else FALLBACK)).all()
    assert bias[channels] == pytest.approx(BIAS, abs=1e-3)


def test_a_bias_that_would_not_fit_has_a_coarser_scale(tmp_path: Path) -> None:
    model = saved(with_dead([3], 1e9), tmp_path / "m.onnx")
    ranges = SeenRanges(model, normal_images(8, 3, 8, 8))
    qdq_from_onnx(model, ranges, tmp_path / "q.onnx", StaticConfig())
    scale, bias = parameters(tmp_path / "q.onnx")
    assert scale[3] > scale[2]
    assert bias[3] == pytest.approx(1e9, rel=1e-6)


def test_a_file_without_dead_channels_is_as_the_writer_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(two_convs(), tmp_path / "m.onnx")
    ranges = SeenRanges(model, normal_images(8, 3, 8, 8))
    qdq_from_onnx(model, ranges, tmp_path / "a", StaticConfig())
    monkeypatch.setattr("deploy_tools.quantization.static.scale_dead_channels", lambda *_: None)
    qdq_from_onnx(model, ranges, tmp_path / "b", StaticConfig())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
