"""Predictions, speed and memory of every variant that runs here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from benchmarks.accuracy import accuracy_from_predictions
from benchmarks.environment import describe_environment
from benchmarks.lengths import speed_config
from benchmarks.memory import peak_rss_of_model
from benchmarks.predictions import Predictions, predictions_from_images
from benchmarks.samples import read_samples
from benchmarks.speed import MakeBatch, SpeedConfig, SpeedRun, measure_speed, save_samples
from deploy_tools.artifacts import Artifact
from deploy_tools.data.source import batches, source_hash
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import DeployToolsError, MissingDependencyError, OutputError
from deploy_tools.pipeline.engines import batch_of
from deploy_tools.pipeline.variants import BASELINE, Variant
from deploy_tools.recipe import ENGINE_TARGETS
from deploy_tools.runtimes import RuntimeConfig, Session, open_session
from deploy_tools.runtimes.gpu import find_gpu

if TYPE_CHECKING:
    from deploy_tools.pipeline.making import Outcome, Run

_BATCH = 64


def measure(run: Run, fp32: Artifact) -> None:
    """Fill in accuracy, speed and peak memory of the run's outcomes."""
    data = source_hash(run.evaluation)
    # The baseline first and unguarded: what is wrong with the data stops the run at once.
    for outcome in sorted(run.outcomes, key=lambda o: o.variant.id != BASELINE):
        if outcome.variant.id == BASELINE:
            _predict(run, outcome, fp32, data)
            outcome.say("accuracy", "ok")
        elif outcome.can_run:
            _guarded(outcome, "accuracy", lambda o=outcome: _predict(run, o, fp32, data))
    if not run.runner.dry:
        _compare(run)
    _speed(run, data)
    for outcome in run.outcomes:
        if outcome.ok("speed") and outcome.loaded is not None:
            _memory(run, outcome)


def runtime_config(run: Run, variant: Variant) -> RuntimeConfig:
    """Return how a variant's session is opened.

    An engine that does not run here is simulated: onnxruntime runs the very ONNX file that it
    was built from, without the fusions that would change its arithmetic.
    """
    threads = run.recipe.speed.threads
    if variant.engine and variant.simulated:
        return RuntimeConfig("onnxruntime", threads, fusions=False)
    return RuntimeConfig(variant.runtime, threads, variant.runtime_precision)


def open_variant(run: Run, outcome: Outcome) -> Session:
    """Open the variant's session: the torch module, or its file in its runtime."""
    variant = outcome.variant
    if variant.runtime == "torch":
        from deploy_tools.runtimes.torch import TorchSession

        return TorchSession(run.loaded.module, run.recipe.speed.threads)
    file = outcome.loaded.file if outcome.loaded else variant.file
    return open_session(run.runner.directory.path(file), runtime_config(run, variant))


def _guarded(outcome: Outcome, part: str, work: Any) -> None:
    """Do one variant's work; its failure is its own, what it lacks here is a skip."""
    try:
        work()
        outcome.say(part, "ok")
    except MissingDependencyError as error:
        outcome.say(part, "skipped", str(error))
    except OutputError:
        raise
    except DeployToolsError as error:
        outcome.say(part, "failed", str(error))


def _predict(run: Run, outcome: Outcome, fp32: Artifact, data: str) -> None:
    variant = outcome.variant
    model = outcome.loaded or fp32
    config = runtime_config(run, variant)
    batch = min(_BATCH, batch_of(variant).max) if variant.engine else _BATCH
    file = f"predictions/{variant.id}.npz"

    def make(path: Any) -> Mapping[str, Any]:
        session = open_variant(run, outcome)
        try:
            predictions_from_images(
                session, run.evaluation, run.spec_of(variant), batch, None, run.runner.progress
            ).save(path)
            return {
                "provider": session.provider,
                "runs_in": session.precision,
                "threads": session.threads,
            }
        finally:
            session.close()

    settings = {
        "runtime": config.runtime, "precision": config.precision, "fusions": config.fusions,
        "threads": config.threads, "machine": _machine(config.runtime),
    }  # fmt: skip
    artifact = run.runner.run(
        "predict", file, file, settings, {"model": model.sha256, "images": data}, make
    )
    outcome.session = artifact.notes


def _compare(run: Run) -> None:
    folder = run.runner.directory
    loaded = {
        o.variant.id: Predictions.load(folder.path(f"predictions/{o.variant.id}.npz"))
        for o in run.outcomes
        if o.ok("accuracy")
    }
    baseline = loaded[BASELINE]
    for outcome in run.outcomes:
        if outcome.ok("accuracy"):
            outcome.result = accuracy_from_predictions(loaded[outcome.variant.id], baseline)


def _speed(run: Run, data: str) -> None:
    table = run.recipe.speed
    for outcome in run.outcomes:
        variant = outcome.variant
        if not table.scenarios:
            outcome.say("speed", "skipped", "the recipe names no scenarios")
        elif not outcome.ok("accuracy"):
            outcome.say("speed", "skipped", "it does not run here")
        elif variant.simulated:
            outcome.say("speed", "skipped", variant.simulated)
        else:
            outcome.say("speed", "ok")
    timed = [o for o in run.outcomes if o.ok("speed")]
    if not timed:
        return
    config = speed_config(
        table.length, scenarios=table.scenarios, batch=table.batch,
        samples_per_query=table.samples_per_query, latency_limit_ms=table.latency_limit_ms,
        target_rate=table.target_rate, rounds=table.rounds, seconds=table.seconds,
    )  # fmt: skip
    settings = {
        "measurement": asdict(config), "threads": table.threads,
        "machine": {o.variant.runtime: _machine(o.variant.runtime) for o in timed},
        "variants": {o.variant.id: [o.variant.runtime, o.variant.runtime_precision] for o in timed},
    }  # fmt: skip
    parents = {o.variant.id: o.loaded.sha256 if o.loaded else "torch" for o in timed}
    files = {f"samples/{o.variant.id}.jsonl": f"samples/{o.variant.id}.jsonl" for o in timed}
    run.runner.run_together(
        "speed", files, settings, parents | {"images": data}, lambda: _timed(run, timed, config)
    )
    if not run.runner.dry:
        _read_runs(run, [o for o in timed if o.ok("speed")])


def _timed(
    run: Run, timed: list[Outcome], config: SpeedConfig
) -> Mapping[str, Mapping[str, Any] | None]:
    sessions: dict[str, Session] = {}
    try:
        for outcome in timed:
            _guarded(outcome, "speed", lambda o=outcome: _open_and_try(run, o, sessions))
        runs = measure_speed(sessions, _makers(run, timed), BASELINE, config, run.runner.progress)
    finally:
        for session in sessions.values():
            session.close()
    save_samples(runs, run.runner.directory.root)
    return {f"samples/{name}.jsonl": {} for name in sessions}


def _open_and_try(run: Run, outcome: Outcome, sessions: dict[str, Session]) -> None:
    """Add the variant's session once it has run a batch: one that cannot stops no other."""
    session = open_variant(run, outcome)
    try:
        for batch in sorted({1, *run.recipe.speed.batches.values()}):
            session.run(_images(run, run.spec_of(outcome.variant), batch))
    except BaseException:
        session.close()
        raise
    sessions[outcome.variant.id] = session


def _makers(run: Run, outcomes: list[Outcome]) -> dict[str, MakeBatch]:
    """Return what makes the inputs of each variant; one for all that have the same spec."""
    specs = {o.variant.id: run.spec_of(o.variant) for o in outcomes}
    makers = {spec: partial(_images, run, spec) for spec in specs.values()}
    return {variant: makers[spec] for variant, spec in specs.items()}


def _images(run: Run, spec: InputSpec, count: int) -> NDArray[Any]:
    """Return a batch of real images, repeated from the start where the data has fewer."""
    indices = [i % len(run.evaluation) for i in range(count)]
    return next(batches(run.evaluation, spec, count, indices))[0]


def _read_runs(run: Run, timed: list[Outcome]) -> None:
    """Derive the statistics from the raw timings on disk: now and on any later run."""
    folder = run.runner.directory
    sets = {o.variant.id: read_samples(folder.path(f"samples/{o.variant.id}.jsonl")) for o in timed}
    baseline = {s.scenario: s for s in sets[BASELINE]}
    for outcome in timed:
        outcome.runs = [SpeedRun(s, baseline[s.scenario]) for s in sets[outcome.variant.id]]


def _memory(run: Run, outcome: Outcome) -> None:
    artifact, variant = outcome.loaded, outcome.variant
    if artifact is None:
        return
    name = f"memory/{variant.id}"
    config = runtime_config(run, variant)
    batch = run.recipe.speed.batch

    def make(path: Any) -> Mapping[str, Any]:
        from deploy_tools.artifacts import write_json

        spec = run.spec_of(variant)
        peak = peak_rss_of_model(
            run.runner.directory.path(artifact.file), config, spec.shape(batch), dtype=spec.dtype
        )
        write_json(path, {"peak_rss_bytes": peak, "batch": batch})
        return {"peak_rss_bytes": peak}

    settings = {
        "runtime": config.runtime, "precision": config.precision, "threads": config.threads,
        "batch": batch, "machine": _machine(config.runtime),
    }  # fmt: skip
    try:
        kept = run.runner.run(
            "memory", name, f"memory/{variant.id}.json", settings, {"model": artifact.sha256}, make
        )
    except OutputError:
        raise
    except DeployToolsError:
        return  # the report shows the figure as not known
    outcome.peak_rss_bytes = kept.notes.get("peak_rss_bytes")


def _machine(runtime: str) -> dict[str, Any]:
    """Return the CPU and the runtime's version: with another of either, old results are stale."""
    environment = describe_environment()
    packages = {
        "torch": ["torch"], "openvino": ["onnxruntime", "onnxruntime-ep-openvino"],
        "tensorrt": ["tensorrt"], "tensorrt-rtx": ["tensorrt-rtx-cu13"],
    }  # fmt: skip
    names = packages.get(runtime, ["onnxruntime"])
    if runtime in ENGINE_TARGETS:
        gpu = find_gpu()
        return {"gpu": asdict(gpu) if gpu else None} | {
            n: environment["packages"].get(n) for n in names
        }
    return {"cpu": environment["cpu"], **{n: environment["packages"].get(n) for n in names}}
