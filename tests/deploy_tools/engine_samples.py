"""One ONNX file for each precision that an engine can have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deploy_tools.quantization.cast import fp16_from_onnx
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx


class SameRange:
    """One range for every activation: enough to build with, not to answer with."""

    def range_of(self, tensor: str, grid: str) -> tuple[float, float]:
        return (-4.0, 4.0)


@dataclass(frozen=True)
class Files:
    """One ONNX file for each precision of an engine."""

    fp32: Path
    fp16: Path
    int8: Path
    int8_fp16: Path


def files_of(fp32: Path, folder: Path) -> Files:
    """Make the other files of an FP32 file."""
    files = Files(fp32, folder / "fp16.onnx", folder / "int8.onnx", folder / "int8-fp16.onnx")
    fp16_from_onnx(fp32, files.fp16)
    qdq_from_onnx(fp32, SameRange(), files.int8, StaticConfig("tensorrt"))
    fp16_from_onnx(files.int8, files.int8_fp16)
    return files
