"""A constant batch: the runtime knows every shape, and the file takes batches of that size only."""

from __future__ import annotations

from pathlib import Path

import onnx

from deploy_tools.artifacts import atomic_path
from deploy_tools.errors import UserError
from deploy_tools.onnx_files import load_onnx, real_inputs, require_dynamic_batch


def fixed_batch_from_onnx(model: Path, path: Path, batch: int) -> None:
    """Write `model` with a constant batch to `path`; comes last, other passes want any batch.

    Raises UserError for a batch below 1 and for a file that has a fixed batch already.
    """
    proto = load_onnx(model)
    require_dynamic_batch(proto, model)
    changed = with_fixed_batch(proto, batch)
    onnx.checker.check_model(changed, full_check=True)
    with atomic_path(path) as part:
        onnx.save(changed, str(part))


def with_fixed_batch(proto: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Return a copy whose input and outputs say that the batch is `batch`."""
    if batch < 1:
        raise UserError(f"a batch holds at least one image, not {batch}.")
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    for value in (*real_inputs(changed), *changed.graph.output):
        dims = value.type.tensor_type.shape.dim
        if len(dims):
            dims[0].Clear()
            dims[0].dim_value = batch
    # What is recorded of the tensors between still has the batch as a symbol.
    del changed.graph.value_info[:]
    return changed
