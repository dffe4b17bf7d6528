"""The layers of an engine, from the builder's verbose log or from the engine inspector.

Forms read, and where they were seen:
- the log of TensorRT for RTX 1.7: `Name: x, LayerType: gemm, Inputs: [ { Name: t, Dimensions:
  [-1,64], Strides: ..., Datatype: Int8, Format: ... }], Constants: [...], Outputs: [...], ...,
  Metadata: [ONNX Layer: linear]`;
- the log of TensorRT 10: `..., Inputs: [ { Name: t, Location: Device, Dimensions: [1,3,224,224],
  Format/Datatype: Half }], Outputs: [...], ParameterType: Convolution, ..., Weights: {"Type":
  "Half", "Count": 23232}, ..., TacticName: ..., Metadata: [ONNX Layer: a][ONNX Layer: b]`;
- the inspector's JSON: 10 has "Format/Datatype", 11 splits it (NVIDIA's migration guide 10.x to
  11.x, IEngineInspector). With a dynamic batch 10 writes "N/A due to dynamic shapes" there; the
  type of the weights and the tactic's name still tell the arithmetic.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from deploy_tools.engine_files import EngineLayer
from deploy_tools.errors import UserError

UNKNOWN = "unknown"

_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<body>.*?) \}")
_HEAD = re.compile(r"(?:^|\] )Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[")
_LOG_TYPE = re.compile(r"(?:Format/)?Datatype: (.*)")
_WEIGHTS = re.compile(r'Weights: \{"Type": "(\w+)"')
_TACTIC = re.compile(r"TacticName: ([^,]*)")
# TensorRT for RTX may write how it rewrote a node behind it: "[ONNX Layer: x]__gemm_from_conv1x1".
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?:__\w+)?(?=[\[\s\x1e\x1f]|$)")

# Words for a type, in format descriptions too ("Channel major FP16 format where ...").
_DTYPES = {
    "int8": "int8", "half": "fp16", "fp16": "fp16", "float": "fp32", "fp32": "fp32",
    "bfloat16": "bf16", "bf16": "bf16", "int32": "int32", "int64": "int64", "uint8": "uint8",
    "bool": "bool", "fp8": "fp8", "int4": "int4", "fp4": "fp4",
}  # fmt: skip
_DTYPE_WORD = re.compile(rf"\b({'|'.join(_DTYPES)})\b", re.IGNORECASE)
# Kernel names tell the types of their operands: sm80_xmma_fprop_..._i8i8_i8i32_f32_...
_TACTIC_TYPES = (
    (re.compile(r"i8i8|imma|_i8816|_i16832|int8"), "int8"),
    (re.compile(r"f16f16|hmma|_h\d*(?:688|884|816)|fp16"), "fp16"),
    (re.compile(r"f32f32|scudnn|_s1688|sgemm|fp32"), "fp32"),
)
# From the widest: what mixed operands are computed in.
_WIDTH = ("fp32", "fp16", "bf16", "fp8", "int8", "uint8", "int4")
_WEIGHTED = re.compile(r"conv|correlation|gemm|matmul|matrixmultiply", re.IGNORECASE)


def layers_from_log(lines: Iterable[str]) -> tuple[EngineLayer, ...]:
    """Read the layers from the lines of a verbose build log; lines of other kinds are skipped.

    An entry may hold several lines. A layer that is listed again replaces nothing.
    """
    found: dict[str, EngineLayer] = {}
    for entry in lines:
        if "LayerType: " in entry:
            for line in entry.splitlines():
                layer = _layer_of_line(line)
                if layer:
                    found.setdefault(layer.name, layer)
    return tuple(found.values())


def layers_from_inspector(text: str) -> tuple[EngineLayer, ...]:
    """Read the layers from `EngineInspector.get_engine_information` as JSON, of 10 or 11.

    A layer of an engine that was built without detailed profiling verbosity has its name only;
    its kind and precision are "unknown". Raises UserError where the text is something else.
    """
    try:
        layers = json.loads(text)["Layers"]
        return tuple(_layer_of_json(layer) for layer in layers)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"this is not what the engine inspector writes as JSON: {error!r}."
        ) from error


def is_weighted(layer: EngineLayer) -> bool:
    """Whether it is a convolution or a matrix product, rather than what is around one."""
    return bool(_WEIGHTED.search(layer.kind))


def precision_by_node(layers: Iterable[EngineLayer], nodes: Iterable[str]) -> dict[str, str]:
    """Return the precision in which each of these ONNX nodes (Conv, Gemm, MatMul) runs.

    A node is often spread over several layers, such as the scaling before and the bias behind
    the convolution itself: the layer that multiplies counts. "unknown": no layer names it.
    """
    wanted = dict.fromkeys(nodes, UNKNOWN)
    decided: set[str] = set()
    for layer in layers:
        for node in layer.onnx_nodes:
            if node in wanted and (node not in decided) and layer.precision != UNKNOWN:
                if is_weighted(layer):
                    wanted[node] = layer.precision
                    decided.add(node)
                elif wanted[node] == UNKNOWN:
                    wanted[node] = layer.precision
    return wanted


def _layer_of_line(line: str) -> EngineLayer | None:
    head = _HEAD.search(line)
    inputs, found, outputs = line[head.end() :].partition("], Outputs: [") if head else ("", "", "")
    if not head or not found:
        return None
    inputs, _, constants = inputs.partition("], Constants: [")
    # The list of outputs is empty, or ends with the brace of its last tensor.
    outputs, _, rest = ("", "", outputs[1:]) if outputs[:1] == "]" else outputs.partition(" }]")
    weights, tactic = _WEIGHTS.search(rest), _TACTIC.search(rest)
    return _layer(
        head["name"],
        head["kind"],
        inputs=_tensors(inputs),
        constants=_tensors(constants),
        outputs=_tensors(f"{outputs} }}"),
        weights=weights[1] if weights else "",
        tactic=tactic[1] if tactic else "",
        metadata=rest.partition("Metadata: ")[2],
    )


def _layer_of_json(layer: Any) -> EngineLayer:
    if isinstance(layer, str):
        return EngineLayer(layer, UNKNOWN, UNKNOWN, (), (), _nodes("", layer, UNKNOWN))
    weights = layer.get("Weights")
    return _layer(
        layer["Name"],
        layer.get("LayerType", UNKNOWN),
        inputs=_json_tensors(layer.get("Inputs", ())),
        constants=_json_tensors(layer.get("Constants", ())),
        outputs=_json_tensors(layer.get("Outputs", ())),
        weights=weights.get("Type", "") if isinstance(weights, dict) else "",
        tactic=layer.get("TacticName", ""),
        metadata=layer.get("Metadata", ""),
    )


Tensors = tuple[tuple[str, str], ...]


def _layer(
    name: str,
    kind: str,
    *,
    inputs: Tensors,
    constants: Tensors,
    outputs: Tensors,
    weights: str,
    tactic: str,
    metadata: str,
) -> EngineLayer:
    if _WEIGHTED.search(kind):
        stored = _dtype(weights) if weights else constants[0][1] if constants else UNKNOWN
        precision = _product_precision(inputs[0][1] if inputs else UNKNOWN, stored, tactic)
    else:
        precision = _widest([dtype for _, dtype in inputs])
    return EngineLayer(name, kind, precision, inputs, outputs, _nodes(metadata, name, kind))


def _product_precision(activation: str, weights: str, tactic: str) -> str:
    """What a convolution multiplies in: INT8 only where both operands are."""
    known = [dtype for dtype in (activation, weights) if dtype != UNKNOWN]
    if known:
        return _widest(known)
    return next((dtype for words, dtype in _TACTIC_TYPES if words.search(tactic)), UNKNOWN)


def _widest(dtypes: Iterable[str]) -> str:
    present = list(dtypes)
    return next((d for d in _WIDTH if d in present), present[0] if present else UNKNOWN)


def _tensors(text: str) -> Tensors:
    found = []
    for match in _TENSOR.finditer(text):
        dtype = _LOG_TYPE.search(match["body"])
        found.append((match["name"], _dtype(dtype[1].split(", Format: ")[0] if dtype else "")))
    return tuple(found)


def _json_tensors(tensors: Iterable[Mapping[str, Any]]) -> Tensors:
    found = []
    for tensor in tensors:
        keys = {key.lower(): key for key in tensor}
        key = keys.get("format/datatype") or keys.get("datatype")
        found.append((str(tensor["Name"]), _dtype(str(tensor[key])) if key else UNKNOWN))
    return tuple(found)


def _dtype(text: str) -> str:
    word = _DTYPE_WORD.search(text)
    return _DTYPES[word[1].lower()] if word else UNKNOWN


def _nodes(metadata: str, name: str, kind: str) -> tuple[str, ...]:
    """The ONNX nodes in the metadata; for a product without any, the parts of its name."""
    nodes = _NODE.findall(metadata)
    if not nodes and (kind == UNKNOWN or _WEIGHTED.search(kind)):
        nodes = [part.strip() for part in name.split(" + ")]
    return tuple(dict.fromkeys(nodes))
