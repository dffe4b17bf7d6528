"""deploy-tools inspect: what is in an ONNX file or a range table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from deploy_tools.cli.common import PathType, output_options, print_json
from deploy_tools.onnx_files import known_input_spec, load_onnx, real_inputs
from deploy_tools.quantization.summary import describe_quantization


@click.command("inspect")
@click.argument("file", type=PathType)
@output_options
def command(file: Path, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Show FILE: its input, operators and, weight by weight, what is quantized.

    FILE is an ONNX file or a range table (ranges.json).

    \b
    Example:
      deploy-tools inspect out/int8-static-ort.onnx
    """
    if file.suffix == ".json":
        from calibration.table import RangeTable

        table = RangeTable.load(file)
        if as_json:
            print_json(table.to_dict())
        else:
            click.echo(table)
        return
    proto = load_onnx(file)
    summary = describe_quantization(proto)
    operators = Counter(node.op_type for node in proto.graph.node)
    spec = known_input_spec(proto, file)
    shape = [d.dim_param or d.dim_value for d in real_inputs(proto)[0].type.tensor_type.shape.dim]
    opset = max(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    if as_json:
        print_json(
            {
                "file": str(file),
                "opset": opset,
                "input": {"name": real_inputs(proto)[0].name, "shape": shape},
                "spec": spec.to_dict() if spec else None,
                "operators": dict(operators),
                "quantization": summary.to_dict(),
            }
        )
        return
    click.echo(f"{file}: opset {opset}, IR {proto.ir_version}, {file.stat().st_size / 1e6:.2f} MB")
    click.echo(f"input {real_inputs(proto)[0].name} {'x'.join(map(str, shape))}")
    click.echo(f"preprocessing {spec.to_json() if spec else 'unknown (no metadata)'}")
    click.echo("operators " + ", ".join(f"{op} {n}" for op, n in operators.most_common()))
    if verbose:
        for node in proto.graph.node:
            click.echo(f"{node.op_type:<18} {node.name:<36} {', '.join(node.input)}")
    click.echo(summary)
