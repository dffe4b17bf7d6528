"""deploy-tools inspect: what is in an ONNX file, an engine or a range table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import onnx

from deploy_tools.cli.common import PathType, output_options, print_json
from deploy_tools.engine_files import Sidecar, read_sidecar
from deploy_tools.engines.hints import hints_of
from deploy_tools.engines.layers import UNKNOWN
from deploy_tools.engines.lint import COMMON_OPSET, MIN_OPSET, findings_of
from deploy_tools.engines.rules import Finding
from deploy_tools.errors import ArtifactError, MissingDependencyError
from deploy_tools.onnx_files import known_input_spec, load_onnx, real_inputs
from deploy_tools.pipeline.tuned import tuned_of
from deploy_tools.quantization.fits import Fit, fits_of
from deploy_tools.quantization.summary import describe_quantization
from deploy_tools.runtimes.flavours import find_flavour, installed_flavours


@click.command("inspect")
@click.argument("file", type=PathType)
@output_options
def command(file: Path, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Show FILE: its input, operators and, weight by weight, what is quantized.

    FILE is an ONNX file, of which the targets it fits are told too, with what keeps TensorRT from
    building it; a TensorRT engine; or a range table (ranges.json).

    \b
    Examples:
      deploy-tools inspect out/int8-static-ort.onnx
      deploy-tools inspect out/int8-static-tensorrt.engine
    """
    if file.suffix == ".json":
        _show_ranges(file, as_json)
    elif file.suffix == ".engine":
        _show_engine(file, read_sidecar(file), as_json, verbose)
    else:
        _show_model(file, load_onnx(file), as_json, verbose)


def _show_ranges(file: Path, as_json: bool) -> None:
    from calibration.table import RangeTable

    table = RangeTable.load(file)
    if as_json:
        print_json(table.to_dict())
    else:
        click.echo(table)


def _show_model(file: Path, proto: onnx.ModelProto, as_json: bool, verbose: bool) -> None:
    summary = describe_quantization(proto)
    operators = Counter(node.op_type for node in proto.graph.node)
    spec = known_input_spec(proto, file)
    shape = [d.dim_param or d.dim_value for d in real_inputs(proto)[0].type.tensor_type.shape.dim]
    opset = max(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    reader, max_opset = _reader()
    findings = findings_of(proto, max_opset)
    hints = () if findings else hints_of(proto)
    fits = fits_of(proto, [finding.rule for finding in findings])
    tuned = _tuning(file)
    if as_json:
        print_json(
            {
                "file": str(file),
                "tuning": tuned,
                "opset": opset,
                "input": {"name": real_inputs(proto)[0].name, "shape": shape},
                "spec": spec.to_dict() if spec else None,
                "operators": dict(operators),
                "quantization": summary.to_dict(),
                "targets": [asdict(fit) for fit in fits],
                "tensorrt": {
                    "read_as": reader,
                    "max_opset": max_opset,
                    "findings": [asdict(finding) for finding in findings],
                    "hints": [asdict(hint) for hint in hints],
                },
            }
        )
        return
    click.echo(f"{file}: opset {opset}, IR {proto.ir_version}, {file.stat().st_size / 1e6:.2f} MB")
    click.echo(f"input {real_inputs(proto)[0].name} {'x'.join(map(str, shape))}")
    click.echo(f"preprocessing {spec.to_json() if spec else 'unknown (no metadata)'}")
    if tuned is not None:
        click.echo(f"tuned {tuned['says']}")
    click.echo("operators " + ", ".join(f"{op} {n}" for op, n in operators.most_common()))
    if verbose:
        for node in proto.graph.node:
            click.echo(f"{node.op_type:<18} {node.name:<36} {', '.join(node.input)}")
    click.echo(summary)
    _say_targets(fits, f"{reader}, opset {MIN_OPSET} to {max_opset}", findings, hints)


def _tuning(file: Path) -> dict[str, Any] | None:
    """Return what deploy-tools tune found for a file and whether it holds here, None without."""
    try:
        tuned = tuned_of(file)
    except ArtifactError as error:
        return {"says": f"(not usable: {error})", "holds": False}
    if tuned is None:
        return None
    return {"says": str(tuned), "holds": not tuned.stale} | asdict(tuned.tuning)


def _reader() -> tuple[str, int]:
    """Return which TensorRT the findings are about, and the newest opset it reads."""
    try:
        flavour = find_flavour()
    except MissingDependencyError as error:
        reason = error.message.rstrip(".") if installed_flavours() else "none is installed here"
        return f"any TensorRT from 10.0 on ({reason})", COMMON_OPSET
    return flavour.title, flavour.max_opset


def _say_targets(
    fits: Sequence[Fit], reader: str, findings: Sequence[Finding], hints: Sequence[Finding]
) -> None:
    click.echo("targets")
    for fit in fits:
        click.echo(f"  {fit.target:<12} {'yes' if fit.fits else 'no':<4} {fit.reason}")
    if findings:
        click.echo(f"what keeps TensorRT from building it ({reader})")
    for finding in findings:
        click.echo(f"  {finding}")
    if hints:
        click.echo("hints for TensorRT")
    for hint in hints:
        click.echo(f"  {hint}")


def _show_engine(file: Path, sidecar: Sidecar, as_json: bool, verbose: bool) -> None:
    layers = Counter(layer.precision for layer in sidecar.layers)
    if as_json:
        value = {"file": str(file), "size_bytes": file.stat().st_size}
        value |= {"layer_precisions": dict(layers), **asdict(sidecar)}
        print_json(value)
        return
    click.echo(f"{file}: {sidecar.precision}, {file.stat().st_size / 1e6:.2f} MB")
    for name, value in _facts(sidecar, layers):
        click.echo(f"  {name:<16} {value}")
    if verbose:
        for layer in sidecar.layers:
            click.echo(f"{layer.precision:<8} {layer.kind:<16} {', '.join(layer.onnx_nodes)}")


def _facts(sidecar: Sidecar, layers: Counter[str]) -> list[tuple[str, Any]]:
    """What an engine's sidecar says, for people."""
    shapes = {k: "x".join(map(str, sidecar.profile[k])) for k in ("min", "opt", "max")}
    workspace = sidecar.workspace_bytes
    return [
        ("built by", f"{sidecar.flavour} {sidecar.tensorrt_version}"),
        ("gpu", " ".join(filter(None, [sidecar.gpu, sidecar.compute_capability]))),
        ("made from", f"ONNX {sidecar.onnx_sha256}"),
        ("engine", f"sha256 {sidecar.engine_sha256} (checked)"),
        ("input", f"{sidecar.input_name}, {shapes['min']} to {shapes['max']}, best at {shapes['opt']}"),
        ("outputs", ", ".join(sidecar.output_names)),
        ("TF32", "allowed" if sidecar.tf32 else "off"),
        ("runs on", _compatible(sidecar)),
        ("workspace", f"{workspace >> 20} MiB" if workspace else "as TensorRT decides"),
        ("preprocessing", json.dumps(sidecar.input_spec) if sidecar.input_spec else "unknown (no metadata)"),
        ("layers", _layers(layers)),
        ("build", f"{sidecar.build_seconds:.1f} s"),
    ]  # fmt: skip


def _layers(layers: Counter[str]) -> str:
    """How many layers take in which type; those without inputs only move data or wait."""
    known = [f"{n} take in {what}" for what, n in layers.most_common() if what != UNKNOWN]
    return ", ".join([*known, *([f"{layers[UNKNOWN]} others"] if layers[UNKNOWN] else [])])


def _compatible(sidecar: Sidecar) -> str:
    version = "this version or a later one" if sidecar.version_compatible else "this version"
    if sidecar.flavour == "tensorrt-rtx":
        return f"{version}, any GPU it supports"
    return f"{version}, {'any GPU from Ampere on' if sidecar.hardware_compatible else 'this GPU'}"
