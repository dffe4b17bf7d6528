"""deploy-tools tune: how a file runs fastest on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy_tools.cli.common import (
    PathType,
    data_options,
    output_options,
    print_json,
    progress_bar,
)
from deploy_tools.cli.model import is_engine
from deploy_tools.cli.show import print_table
from deploy_tools.data import open_source
from deploy_tools.errors import UserError
from deploy_tools.tuning.settings import PRECISIONS, TUNABLE, Settings

if TYPE_CHECKING:
    from deploy_tools.pipeline.tuning_choice import Choice
    from deploy_tools.tuning.files import Tuning


@click.command("tune")
@click.argument("model", type=PathType)
@click.option("--latency-ms", type=click.FloatRange(0, 60_000, min_open=True), metavar="L", help="The most images/s of random single arrivals whose p99 keeps this limit.")  # fmt: skip
@click.option("--throughput", is_flag=True, help="The most images/s of batches, the default.")
@click.option("--provider", "runtimes", multiple=True, type=click.Choice(TUNABLE), help="Repeatable: try these only. They are compared with onnxruntime untuned, as commands run it. [default: all]")  # fmt: skip
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="Of what is not quantized; bf16 with openvino only, and compared with that untuned.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(0, 86_400, min_open=True), help="About how long it may take. [default: 60, or what the limit needs]")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of orders and arrivals.")  # fmt: skip
@data_options("train")
@output_options
def command(
    model: Path,
    latency_ms: float | None,
    throughput: bool,
    runtimes: tuple[str, ...],
    precision: str,
    seconds: float | None,
    seed: int,
    source: str,
    data: Path | None,
    split: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Find provider, threads, streams, pinning and batch with which MODEL (ONNX) runs fastest here.

    Candidates are timed side by side with the default and thinned out; what is left has to be
    faster than the default in a measurement of its own, otherwise the default stays. What it finds
    is written beside the file, MODEL.tune.json, and read by predict and bench on this machine.
    Precision is never changed. Exit 4 where nothing keeps the limit.

    \b
    Examples:
      deploy-tools tune out/int8-static-ort.onnx --source fashion-mnist
      deploy-tools tune out/int8-static-ort.onnx --latency-ms 5 --source fashion-mnist
    """
    from deploy_tools.pipeline.tune import tune_onnx
    from deploy_tools.pipeline.tuning_choice import TuneConfig

    if throughput and latency_ms is not None:
        raise click.UsageError("--throughput and --latency-ms exclude each other.")
    if is_engine(model):
        raise UserError(f"{model} is an engine: it was tuned when it was built.")
    config = TuneConfig(latency_ms, seconds, seed)
    chosen = _runtimes(runtimes, precision)
    loaded = open_source(source, data, split)
    with progress_bar(quiet) as progress:
        path, tuning, choice = tune_onnx(model, loaded, config, chosen, precision, progress)
    if as_json:
        print_json(_report(model, path, tuning, choice))
    else:
        _show(path, tuning, choice, verbose)


def _runtimes(given: tuple[str, ...], precision: str) -> tuple[str, ...]:
    """Return the runtimes to try, once each, in the order given."""
    if precision == "bf16":
        if "onnxruntime" in given:
            raise click.UsageError("--precision bf16 runs with --provider openvino only.")
        return ("openvino",)
    return tuple(dict.fromkeys(given)) or TUNABLE


def _report(model: Path, path: Path, tuning: Tuning, choice: Choice) -> dict[str, Any]:
    return {
        "model": str(model),
        "file": str(path),
        "latency_limit_ms": tuning.latency_limit_ms,
        "default": choice.default.to_dict(),
        "settings": tuning.settings.to_dict(),
        "is_default": tuning.is_default,
        "reason": choice.reason,
        "measured": tuning.measured,
        "rungs": [
            [{"settings": settings.to_dict(), "score": score} for settings, score in rung.scores]
            for rung in choice.tried
        ],
        "skipped": [
            {"settings": left.settings.to_dict(), "reason": left.reason} for left in choice.skipped
        ],
    }


def _show(path: Path, tuning: Tuning, choice: Choice, verbose: bool) -> None:
    last: dict[Settings, tuple[int, float]] = {}
    for number, rung in enumerate(choice.tried):
        last |= {settings: (number + 1, score) for settings, score in rung.scores}
    order = sorted(last.items(), key=lambda found: (-found[1][0], -found[1][1]))
    shown = order if verbose else order[:8]
    score = "over the default" if tuning.latency_limit_ms is None else "predicted images/s"
    print_table(
        ["tried", "rung", score],
        [[str(settings), str(number), _score(value)] for settings, (number, value) in shown],
    )
    if len(order) > len(shown):
        click.echo(f"and {len(order) - len(shown)} more (-v shows them)")
    for left in choice.skipped:
        click.echo(f"not tried: {left.settings}: {left.reason}")
    for run in choice.runs.values():
        click.echo(f"replay: {run}")
    kept = "the default stays" if choice.is_default else "chosen"
    click.echo(f"{kept}: {choice.reason}")
    if choice.default.precision != "fp32":
        click.echo(f'"the default" is {choice.default} here: nothing was run in fp32')
    click.echo(f"Written to {path}")


def _score(value: float) -> str:
    return f"{value:.3g}" if value >= 0 else f"p99 {-value:.3g} ms"
