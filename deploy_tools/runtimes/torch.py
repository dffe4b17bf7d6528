"""A torch module behind the same interface as the ONNX runtimes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deploy_tools.runtimes.base import usable_cores


class TorchSession:
    """Eager torch in float32 on the CPU; `fp32-torch` in reports."""

    runtime = "torch"
    provider = "cpu"
    precision = "fp32"

    def __init__(self, module: nn.Module, threads: int = 0, input_name: str = "input") -> None:
        self._module: nn.Module | None = module.eval()
        self.threads = threads or usable_cores()
        self.input_name = input_name
        self.output_names: tuple[str, ...] = ("logits",)

    def run(self, inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        if self._module is None:
            raise RuntimeError("the session is closed")
        torch.set_num_threads(self.threads)
        with torch.inference_mode():
            logits: NDArray[np.float32] = self._module(torch.from_numpy(inputs)).numpy()
        return (logits,)

    def close(self) -> None:
        self._module = None
