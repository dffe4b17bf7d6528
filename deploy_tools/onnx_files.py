"""Read ONNX files that users hand in, and say clearly what is wrong with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError, nearest


def load_onnx(path: Path) -> onnx.ModelProto:
    """Load and check an image classifier: one image input, at least one output.

    Raises UserError where the file is missing, is not ONNX, is not valid, or keeps weights in
    other files: no hash of ours would see those, and they may lie anywhere on the machine.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    try:
        proto = onnx.load(str(path), load_external_data=False)
        _refuse_external_data(proto, path)
        onnx.checker.check_model(proto)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise UserError(f"{path} is not a valid ONNX file: {reason}") from error
    inputs = real_inputs(proto)
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        names = ", ".join(value.name for value in inputs) or "none"
        raise UserError(f"{path} must have one input of shape (N, C, H, W); its inputs: {names}.")
    return proto


def real_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the graph inputs that are not weights (old exporters list those too)."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in weights]


def require_dynamic_batch(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse a file that takes one batch size only."""
    batch = real_inputs(proto)[0].type.tensor_type.shape.dim[0]
    if batch.dim_value:
        raise UserError(
            f"{path} takes only batches of {batch.dim_value}.",
            "Export it with a dynamic batch (deploy-tools export does).",
        )


def require_float_input(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse a file whose graph normalizes pixels itself: other passes work on float files."""
    if real_inputs(proto)[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8:
        raise UserError(
            f"{path} takes uint8 pixels, and this works on files with a float input.",
            "Give the float file that it was made from (fp32.onnx); --input uint8 comes last.",
        )


def input_spec_of(proto: onnx.ModelProto, path: Path) -> InputSpec:
    """Return the input spec in the file's metadata; UserError where there is none."""
    spec = known_input_spec(proto, path)
    if spec is None:
        raise UserError(
            f"{path} does not say how its input is made (no input spec in its metadata).",
            "Export it from its checkpoint: deploy-tools export writes one.",
        )
    return spec


def known_input_spec(proto: onnx.ModelProto, path: Path) -> InputSpec | None:
    """Return the input spec in the file's metadata, or None; UserError where it is damaged."""
    try:
        return InputSpec.from_metadata({prop.key: prop.value for prop in proto.metadata_props})
    except UserError as error:
        raise UserError(f"the input spec in {path} is damaged: {error}") from error


def require_nodes(proto: onnx.ModelProto, names: Iterable[str]) -> None:
    """Refuse the name of a node that the graph does not have; the hint says the nearest."""
    known = {node.name for node in proto.graph.node if node.name}
    for name in names:
        if name not in known:
            raise UserError(f'no node is named "{name}".', nearest(name, known))


def remove_where(items: Any, unwanted: Callable[[Any], bool]) -> None:
    """Remove from a protobuf list, in place, the items that `unwanted` says.

    By position, from the end: the list's own `remove` compares an item with all before it, value
    by value, which takes minutes in a graph of a thousand layers.
    """
    for at in reversed([at for at, item in enumerate(items) if unwanted(item)]):
        del items[at]


def _refuse_external_data(proto: onnx.ModelProto, path: Path) -> None:
    training = [(info.initialization, info.algorithm) for info in proto.training_info]
    graphs = [proto.graph, *itertools.chain(*training)]
    tensors = [tensor for graph in graphs for tensor in _tensors(graph)]
    tensors += [tensor for function in proto.functions for tensor in _constants(function.node)]
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise UserError(
                f'{path} keeps weights in another file ("{tensor.name}" is external data).',
                f'Save it as one file: onnx.save(onnx.load("{path}"), "{path}").',
            )


def every_node(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield all nodes of a model, those of subgraphs and of its own functions included."""
    waiting = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                waiting += graph.node


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that a graph holds, those of its nodes and their subgraphs included."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from _constants(graph.node)


def _constants(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield attribute.t
        yield from attribute.tensors
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield sparse.values
            yield sparse.indices
        if attribute.HasField("g"):
            yield from _tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _tensors(graph)
