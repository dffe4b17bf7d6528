"""A torch module on the CPU in each of torch's own ways, behind the interface of a session."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.base import EXTRA
from deploy_tools.errors import UserError, nearest, require

if TYPE_CHECKING:
    from torch import nn

_RECOMPILES = 256
"""One compilation a batch size and a number of threads; torch's own limit of 8 is for surprises."""


@dataclass(frozen=True)
class Mode:
    """A way to run a float32 module.

    channels_last: memory format of weights and inputs. autocast: torch.autocast to bfloat16,
    entered at every call, so that the weights are cast there. bf16: weights and inputs cast once.
    compiled: torch.compile with Inductor, weights frozen.
    """

    channels_last: bool = False
    autocast: bool = False
    bf16: bool = False
    compiled: bool = False

    @property
    def precision(self) -> str:
        """What convolutions run in."""
        return "bf16" if self.autocast or self.bf16 else "fp32"


MODES = {
    "eager": Mode(),
    "eager, channels_last": Mode(channels_last=True),
    "bf16 autocast, channels_last": Mode(channels_last=True, autocast=True),
    "bf16 weights, channels_last": Mode(channels_last=True, bf16=True),
    "torch.compile": Mode(compiled=True),
    "torch.compile, bf16 weights": Mode(channels_last=True, bf16=True, compiled=True),
}


class TorchMode:
    """A function of a tensor (N, C, H, W), float32, for logits; a `Session`."""

    runtime, provider = "torch", "cpu"
    input_name = "input"
    output_names: tuple[str, ...] = ("logits",)

    def __init__(
        self, function: Callable[[Any], Any], mode: Mode, threads: int, precision: str = ""
    ) -> None:
        """precision: where the function is not the float32 module that the mode assumes."""
        self._function: Callable[[Any], Any] | None = function
        self._mode, self.threads = mode, threads
        self.precision = precision or mode.precision

    def run(self, inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        import torch

        if self._function is None:
            raise RuntimeError("the session is closed")
        use_threads(self.threads)
        with self._contexts(torch):
            tensor = torch.from_numpy(inputs)
            if self._mode.bf16:
                tensor = tensor.to(torch.bfloat16)
            if self._mode.channels_last:
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            logits: NDArray[np.float32] = self._function(tensor).float().numpy()
        return (logits,)

    def close(self) -> None:
        self._function = None

    def _contexts(self, torch: Any) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        # Inductor freezes weights without gradients only; its guide uses no_grad.
        stack.enter_context(torch.no_grad() if self._mode.compiled else torch.inference_mode())
        if self._mode.autocast:
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        return stack


def use_threads(count: int) -> None:
    """Have torch use so many threads for calls from this thread.

    torch keeps one number for the process, which a thread takes over when it first asks; one that
    asked before keeps its own. Set only where it differs, so that no timed call pays for it twice.
    """
    torch: Any = require("torch", "torch", "A torch model")
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def open_module(module: nn.Module, name: str, threads: int) -> TorchMode:
    """Open a float32 module in one of `MODES`; the module itself is left as it is.

    A compiled one is compiled at its first call with each batch size. Raises UserError for
    another mode.
    """
    if name not in MODES:
        raise UserError(f'torch has no mode "{name}" here.', nearest(name, MODES))
    torch: Any = require("torch", "torch", "A torch model")
    mode = MODES[name]
    own: Any = copy.deepcopy(module).eval()
    if mode.bf16:
        own = own.to(torch.bfloat16)
    if mode.channels_last:
        own = own.to(memory_format=torch.channels_last)
    return TorchMode(_compiled(own) if mode.compiled else own, mode, threads)


def open_script(path: Path, threads: int) -> TorchMode:
    """Open a quantized TorchScript file: torch's FX graph mode in its own INT8 kernels."""
    torch: Any = require("torch", "torch", "A torch model")
    return TorchMode(torch.jit.load(str(path)), Mode(), threads, "int8+fp32")


def open_program(path: Path, threads: int) -> TorchMode:
    """Open a quantized program of torch.export, lowered to INT8 kernels by torch.compile."""
    torch: Any = require("torch", "torch", "A torch model")
    # Importing the quantizer registers the operators and the lowering.
    require("torchao.quantization.pt2e.quantize_pt2e", EXTRA, "A quantized program")
    require("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer", EXTRA, "Its lowering")
    program = torch.export.load(str(path)).module()
    return TorchMode(_compiled(program), Mode(compiled=True), threads, "int8+fp32")


def _compiled(module: Any) -> Callable[[Any], Any]:
    torch: Any = require("torch", "torch", "torch.compile")
    # Beyond its limit torch would go on uncompiled; fullgraph makes that an error.
    torch._dynamo.config.recompile_limit = _RECOMPILES
    # For the whole process, as Inductor's guide does it: given as an option of torch.compile it
    # does not reach the lowering of quantized programs (torch 2.15).
    torch._inductor.config.freezing = True
    function: Callable[[Any], Any] = torch.compile(module, fullgraph=True, dynamic=False)
    return function
