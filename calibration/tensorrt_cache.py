"""A range table as a TensorRT calibration cache: implicit INT8 for Jetson's GPU and DLA.

The format, from NVIDIA/TensorRT, samples/sampleINT8/README.md, "Calibration file", and from
the caches that NVIDIA publishes (NVIDIA-AI-IOT/cuDLA-samples, data/model/qat2ptq.cache):

    TRT-100300-EntropyCalibration2
    input: 3c010204
    layer1.0.conv1/relu: 3d0b7086

A header with the TensorRT version and the calibrator that DLA demands, then one line a tensor:
its ONNX name and its scale, largest absolute value / 127, as the hexadecimal digits of a
big-endian float32. TensorRT skips a cache whose version it takes for incompatible (10.3 one of
8.6) and calibrates again, for which trtexec has no images: give the version on the device.

What lies in a cache and what does not:

- The tensors of the range table: the input and every tensor between the layers.
- A tensor that only a Relu or Clip reads takes the range of what that writes. Calibration comes
  before fusion, so TensorRT looks for its scale, and without one it expects to "fall back to
  non-int8 implementation for any layer consuming or producing given tensor"; the fused kernel
  then has no such tensor. NVIDIA's translator from Q/DQ does the same (cuDLA-samples,
  export/qdq_translator, `infer_unchanged_scales`).
- A max pool writes what it reads, so both get one scale, as in our Q/DQ files for TensorRT.
- Outputs are left out, as in NVIDIA's cache above: the logits stay in float, and the last Gemm
  falls back to FP16 (give trtexec --fp16 too). It would anyway: TensorRT's ONNX parser makes
  several layers of it, whose tensors it numbers itself ("(Unnamed Layer* 9) [Matrix
  Multiply]_output") differently from version to version.

TensorRT below 10 must not be given the ONNX file where its opset is above 17: from 18 on
ReduceMean, which is how our files pool, has its axes as an input, which those parsers drop
without a word, and the answers are wrong (NVIDIA/TensorRT issue 3467). The first releases of 10
refuse such a node ("in TRT 10.0 we add a check to reject this", same issue); later ones read it.
No cache was tried on a device.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from deploy_tools.artifacts import write_text
from deploy_tools.errors import UserError

if TYPE_CHECKING:
    import onnx

    from calibration.table import RangeTable

FILE = "tensorrt.cache"
_ALGORITHM = "EntropyCalibration2"
_LEVELS = 127
# Where every value seen is 0, any scale but 0 represents them; TensorRT fails on a scale of 0
# (NVIDIA/TensorRT issue 3020). The Q/DQ writer takes 1 too.
_DEAD = 1.0
_OLDEST, _LAST = 5, 10
_LAST_OPSET = 17  # of what TensorRT below 10 reads as it is meant
_VERSION = re.compile(r"([1-9]\d?)\.(0|[1-9]\d?)\.(0|[1-9]\d?)(?:\.\d+)?", re.ASCII)
_HEADER = re.compile(r"TRT-(\d{4,6})-(\w+)", re.ASCII)
_INFINITY = 0x7F800000  # above it lie NaN and the numbers below 0
_LINE = re.compile(r"(.+): ([0-9a-fA-F]{1,8})", re.ASCII)


def cache_header(version: str) -> str:
    """Return the first line of a cache for TensorRT `version`, "major.minor.patch".

    A fourth part, as `tensorrt.__version__` has one, is dropped: the header has no place for it.
    The digits are NvInferVersion.h's NV_TENSORRT_VERSION: 1000 major + 100 minor + patch before
    TensorRT 10, 10000 major + 100 minor + patch from then on.
    Raises UserError for what is no version, and for one that reads no such cache.

    >>> cache_header("8.6.1"), cache_header("10.3.0.30")
    ('TRT-8601-EntropyCalibration2', 'TRT-100300-EntropyCalibration2')
    """
    found = _VERSION.fullmatch(version)
    if found is None:
        raise UserError(
            f'TensorRT version "{version}" is not major.minor.patch, such as 10.3.0.',
            'On the device: python3 -c "import tensorrt; print(tensorrt.__version__)".',
        )
    major, minor, patch = (int(part) for part in found.groups())
    if major > _LAST:
        raise UserError(
            f"TensorRT {version} reads no calibration cache: they were removed with TensorRT 11.",
            "Give it Q/DQ instead: deploy-tools quantize static --target tensorrt.",
        )
    if major < _OLDEST or (major < 10 and minor > 9):
        raise UserError(
            f"there is no TensorRT {version} with this calibrator.",
            f"Versions {_OLDEST} to {_LAST} have it.",
        )
    factor = 1000 if major < 10 else 10000
    return f"TRT-{factor * major + 100 * minor + patch}-{_ALGORITHM}"


def require_readable(version: str, proto: onnx.ModelProto) -> None:
    """Refuse a version that misreads the ONNX file, with which the cache is used: UserError.

    Raises UserError as `cache_header` does, too.
    """
    cache_header(version)
    major = int(version.split(".")[0])
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if major < 10 and opset > _LAST_OPSET:
        raise UserError(
            f"TensorRT {version} misreads ONNX files of opset {opset}: before TensorRT 10 the "
            "axes of ReduceMean, an input since opset 18, are dropped without a word "
            "(NVIDIA/TensorRT issue 3467).",
            "Use TensorRT 10 on the device (JetPack 6.1 and later have it), or calibrate a file of "
            f"opset {_LAST_OPSET} or lower.",
        )


def require_cache_name(name: str) -> None:
    """Refuse a tensor name that could not be read back from a line of a cache.

    A colon may stand in a name (NVIDIA's caches have "input_1:0"); a colon and a space may not,
    since they end it.
    """
    if not name.isprintable() or not name or name != name.strip(" ") or ": " in name:
        raise UserError(
            f"tensor {name!r} cannot be written to a TensorRT calibration cache: its name is "
            'empty, begins or ends with a space, or holds ": " or a character that is not '
            "printed.",
            "Export the model again: deploy-tools export names tensors after its layers.",
        )


def scales_of(table: RangeTable, proto: onnx.ModelProto) -> dict[str, float]:
    """Return the scale of every tensor that a cache lists, by name; each is above 0.

    proto: the FP32 model that the table was made from. The module's text says which tensors
    these are. A scale is float32(amax / 127), amax being the larger absolute end of the range
    on the s8 grid. Raises UserError for a name that cannot be written and for a range beyond
    float32.
    """
    largest = {name: max(map(abs, table.range_of(name, "s8"))) for name in table.tensors}
    for node in proto.graph.node:
        if node.op_type == "MaxPool" and {node.input[0], node.output[0]} <= largest.keys():
            largest[node.output[0]] = largest[node.input[0]]
    outputs = {value.name for value in proto.graph.output}
    for node in reversed(proto.graph.node):  # the first of several readers comes last, and stays
        if node.op_type in ("Relu", "Clip") and node.output[0] in largest:
            inner = node.input[0]
            if inner not in table.tensors and inner not in outputs:
                largest[inner] = largest[node.output[0]]
    return {name: _scale(name, largest[name]) for name in sorted(largest)}


def write_tensorrt_cache(
    table: RangeTable, proto: onnx.ModelProto, path: Path, version: str
) -> dict[str, float]:
    """Write the cache for TensorRT `version` to `path`, atomically; returns `scales_of`.

    The same table and version give the same bytes. Raises UserError as `require_readable` and
    `scales_of` do.
    """
    require_readable(version, proto)
    header = cache_header(version)
    scales = scales_of(table, proto)
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    write_text(path, "\n".join([header, *lines]) + "\n")
    return scales


def read_tensorrt_cache(path: Path) -> tuple[str, dict[str, float]]:
    """Return (version, {tensor: scale}) of a cache, the scales bit for bit.

    Caches that TensorRT wrote are read too: it leaves out leading zeros ("x: 0"), and writes
    infinity for a tensor that it could not calibrate. Raises UserError where the file is
    missing, is no such cache or is damaged, naming the line.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a calibration cache: {error}.") from error
    header, *lines = text.split("\n")
    version = _version(header, path)
    if not lines or lines.pop():
        raise UserError(f"{path} is damaged: its last line has no end.", "Write it again.")
    scales: dict[str, float] = {}
    for number, line in enumerate(lines, start=2):
        found = _LINE.fullmatch(line)
        reason = "it is not NAME: HEX"
        if found is not None:
            name, digits = found.groups()
            bits = int(digits, 16)
            reason = f'tensor "{name}" comes twice' if name in scales else ""
            if bits > _INFINITY:
                reason = f"{digits} is no scale"
        if reason:
            raise UserError(f"{path} is damaged at line {number}: {reason}.", "Write it again.")
        (scales[name],) = struct.unpack(">f", bits.to_bytes(4, "big"))
    if not scales:
        raise UserError(f"{path} is damaged: it lists no tensor.", "Write it again.")
    return version, scales


def _scale(name: str, largest: float) -> float:
    require_cache_name(name)
    try:
        (scale,) = struct.unpack(">f", struct.pack(">f", largest / _LEVELS))
    except OverflowError:
        scale = math.inf
    if not math.isfinite(scale):
        raise UserError(f'the range of tensor "{name}", {largest:g}, is beyond float32.')
    return scale or _DEAD


def _version(header: str, path: Path) -> str:
    """Return "major.minor.patch" of a header line."""
    found = _HEADER.fullmatch(header)
    if found is None:
        raise UserError(
            f"{path} is no TensorRT calibration cache: its first line is {header[:60]!r}.",
            f"Expected one such as {cache_header('10.3.0')}.",
        )
    number, algorithm = int(found[1]), found[2]
    if algorithm != _ALGORITHM:
        raise UserError(f"{path} is a cache of {algorithm}, not of {_ALGORITHM}.")
    factor = 1000 if number < 10000 else 10000
    major, rest = divmod(number, factor)
    return f"{major}.{rest // 100}.{rest % 100}"
