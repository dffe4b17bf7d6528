"""torchao's PT2E flow with its quantizer for x86 and Inductor, on the same images.

The exported program with quantize and dequantize operators is kept and judged as it is, in
float arithmetic: its INT8 kernels appear only where torch.compile lowers it. torchao 0.18 with torch
2.15 refuses a module that calls one ReLU at several places ("Input partition has more than one
output node"), as torchvision's ResNets and the bottleneck blocks of this package do.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

from benchmarks.peers.base import EXTRA, Job
from deploy_tools.artifacts import atomic_path
from deploy_tools.errors import require

_BATCH = 32
_LARGEST_BATCH = 4096
_WHAT = "torchao's PT2E quantization"
_FLOW = "torchao.quantization.pt2e.quantize_pt2e"
_QUANTIZER = "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer"


def load() -> None:
    """Import the tool."""
    require("torch", "torch", _WHAT)
    require(_FLOW, EXTRA, _WHAT)
    require(_QUANTIZER, EXTRA, _WHAT)


def quantize(job: Job, path: Path) -> None:
    """Write the quantized program of `job`'s module to `path`, a .pt2 of torch.export.

    The quantizer's default: U8 activations with histogram observers, S8 weights with one scale
    a channel; it quantizes what convolutions and linear layers read, not what they give.
    """
    import torch

    flow = require(_FLOW, EXTRA, _WHAT)
    x86 = require(_QUANTIZER, EXTRA, _WHAT)
    module = job.module()
    example = torch.from_numpy(next(iter(job.images(2))))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = flow.prepare_pt2e(_exported(module, example).module(), quantizer)
        for inputs in job.images(_BATCH):
            prepared(torch.from_numpy(inputs))
        converted = flow.convert_pt2e(prepared)
        buffer = io.BytesIO()
        torch.export.save(_exported(converted, example), buffer)
    with atomic_path(path) as part:
        part.write_bytes(buffer.getvalue())


def _exported(module: Any, example: Any) -> Any:
    """Export with any batch size."""
    import torch

    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    return torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
