"""What `ablation_speed` compares with the plain INT8 file: a rewrite or a setting is one entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from calibration.table import RangeTable
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import require
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx
from deploy_tools.rewrite.head import (
    with_flatten,
    with_global_average_pool,
    with_reduce_mean,
    with_reshape,
)
from deploy_tools.rewrite.pairs import without_repeated_pairs
from deploy_tools.rewrite.uint8_input import uint8_input_from_onnx
from deploy_tools.runtimes import RuntimeConfig, Session, open_session
from deploy_tools.runtimes import onnxruntime as ort_runtime
from deploy_tools.runtimes.base import usable_cores

TARGETS = {"onnxruntime": "ort-cpu", "openvino": "openvino"}
"""By runtime, the target whose plain file the settings start from."""


@dataclass(frozen=True)
class Base:
    """The plain files of one target. int8: what every setting is compared with."""

    fp32: Path
    int8: Path
    ranges: RangeTable
    spec: InputSpec
    config: StaticConfig


Make = Callable[[Base, Path, int], None]
"""Writes the changed file for calls of so many images."""
Open = Callable[[Path, RuntimeConfig], Session]


@dataclass(frozen=True)
class Setting:
    """One thing changed.

    runtimes: those that it is measured in. on: those of them where the commands do it.
    exact: whether the file means the same and no kernel has to round elsewhere.
    takes_pixels: whether the changed file takes uint8 pixels. rewrites: whether the file has to
    differ from the plain one. fixed: whether the session is told how many images a call has.
    """

    name: str
    make: Make
    open: Open = open_session
    runtimes: tuple[str, ...] = ("onnxruntime", "openvino")
    on: tuple[str, ...] = ()
    exact: bool = True
    takes_pixels: bool = False
    rewrites: bool = True
    fixed: bool = False


def _rewritten(rewrite: Callable[[onnx.ModelProto], onnx.ModelProto]) -> Make:
    def make(base: Base, path: Path, batch: int) -> None:
        changed = rewrite(load_onnx(base.int8))
        onnx.checker.check_model(changed, full_check=True)
        onnx.save(changed, str(path))

    return make


def _head_of_the_float_file(rewrite: Callable[[onnx.ModelProto], onnx.ModelProto]) -> Make:
    """Rewritten before it is quantized: the writer puts pairs around other operators then."""

    def make(base: Base, path: Path, batch: int) -> None:
        changed = path.with_suffix(".fp32.onnx")
        onnx.save(rewrite(load_onnx(base.fp32)), str(changed))
        qdq_from_onnx(changed, base.ranges, path, base.config)

    return make


def _pixels(form: str) -> Make:
    return lambda base, path, batch: uint8_input_from_onnx(base.int8, path, form)


def _unchanged(base: Base, path: Path, batch: int) -> None:
    onnx.save(load_onnx(base.int8), str(path))


def _branches(in_float: bool) -> Make:
    """The main branches of the residual Adds in float, or quantized."""

    def make(base: Base, path: Path, batch: int) -> None:
        adds = ("all",) if in_float else ()
        config = replace(base.config, target="ort-cpu", float_branches=adds)
        qdq_from_onnx(base.fp32, base.ranges, path, config)

    return make


def _float_head(base: Base, path: Path, batch: int) -> None:
    """The final Gemm in float; no pair stands around the pool before it (ReduceMean) in any file."""
    names = [n.name for n in prepared(load_onnx(base.fp32)).graph.node if n.op_type == "Gemm"]
    exclude = tuple(dict.fromkeys((*base.config.exclude, *names)))
    qdq_from_onnx(base.fp32, base.ranges, path, replace(base.config, exclude=exclude))


def _level(name: str) -> Open:
    """Open onnxruntime with another level of graph optimizations than its default, all."""

    def opened(path: Path, config: RuntimeConfig) -> Session:
        ort: Any = require("onnxruntime", "", "Running ONNX files")
        threads = config.threads or usable_cores()
        options = ort_runtime.session_options(ort, threads, fusions=True)
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, name)
        session = ort_runtime.load(ort, path, options, ["CPUExecutionProvider"])
        provider = "CPUExecutionProvider"
        return ort_runtime.OnnxRuntimeSession(session, provider, threads, "int8+fp32")

    return opened


SETTINGS = (
    Setting("the same file again", _unchanged, rewrites=False),
    Setting(
        "uint8 input, first", _pixels("first"), on=("openvino",), exact=False, takes_pixels=True
    ),
    Setting(
        "uint8 input, folded", _pixels("folded"), on=("onnxruntime",), exact=False,
        takes_pixels=True,
    ),
    Setting("constant batch", _unchanged, rewrites=False, fixed=True),
    Setting("GlobalAveragePool", _rewritten(with_global_average_pool), exact=False),
    Setting("ReduceMean", _rewritten(with_reduce_mean), exact=False),
    Setting("Flatten", _rewritten(with_flatten)),
    Setting("Reshape", _rewritten(with_reshape)),
    Setting(
        "GlobalAveragePool, then quantized", _head_of_the_float_file(with_global_average_pool),
        exact=False,
    ),
    Setting("final Gemm in float", _float_head, exact=False),
    Setting("no repeated pairs", _rewritten(without_repeated_pairs)),
    # Each is as the other runtime's plain file has it; the second has zero-points on shortcuts too.
    Setting("branches in float", _branches(True), runtimes=("onnxruntime",), exact=False),
    Setting("branches quantized", _branches(False), runtimes=("openvino",), exact=False),
    Setting(
        "constant batch, branches quantized", _branches(False), runtimes=("openvino",),
        exact=False, fixed=True,
    ),
    Setting(
        "optimizations: extended", _unchanged, _level("ORT_ENABLE_EXTENDED"), ("onnxruntime",),
        exact=False, rewrites=False,
    ),
    Setting(
        "optimizations: basic", _unchanged, _level("ORT_ENABLE_BASIC"), ("onnxruntime",),
        exact=False, rewrites=False,
    ),
)  # fmt: skip
"""The first shows the noise: it is the plain file itself. A rewrite that finds nothing to change
is a row that says so. Another one is one more entry here."""
