"""deploy-tools build: a TensorRT engine from an ONNX file."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from deploy_tools.artifacts import ArtifactDirectory
from deploy_tools.cli.common import (
    PathType,
    out_option,
    output_options,
    print_json,
    progress_bar,
)
from deploy_tools.engine_files import NO_GPU, Sidecar, sidecar_path
from deploy_tools.runtimes.flavours import NAMES

_MIB = {"": 1.0, "B": 2.0**-20, "K": 2.0**-10, "M": 1.0, "G": 2.0**10}


@click.command("build")
@click.argument("model", type=PathType)
@click.option(
    "--flavour",
    type=click.Choice(NAMES),
    help="TensorRT, or TensorRT for RTX, which needs no GPU to build.  [default: what is installed]",
)
@click.option(
    "--batch", metavar="MIN:OPT:MAX", help="Batch sizes it takes, or one size.  [default: 1:8:32]"
)
@click.option(
    "--min-shapes",
    metavar="SHAPES",
    help="Instead of --batch: input:1x3x224x224 or input:[1,3,224,224].",
)
@click.option("--opt-shapes", metavar="SHAPES", help="The shapes that it is made fastest for.")
@click.option("--max-shapes", metavar="SHAPES", help="The largest shapes it takes.")
@click.option(
    "--workspace", metavar="MIB", help="Most scratch memory of a layer: 1024 (MiB), 512M or 1G."
)
@click.option(
    "--timing-cache",
    type=PathType,
    metavar="FILE",
    help="Kernel timings, read and updated, so that the next build is faster.",
)
@click.option(
    "--hardware-compatible", is_flag=True, help="Run on any GPU of compute capability 8.0 or newer."
)
@click.option("--version-compatible", is_flag=True, help="Run in later TensorRT releases too.")
@click.option(
    "--tf32/--no-tf32", default=False, show_default=True, help="Let FP32 layers compute in TF32."
)
@out_option()
@output_options
def command(
    model: Path,
    flavour: str | None,
    batch: str | None,
    min_shapes: str | None,
    opt_shapes: str | None,
    max_shapes: str | None,
    workspace: str | None,
    timing_cache: Path | None,
    hardware_compatible: bool,
    version_compatible: bool,
    tf32: bool,
    out: Path,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Build MODEL, an ONNX file, into a TensorRT engine with a sidecar that says what it is.

    The precision is the file's: FP32, FP16 (deploy-tools cast fp16) or INT8 (deploy-tools
    quantize static --target tensorrt, then cast fp16 for the rest).

    \b
    Examples:
      deploy-tools build out/fp32.onnx -o out
      deploy-tools build out/fp16.onnx --flavour tensorrt-rtx --batch 1:1:16 -o out
    """
    from deploy_tools.engines.build import BuildConfig, engine_from_onnx
    from deploy_tools.engines.timing_cache import TimingCacheError

    shapes = {"min": min_shapes, "opt": opt_shapes, "max": max_shapes}
    config = BuildConfig(
        flavour=flavour or "",
        shapes=_shapes(model, batch, shapes),
        workspace_mib=_workspace(workspace),
        timing_cache=timing_cache,
        hardware_compatible=hardware_compatible,
        version_compatible=version_compatible,
        tf32=tf32,
        **({"batch": batch} if batch is not None else {}),
    )
    path = out / f"{model.stem}.engine"
    with ArtifactDirectory(out) as directory:
        try:
            with progress_bar(quiet or as_json) as progress:
                sidecar = engine_from_onnx(model, path, config, progress)
        except TimingCacheError as error:  # the engine is there, and as good as any
            _record(directory, path, model, config, error.sidecar)
            raise
        _record(directory, path, model, config, sidecar)
    _show(path, model, sidecar, as_json, verbose)


def _shapes(model: Path, batch: str | None, texts: dict[str, str | None]) -> Any:
    """Read the three shape options; None where the batch decides."""
    given = [which for which, text in texts.items() if text is not None]
    if not given:
        return None
    if batch is not None:
        raise click.UsageError(f"--batch and --{given[0]}-shapes exclude each other.")
    missing = [f"--{which}-shapes" for which, text in texts.items() if text is None]
    if missing:
        raise click.UsageError(f"--{given[0]}-shapes needs {' and '.join(missing)} too.")
    from deploy_tools.engines.shapes import shapes_of_options
    from deploy_tools.onnx_files import load_onnx, real_inputs

    name = real_inputs(load_onnx(model))[0].name
    return shapes_of_options({which: text or "" for which, text in texts.items()}, name)


def _workspace(text: str | None) -> int | None:
    """Read a size as MiB: a plain number is MiB, as trtexec has it; B, K, M and G are units."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,12}(?:[.][0-9]+)?)([BKMG]?)(?:i?B)?", text, re.IGNORECASE)
    size = float(found[1]) * _MIB[found[2].upper()] if found else 0.0
    if size < 1 or size != int(size) or size >= 1 << 40:
        raise click.UsageError(
            f'--workspace "{text}" is not a size of 1 MiB or more: write 1024 (MiB), 512M or 1G.'
        )
    return int(size)


def _record(
    directory: ArtifactDirectory, path: Path, model: Path, config: Any, sidecar: Sidecar
) -> None:
    """Add the engine and its sidecar to the manifest."""
    settings = asdict(config) | {
        "flavour": sidecar.flavour,
        "profile": sidecar.profile,
        "timing_cache": str(config.timing_cache) if config.timing_cache else None,
    }
    settings = {k: v for k, v in settings.items() if k not in ("batch", "shapes")}
    notes = {"precision": sidecar.precision, "gpu": sidecar.gpu, "tensorrt_version": sidecar.tensorrt_version}  # fmt: skip
    directory.add(path.name, path.name, "build", settings, {model.name: sidecar.onnx_sha256}, notes)
    beside = sidecar_path(path).name
    directory.add(beside, beside, "build", settings, {path.name: sidecar.engine_sha256})


def _show(path: Path, model: Path, sidecar: Sidecar, as_json: bool, verbose: bool) -> None:
    from deploy_tools.engines.build import weighted_nodes
    from deploy_tools.engines.layers import precision_by_node
    from deploy_tools.onnx_files import load_onnx

    size = path.stat().st_size
    precisions = precision_by_node(sidecar.layers, weighted_nodes(load_onnx(model)))
    int8 = sum(precision == "int8" for precision in precisions.values())
    if as_json:
        counts = {"int8_layers": int8, "weighted_layers": len(precisions)}
        print_json({"file": str(path), "size_bytes": size, **counts, **asdict(sidecar)})
        return
    if verbose:
        for node, precision in precisions.items():
            click.echo(f"{precision:<8} {node}")
    told = f"{int8} of {len(precisions)} convolutions and matrix products in INT8"
    if not sidecar.layers:
        told = "TensorRT did not list its layers"
    where = sidecar.gpu if sidecar.gpu == NO_GPU else f"built on {sidecar.gpu}"
    click.echo(
        f"{path}: {size / 1e6:.2f} MB in {sidecar.build_seconds:.1f} s, {sidecar.precision}, "
        f"{told}; {sidecar.flavour} {sidecar.tensorrt_version}, {where}"
    )
