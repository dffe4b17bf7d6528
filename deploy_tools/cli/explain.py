"""deploy-tools explain: which layers of an engine run in INT8, and why one does not."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import onnx

from deploy_tools.artifacts import sha256_of_file
from deploy_tools.cli.common import PathType, output_options, print_json, progress_bar
from deploy_tools.cli.show import print_table
from deploy_tools.engine_files import EngineLayer, Sidecar, read_sidecar
from deploy_tools.engines.explain import Explanation, explain_layers, layers_of_engine
from deploy_tools.errors import ArtifactError
from deploy_tools.onnx_files import load_onnx
from deploy_tools.runtimes.flavours import NAMES


@click.command("explain")
@click.argument("file", type=PathType)
@click.option(
    "--flavour",
    type=click.Choice(NAMES),
    help="Which TensorRT to build MODEL with.  [default: what is installed]",
)
@click.option(
    "--onnx",
    "source",
    type=PathType,
    metavar="MODEL",
    help="The file ENGINE was made from.  [default: looked for beside it]",
)
@output_options
def command(
    file: Path,
    flavour: str | None,
    source: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:  # fmt: skip
    """Say what runs in INT8, FP16 and FP32, what is fused, and why a layer is not in INT8.

    FILE is an engine that build wrote, or an ONNX file, which is built in a temporary folder.

    \b
    Examples:
      deploy-tools explain out/int8-static-tensorrt.engine
      deploy-tools explain out/int8-static-tensorrt.onnx --flavour tensorrt-rtx
    """
    if file.suffix == ".engine":
        if flavour:
            raise click.UsageError("--flavour is for an ONNX file; an engine has its own.")
        sidecar = read_sidecar(file)
        proto = _source_of(file, sidecar, source)
        layers, origin = layers_of_engine(file, sidecar)
    else:
        if source:
            raise click.UsageError("--onnx is for an engine; this is the ONNX file itself.")
        proto = load_onnx(file)
        sidecar = _built(file, flavour or "", quiet or as_json)
        layers, origin = sidecar.layers, "the build log"
    explanation = explain_layers(layers, proto)
    if as_json:
        about = {"flavour": sidecar.flavour, "tensorrt_version": sidecar.tensorrt_version}
        about |= {"file": str(file), "precision": sidecar.precision, "gpu": sidecar.gpu}
        print_json({**about, "layers_from": origin, **explanation.to_dict()})
        return
    click.echo(
        f"{file}: {sidecar.precision}, {sidecar.flavour} {sidecar.tensorrt_version}, {sidecar.gpu}"
    )
    click.echo(f"layers from {origin}")
    _print(explanation)
    if verbose:
        _print_layers(layers)
    click.echo(explanation.summary)


def _built(model: Path, flavour: str, quiet: bool) -> Sidecar:
    """Build MODEL in a temporary folder; what is wanted is what the builder says of its layers."""
    from deploy_tools.engines.build import BuildConfig, engine_from_onnx

    with tempfile.TemporaryDirectory() as folder, progress_bar(quiet) as progress:
        engine = Path(folder) / "model.engine"
        return engine_from_onnx(model, engine, BuildConfig(flavour=flavour), progress)


def _source_of(engine: Path, sidecar: Sidecar, source: Path | None) -> onnx.ModelProto | None:
    """Return the ONNX file that an engine was made from: the one named, or one beside it."""
    if source is not None:
        proto = load_onnx(source)
        if sha256_of_file(source) != sidecar.onnx_sha256:
            raise ArtifactError(
                f"{engine} was not made from {source}: onnx_sha256 in its sidecar is "
                f"{sidecar.onnx_sha256[:12]}....",
                "Leave --onnx out, or name the file that it was built from.",
            )
        return proto
    for path in sorted(engine.parent.glob("*.onnx")):
        if path.is_file() and sha256_of_file(path) == sidecar.onnx_sha256:
            return load_onnx(path)
    return None


def _print(explanation: Explanation) -> None:
    rows = [(row.node, row.op, row.precision, _short(row.fused_with)) for row in explanation.rows]
    print_table(("node", "operator", "takes in", "fused with"), rows)
    for line in (*explanation.reasons, explanation.note):
        if line:
            click.echo(line)


def _short(names: tuple[str, ...]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _print_layers(layers: tuple[EngineLayer, ...]) -> None:
    """Every engine layer, with what it reads and writes and the ONNX nodes it executes."""
    for layer in layers:
        reads = " ".join(dtype for _, dtype in layer.inputs) or "-"
        writes = " ".join(dtype for _, dtype in layer.outputs) or "-"
        click.echo(f"{layer.kind:<16} {reads} -> {writes}  {layer.name}")
        for node in layer.onnx_nodes:
            click.echo(f"{'':<17}{node}")
