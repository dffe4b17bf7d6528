"""Read ONNX files that users hand in, and say clearly what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError, nearest


def load_onnx(path: Path) -> onnx.ModelProto:
    """Load and check an image classifier: one image input, at least one output.

    Raises UserError where the file is missing, is not ONNX, or is not valid.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    try:
        proto = onnx.load(str(path))
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


def input_spec_of(proto: onnx.ModelProto, path: Path) -> InputSpec:
    """Return the input spec in the file's metadata; UserError where there is none."""
    try:
        spec = InputSpec.from_metadata({prop.key: prop.value for prop in proto.metadata_props})
    except (UserError, ValueError, RecursionError) as error:
        raise UserError(f"the input spec in {path} is damaged: {error}") from error
    if spec is None:
        raise UserError(
            f"{path} does not say how its input is made (no input spec in its metadata).",
            "Export it with deploy-tools, or give the [input] table in a recipe.",
        )
    return spec


def require_nodes(proto: onnx.ModelProto, names: Iterable[str]) -> None:
    """Refuse the name of a node that the graph does not have; the hint says the nearest."""
    known = {node.name for node in proto.graph.node if node.name}
    for name in names:
        if name not in known:
            raise UserError(f'no node is named "{name}".', nearest(name, known))


def class_count(proto: onnx.ModelProto) -> int | None:
    """Return the size of the first output's last axis where the file says it."""
    dims = proto.graph.output[0].type.tensor_type.shape.dim
    return int(dims[-1].dim_value) if len(dims) == 2 and dims[-1].dim_value else None
