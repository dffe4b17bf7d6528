"""torch's own quantization in FX graph mode: static with observers, and dynamic.

torch.ao.quantization, per-channel weights, the backend's default observers (histograms). torch
calls it deprecated in favour of torchao and still carries it. The module is the folded one that
the ONNX file was exported from; what comes out is kept as TorchScript and runs on the CPU.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from benchmarks.peers.base import Job
from deploy_tools.artifacts import atomic_path
from deploy_tools.errors import MissingDependencyError, UserError, require

BACKENDS = ("x86", "fbgemm")
_BATCH = 32


def load() -> None:
    """Import the tool."""
    torch = require("torch", "torch", "torch's quantization")
    require("torch.ao.quantization.quantize_fx", "torch", "torch's FX graph mode quantization")
    missing = [name for name in BACKENDS if name not in torch.backends.quantized.supported_engines]
    if missing:
        raise MissingDependencyError(
            f"this torch has no quantized kernels for {' and '.join(missing)}.",
            "They exist on x86 processors only.",
        )


def quantize(
    job: Job,
    path: Path,
    method: str = "static",
    backend: str = "x86",
    per_channel: bool = True,
) -> None:
    """Write torch's INT8 module as TorchScript to `path`.

    method: "static", or "dynamic", which quantizes the weights of Linear layers only (no Conv2d,
        whatever it is asked) and uses no calibration images. backend: one of BACKENDS; both keep
        activations to 7 bits (reduce_range). per_channel: False is one weight scale a tensor.
    """
    import torch

    if method not in ("static", "dynamic") or backend not in BACKENDS:
        raise UserError(f'torch has no method "{method}" with backend "{backend}".')
    torch.backends.quantized.engine = backend
    module = job.module()
    # It warns of its own deprecation and of guesses at what the default observers need.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        example = torch.from_numpy(next(iter(job.images(2))))
        if method == "dynamic":
            made = _ao().quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.qint8)
        else:
            made = _static(module, job, example, _mapping(backend, per_channel))
        traced = torch.jit.trace(made, example)  # type: ignore[no-untyped-call]
        with atomic_path(path) as part:
            traced.save(str(part))


def _ao() -> Any:
    return require("torch.ao.quantization", "torch", "torch's quantization")


def _static(module: Any, job: Job, example: Any, mapping: Any) -> Any:
    import torch
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(module, mapping, (example,))
    for inputs in job.images(_BATCH):
        prepared(torch.from_numpy(inputs))
    return convert_fx(prepared)


def _mapping(backend: str, per_channel: bool) -> Any:
    """The backend's default settings, or the same with one scale a weight tensor."""
    ao = _ao()
    if per_channel:
        return ao.get_default_qconfig_mapping(backend)
    default = ao.get_default_qconfig(backend)
    chosen = ao.QConfig(activation=default.activation, weight=ao.default_weight_observer)
    # The other operators keep what the backend's mapping says of them.
    return ao.get_default_qconfig_mapping(backend).set_global(chosen)
