"""What can be quantized or left in float by itself, and the trials that tell what it costs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.residual import main_branches
from deploy_tools.quantization.static import Ranges, StaticConfig, qdq_from_onnx
from deploy_tools.sensitivity.partial import NodeTrial
from deploy_tools.sensitivity.plan import NodePlan, plan_of, stored_name

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
Plan = Mapping[str, NodePlan]


@dataclass(frozen=True)
class Item:
    """One layer or residual branch.

    name: of the node. kind: "layer", a Conv or Gemm with its weights and its input, or "branch",
    the main branch of a residual Add. op: the node's operator. positions: the inputs of the node
    that are quantized with it.
    """

    name: str
    kind: str
    op: str
    positions: tuple[int, ...]


def written_plan(model: Path, ranges: Ranges, static: StaticConfig) -> dict[str, NodePlan]:
    """Return what the writer quantizes under these settings, read from the file it writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        qdq_from_onnx(model, ranges, path, static)
        return plan_of(load_onnx(path))


def items_of(proto: onnx.ModelProto, plan: Plan) -> tuple[Item, ...]:
    """Return the layers and residual branches that the plan quantizes, in graph order."""
    mains = main_branches(proto)
    found = []
    for node in proto.graph.node:
        planned = plan.get(node.name, NodePlan({}, {}))
        if node.op_type in _LAYERS and 1 in planned.stored:
            positions = tuple(sorted({*planned.tensors, *planned.stored}))
            found.append(Item(node.name, "layer", node.op_type, positions))
        elif node.name in mains:
            place = list(node.input).index(mains[node.name])
            if place in planned.tensors:
                found.append(Item(node.name, "branch", node.op_type, (place,)))
    return tuple(found)


def leavable(
    items: tuple[Item, ...], model: Path, ranges: Ranges, static: StaticConfig
) -> tuple[Item, ...]:
    """Return the items with only those positions that leaving them in float takes off their grid.

    A layer in float may still read its input from a grid: on CPU targets the pair behind a Relu
    stays, since it clamps in the Relu's place. The writer is asked, with all layers but one in
    float, and again for that one.
    """
    layers = [item.name for item in items if item.kind == "layer"]
    kept: dict[str, Mapping[int, object]] = {}
    for stays in (layers[-1], layers[0]) if len(layers) > 1 else ():
        others = [name for name in layers if name != stays]
        plan = written_plan(model, ranges, replace(static, exclude=(*static.exclude, *others)))
        kept |= {name: plan.get(name, NodePlan({}, {})).tensors for name in others}
    return tuple(
        replace(
            item, positions=tuple(p for p in item.positions if p not in kept.get(item.name, {}))
        )
        for item in items
    )


def in_int8(item: Item, plan: Plan) -> NodeTrial:
    """Return the trial with only this item in INT8; for the float graph of `with_stored`."""
    planned = plan[item.name]
    inputs = {p: stored_name(item.name, p) for p in item.positions if p in planned.stored}
    grids = {p: planned.tensors[p] for p in item.positions if p in planned.tensors}
    return NodeTrial(item.name, item.name, inputs, grids)


def in_float(item: Item, proto: onnx.ModelProto) -> NodeTrial:
    """Return the trial with only this item in float; for the graph of `quantized_graph`.

    proto: the float graph, where the node's own inputs are.
    """
    node = next(node for node in proto.graph.node if node.name == item.name)
    return NodeTrial(item.name, item.name, {p: node.input[p] for p in item.positions})
