"""deploy-tools bench accuracy | speed: ONNX files and engines against the first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy_tools.cli.common import (
    PathType,
    ProgressCallback,
    data_options,
    output_options,
    print_json,
    progress_bar,
)
from deploy_tools.cli.model import OpenedModel, engine_options, opened_model, refuse_idle_options
from deploy_tools.cli.scenarios import (
    chosen_config,
    print_runs,
    ratio_text,
    refuse_idle_scenario_options,
    scenario_options,
)
from deploy_tools.cli.show import print_table, say_session
from deploy_tools.cli.tuned import (
    RUN_OPTIONS,
    batch_for_all,
    batch_of,
    config_of,
    tuned_batch,
    tuned_option,
    tuned_settings,
)
from deploy_tools.data import open_source
from deploy_tools.data.source import ImageSource, SubsetSource, batches
from deploy_tools.data.splits import stratified_choice
from deploy_tools.errors import UserError
from deploy_tools.runtimes import RUNTIMES, RuntimeConfig

if TYPE_CHECKING:
    from benchmarks.gpu_speed import GpuRun, GpuSpeedConfig
    from benchmarks.speed import MakeBatch, SpeedConfig, SpeedRun

_PROVIDER = click.option("--provider", type=click.Choice(list(RUNTIMES)), default="onnxruntime", show_default=True, help="Runtime of the ONNX files; an engine has its own.")  # fmt: skip
_PRECISION = click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="Of ONNX files, and parts of them, that are not quantized.")  # fmt: skip
_THREADS = click.option("--threads", type=click.IntRange(0), default=0, help="0 takes every core.")
_BATCH = 64


@click.group("bench")
def command() -> None:
    """Measure ONNX files and engines against the first one given, which is the baseline."""


@command.command("accuracy")
@click.argument("models", nargs=-1, required=True, type=PathType)
@data_options("test")
@click.option("--images", type=click.IntRange(1), help="Only so many, stratified by class.")
@_PROVIDER
@_PRECISION
@_THREADS
@tuned_option(*RUN_OPTIONS)
@engine_options
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
    no_tuned: bool,
    memory: str,
    cuda_graph: bool,
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

    refuse_idle_options(models)
    loaded = open_source(source, data, split)
    if images is not None:
        loaded = SubsetSource(loaded, stratified_choice(loaded.labels, images, 0).tolist(), split)
    config = RuntimeConfig(provider, threads, precision, memory=memory, cuda_graph=cuda_graph)
    tuned = tuned_settings(models, no_tuned, not quiet)
    found, runs_in, runtimes = [], {}, {}
    with progress_bar(quiet) as progress:
        for model in models:
            with opened_model(model, config_of(model, tuned, config)) as opened:
                session = opened.session
                runs_in[str(model)], runtimes[str(model)] = session.precision, session.runtime
                say_session(model, session, verbose)
                batch = opened.batch(batch_of(model, tuned, _BATCH))
                found.append(
                    predictions_from_images(session, loaded, opened.spec, batch, None, progress)
                )
    rows = {
        str(m): accuracy_from_predictions(p, found[0]) for m, p in zip(models, found, strict=True)
    }
    if as_json:
        print_json(
            {
                "baseline": str(models[0]),
                "tuned": {str(m): settings.to_dict() for m, settings in tuned.items()},
                "models": {k: v.to_dict() | {"runs_in": runs_in[k]} for k, v in rows.items()},
            }
        )
        return
    for model_name, result in rows.items():
        click.echo(f"{model_name} ({runtimes[model_name]} {runs_in[model_name]}): {result}")


@command.command("speed")
@click.argument("models", nargs=-1, required=True, type=PathType)
@scenario_options
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
@tuned_option(*RUN_OPTIONS)
@engine_options
@click.option("-o", "--out", type=PathType, metavar="DIR", help="Keep the raw timings there.")
@output_options
def speed(
    models: tuple[Path, ...],
    scenarios: tuple[str, ...],
    length: str,
    batch: int,
    samples_per_query: int,
    latency_limit: float,
    target_rate: float | None,
    rounds: int | None,
    seconds: float | None,
    end_to_end: bool,
    seed: int,
    source: str,
    data: Path | None,
    split: str,
    provider: str,
    precision: str,
    threads: int,
    no_tuned: bool,
    memory: str,
    cuda_graph: bool,
    out: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Latency, images/s and speedup of MODELS, interleaved in one process, on real images.

    Engines are also timed on the GPU's own clock, without and with the copies of their data.
    Scenarios are those of MLPerf inference; docs/reports.md says what each one does.

    \b
    Examples:
      deploy-tools bench speed out/fp32.onnx out/int8-static-ort.onnx --source fashion-mnist
      deploy-tools bench speed out/fp16.engine out/int8.engine --source fashion-mnist -o out
    """  # fmt: skip
    from benchmarks.end_to_end import PathToLabel, require_files, rows_of
    from benchmarks.energy import find_energy_meter
    from benchmarks.speed import measure_speed

    if len(set(models)) != len(models):
        raise UserError("a file is given twice.")
    refuse_idle_options(models)
    tuned = tuned_settings(models, no_tuned, not quiet)
    configured = partial(
        chosen_config, length, scenarios, samples_per_query=samples_per_query,
        latency_limit=latency_limit, target_rate=target_rate, rounds=rounds, seconds=seconds, seed=seed,
    )  # fmt: skip
    config = configured(batch=tuned_batch(tuned, batch))
    refuse_idle_scenario_options(config.scenarios)
    runtime = RuntimeConfig(provider, threads, precision, memory=memory, cuda_graph=cuda_graph)
    with ExitStack() as stack:
        opened: dict[str, OpenedModel] = {}
        for model in models:
            chosen = config_of(model, tuned, runtime)
            opened[str(model)] = stack.enter_context(opened_model(model, chosen))
            say_session(model, opened[str(model)].session, verbose)
        if "offline" in config.scenarios:
            config = configured(batch=batch_for_all(config.batch, batch, opened.values()))
        for found in opened.values():
            _require_batches(found, config)
        loaded = open_source(source, data, split)
        if end_to_end:
            require_files(loaded)
        images = _images(opened, loaded)
        sessions = {name: found.session for name, found in opened.items()}
        timed: dict[str, Any] = sessions if not end_to_end else {
            name: PathToLabel(found.session, found.spec, loaded) for name, found in opened.items()
        }  # fmt: skip
        meter = find_energy_meter()
        with progress_bar(quiet) as progress:
            runs = measure_speed(
                timed, rows_of if end_to_end else images, str(models[0]), config, progress,
                meter=meter,
            )  # fmt: skip
            gpu_runs, gpu_config = _measure_engines(opened, images, config, progress)
    kept = _keep(runs, gpu_runs, gpu_config, out) if out is not None else {}
    precisions = {name: session.precision for name, session in sessions.items()}
    if as_json:
        said = {str(model): settings.to_dict() for model, settings in tuned.items()}
        _print_speed_json(runs, gpu_runs, precisions, kept, str(meter), said)
    else:
        print_runs(runs, precisions, meter)
        if gpu_runs:
            _print_gpu(gpu_runs)


def _images(opened: Mapping[str, OpenedModel], source: ImageSource) -> dict[str, MakeBatch]:
    """Return what makes the inputs of each file: alike for all that take pixels, or floats.

    Those of the first file's preprocessing: what is timed is one and the same work.
    """
    first = next(iter(opened.values())).spec

    def maker(pixels: bool) -> MakeBatch:
        spec = first.with_pixels() if pixels else first.with_floats()
        return lambda n: next(batches(source, spec, n, [i % len(source) for i in range(n)]))[0]

    makers = {pixels: maker(pixels) for pixels in (False, True)}
    specs = {name: model.known_spec for name, model in opened.items()}
    return {name: makers[spec is not None and spec.takes_pixels] for name, spec in specs.items()}


def _require_batches(opened: OpenedModel, config: SpeedConfig) -> None:
    """Refuse a file before anything is timed where it takes a scenario's batch not as it is."""
    for scenario in config.scenarios:
        try:
            opened.require_batch(config.batch_of(scenario))
        except UserError as error:
            others = [name for name in config.scenarios if name != scenario]
            hint = f" Or leave {scenario} out: --scenario {others[0]}." if others else ""
            raise UserError(error.message, f"{error.hint}{hint}") from error


def _measure_engines(
    opened: Mapping[str, OpenedModel],
    images: Mapping[str, MakeBatch],
    config: SpeedConfig,
    progress: ProgressCallback | None,
) -> tuple[list[GpuRun], GpuSpeedConfig]:
    """Time the engines among the files with CUDA events, against the first engine."""
    from benchmarks.gpu_speed import GpuSpeedConfig, measure_gpu_speed

    sizes = {config.batch_of(scenario): None for scenario in config.scenarios}
    chosen = GpuSpeedConfig(tuple(sizes), rounds=config.rounds, seed=config.seed)
    engines: dict[str, Any] = {n: o.session for n, o in opened.items() if o.is_engine}
    if not engines:
        return [], chosen
    return measure_gpu_speed(engines, images, next(iter(engines)), chosen, progress), chosen


def _keep(
    runs: Sequence[SpeedRun], gpu_runs: Sequence[GpuRun], config: GpuSpeedConfig, out: Path
) -> dict[str, str]:
    """Write the raw timings below `out`; returns "runs" and "gpu" files by the model's name."""
    from benchmarks.gpu_speed import save_gpu_samples
    from benchmarks.speed import save_samples

    names = _file_names([run.variant for run in runs])
    files = save_samples(
        [replace(r, samples=replace(r.samples, variant=names[r.variant])) for r in runs], out
    )
    gpu_files = save_gpu_samples(
        [replace(r, variant=names[r.variant]) for r in gpu_runs], out, config
    )
    kept = {model: str(files[name]) for model, name in names.items()}
    return kept | {f"gpu {m}": str(gpu_files[n]) for m, n in names.items() if n in gpu_files}


def _file_names(models: Sequence[str]) -> dict[str, str]:
    """A name for each model's file of timings: its own, or its path where two are alike."""
    own = [Path(model).name for model in models]
    return {
        model: name
        if own.count(name) == models.count(model)
        else model.strip("/").replace("/", "_")
        for model, name in zip(models, own, strict=True)
    }


def _print_speed_json(
    runs: Sequence[SpeedRun],
    gpu_runs: Sequence[GpuRun],
    precisions: Mapping[str, str],
    kept: Mapping[str, str],
    energy: str,
    tuned: Mapping[str, Mapping[str, Any]],
) -> None:
    def entry(run: SpeedRun | GpuRun, samples: str | None) -> dict[str, Any]:
        said = {"model": run.variant, "runs_in": precisions[run.variant]}
        return said | run.to_dict(samples)

    value: dict[str, Any] = {
        "baseline": runs[0].variant,
        "energy": energy,
        "tuned": tuned,
        "runs": [entry(run, kept.get(run.variant)) for run in runs],
    }
    if gpu_runs:
        value["gpu_baseline"] = gpu_runs[0].variant
        value["gpu_runs"] = [entry(run, kept.get(f"gpu {run.variant}")) for run in gpu_runs]
    print_json(value)


def _print_gpu(runs: Sequence[GpuRun]) -> None:
    click.echo(
        "\nOn the GPU's own clock (CUDA events); images/s and speedup are of the computation alone:"
    )
    headers = ["engine", "batch", "CUDA graph", "compute p50 ms", "compute p99 ms", "with copies p50 ms", "with copies p99 ms", "compute images/s", "compute speedup [95 %]"]  # fmt: skip
    rows = []
    for run in runs:
        compute, copies = run.percentiles_ms("compute"), run.percentiles_ms("with_copies")
        times = [found[name].estimate for found in (compute, copies) for name in ("p50", "p99")]
        rate = run.images_per_s["compute"].estimate
        rows.append(
            [run.variant, str(run.batch), "yes" if run.cuda_graph else "no", *(f"{time:.4f}" for time in times), f"{rate:.0f}", ratio_text(run.speedup["compute"])]
        )  # fmt: skip
    print_table(headers, rows)
    for note in dict.fromkeys(run.note for run in runs if run.note):
        click.echo(note)
    for when, state in (("before", runs[0].states[0]), ("after", runs[-1].states[-1])):
        said = ", ".join(f"{key} {value}" for key, value in state.items() if value is not None)
        click.echo(f"GPU {when}: {said or 'its clocks and temperature cannot be read here'}")
