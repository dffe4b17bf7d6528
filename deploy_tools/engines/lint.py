"""What TensorRT would reject, or misread without a word, found before a build.

TensorRT's own parser is no guard: it reads a UINT8 zero-point as INT8 with a warning, a missing
one (UINT8 in ONNX) and an opset it does not know without one, and crashes on a scale that is not
a constant. Each rule names the node and the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, inliner, numpy_helper

from deploy_tools.engines.graph import Graph, attribute, label
from deploy_tools.engines.rules import RULES, Finding, name_of_type
from deploy_tools.errors import UserError
from deploy_tools.onnx_files import real_inputs
from deploy_tools.runtimes.flavours import Flavour

MIN_OPSET = 9
"""The oldest opset that TensorRT's parser is documented to read (onnx-tensorrt, operators.md)."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
COMMON_OPSET = 20
"""What every TensorRT from 10.0 on and TensorRT for RTX read: for where none is installed."""

_SHOWN = 5
_OF_QUANTIZATION = {
    "integer-operator",
    "quantized-bias",
    "quantized-weights",
    "scale",
    "zero-point",
}


def findings_of(proto: onnx.ModelProto, max_opset: int) -> tuple[Finding, ...]:
    """Return what keeps TensorRT from building this model, in graph order; () where nothing does.

    proto: a model as `load_onnx` returns it (valid, no external data).
    max_opset: the newest opset that the TensorRT in question reads.
    """
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    graph = Graph(proto.graph)
    found = [*_opset(proto, max_opset), *_input(proto, graph), *_fixed_reshape(proto, graph)]
    for inner in graph.walk():
        for node in inner.nodes:
            for rule in RULES:
                found += rule(inner, node)
    # A Q/DQ pair shares its zero-point and scale: one finding a tensor says it all.
    return tuple({(f.rule, f.tensor or f.node): f for f in reversed(found)}.values())[::-1]


def require_buildable(proto: onnx.ModelProto, path: Path, flavour: Flavour) -> None:
    """Refuse a model with findings: a UserError that lists them and says what to do."""
    found = findings_of(proto, flavour.max_opset)
    if found:
        raise UserError(
            f"{path} cannot become a {flavour.title} engine:\n{_listed(found)}\n", _way_out(found)
        )


def _listed(found: Sequence[Finding]) -> str:
    """Return the first findings, those of rules not seen yet before more of the same."""
    seen: set[str] = set()
    first: list[Finding] = []
    more: list[Finding] = []
    for finding in found:
        (more if finding.rule in seen else first).append(finding)
        seen.add(finding.rule)
    shown = [*first, *more][: max(_SHOWN, len(first))]
    lines = [f"  {finding}" for finding in shown]
    left = len(found) - len(shown)
    return "\n".join([*lines, *([f"  and {left} more of these"] if left else [])])


def _way_out(found: Sequence[Finding]) -> str:
    if {finding.rule for finding in found} & _OF_QUANTIZATION:
        return (
            "Quantize the FP32 file for it: deploy-tools quantize static fp32.onnx "
            "--ranges calibration/ranges.json --target tensorrt -o DIR. All findings: "
            "deploy-tools inspect FILE."
        )
    return "All findings: deploy-tools inspect FILE."


def _opset(proto: onnx.ModelProto, max_opset: int) -> Iterator[Finding]:
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=1)
    if not MIN_OPSET <= opset <= max_opset:
        yield Finding(
            "opset",
            "",
            "",
            f"the file has opset {opset}; this TensorRT knows {MIN_OPSET} to {max_opset}, and its "
            "parser reads others without a word as if they were those: export it again "
            "(deploy-tools export writes opset 20).",
        )


def _input(proto: onnx.ModelProto, graph: Graph) -> Iterator[Finding]:
    for value in real_inputs(proto):
        batch = next(iter(value.type.tensor_type.shape.dim), None)
        if batch is not None and batch.dim_value:
            yield Finding(
                "fixed-batch",
                "",
                value.name,
                f"takes only batches of {batch.dim_value}: export it with a dynamic batch "
                "(deploy-tools export does).",
            )
        if value.type.tensor_type.elem_type == TensorProto.UINT8:
            yield from _pixels(value, graph)
        else:
            yield from _type("input-type", value, "images are given as FLOAT or as UINT8 pixels")
    for value in proto.graph.output:
        yield from _type("output-type", value, "answers are read as FLOAT")


def _pixels(value: onnx.ValueInfoProto, graph: Graph) -> Iterator[Finding]:
    """TensorRT takes UINT8 as an input, and nothing but a conversion to floats may read it.

    Its documentation of DataType.UINT8: "cannot be used to represent quantized floating-point
    values"; an input of it has to be converted before other layers use it.
    """
    readers = [node for node in graph.nodes if value.name in node.input]
    for node in readers:
        if node.op_type != "Cast" or attribute(node, "to", 0) not in _FLOATS:
            yield Finding(
                "input-type",
                label(node),
                value.name,
                f"is UINT8 and read by {node.op_type}; TensorRT reads UINT8 through a Cast to FLOAT "
                "only: make the file with --target tensorrt --input uint8, which puts one first.",
            )


def _type(rule: str, value: onnx.ValueInfoProto, wanted: str) -> Iterator[Finding]:
    """What goes in (but for pixels) and comes out of an engine is FLOAT: others are refused."""
    kind = value.type.tensor_type.elem_type
    if kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        way = "make it from the FP32 file with deploy-tools cast fp16, which keeps FLOAT there"
    else:
        way = "export the model without the conversion, or cast it inside"
    if kind != TensorProto.FLOAT:
        yield Finding(rule, "", value.name, f"is {name_of_type(kind)}; {wanted}: {way}.")


def _fixed_reshape(proto: onnx.ModelProto, graph: Graph) -> Iterator[Finding]:
    """A Reshape that says the batch size takes one batch size, whatever the input says.

    To a shape of constants only: TensorRT parses it and then fails to build ("would change
    volume"). To a constant first and one dimension left open ([1, -1]): it builds, and other
    batches fail as the engine runs, unless a later node brings the batch back.
    """
    suspects = [node for node in graph.nodes if node.op_type == "Reshape" and _leads(graph, node)]
    if not suspects:
        return
    shapes = _inferred(proto)
    for node in suspects:
        free = [not dim.HasField("dim_value") for dim in shapes.get(node.input[0], ())]
        if any(free) and (_all_set(graph, node) or (free[0] and _ends_fixed(graph, node, shapes))):
            yield Finding(
                "fixed-batch",
                label(node),
                node.input[1],
                "is a shape with the batch size in it, so one batch size is all it takes: write "
                "x.flatten(1) or x.view(x.size(0), -1) in the model and export it again.",
            )


def _inferred(proto: onnx.ModelProto) -> dict[str, Sequence[onnx.TensorShapeProto.Dimension]]:
    """Return the shape of each tensor as it follows from the inputs and the nodes alone.

    What the file says of the tensors between and of the outputs may be what was hoped for.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(bare).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {value.name: value.type.tensor_type.shape.dim for value in values}


def _leads(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a Reshape's shape is known and begins with a size."""
    shape = graph.constant(node.input[1])
    sizes = [] if shape is None else numpy_helper.to_array(shape).ravel().tolist()
    return bool(sizes) and sizes[0] > 0


def _all_set(graph: Graph, node: onnx.NodeProto) -> bool:
    shape = graph.constant(node.input[1])
    return shape is not None and bool((numpy_helper.to_array(shape) > 0).all())


def _ends_fixed(
    graph: Graph,
    node: onnx.NodeProto,
    shapes: Mapping[str, Sequence[onnx.TensorShapeProto.Dimension]],
) -> bool:
    """Whether an output of the model that depends on this node has a fixed first dimension."""
    reached = set(node.output)
    for other in graph.nodes:  # in an ONNX file, nodes stand behind what they read
        if reached & set(other.input):
            reached.update(other.output)
    ends = [shapes[name] for name in reached & graph.outputs if shapes.get(name)]
    return any(dims[0].HasField("dim_value") for dims in ends)
