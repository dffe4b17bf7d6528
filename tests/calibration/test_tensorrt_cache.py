"""Range tables as TensorRT calibration caches, held against caches that NVIDIA published."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from calibration.identity import RangeIdentity, StatisticsIdentity
from calibration.table import RangeTable, TensorRange
from calibration.tensorrt_cache import (
    cache_header,
    read_tensorrt_cache,
    require_cache_name,
    scales_of,
    write_tensorrt_cache,
)
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError

SPEC = InputSpec(size=(8, 8), mean=(0.4,), std=(0.2,))
# NVIDIA/TensorRT, samples/sampleINT8/README.md, "Calibration file": a LeNet on MNIST.
LENET = """TRT-7000-EntropyCalibration2
data: 3c008912
conv1: 3c88edfc
pool1: 3c88edfc
conv2: 3ddc858b
pool2: 3ddc858b
ip1: 3db6bd6e
ip2: 3e691968
prob: 3c010a14
"""


def table_of(ranges: Mapping[str, float]) -> RangeTable:
    """A table of symmetric ranges, by amax."""
    tensors = {
        name: TensorRange(
            low=0.0,
            high=high,
            count=1,
            zero_share=0.0,
            ranges={"u8": (0.0, 3.0 * high), "s8": (-high, high)},
            clipped={"u8": 0.0, "s8": 0.0},
        )
        for name, high in ranges.items()
    }
    statistics = StatisticsIdentity.of("m" * 64, "d" * 64, SPEC, list(ranges))
    identity = RangeIdentity(statistics, "minmax", {})
    return RangeTable(identity, 1, SPEC.to_json(), "0.1", tensors)


def graph(
    *nodes: tuple[str, list[str], list[str]], outputs: str = "logits", opset: int = 17
) -> onnx.ModelProto:
    """A graph of nodes (operator, inputs, outputs); only its shape matters here."""
    made = [helper.make_node(kind, given, made) for kind, given, made in nodes]
    data = [helper.make_tensor_value_info("data", TensorProto.FLOAT, None)]
    ends = [helper.make_tensor_value_info(outputs, TensorProto.FLOAT, None)]
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(helper.make_graph(made, "g", data, ends), opset_imports=opsets)


RESIDUAL = graph(
    ("Conv", ["data", "w1"], ["conv1"]),
    ("Relu", ["conv1"], ["relu1"]),
    ("MaxPool", ["relu1"], ["pool"]),
    ("Conv", ["pool", "w2"], ["conv2"]),
    ("Add", ["conv2", "pool"], ["add"]),
    ("Clip", ["add"], ["clip"]),
    ("Gemm", ["clip", "w3"], ["logits"]),
)
RANGES = {"data": 1.0, "relu1": 2.0, "pool": 1.9, "conv2": 3.0, "clip": 6.0}


def written(path: Path, ranges: Mapping[str, float], version: str = "10.3.0") -> list[str]:
    write_tensorrt_cache(table_of(ranges), RESIDUAL, path, version)
    return path.read_text("utf-8").split("\n")


@pytest.mark.parametrize(
    ("version", "digits"),
    [
        ("5.1.0", "5100"),  # sampleINT8/README.md of release 5.1
        ("7.0.0", "7000"),  # ... of release 7.0
        ("8.0.1", "8001"),  # NVIDIA's facenet of 2021 (int8_calibration.txt)
        ("8.6.0", "8600"),  # NVIDIA-AI-IOT/cuDLA-samples, data/model/qat2ptq.cache
        ("8.5.10", "8510"),
        ("10.3.0", "100300"),  # DeepStream 9's resnet18_trafficcamnet (cal_trt.bin)
        ("10.14.1", "101401"),
    ],
)
def test_headers_of_published_caches(version: str, digits: str, tmp_path: Path) -> None:
    assert cache_header(version) == f"TRT-{digits}-EntropyCalibration2"
    path = tmp_path / "x.cache"
    path.write_text(f"TRT-{digits}-EntropyCalibration2\ninput_1:0: 3c010a14\n")
    assert read_tensorrt_cache(path)[0] == version


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("11.0.0", "removed with TensorRT 11"),
        ("11.4.1", "removed with TensorRT 11"),
        ("4.0.1", "no TensorRT 4.0.1"),
        ("8.10.0", "no TensorRT 8.10.0"),
        ("10.3", "major.minor.patch"),
        ("10.3.0.30.1", "major.minor.patch"),
        ("10.3.0.", "major.minor.patch"),
        ("v10.3.0", "major.minor.patch"),
        ("10.03.0", "major.minor.patch"),
        ("10.3.100", "major.minor.patch"),
        ("", "major.minor.patch"),
        ("10.3.٣", "major.minor.patch"),
    ],
)
def test_versions_that_read_no_such_cache(version: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        cache_header(version)


def test_the_version_as_tensorrt_prints_it() -> None:
    assert cache_header("8.5.2.2") == cache_header("8.5.2")
    assert cache_header("10.3.0.30") == "TRT-100300-EntropyCalibration2"


def test_a_version_that_misreads_the_file_is_refused(tmp_path: Path) -> None:
    """NVIDIA/TensorRT issue 3467: axes that are an input, from opset 18 on, are dropped."""
    newer, older = graph(opset=18), graph(opset=17)
    table = table_of({"x": 1.0})
    for version in ("7.0.0", "8.6.1", "8.5.2.2"):
        with pytest.raises(UserError, match=r"opset 18: .*issue 3467") as caught:
            write_tensorrt_cache(table, newer, tmp_path / "x", version)
        assert "TensorRT 10" in caught.value.hint
        assert "opset 17" in caught.value.hint
        assert not (tmp_path / "x").exists()
        write_tensorrt_cache(table, older, tmp_path / version, version)
    write_tensorrt_cache(table, newer, tmp_path / "x", "10.0.1")
    newer.opset_import.append(helper.make_opsetid("other.domain", 30))
    del newer.opset_import[0]
    write_tensorrt_cache(table, newer, tmp_path / "y", "8.6.1")


def test_the_refusal_of_version_11_says_the_way_out() -> None:
    with pytest.raises(UserError, match="quantize static --target tensorrt"):
        cache_header("11.0.0")


def test_a_cache_of_tensorrt_is_read(tmp_path: Path) -> None:
    """The README's softmax `prob` has a largest value of 1, and its scale is that over 127.

    TensorRT's histogram ends 1/4096 above the largest value; amax over 127 is 3c010a14 bit for
    bit, while the scale itself, read as amax or with its bytes turned, would be far from it.
    """
    path = tmp_path / "CalibrationTable"
    path.write_text(LENET)
    version, scales = read_tensorrt_cache(path)
    assert version == "7.0.0"
    assert list(scales) == ["data", "conv1", "pool1", "conv2", "pool2", "ip1", "ip2", "prob"]
    assert scales["prob"] * 127 == pytest.approx(1 + 1 / 4096, rel=1e-7)
    # What we would write for it.
    line = write_tensorrt_cache(
        table_of({"prob": 1 + 1 / 4096}), graph(), tmp_path / "ours", "7.0.0"
    )
    assert line == {"prob": scales["prob"]}
    first, second, end = (tmp_path / "ours").read_text().split("\n")
    assert [first, second, end] == [LENET.split("\n")[0], "prob: 3c010a14", ""]


def test_a_range_of_1_as_nvidias_translator_writes_it(tmp_path: Path) -> None:
    """cuDLA-samples, export/qdq_translator: an input in [0, 1] has scale 1/127, "3c010204"."""
    assert "data: 3c010204" in written(tmp_path / "x", RANGES)


def test_the_s8_grid_gives_the_scale(tmp_path: Path) -> None:
    assert scales_of(table_of({"x": 254.0}), graph()) == {"x": 2.0}


def test_what_lies_in_a_cache(tmp_path: Path) -> None:
    """Inner tensors and pools share their neighbour's scale; the output is left out."""
    lines = written(tmp_path / "sub" / "tensorrt.cache", RANGES)
    names = [line.rpartition(": ")[0] for line in lines[1:-1]]
    assert names == ["add", "clip", "conv1", "conv2", "data", "pool", "relu1"]
    scales = read_tensorrt_cache(tmp_path / "sub" / "tensorrt.cache")[1]
    assert scales["conv1"] == scales["relu1"] == scales["pool"]
    assert scales["add"] == scales["clip"]
    assert scales["conv2"] * 127 == pytest.approx(3.0)


def test_an_inner_tensor_of_two_activations_takes_the_first_ones_range() -> None:
    two = graph(
        ("Conv", ["data", "w"], ["conv"]),
        ("Clip", ["conv"], ["clip"]),
        ("Relu", ["conv"], ["relu"]),
        ("Add", ["clip", "relu"], ["logits"]),
    )
    scales = scales_of(table_of({"data": 1.0, "clip": 127.0, "relu": 254.0}), two)
    assert (scales["conv"], scales["clip"], scales["relu"]) == (1.0, 1.0, 2.0)


def test_a_tensor_of_the_table_keeps_its_own_range() -> None:
    shared = graph(
        ("Conv", ["data", "w"], ["conv"]),
        ("Relu", ["conv"], ["relu"]),
        ("Add", ["conv", "relu"], ["logits"]),
    )
    scales = scales_of(table_of({"data": 127.0, "conv": 254.0, "relu": 127.0}), shared)
    assert scales == {"conv": 2.0, "data": 1.0, "relu": 1.0}


def test_an_output_that_is_read_inside_is_left_out() -> None:
    inside = graph(("Conv", ["data", "w"], ["logits"]), ("Relu", ["logits"], ["relu"]))
    assert list(scales_of(table_of({"data": 1.0, "relu": 1.0}), inside)) == ["data", "relu"]


@pytest.mark.parametrize("dead", [0.0, 1e-44])
def test_no_scale_is_ever_0(dead: float, tmp_path: Path) -> None:
    assert "relu1: 3f800000" in written(tmp_path / "x", RANGES | {"relu1": dead})


def test_a_range_beyond_float32_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='"conv2", 1e\\+300, is beyond float32'):
        written(tmp_path / "x", RANGES | {"conv2": 1e300})
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=400, deadline=None)
@given(st.integers(1, 0x7F7FFFFF))
@example(1)  # the smallest subnormal
@example(0x007FFFFF)
@example(0x00800000)  # the smallest normal
@example(0x7F7FFFFF)  # the largest
def test_every_scale_is_read_back_bit_for_bit(bits: int) -> None:
    import tempfile

    (scale,) = struct.unpack(">f", bits.to_bytes(4, "big"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.cache"
        made = write_tensorrt_cache(table_of({"x": scale * 127}), graph(), path, "8.6.1")
        text = path.read_text()
        version, scales = read_tensorrt_cache(path)
    assert version == "8.6.1"
    assert scales == made == {"x": scale}
    assert text == f"TRT-8601-EntropyCalibration2\nx: {bits:08x}\n"


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 2.0**127, allow_subnormal=True))
def test_the_scale_is_the_nearest_float32(largest: float) -> None:
    import numpy as np

    (scale,) = scales_of(table_of({"x": largest}), graph()).values()
    assert scale == float(np.float32(largest / 127)) or (
        scale == 1.0 and np.float32(largest / 127) == 0
    )


@pytest.mark.parametrize(
    "name",
    ["input_1:0", "(Unnamed Layer* 4) [Fully Connected]_output", "a:", "/m.0/Mul_output_0", "é"],
)
def test_names_as_published_caches_have_them(name: str, tmp_path: Path) -> None:
    """ "input_1:0" is in DeepStream's caches, the unnamed layer in those of TensorRT 7 and 8."""
    require_cache_name(name)
    path = tmp_path / "x"
    write_tensorrt_cache(table_of({name: 127.0}), graph(), path, "10.3.0")
    assert read_tensorrt_cache(path)[1] == {name: 1.0}


@pytest.mark.parametrize(
    "name",
    ["", " x", "x ", "a: b", "x: ", "x: 3c010a14", "a\nb", "a\rb", "a\tb", "a\x85b", "a\u2028b"],
)
def test_names_that_cannot_be_read_back_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(UserError, match="cannot be written to a TensorRT calibration cache"):
        write_tensorrt_cache(table_of({"y": 1.0, name: 1.0}), graph(), path, "10.3.0")
    assert not path.exists()


def test_what_tensorrt_itself_writes_beside_scales(tmp_path: Path) -> None:
    """ "366: 0" is in a public cache of TensorRT 8.4.1; infinity stands for "not calibrated"."""
    path = tmp_path / "x"
    path.write_text("TRT-8401-EntropyCalibration2\n366: 0\nimages: 7f800000\n404: 3D5c11B5\n")
    version, scales = read_tensorrt_cache(path)
    assert version == "8.4.1"
    assert scales["366"] == 0.0
    assert scales["images"] == float("inf")
    assert scales["404"] == struct.unpack(">f", bytes.fromhex("3d5c11b5"))[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no TensorRT calibration cache"),
        (b"\n", "no TensorRT calibration cache"),
        (b"data: 3c010a14\n", "no TensorRT calibration cache"),
        (b"TRT-8XXX-EntropyCalibration2\nx: 3c010a14\n", "no TensorRT calibration cache"),
        (b"TRT-100300-EntropyCalibration2\r\nx: 3c010a14\r\n", "no TensorRT calibration cache"),
        (b"TRT-100300-MinMaxCalibration\nx: 3c010a14\n", "cache of MinMaxCalibration"),
        (b"TRT-100300-EntropyCalibration2", "last line has no end"),
        (b"TRT-100300-EntropyCalibration2\n", "lists no tensor"),
        (b"TRT-100300-EntropyCalibration2\nx: 3c01", "last line has no end"),
        (b"TRT-100300-EntropyCalibration2\nx: 3c010a14\ny\n", "line 3: it is not NAME: HEX"),
        (b"TRT-100300-EntropyCalibration2\nx: 3c010a14\n\ny: 1\n", "line 3"),
        (b"TRT-100300-EntropyCalibration2\n: 3c010a14\n", "line 2"),
        (b"TRT-100300-EntropyCalibration2\nx:3c010a14\n", "line 2"),
        (b"TRT-100300-EntropyCalibration2\nx: 3c010a1g\n", "line 2"),
        (b"TRT-100300-EntropyCalibration2\nx: 03c010a14\n", "line 2"),
        (b"TRT-100300-EntropyCalibration2\nx: 0.0078\n", "line 2"),
        (b"TRT-100300-EntropyCalibration2\nx: 7fc00000\n", "7fc00000 is no scale"),
        (b"TRT-100300-EntropyCalibration2\nx: bc010a14\n", "bc010a14 is no scale"),
        (b"TRT-100300-EntropyCalibration2\nx: 80000000\n", "80000000 is no scale"),
        (b"TRT-100300-EntropyCalibration2\nx: 1\nx: 1\n", 'line 3: tensor "x" comes twice'),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_damaged_caches_are_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.cache"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        read_tensorrt_cache(path)
    assert str(path) in str(error.value)


def test_every_cut_of_a_cache_is_noticed_or_a_whole_shorter_one(tmp_path: Path) -> None:
    path = tmp_path / "x.cache"
    whole = LENET.encode()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if whole[:length].count(b"\n") > 1 and whole[:length].endswith(b"\n"):
            assert len(read_tensorrt_cache(path)[1]) == whole[:length].count(b"\n") - 1
            continue
        with pytest.raises(UserError):
            read_tensorrt_cache(path)


def test_a_missing_cache(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_tensorrt_cache(tmp_path / "none")


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    written(tmp_path / "a", RANGES)
    written(tmp_path / "b", dict(reversed(RANGES.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_scales_are_those_of_the_qdq_file(demo_onnx: Path, tmp_path: Path) -> None:
    """Every activation that the `tensorrt` target quantizes has its scale in the cache."""
    from deploy_tools.quantization.static import (
        StaticConfig,
        activation_tensors,
        qdq_from_onnx,
    )

    proto = onnx.load(str(demo_onnx))
    names = activation_tensors(proto)
    table = table_of({name: 0.5 + 0.37 * number for number, name in enumerate(names)})
    qdq_from_onnx(demo_onnx, table, tmp_path / "q.onnx", StaticConfig("tensorrt"))
    quantized = onnx.load(str(tmp_path / "q.onnx"))
    values = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    pairs = {
        node.input[0]: float(values[node.input[1]])
        for node in quantized.graph.node
        if node.op_type == "QuantizeLinear"
    }
    scales = write_tensorrt_cache(table, proto, tmp_path / "x", "10.3.0")
    assert len(pairs) > 20
    assert {name: scales[name] for name in pairs} == pytest.approx(pairs, rel=1e-6)
    layers = [n for n in proto.graph.node if n.op_type in ("Conv", "Add", "Relu")]
    assert {t for node in layers for t in node.output} <= scales.keys()
    assert not {value.name for value in proto.graph.output} & scales.keys()
