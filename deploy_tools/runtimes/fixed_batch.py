"""Sessions that know how many images a call has: shapes, memory and kernels are planned for it.

Without that a runtime works out every shape in each call, which a small model notices. The file
keeps its dynamic batch; it is the session that is told.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.errors import UserError
from deploy_tools.runtimes.base import Session


class FixedBatchSession:
    """Calls of `batch` images go to `fixed`, which takes no others; those to a second session.

    open_any: opens that one, on the first call of another size. Calls may come from several
    threads where both sessions take that.
    """

    def __init__(self, fixed: Session, batch: int, open_any: Callable[[], Session]) -> None:
        self.runtime, self.provider = fixed.runtime, fixed.provider
        self.precision, self.threads = fixed.precision, fixed.threads
        self.input_name, self.output_names = fixed.input_name, fixed.output_names
        self.batch = batch
        self._fixed, self._open_any = fixed, open_any
        self._any: Session | None = None
        self._lock = Lock()
        self._closed = False

    def run(self, inputs: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        if self._closed:
            raise RuntimeError("the session is closed")
        return (self._fixed if len(inputs) == self.batch else self._other()).run(inputs)

    def close(self) -> None:
        self._closed = True
        self._fixed.close()
        if self._any is not None:
            self._any.close()

    def _other(self) -> Session:
        with self._lock:
            if self._any is None:
                self._any = self._open_any()
            return self._any


def open_fixed(open_for: Callable[[int], Session], batch: int) -> Session:
    """Open a session for calls of `batch` images, 0 for any number.

    open_for: opens one for exactly so many images, or with 0 for any.
    """
    if not batch:
        return open_for(0)
    return FixedBatchSession(open_for(batch), batch, lambda: open_for(0))


def fix_batch(options: Any, model: Path | bytes, batch: int) -> None:
    """Tell onnxruntime's session options how many images a call has; 0 leaves them alone."""
    if batch:
        options.add_free_dimension_override_by_name(batch_axis(model), batch)


def batch_axis(model: Path | bytes) -> str:
    """Return the name of the batch's dimension of an ONNX file, by which a session can fix it.

    Raises UserError where it has none, or where another dimension of the input has the same name.
    """
    import onnx

    if isinstance(model, bytes):
        graph = onnx.load_from_string(model).graph
    else:
        graph = onnx.load(str(model), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    value = next(value for value in graph.input if value.name not in weights)
    batch, *others = value.type.tensor_type.shape.dim
    name = str(batch.dim_param)
    if not name or name in {dim.dim_param for dim in others}:
        where = "the model" if isinstance(model, bytes) else str(model)
        raise UserError(
            f"the batch of {where} cannot be fixed: its dimension has no name of its own.",
            "Open it for any batch.",
        )
    return name
