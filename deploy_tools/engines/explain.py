"""Which ONNX nodes of an engine run in INT8, which are fused, and why one does not run in INT8.

What ran comes from the engine's layers (build log or inspector); why comes from the ONNX file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from deploy_tools.engine_files import EngineLayer, Sidecar
from deploy_tools.engines.graph import LAYERS, Graph
from deploy_tools.engines.hints import has_pairs, hints_of, is_residual, why_float, why_float_add
from deploy_tools.engines.layers import UNKNOWN, is_weighted, layers_from_inspector
from deploy_tools.errors import ArtifactError, MissingDependencyError

_SILENT = ("QuantizeLinear", "DequantizeLinear", "Constant", "Identity", "Cast")
_NO_INT8 = ("ReduceMean", "GlobalAveragePool", "Softmax")
_NOWHERE = "-"
_NO_FILE = "The ONNX file is not at hand (--onnx names it): reasons are not known."
_NO_LAYERS = "TensorRT listed no layers of this engine: what runs in which type is not known."
_NO_PAIRS = "The ONNX file has no Q/DQ, so nothing runs in INT8."


@dataclass(frozen=True)
class Row:
    """One ONNX node in an engine.

    precision: what its arithmetic takes in, "-" where no layer of the engine executes it,
        "unknown" where TensorRT does not say.
    fused_with: the other ONNX nodes of the same engine layer.
    reason: why it does not run in INT8, "" where it does or nothing could be gained.
    """

    node: str
    op: str
    precision: str
    fused_with: tuple[str, ...]
    engine_layer: str
    reason: str


@dataclass(frozen=True)
class Explanation:
    """Every ONNX node that computes, in graph order. note: what holds for all of them."""

    rows: tuple[Row, ...]
    note: str = ""

    @property
    def products(self) -> tuple[Row, ...]:
        """The convolutions and matrix products: where INT8 pays."""
        return tuple(row for row in self.rows if row.op in LAYERS)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why nodes do not run in INT8, one line a reason, with the nodes that it holds for."""
        nodes: dict[str, list[str]] = {}
        for row in self.rows:
            if row.reason:
                nodes.setdefault(row.reason, []).append(row.node)
        return tuple(f"{_some(names)}: {reason}" for reason, names in nodes.items())

    @property
    def summary(self) -> str:
        """One line, such as "21 of 22 convolutions and Gemms in INT8, 1 in FP16"."""
        if self.note == _NO_LAYERS:
            return "TensorRT listed no layers"
        counts = Counter(row.precision for row in self.products)
        in_int8 = counts.pop("int8", 0)
        rest = "".join(f", {n} {_in(what)}" for what, n in counts.most_common())
        total = len(self.products)
        return f"{in_int8} of {total} convolutions and Gemms in INT8{rest}"

    def __str__(self) -> str:
        lines = [
            f"{row.node:<32} {row.op:<18} {row.precision:<8} {', '.join(row.fused_with)}".rstrip()
            for row in self.rows
        ]
        return "\n".join([*lines, *self.reasons, *filter(None, [self.note]), self.summary])

    def to_dict(self) -> dict[str, object]:
        """Return it as JSON values."""
        products = self.products
        return {
            "products": len(products),
            "int8_products": sum(row.precision == "int8" for row in products),
            "summary": self.summary,
            "note": self.note,
            "nodes": [asdict(row) | {"fused_with": list(row.fused_with)} for row in self.rows],
        }


def explain_layers(layers: tuple[EngineLayer, ...], proto: onnx.ModelProto | None) -> Explanation:
    """Explain an engine by its layers and, where it is at hand, the ONNX file it was made from.

    Without the file there are no reasons, and what operator a node is comes from the kind of
    the engine layer.
    """
    if not layers:
        return Explanation(_unknown_rows(proto), _NO_LAYERS)
    if proto is None:
        return Explanation(_rows_of_layers(layers), _NO_FILE)
    executing: dict[str, list[EngineLayer]] = {}
    for layer in layers:
        for name in layer.onnx_nodes:
            executing.setdefault(name, []).append(layer)
    graph = Graph(proto.graph)
    nodes = [node for node in graph.nodes if _computes(graph, node)]
    owners = {_name(node): _owner(node.op_type, executing.get(_name(node), ())) for node in nodes}
    together = _together(owners)
    quantized = has_pairs(graph)
    rows = []
    for node in nodes:
        name = _name(node)
        owner = owners[name]
        if owner is None:
            rows.append(Row(name, node.op_type, _NOWHERE, (), "", _why_nowhere(node)))
            continue
        fused = tuple(other for other in together[owner.name] if other != name)
        reason = _reason(graph, node, owner) if quantized else ""
        rows.append(Row(name, node.op_type, owner.precision, fused, owner.name, reason))
    rest = [hint.message for hint in hints_of(proto) if hint.rule == "fp32-rest"]
    return Explanation(tuple(rows), " ".join(rest) if quantized else _NO_PAIRS)


def layers_of_engine(engine: Path, sidecar: Sidecar) -> tuple[tuple[EngineLayer, ...], str]:
    """Return an engine's layers and where they come from, in words.

    From TensorRT's engine inspector where the engine can be loaded, which takes a GPU that it
    runs on; else, or where the inspector tells no types, from the build log, which the sidecar
    keeps.
    """
    from deploy_tools.runtimes.tensorrt import inspector_json

    try:
        layers = layers_from_inspector(inspector_json(engine))
    except (MissingDependencyError, ArtifactError) as error:
        return sidecar.layers, f"the build log ({error.message})"
    if all(layer.precision == UNKNOWN for layer in layers):
        return sidecar.layers, "the build log (the engine inspector tells no types)"
    return layers, "the engine inspector"


def _in(precision: str) -> str:
    other = {_NOWHERE: "in no listed layer", UNKNOWN: "in a type that TensorRT does not tell"}
    return other.get(precision, f"in {precision.upper()}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _name(node: onnx.NodeProto) -> str:
    """Return the name that TensorRT's parser gives a node."""
    return str(node.name) or f"node_of_{node.output[0]}"


def _computes(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node computes on activations, rather than on weights or on formats."""
    return node.op_type not in _SILENT and not all(graph.is_constant(t) for t in node.input)


def _owner(op: str, layers: Iterable[EngineLayer]) -> EngineLayer | None:
    """Return the layer that does a node's work, of those that name it.

    A convolution's name is on the layers around it too (quantizing before, bias behind): the one
    that multiplies counts. A Gemm in float may be a "runtime_fusion" of TensorRT for RTX.
    """
    found = list(layers)
    if op in LAYERS:
        tests = (is_weighted, lambda layer: "fusion" in layer.kind.lower())
        for test in tests:
            chosen = [layer for layer in found if test(layer)]
            if chosen:
                return next((c for c in chosen if c.precision != UNKNOWN), chosen[0])
    return found[0] if found else None


def _together(owners: Mapping[str, EngineLayer | None]) -> dict[str, list[str]]:
    """Return the ONNX nodes of each engine layer that do their work there."""
    found: dict[str, list[str]] = {}
    for node, layer in owners.items():
        if layer is not None:
            found.setdefault(layer.name, []).append(node)
    return found


def _reason(graph: Graph, node: onnx.NodeProto, owner: EngineLayer) -> str:
    """Return why a node of a quantized file does not run in INT8, "" where it does."""
    if node.op_type in LAYERS:
        if owner.precision == "int8":
            return ""
        return why_float(graph, node) or (
            f"its Q/DQ are in place, but the engine computes it in {owner.precision} "
            f"({_reads(owner)})"
        )
    if is_residual(graph, node):
        apart = "" if is_weighted(owner) else "TensorRT adds in a kernel behind the convolution"
        return why_float_add(graph, node) or apart
    if node.op_type in _NO_INT8:
        return f"TensorRT computes {node.op_type} in float"
    if node.op_type == "MaxPool" and owner.precision != "int8":
        return "" if graph.dequantizer(node.input[0]) else "its input has no Q/DQ"
    return ""


def _reads(owner: EngineLayer) -> str:
    return "its layer reads " + ", ".join(f"{dtype} {name}" for name, dtype in owner.inputs)


def _why_nowhere(node: onnx.NodeProto) -> str:
    views = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Dropout")
    return "" if node.op_type in views else "no layer of the engine names it: folded into others"


def _rows_of_layers(layers: tuple[EngineLayer, ...]) -> tuple[Row, ...]:
    """One row for each layer that does the work of some node, from the layers alone.

    Q/DQ nodes are known by the usual parts of their names, and a convolution or matrix product
    by its layer's kind; its node is the first that the layer names.
    """
    rows: dict[str, Row] = {}
    done: set[str] = set()
    for layer in sorted(layers, key=is_weighted, reverse=True):
        nodes = [n for n in layer.onnx_nodes if "QuantizeLinear" not in n and n not in done]
        nodes = [node for node in nodes if "DequantizeLinear" not in node]
        if nodes:
            done.update(nodes)
            fused = tuple(nodes[1:])
            rows[layer.name] = Row(nodes[0], _op(layer), layer.precision, fused, layer.name, "")
    return tuple(rows[layer.name] for layer in layers if layer.name in rows)


def _unknown_rows(proto: onnx.ModelProto | None) -> tuple[Row, ...]:
    """One row for each node that computes, of an engine without a word about its layers."""
    graph = Graph(proto.graph if proto is not None else onnx.GraphProto())
    nodes = [node for node in graph.nodes if _computes(graph, node)]
    return tuple(Row(_name(node), node.op_type, UNKNOWN, (), "", "") for node in nodes)


def _op(layer: EngineLayer) -> str:
    if not is_weighted(layer):
        return layer.kind
    return "Conv" if re.search("conv|correlation", layer.kind, re.IGNORECASE) else "Gemm"
