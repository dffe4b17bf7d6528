"""deploy-tools bench accuracy | speed: ONNX files against the first one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deploy_tools.cli.common import (
    PathType,
    data_options,
    output_options,
    print_json,
    progress_bar,
)  # fmt: skip
from deploy_tools.cli.show import print_table, say_session
from deploy_tools.data import open_source
from deploy_tools.data.source import SubsetSource, batches
from deploy_tools.data.splits import stratified_choice
from deploy_tools.errors import UserError
from deploy_tools.onnx_files import input_spec_of, load_onnx, require_dynamic_batch
from deploy_tools.runtimes import RUNTIMES, RuntimeConfig, Session, open_session

_PROVIDER = click.option("--provider", type=click.Choice(list(RUNTIMES)), default="onnxruntime", show_default=True, help="Runtime for all the files.")  # fmt: skip
_PRECISION = click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="Of files, and parts of files, that are not quantized.")  # fmt: skip
_THREADS = click.option("--threads", type=click.IntRange(0), default=0, help="0 takes every core.")


@click.group("bench")
def command() -> None:
    """Measure ONNX files against the first one given, which is the baseline."""


@command.command("accuracy")
@click.argument("models", nargs=-1, required=True, type=PathType)
@data_options("test")
@click.option("--images", type=click.IntRange(1), help="Only so many, stratified by class.")
@_PROVIDER
@_PRECISION
@_THREADS
@output_options
def accuracy(
    models: tuple[Path, ...],
    source: str,
    data: Path | None,
    split: str,
    images: int | None,
    provider: str,
    precision: str,
    threads: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Top-1, drop with its interval, McNemar p, agreement and logit SQNR of MODELS.

    \b
    Example:
      deploy-tools bench accuracy out/fp32.onnx out/int8-static-ort.onnx \\
          --source fashion-mnist --split test
    """
    from benchmarks.accuracy import accuracy_from_predictions
    from benchmarks.predictions import predictions_from_images

    loaded = open_source(source, data, split)
    if images is not None:
        loaded = SubsetSource(loaded, stratified_choice(loaded.labels, images, 0).tolist(), split)
    found, runs_in = [], {}
    with progress_bar(quiet) as progress:
        for model in models:
            proto = load_onnx(model)
            require_dynamic_batch(proto, model)
            session = open_session(model, RuntimeConfig(provider, threads, precision))
            runs_in[str(model)] = session.precision
            say_session(model, session, verbose)
            spec = input_spec_of(proto, model)
            found.append(predictions_from_images(session, loaded, spec, progress=progress))
            session.close()
    rows = {
        str(m): accuracy_from_predictions(p, found[0]) for m, p in zip(models, found, strict=True)
    }
    if as_json:
        print_json(
            {
                "baseline": str(models[0]),
                "models": {k: v.to_dict() | {"runs_in": runs_in[k]} for k, v in rows.items()},
            }
        )
        return
    for model_name, result in rows.items():
        click.echo(f"{model_name} ({provider} {runs_in[model_name]}): {result}")


@command.command("speed")
@click.argument("models", nargs=-1, required=True, type=PathType)
@click.option(
    "--batch", type=click.IntRange(1), default=8, show_default=True, help="Of the offline scenario."
)
@click.option(
    "--rounds", type=click.IntRange(3), default=12, show_default=True, help="Interleaved rounds."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.01),
    default=0.25,
    show_default=True,
    help="Of one file in one round.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of the order within rounds.",
)
@data_options("test")
@_PROVIDER
@_PRECISION
@_THREADS
@output_options
def speed(
    models: tuple[Path, ...],
    batch: int,
    rounds: int,
    seconds: float,
    seed: int,
    source: str,
    data: Path | None,
    split: str,
    provider: str,
    precision: str,
    threads: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Latency, images/s and speedup of MODELS, interleaved in one process, on real images.

    \b
    Example:
      deploy-tools bench speed out/fp32.onnx out/int8-static-ort.onnx --source fashion-mnist
    """  # fmt: skip
    from benchmarks.speed import SpeedConfig, measure_speed

    if len(set(models)) != len(models):
        raise UserError("a file is given twice.")
    sessions: dict[str, Session] = {}
    for model in models:
        require_dynamic_batch(load_onnx(model), model)
        sessions[str(model)] = open_session(model, RuntimeConfig(provider, threads, precision))
        say_session(model, sessions[str(model)], verbose)
    spec = input_spec_of(load_onnx(models[0]), models[0])
    loaded = open_source(source, data, split)

    def images(count: int) -> Any:
        return next(batches(loaded, spec, count, [i % len(loaded) for i in range(count)]))[0]

    config = SpeedConfig(batch=batch, rounds=rounds, seconds_per_round=seconds, seed=seed)
    with progress_bar(quiet) as progress:
        runs = measure_speed(sessions, images, str(models[0]), config, progress)
    if as_json:
        print_json(
            {
                "baseline": str(models[0]),
                "runs": [
                    {"model": r.variant, "runs_in": sessions[r.variant].precision, **r.to_dict()}
                    for r in runs
                ],
            }
        )
        return
    headers = [
        "model",
        "runs in",
        "scenario",
        "batch",
        "p50 ms",
        "p99 ms",
        "images/s",
        "speedup [95 %]",
    ]
    rows = [
        [
            run.variant, sessions[run.variant].precision, run.scenario, str(run.batch), f"{run.latency_ms['p50'].estimate:.2f}",
            f"{run.latency_ms['p99'].estimate:.2f}", f"{run.images_per_s.estimate:.0f}",
            f"{run.speedup.estimate:.2f} [{run.speedup.low:.2f}, {run.speedup.high:.2f}]",
        ]
        for run in runs
    ]  # fmt: skip
    print_table(headers, rows)
    for note in {run.note for run in runs if run.note}:
        click.echo(note)
