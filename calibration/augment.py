"""The model with the wanted tensors as its outputs, in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from deploy_tools.errors import UserError, nearest


def graph_input(model: Path) -> tuple[str, int | None]:
    """Return the name of the model's only input and its fixed batch, None where any goes.

    Raises UserError for a file that is no ONNX model or has another number of inputs.
    """
    graph = _load(model).graph
    weights = {weight.name for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise UserError(
            f"{model} has {len(inputs)} inputs; calibration takes image models with one."
        )
    return inputs[0].name, _fixed_batch(inputs[0])


def with_outputs(model: Path, tensors: Iterable[str]) -> bytes:
    """Return the model's bytes with `tensors` as its only outputs.

    Raises UserError for a file that is no ONNX model, and for a name that is no float
    activation of the graph.
    """
    import onnx

    proto = _load(model)
    graph = proto.graph
    weights = {weight.name for weight in graph.initializer}
    activations = dict.fromkeys(name for node in graph.node for name in node.output if name)
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    outputs = []
    for name in tensors:
        _require_activation(model, name, activations, weights)
        value = known.get(name)
        kind = value.type.tensor_type.elem_type if value else onnx.TensorProto.FLOAT
        if kind not in (onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED):
            raise UserError(
                f'tensor "{name}" of {model} holds {onnx.TensorProto.DataType.Name(kind)} values.',
                "Only float32 tensors have ranges.",
            )
        # No shape: the exporter's symbolic ones can disagree with each other across outputs.
        outputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    del graph.output[:]
    graph.output.extend(outputs)
    return bytes(proto.SerializeToString())


def _load(model: Path) -> Any:
    import onnx

    try:
        return onnx.load(str(model))
    except FileNotFoundError as error:
        raise UserError(f"{model} does not exist.") from error
    except Exception as error:  # protobuf's own classes are no part of onnx's interface
        raise UserError(f"{model} cannot be read as an ONNX file: {error}.") from error


def _require_activation(
    model: Path, name: str, activations: Collection[str], weights: set[str]
) -> None:
    if name in weights:
        raise UserError(f'"{name}" of {model} is a weight; only activations are calibrated.')
    if name not in activations:
        raise UserError(f'{model} has no tensor "{name}".', nearest(name, activations))


def _fixed_batch(value: Any) -> int | None:
    dimensions = value.type.tensor_type.shape.dim
    if dimensions and dimensions[0].HasField("dim_value"):
        return int(dimensions[0].dim_value)
    return None
