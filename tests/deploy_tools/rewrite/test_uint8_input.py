"""Pixels in the graph compute what normalized floats did, at the borders too, on every target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.collect import CalibrateConfig, ranges_from_images
from calibration.select import SelectConfig, select_images
from deploy_tools.data import open_source
from deploy_tools.data.source import ImageSource, SubsetSource, batches
from deploy_tools.data.spec import METADATA_KEY, InputSpec
from deploy_tools.errors import UnsupportedGraphError, UserError
from deploy_tools.onnx_files import input_spec_of, load_onnx
from deploy_tools.quantization.cast import fp16_from_onnx
from deploy_tools.quantization.dynamic import DynamicConfig, dynamic_from_onnx
from deploy_tools.quantization.static import StaticConfig, activation_tensors, qdq_from_onnx
from deploy_tools.quantization.targets import TARGETS
from deploy_tools.rewrite.forms import FORMS, default_form
from deploy_tools.rewrite.uint8_input import uint8_input_from_onnx, with_uint8_input
from deploy_tools.runtimes import RuntimeConfig, open_session

RGB = InputSpec((32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def rgb_model(path: Path, spec: InputSpec = RGB) -> Path:
    """Write Conv 7x7/2 padded by 3, Relu, Conv, Relu, mean, Gemm with fixed weights."""
    generator = np.random.default_rng(3)
    shapes = {"a.w": (16, 3, 7, 7), "a.b": (16,), "b.w": (24, 16, 3, 3), "b.b": (24,),
              "c.w": (10, 24), "c.b": (10,)}  # fmt: skip
    weights = [
        numpy_helper.from_array(
            (generator.normal(size=s) / np.sqrt(np.prod(s[1:]))).astype("f4"), n
        )
        for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["input", "a.w", "a.b"], ["a"], "a", pads=[3] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["ar"], "ar"),
        helper.make_node("Conv", ["ar", "b.w", "b.b"], ["b"], "b", pads=[1] * 4),
        helper.make_node("Relu", ["b"], ["br"], "br"),
        helper.make_node("GlobalAveragePool", ["br"], ["p"], "p"),
        helper.make_node("Flatten", ["p"], ["f"], "f"),
        helper.make_node("Gemm", ["f", "c.w", "c.b"], ["logits"], "c", transB=1),
    ]
    return written(path, nodes, weights, spec, ["N", 10])


def written(
    path: Path, nodes: list[Any], weights: list[Any], spec: InputSpec, output: list[Any]
) -> Path:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *spec.shape(1)[1:]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, output)],
        weights,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(proto, {METADATA_KEY: spec.to_json()})
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, str(path))
    return path


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> ImageSource:
    """Training images of CIFAR-10."""
    whole = open_source("cifar10", shared_data / "cifar10", "train")
    return SubsetSource(whole, list(range(0, len(whole), len(whole) // 120)), "train")


def logits(model: Path, source: ImageSource, runtime: str = "onnxruntime") -> NDArray[np.float32]:
    """Run every image through a file, made as the file itself says."""
    spec = input_spec_of(load_onnx(model), model)
    session = open_session(model, RuntimeConfig(runtime, 1, "fp32"))
    try:
        return np.concatenate([session.run(x)[0] for x, _ in batches(source, spec, 40)])
    finally:
        session.close()


def quantized(model: Path, source: ImageSource, target: str, folder: Path) -> Path:
    spec, proto = input_spec_of(load_onnx(model), model), load_onnx(model)
    table = ranges_from_images(
        model, activation_tensors(proto), source, select_images(source, SelectConfig(60)), spec,
        CalibrateConfig(method="minmax"),
    )  # fmt: skip
    path = folder / f"int8-{target}.onnx"
    qdq_from_onnx(model, table, path, StaticConfig(target))
    return path


def sqnr_db(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    noise = ((wanted - found).astype(np.float64) ** 2).sum()
    return float(10 * np.log10((wanted.astype(np.float64) ** 2).sum() / noise))


def test_the_file_says_what_it_takes(tmp_path: Path) -> None:
    model = rgb_model(tmp_path / "fp32.onnx")
    for form in FORMS:
        uint8_input_from_onnx(model, tmp_path / "u8.onnx", form)
        proto = load_onnx(tmp_path / "u8.onnx")
        kind = proto.graph.input[0].type.tensor_type
        assert kind.elem_type == TensorProto.UINT8
        dims = [d.dim_param or d.dim_value for d in kind.shape.dim]
        assert dims == ["N", 32, 32, 3]
        assert input_spec_of(proto, model) == RGB.with_pixels()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("form", FORMS)
def test_fp32_is_the_same_within_rounding(
    photos: ImageSource, tmp_path: Path, form: str, runtime: str
) -> None:
    if runtime == "openvino":
        pytest.importorskip("onnxruntime_ep_openvino")
    model = rgb_model(tmp_path / "fp32.onnx")
    uint8_input_from_onnx(model, tmp_path / "u8.onnx", form)
    wanted = logits(model, photos, runtime)
    found = logits(tmp_path / "u8.onnx", photos, runtime)
    assert np.abs(found - wanted).max() < 2e-5 * np.abs(wanted).max()
    assert np.array_equal(found.argmax(1), wanted.argmax(1))


@pytest.mark.parametrize("form", FORMS)
def test_grey_images_of_a_trained_model(
    demo_onnx: Path, fashion_train: ImageSource, tmp_path: Path, form: str
) -> None:
    some = SubsetSource(fashion_train, range(100), "train")
    uint8_input_from_onnx(demo_onnx, tmp_path / "u8.onnx", form)
    wanted, found = logits(demo_onnx, some), logits(tmp_path / "u8.onnx", some)
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert np.array_equal(found.argmax(1), wanted.argmax(1))


@pytest.mark.parametrize("target", TARGETS)
def test_int8_on_every_target(photos: ImageSource, tmp_path: Path, target: str) -> None:
    """The default form runs, and is as near to FP32 as the file with a float input."""
    model = rgb_model(tmp_path / "fp32.onnx")
    plain = quantized(model, photos, target, tmp_path)
    uint8_input_from_onnx(plain, tmp_path / "u8.onnx", default_form(target, plain))
    uint8_input_from_onnx(plain, tmp_path / "first.onnx", "first")
    wanted, before = logits(model, photos), logits(plain, photos)
    assert sqnr_db(before, logits(tmp_path / "first.onnx", photos)) > 50
    assert sqnr_db(wanted, logits(tmp_path / "u8.onnx", photos)) > sqnr_db(wanted, before) - 1


@pytest.mark.parametrize("target", ["ort-cpu", "openvino", "x86-no-vnni"])
def test_folded_int8_reads_the_pixels_themselves(
    photos: ImageSource, tmp_path: Path, target: str
) -> None:
    plain = quantized(rgb_model(tmp_path / "fp32.onnx"), photos, target, tmp_path)
    uint8_input_from_onnx(plain, tmp_path / "u8.onnx", "folded")
    proto = load_onnx(tmp_path / "u8.onnx")
    made_before_conv = [node.op_type for node in proto.graph.node][:2]
    assert made_before_conv == ["Pad", "Transpose"]
    (weight,) = [t for t in proto.graph.initializer if t.name == "pixels.weight_quantized"]
    most = np.abs(numpy_helper.to_array(weight).astype(int)).max()
    assert most <= (64 if target == "x86-no-vnni" else 127)
    wanted = logits(tmp_path / "fp32.onnx", photos)
    assert sqnr_db(wanted, logits(tmp_path / "u8.onnx", photos)) > 25


def test_quantized_borders_are_exact(tmp_path: Path) -> None:
    """Where every integer comes out even, the folded layer has no error anywhere but its bias's.

    Means 120, 116 and 112 and one std: d is 4, 0 and -4, g is 8 and the added weights are
    (w2 - w0) / 2, whole numbers for even weights.
    """
    spec = InputSpec((9, 9), (120 / 255, 116 / 255, 112 / 255), (0.25,) * 3)
    generator = np.random.default_rng(0)
    integers = (2 * generator.integers(-60, 61, (4, 3, 3, 3))).astype(np.int8)
    scale = np.array([0.01, 0.02, 0.005, 0.01], np.float32)
    stored = {
        "s": np.float32(0.02), "z": np.uint8(128), "w.q": integers, "w.s": scale,
        "w.z": np.zeros(4, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x"], "x"),
        helper.make_node("DequantizeLinear", ["w.q", "w.s", "w.z"], ["w"], "w", axis=0),
        helper.make_node("Conv", ["x", "w"], ["logits"], "conv", pads=[1] * 4),
    ]
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in stored.items()]
    model = written(tmp_path / "q.onnx", nodes, constants, spec, ["N", 4, 9, 9])
    uint8_input_from_onnx(model, tmp_path / "u8.onnx", "folded")
    pixels = generator.integers(0, 256, (2, 9, 9, 3), dtype=np.uint8)
    session = open_session(tmp_path / "u8.onnx", RuntimeConfig(threads=1, fusions=False))
    (found,) = session.run(pixels)
    inputs = (pixels / 255 - np.array(spec.mean)) / 0.25
    padded = np.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    weights = integers * scale.astype(np.float64).reshape(-1, 1, 1, 1)
    wanted = np.einsum("nhwcij,ocij->nohw", windows, weights)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_the_given_model_is_left_alone(tmp_path: Path) -> None:
    model = load_onnx(rgb_model(tmp_path / "fp32.onnx"))
    before = model.SerializeToString()
    with_uint8_input(model, RGB, "folded")
    with_uint8_input(model, RGB, "first")
    assert model.SerializeToString() == before


def test_fp16_and_dynamic_files_take_pixels_first(photos: ImageSource, tmp_path: Path) -> None:
    model = rgb_model(tmp_path / "fp32.onnx")
    fp16_from_onnx(model, tmp_path / "fp16.onnx")
    dynamic_from_onnx(model, tmp_path / "dynamic.onnx", DynamicConfig(include_conv=True))
    for name, target in (("fp16", "tensorrt"), ("dynamic", "ort-cpu")):
        path, made = tmp_path / f"{name}.onnx", tmp_path / f"{name}-u8.onnx"
        assert default_form(target, path) == "first"
        uint8_input_from_onnx(path, made, "first")
        assert sqnr_db(logits(path, photos), logits(made, photos)) > 50


def test_what_cannot_be_folded_is_refused(photos: ImageSource, tmp_path: Path) -> None:
    model = rgb_model(tmp_path / "fp32.onnx")
    for target in ("tensorrt", "arm"):
        plain = quantized(model, photos, target, tmp_path)
        assert default_form(target, plain) == "first"
        with pytest.raises(UnsupportedGraphError, match="another type than uint8") as caught:
            uint8_input_from_onnx(plain, tmp_path / "u8.onnx", "folded")
        assert '"first"' in caught.value.hint
    plain = quantized(model, photos, "ort-cpu", tmp_path)
    apart = InputSpec((32, 32), (0.0, 0.5, 1.0), (0.2,) * 3)
    with pytest.raises(UnsupportedGraphError, match="too far apart"):
        with_uint8_input(load_onnx(plain), apart, "folded")
    with pytest.raises(UserError, match='the form "fist" is not known') as unknown:
        uint8_input_from_onnx(model, tmp_path / "u8.onnx", "fist")
    assert "first" in unknown.value.hint
    assert not (tmp_path / "u8.onnx").exists()


def test_other_passes_refuse_a_file_that_takes_pixels(tmp_path: Path) -> None:
    model = rgb_model(tmp_path / "fp32.onnx")
    made = tmp_path / "u8.onnx"
    uint8_input_from_onnx(model, made, "first")
    for work in (
        lambda: uint8_input_from_onnx(made, tmp_path / "x.onnx", "first"),
        lambda: fp16_from_onnx(made, tmp_path / "x.onnx"),
        lambda: dynamic_from_onnx(made, tmp_path / "x.onnx"),
        lambda: qdq_from_onnx(made, {}, tmp_path / "x.onnx"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match="takes uint8 pixels") as caught:
            work()
        assert "float file" in caught.value.hint
    with pytest.raises(UserError, match="cannot run float32 inputs"):
        open_session(made).run(np.zeros((1, 3, 32, 32), np.float32))
