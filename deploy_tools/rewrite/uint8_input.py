"""The input as uint8 pixels (N, H, W, C), normalized inside the graph.

No host makes a float image then. Two forms compute the same:

"first" puts Cast, Transpose and normalization in front of the graph as it is.
"folded" folds them into the first convolution, see `folding`.

The pass runs last: calibration, corrections and training work on the float file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploy_tools.artifacts import atomic_path
from deploy_tools.data.spec import METADATA_KEY, InputSpec
from deploy_tools.errors import UserError, nearest
from deploy_tools.onnx_files import (
    input_spec_of,
    load_onnx,
    real_inputs,
    remove_where,
    require_float_input,
)
from deploy_tools.rewrite.folding import fold_into_first_conv
from deploy_tools.rewrite.forms import FORMS

_NHWC_TO_NCHW = (0, 3, 1, 2)
_IMAGE = "pixels"
"""Prefix of the tensors and nodes that the pass adds."""


def uint8_input_from_onnx(model: Path, path: Path, form: str) -> None:
    """Write `model` with a uint8 input to `path`; its input spec says dtype uint8, layout NHWC.

    form: "first" or "folded". Raises UserError where the file has no input spec or takes pixels
    already, and UnsupportedGraphError where its first layer cannot be folded into.
    """
    proto = load_onnx(model)
    require_float_input(proto, model)
    changed = with_uint8_input(proto, input_spec_of(proto, model), form)
    onnx.checker.check_model(changed, full_check=True)
    with atomic_path(path) as part:
        onnx.save(changed, str(part))


def with_uint8_input(proto: onnx.ModelProto, spec: InputSpec, form: str) -> onnx.ModelProto:
    """Return a copy that takes uint8 pixels; see `uint8_input_from_onnx`."""
    if form not in FORMS:
        raise UserError(f'the form "{form}" is not known.', nearest(form, FORMS))
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    graph = changed.graph
    name = real_inputs(changed)[0].name
    if form == "first":
        nodes = _normalization(graph, name, spec)
    else:
        nodes = fold_into_first_conv(graph, name, spec, _IMAGE)
    for position, node in enumerate(nodes):
        graph.node.insert(position, node)
    _retype_input(changed, name)
    _drop_stale_shapes(graph)
    notes = {prop.key: prop.value for prop in changed.metadata_props}
    pixels = replace(spec.with_pixels(), input_name=name)
    notes[METADATA_KEY] = pixels.to_json()
    del changed.metadata_props[:]
    helper.set_model_props(changed, dict(sorted(notes.items())))
    return changed


def _normalization(graph: onnx.GraphProto, name: str, spec: InputSpec) -> list[onnx.NodeProto]:
    """Return the nodes from pixels to the tensor that the graph read as its input.

    Cast comes first: TensorRT reads a UINT8 input through nothing else.
    """
    normalized = f"{_IMAGE}/normalized"
    for node in graph.node:
        node.input[:] = [normalized if tensor == name else tensor for tensor in node.input]
    std, mean = (np.array(v, np.float64).reshape(1, -1, 1, 1) for v in (spec.std, spec.mean))
    constants = {"scale": 1 / (255 * std), "shift": -mean / std}
    for key, values in constants.items():
        tensor = numpy_helper.from_array(values.astype(np.float32), f"{_IMAGE}.{key}")
        graph.initializer.append(tensor)
    steps: tuple[tuple[str, str, tuple[str, ...], dict[str, object]], ...] = (
        ("Cast", "cast", (), {"to": TensorProto.FLOAT}),
        ("Transpose", "transpose", (), {"perm": _NHWC_TO_NCHW}),
        ("Mul", "scaled", (f"{_IMAGE}.scale",), {}),
        ("Add", "normalized", (f"{_IMAGE}.shift",), {}),
    )
    nodes, last = [], name
    for kind, key, others, attributes in steps:
        made = f"{_IMAGE}/{key}"
        nodes.append(helper.make_node(kind, [last, *others], [made], made, **attributes))
        last = made
    return nodes


def _retype_input(proto: onnx.ModelProto, name: str) -> None:
    """Declare the input as uint8 (N, H, W, C), with the sizes that it had."""
    value = real_inputs(proto)[0]
    batch, *image = (_size(dim) for dim in value.type.tensor_type.shape.dim)
    channels, height, width = image
    shape = [batch, height, width, channels]
    value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, shape))


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)


def _drop_stale_shapes(graph: onnx.GraphProto) -> None:
    """Forget recorded shapes of tensors that are gone."""
    alive = {tensor for node in graph.node for tensor in node.output}
    remove_where(graph.value_info, lambda value: value.name not in alive)
