"""From a recipe's [[variant]] tables to ids, files and runtimes."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from deploy_tools.errors import MissingDependencyError, UserError, nearest
from deploy_tools.quantization.targets import TARGETS, target_named
from deploy_tools.recipe import ENGINE_TARGETS, BatchTable, Recipe, VariantTable
from deploy_tools.runtimes.flavours import find_flavour
from deploy_tools.runtimes.gpu import find_gpu, why_no_gpu

BASELINE = "fp32-ort"
_RUNTIMES = {"ort-cpu": "onnxruntime", "openvino": "openvino"}
_SHORT = {"ort-cpu": "ort"}


@dataclass(frozen=True)
class Variant:
    """One thing to measure.

    file: its ONNX file in the artifact directory; "" for the torch module.
    engine: the TensorRT engine built from that file; "" for other targets.
    runtime_precision: what to demand of the runtime ("" leaves a quantized file's rest to it).
    simulated: why accuracy comes from another machine's arithmetic and speed is skipped,
        "" where the variant really runs here.
    """

    id: str
    precision: str
    method: str
    target: str
    runtime: str
    file: str
    runtime_precision: str = ""
    simulated: str = ""
    engine: str = ""
    table: VariantTable | None = None


def planned_variants(recipe: Recipe) -> tuple[Variant, ...]:
    """Return fp32-torch, the baseline fp32-ort, and the recipe's variants in its order."""
    variants = [
        Variant("fp32-torch", "fp32", "none", "torch", "torch", ""),
        Variant(BASELINE, "fp32", "none", "ort-cpu", "onnxruntime", "fp32.onnx", "fp32"),
        *(_variant(table, recipe) for table in recipe.variant),
    ]
    seen: set[str] = set()
    for variant in variants:
        # Names that differ only in case are one file on some systems.
        if variant.id.lower() in seen:
            raise UserError(
                f'two variants are named "{variant.id}".', "Give one of them an id of its own."
            )
        seen.add(variant.id.lower())
    return tuple(variants)


def _variant(table: VariantTable, recipe: Recipe) -> Variant:
    if table.target in ENGINE_TARGETS and table.method != "dynamic":
        return _engine(table, recipe)
    if table.precision == "fp16":
        raise UserError(
            "an fp16 variant is for TensorRT.", 'Use target = "tensorrt" or "tensorrt-rtx".'
        )
    if table.precision == "int8":
        return _dynamic(table) if table.method == "dynamic" else _static(table)
    target = table.target or ("openvino" if table.precision == "bf16" else "ort-cpu")
    if target not in _RUNTIMES:
        raise UserError(
            f'a {table.precision} variant cannot have the target "{target}".',
            nearest(target, _RUNTIMES),
        )
    if table.precision == "bf16" and target == "ort-cpu":
        raise UserError("onnxruntime's CPU provider does not run bf16.", 'Use target = "openvino".')
    name = table.id or f"{table.precision}-{_SHORT.get(target, target)}"
    return Variant(
        name,
        table.precision,
        "none",
        target,
        _RUNTIMES[target],
        "fp32.onnx",
        table.precision,
        table=table,
    )


def _engine(table: VariantTable, recipe: Recipe) -> Variant:
    if table.precision not in ("fp16", "int8"):
        raise UserError(
            f'a {table.precision} variant cannot have the target "{table.target}".',
            "TensorRT variants are fp16 and int8.",
        )
    batch = table.batch or BatchTable()
    kind = "int8-qat" if table.method == "qat" else table.precision
    name = table.id or f"{kind}-{table.target}"
    largest = max(recipe.speed.batches.values(), default=1)
    if batch.min != 1 or batch.max < largest:
        raise UserError(
            f'the engine of variant "{name}" takes batches {batch.min} to {batch.max}, and a run '
            f"gives it 1{f' and {largest}' if largest > 1 else ''}.",
            "Change batch of the variant, or [speed] batch and samples_per_query.",
        )
    return Variant(
        name, table.precision, table.method or "none", table.target, table.target, f"{name}.onnx",
        simulated=why_simulated(table.target), engine=f"{name}.engine", table=table,
    )  # fmt: skip


def why_simulated(flavour: str) -> str:
    """Return why engines of this flavour do not run on this machine, "" where they do."""
    gpu = find_gpu()
    if gpu is None:
        return f"{flavour} engines need a GPU to run: {why_no_gpu()}"
    try:
        found = find_flavour(flavour)
    except MissingDependencyError as error:
        return str(error)
    if not found.runs_on(gpu.compute_capability):
        return (
            f"{found.title} does not run on {gpu.name} "
            f"(compute capability {gpu.compute_capability})"
        )
    return ""


def _dynamic(table: VariantTable) -> Variant:
    if table.target not in ("", "ort-cpu"):
        raise UserError("dynamic quantization has the target ort-cpu only.")
    name = table.id or ("int8-dynamic-conv-ort" if table.include_conv else "int8-dynamic-ort")
    return Variant(name, "int8", "dynamic", "ort-cpu", "onnxruntime", f"{name}.onnx", table=table)


def _static(table: VariantTable) -> Variant:
    target = target_named(table.target or "ort-cpu")
    name = table.id or f"int8-{table.method}-{_SHORT.get(target.name, target.name)}"
    simulated = ""
    if target.name == "arm" and platform.machine().lower() not in ("aarch64", "arm64"):
        simulated = f"the arm target's kernels do not exist on {platform.machine()}"
    return Variant(
        name, "int8", table.method, target.name, TARGETS[target.name].runtime, f"{name}.onnx",
        simulated=simulated, table=table,
    )  # fmt: skip
