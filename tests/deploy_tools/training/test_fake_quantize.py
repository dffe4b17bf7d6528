"""Fake-quantize: the file's arithmetic forward, LSQ's gradients, and the writer's own grids."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_samples import saved, two_gemms, weight
from torch import Tensor

from deploy_tools.errors import UserError
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.static import Ranges, StaticConfig, qdq_from_onnx
from deploy_tools.quantization.targets import target_named
from deploy_tools.runtimes import RuntimeConfig, open_session
from deploy_tools.training.fake_quantize import (
    ActivationQuantizer,
    bias_on_grid,
    exact,
    grid_scale,
)
from deploy_tools.training.fake_quantize_module import FakeQuantizedModule, Grid
from deploy_tools.training.onnx_module import OnnxModule, logits_of, with_weights

SIMULATED = RuntimeConfig(fusions=False, threads=1)
TARGETS = ("ort-cpu", "openvino", "arm", "x86-no-vnni", "tensorrt")


def pair(scale: float, zero: np.generic) -> onnx.ModelProto:
    """QuantizeLinear and DequantizeLinear of a vector."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(scale, np.float32), "s"),
        numpy_helper.from_array(np.array(zero), "z"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    return helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:], constants),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


@pytest.mark.parametrize("zero", [np.uint8(0), np.uint8(100), np.int8(0), np.int8(-128)])
def test_the_forward_pass_is_that_of_the_file(zero: np.generic) -> None:
    scale = 0.37
    low, high = np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max
    # Every half step is a tie: rounding to even decides.
    steps = np.arange(2 * low - 600, 2 * high + 600) / 2
    x = np.concatenate([steps * scale, steps * scale + 0.01]).astype(np.float32)
    expected = open_session(pair(scale, zero).SerializeToString(), SIMULATED).run(x)[0]
    quantizer = ActivationQuantizer(scale, int(zero), int(low), int(high), learnable=False)
    assert np.array_equal(quantizer(torch.from_numpy(x)).numpy(), expected)


def test_the_gradients_are_those_of_lsq() -> None:
    quantizer = ActivationQuantizer(0.5, 0, 0, 255, learnable=True)
    # In steps: below, inside, inside on a multiple, above.
    x = torch.tensor([[-1.0, 0.6, 1.0, 200.0]], requires_grad=True)
    (quantizer(x) * torch.tensor([[3.0, 5.0, 7.0, 11.0]])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 5.0, 7.0, 0.0]]
    # LSQ, equation 3: round(1.2) - 1.2 inside, the ends 0 and 255 outside; divided by
    # sqrt(features * 255); times the scale, since the Parameter is its logarithm.
    slope = 3.0 * 0 + 5.0 * (1 - 1.2) + 7.0 * 0 + 11.0 * 255
    assert quantizer.log_change is not None
    assert quantizer.log_change.grad is not None
    found = quantizer.log_change.grad.item()
    assert found == pytest.approx(0.5 * slope / math.sqrt(4 * 255), rel=1e-5)


def test_a_frozen_range_has_no_parameter_and_passes_gradients() -> None:
    quantizer = ActivationQuantizer(0.5, 3, 0, 255, learnable=False)
    assert not list(quantizer.parameters())
    x = torch.tensor([[-3.0, 1.1]], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 1.0]]


def test_exact_scales_times_whole_numbers_are_exact() -> None:
    scales = torch.exp(torch.linspace(-80, 80, 4001))
    rounded = exact(scales)
    assert ((rounded - scales).abs() / scales).max() < 2.0**-16
    assert torch.equal(exact(rounded), rounded)
    whole = torch.arange(256)
    products = rounded[:, None] * whole
    assert torch.equal(products.double(), rounded.double()[:, None] * whole)
    scale = torch.tensor(0.3, requires_grad=True)
    exact(scale).backward()
    assert scale.grad is not None
    assert scale.grad.item() == 1.0


def test_dead_channels_have_the_scale_of_the_others_and_no_nan() -> None:
    values = torch.tensor([[0.0, 0.0], [0.5, -1.27], [1e-44, 0.0]])
    assert grid_scale(values, 0, 127).tolist() == pytest.approx([0.01, 0.01, 0.01], rel=2e-5)
    assert grid_scale(torch.zeros(2, 2), 0, 127).tolist() == [2**-10, 2**-10]
    assert grid_scale(torch.zeros(2, 2), None, 127).item() == 1.0


def test_biases_are_rounded_beyond_what_float32_can_count() -> None:
    bias, scale = torch.tensor([0.1, -3.0]), torch.tensor([1e-9, 1e-30])
    found = bias_on_grid(bias, scale)
    # 1e8 is near a multiple of 8, the spacing of float32 there; the second is clamped to int32.
    assert found[0].item() == pytest.approx(0.1, rel=1e-7)
    assert found[1].item() == pytest.approx(-(2.0**31) * 1e-30, rel=1e-6)


@pytest.mark.parametrize("bits", [1, 9])
def test_impossible_numbers_of_bits_are_refused(bits: int) -> None:
    with pytest.raises(UserError, match="2 to 8 bits"):
        Grid(bits=bits)


def module_of(
    model: Path, ranges: Ranges, path: Path, config: StaticConfig, bits: int = 8
) -> FakeQuantizedModule:
    qdq_from_onnx(model, ranges, path, config)
    levels = 64 if target_named(config.target).reduce_range else 127
    return FakeQuantizedModule(onnx.load(str(path)), load_onnx(model), Grid(levels, bits))


class Learnt:
    """The ranges of a module, and where it has none those that it started from."""

    def __init__(self, module: FakeQuantizedModule, others: Ranges) -> None:
        self.module, self.others = module, others

    def range_of(self, tensor: str, grid: str) -> tuple[float, float]:
        if tensor in self.module.quantized_tensors:
            return self.module.quantizer(tensor).range(grid == "s8")
        return self.others.range_of(tensor, grid)


def move(module: FakeQuantizedModule) -> None:
    """Change every weight, bias and scale, as training does."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in module.weight_names:
            value = module.weight(name)
            value.mul_(1 + 0.05 * torch.randn(value.shape, generator=generator))
        for scale in module.quantizers.parameters():
            scale.add_(0.05 * torch.randn((), generator=generator))


def written(module: FakeQuantizedModule, model: Path, ranges: Ranges, config: StaticConfig) -> Path:
    """Give weights and ranges to the writer; return its file."""
    floats, path = model.with_name("trained.onnx"), model.with_name("trained.q.onnx")
    onnx.save(with_weights(load_onnx(model), module.written_weights()), str(floats))
    qdq_from_onnx(floats, Learnt(module, ranges), path, config)
    return path


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("target", TARGETS)
def test_the_writers_file_computes_what_was_trained_to_the_last_bit(
    target: str,
    per_channel: bool,
    demo_onnx: Path,
    fashion_images: Callable[[int, int], Tensor],
    seen_ranges: Any,
    tmp_path: Path,
) -> None:
    model = saved(load_onnx(demo_onnx), tmp_path / "fp32.onnx")
    config = StaticConfig(target, per_channel)
    ranges = seen_ranges(model, fashion_images(0, 30))
    module = module_of(model, ranges, tmp_path / "q.onnx", config)
    move(module)
    images = fashion_images(100, 140)
    trained = logits_of(module, images)
    file = OnnxModule(onnx.load(str(written(module, model, ranges, config))))
    assert torch.equal(trained, logits_of(file, images))


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_onnxruntime_predicts_what_the_torch_module_predicts(
    target: str,
    demo_onnx: Path,
    fashion_images: Callable[[int, int], Tensor],
    seen_ranges: Any,
    tmp_path: Path,
) -> None:
    """Logits differ where the order of float sums moves a value over the edge between two steps
    (test_onnx_module.py shows that nothing else does): in no prediction here."""
    model = saved(load_onnx(demo_onnx), tmp_path / "fp32.onnx")
    config = StaticConfig(target)
    ranges = seen_ranges(model, fashion_images(0, 30))
    module = module_of(model, ranges, tmp_path / "q.onnx", config)
    move(module)
    images = fashion_images(200, 500)
    found = logits_of(module, images).numpy()
    path = written(module, model, ranges, config)
    expected = open_session(path, SIMULATED).run(images.numpy())[0]
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    same = (np.abs(found - expected) < 1e-3).all(1)
    assert same.mean() > 0.25
    assert np.square(found - expected).sum() < 1e-3 * np.square(expected).sum()


def pooled() -> onnx.ModelProto:
    """Conv, Relu, MaxPool, residual block, mean, Gemm: (N, 1, 4, 4) -> (N, 5)."""
    proto = two_gemms()
    nodes = [
        helper.make_node("Conv", ["input", "c.weight", "c.bias"], ["c"], name="c", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["c/relu"], name="c/relu"),
        helper.make_node("MaxPool", ["c/relu"], ["p"], name="p", kernel_shape=[2, 2]),
        helper.make_node("Conv", ["p", "d.weight"], ["d"], name="d", pads=[1] * 4),
        helper.make_node("Add", ["d", "p"], ["d/add"], name="d/add"),
        helper.make_node("Relu", ["d/add"], ["d/relu"], name="d/relu"),
        helper.make_node("GlobalAveragePool", ["d/relu"], ["m"], name="m"),
        helper.make_node("Flatten", ["m"], ["f"], name="f"),
        helper.make_node("Gemm", ["f", "g.weight", "g.bias"], ["logits"], name="g", transB=1),
    ]
    kept = [t for t in proto.graph.initializer if t.name.startswith("c.")]
    kept += [weight("d.weight", 3, 3, 3, 3), weight("g.weight", 5, 3), weight("g.bias", 5)]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(kept)
    return proto


@pytest.mark.parametrize("target", TARGETS)
def test_a_max_pool_keeps_the_grid_of_its_input(
    target: str, seen_ranges: Any, tmp_path: Path
) -> None:
    model = saved(pooled(), tmp_path / "fp32.onnx")
    images = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    ranges = seen_ranges(model, images)
    module = module_of(model, ranges, tmp_path / "q.onnx", StaticConfig(target))
    move(module)
    assert module.quantizer("p") is module.quantizer("c/relu")
    trained = logits_of(module, images)
    file = OnnxModule(onnx.load(str(written(module, model, ranges, StaticConfig(target)))))
    assert torch.equal(trained, logits_of(file, images))


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt"])
def test_dead_layers_and_raised_scales_agree_with_the_writer(
    target: str, seen_ranges: Any, tmp_path: Path
) -> None:
    """A channel without weights, one whose bias would leave int32, and one that never fires."""
    proto = pooled()
    changed = {}
    for name, channel in (("c.weight", 0), ("d.weight", 1)):
        stored = next(t for t in proto.graph.initializer if t.name == name)
        value = torch.from_numpy(numpy_helper.to_array(stored).copy())
        value[channel] = 0
        changed[name] = value
    changed["c.weight"][1] *= 1e-9
    changed["c.bias"] = torch.tensor([0.7, 0.9, -100.0])
    model = saved(with_weights(proto, changed), tmp_path / "fp32.onnx")
    images = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    ranges, config = seen_ranges(model, images), StaticConfig(target)
    module = module_of(model, ranges, tmp_path / "q.onnx", config)
    logits = module(images)
    logits.square().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in module.parameters())
    file = OnnxModule(onnx.load(str(written(module, model, ranges, config))))
    assert torch.equal(logits.detach(), logits_of(file, images))
    biases = [m.values(images, ("c.bias",))["c.bias"] for m in (module, file)]
    assert torch.equal(*biases)
    if target == "ort-cpu":
        plain = onnx.load(str(tmp_path / "q.onnx"))
        scales = {t.name: numpy_helper.to_array(t) for t in plain.graph.initializer}
        tiny = float(changed["c.weight"][1].abs().max()) / 127
        assert scales["c.weight_scale"][1] > 2 * tiny, "the writer raised nothing here"


def test_a_model_that_is_zero_everywhere_stays_finite(seen_ranges: Any, tmp_path: Path) -> None:
    proto = pooled()
    zeros = {t.name: torch.zeros(tuple(t.dims)) for t in proto.graph.initializer}
    model = saved(with_weights(proto, zeros), tmp_path / "fp32.onnx")
    images = torch.zeros(3, 1, 4, 4)
    ranges = seen_ranges(model, images)
    module = module_of(model, ranges, tmp_path / "q.onnx", StaticConfig())
    logits = module(images)
    logits.sum().backward()
    assert logits.abs().max() == 0
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in module.parameters())


def test_four_bit_weights_have_at_most_fifteen_values(
    demo_onnx: Path,
    fashion_images: Callable[[int, int], Tensor],
    seen_ranges: Any,
    tmp_path: Path,
) -> None:
    model = saved(load_onnx(demo_onnx), tmp_path / "fp32.onnx")
    config = StaticConfig("ort-cpu", per_channel=False)
    ranges = seen_ranges(model, fashion_images(0, 10))
    module = module_of(model, ranges, tmp_path / "q.onnx", config, bits=4)
    images = fashion_images(50, 60)
    path = written(module, model, ranges, config)
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    weights = [v for k, v in stored.items() if k.endswith("weight_quantized")]
    assert len(weights) == 22
    for value in weights:
        assert 8 < len(np.unique(value)) <= 15
        assert np.abs(value.astype(int)).max() == 127
    assert torch.equal(
        logits_of(module, images), logits_of(OnnxModule(onnx.load(str(path))), images)
    )


def test_a_file_made_of_other_weights_is_refused(seen_ranges: Any, tmp_path: Path) -> None:
    model = saved(pooled(), tmp_path / "fp32.onnx")
    ranges = seen_ranges(model, torch.ones(1, 1, 4, 4))
    qdq_from_onnx(model, ranges, tmp_path / "q.onnx", StaticConfig())
    with pytest.raises(UserError, match=r'no initializer "d\.weight"'):
        FakeQuantizedModule(onnx.load(str(tmp_path / "q.onnx")), two_gemms())
