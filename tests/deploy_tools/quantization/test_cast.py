"""FP16: types, values, scales that FP16 cannot hold, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_samples import saved, two_gemms

from deploy_tools.cli.main import main
from deploy_tools.errors import UserError
from deploy_tools.quantization.cast import fp16_from_onnx
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx
from deploy_tools.runtimes import RuntimeConfig, open_session


def tensors(path: Path) -> dict[str, NDArray[Any]]:
    proto = onnx.load(str(path))
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def sqnr_db(model: Path, other: Path, images: NDArray[np.float32]) -> float:
    plain = RuntimeConfig(fusions=False)
    expected, found = (open_session(path, plain).run(images)[0] for path in (model, other))
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()))


@pytest.fixture
def int8(demo_onnx: Path, demo_ranges: Any, tmp_path: Path) -> Path:
    path = tmp_path / "int8.onnx"
    qdq_from_onnx(demo_onnx, demo_ranges, path, StaticConfig("tensorrt"))
    return path


def test_fp32(demo_onnx: Path, demo_images: NDArray[np.float32], tmp_path: Path) -> None:
    path = tmp_path / "fp16.onnx"
    report = fp16_from_onnx(demo_onnx, path)
    proto, before = onnx.load(str(path)), tensors(demo_onnx)
    for name, array in tensors(path).items():
        if before[name].dtype == np.float32:
            assert array.dtype == np.float16
            np.testing.assert_array_equal(array, before[name].astype(np.float16))
    for value in (*proto.graph.input, *proto.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    casts = [node.name for node in proto.graph.node if node.op_type == "Cast"]
    assert casts == ["input/cast", "logits/cast"]
    metadata = {prop.key: prop.value for prop in proto.metadata_props}
    assert metadata["deploy_tools.precision"] == "fp16"
    assert "deploy_tools.input_spec" in metadata
    assert report.precision == "fp16"
    assert report.lost == 0
    assert report.largest == max(
        np.abs(a).max() for a in before.values() if a.dtype == np.float32 and a.size
    )
    assert 55 < sqnr_db(demo_onnx, path, demo_images) < 90  # FP16 was really used


def test_int8_stays_int8(
    int8: Path, demo_onnx: Path, demo_images: NDArray[np.float32], tmp_path: Path
) -> None:
    path = tmp_path / "cast.onnx"
    assert fp16_from_onnx(int8, path).precision == "int8"
    before, after = tensors(int8), tensors(path)
    for name, array in after.items():
        if array.dtype == np.int8:
            np.testing.assert_array_equal(array, before[name])
        elif before[name].dtype == np.float32:
            assert array.dtype == np.float16
    loss = sqnr_db(demo_onnx, int8, demo_images) - sqnr_db(demo_onnx, path, demo_images)
    assert abs(loss) < 1
    metadata = {p.key: p.value for p in onnx.load(str(path)).metadata_props}
    assert (metadata["deploy_tools.precision"], metadata["deploy_tools.rest"]) == ("int8", "fp16")


@pytest.mark.parametrize("scale", [2.0**-14, 6.0e-5, 3.1e-6, 1.01e-7, 1e-9])
def test_weights_follow_a_scale_that_fp16_cannot_hold(
    int8: Path, tmp_path: Path, scale: float
) -> None:
    proto = onnx.load(str(int8))
    named = {t.name: t for t in proto.graph.initializer}
    weight, scales = named["layer1.0.conv1.weight_quantized"], named["layer1.0.conv1.weight_scale"]
    changed = numpy_helper.to_array(scales).copy()
    changed[3] = scale
    scales.CopyFrom(numpy_helper.from_array(changed, scales.name))
    integers = numpy_helper.to_array(weight)
    onnx.save(proto, str(tmp_path / "small.onnx"))
    fp16_from_onnx(tmp_path / "small.onnx", tmp_path / "cast.onnx")
    after = tensors(tmp_path / "cast.onnx")
    new = after[scales.name].astype(np.float64)
    assert (new > 0).all()
    wanted = integers.astype(np.float64) * changed.astype(np.float64).reshape(-1, 1, 1, 1)
    found = after[weight.name] * new.reshape(-1, 1, 1, 1)
    # Half a step of the new grid at the most, plus the rounding of scales that FP16 does hold.
    limit = 0.5 * new.reshape(-1, 1, 1, 1) + np.abs(wanted) * 2.0**-11
    assert (np.abs(found - wanted) <= limit * 1.0001).all()
    others = [c for c in range(16) if c != 3]
    np.testing.assert_array_equal(after[weight.name][others], integers[others])


def test_numbers_too_small_are_counted_and_zero(tmp_path: Path) -> None:
    proto = two_gemms()
    (weight,) = [t for t in proto.graph.initializer if t.name == "c.weight"]
    array = numpy_helper.to_array(weight).copy()
    array.reshape(-1)[:3] = (1e-9, -2e-9, 2.0**-24)
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    model = saved(proto, tmp_path / "m.onnx")
    report = fp16_from_onnx(model, tmp_path / "h.onnx")
    assert report.lost == 2
    assert report.smallest == pytest.approx(1e-9)
    np.testing.assert_array_equal(
        tensors(tmp_path / "h.onnx")["c.weight"].reshape(-1)[:3], np.float16([0, 0, 2.0**-24])
    )


@pytest.mark.parametrize("bad", [70000.0, float("inf"), float("nan")])
def test_numbers_too_large_are_refused_by_name(tmp_path: Path, bad: float) -> None:
    proto = two_gemms()
    (weight,) = [t for t in proto.graph.initializer if t.name == "c.weight"]
    array = numpy_helper.to_array(weight).copy()
    array.reshape(-1)[0] = bad
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    model = saved(proto, tmp_path / "m.onnx")
    with pytest.raises(UserError, match=r'"c.weight" .* beyond FP16'):
        fp16_from_onnx(model, tmp_path / "h.onnx")
    assert not (tmp_path / "h.onnx").exists()


def test_what_has_no_fp16_form_is_refused(
    demo_onnx: Path, int8: Path, demo_ranges: Any, tmp_path: Path
) -> None:
    cpu, twice = tmp_path / "cpu.onnx", tmp_path / "fp16.onnx"
    qdq_from_onnx(demo_onnx, demo_ranges, cpu, StaticConfig("ort-cpu"))
    with pytest.raises(UserError, match=r"quantized for a CPU.*INT32.*--target tensorrt"):
        fp16_from_onnx(cpu, tmp_path / "h.onnx")
    fp16_from_onnx(demo_onnx, twice)
    with pytest.raises(UserError, match="FP16 already"):
        fp16_from_onnx(twice, tmp_path / "h.onnx")
    fixed = saved(two_gemms(batch=3), tmp_path / "fixed.onnx")
    with pytest.raises(UserError, match="takes only batches of 3"):
        fp16_from_onnx(fixed, tmp_path / "h.onnx")
    old = onnx.load(str(int8))
    old.opset_import[0].version = 18
    onnx.save(old, str(tmp_path / "old.onnx"))
    with pytest.raises(UserError, match="opset 18"):
        fp16_from_onnx(tmp_path / "old.onnx", tmp_path / "h.onnx")
    integer = two_gemms()
    integer.graph.node.insert(
        0, helper.make_node("DynamicQuantizeLinear", ["input"], ["a8", "s", "z"], name="dyn")
    )
    with pytest.raises(UserError, match=r'DynamicQuantizeLinear \(node "dyn"\)'):
        fp16_from_onnx(saved(integer, tmp_path / "int.onnx"), tmp_path / "h.onnx")


def test_the_same_input_gives_the_same_bytes(demo_onnx: Path, tmp_path: Path) -> None:
    for name in "ab":
        fp16_from_onnx(demo_onnx, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_command(demo_onnx: Path, int8: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["cast", "fp16", str(demo_onnx), "-o", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file"] == str(tmp_path / "fp16.onnx")
    assert found["precision"] == "fp16"
    assert main(["cast", "fp16", str(int8), "-o", str(tmp_path)]) == 0
    assert "int8-fp16.onnx" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert set(manifest["artifacts"]) == {"fp16.onnx", "int8-fp16.onnx"}
    assert main(["cast", "fp16", str(tmp_path / "none.onnx"), "-o", str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err
