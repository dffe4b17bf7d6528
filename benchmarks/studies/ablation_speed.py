"""What each rewrite and setting does to the speed of INT8, one at a time, in each runtime.

    python -m benchmarks.studies.ablation_speed --data DIR [--model NAME]... [--quick] [--json]

DIR holds `cifar10/`, `flowers/` and `weights/` (see `benchmarks.studies.subject`);
resnet50-random has random weights and sees the flowers. All files of a model and runtime run in one
interleaved measurement, batch 1 and offline; a row is the speed over the plain INT8 file, with its
interval, and how near the logits are to that file's. What fails, and a rewrite that finds nothing to
change, is a row with the reason. Files that take pixels are compared with the
plain file behind the normalization that the host would do. "branches" are the residual Adds' main
inputs. A space-to-depth stem is left out: it was neutral in OpenVINO and slower in onnxruntime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.worker import reason_of, short
from benchmarks.speed import MakeBatch, SpeedConfig, SpeedRun, measure_speed
from benchmarks.studies.base import Results, run_study
from benchmarks.studies.speed_settings import SETTINGS, TARGETS, Base, Setting
from benchmarks.studies.subject import Case, Subject, cases, prepare_subject, random_case
from calibration.collect import CalibrateConfig, ranges_from_statistics
from deploy_tools.data import open_source
from deploy_tools.data.preprocess import preprocess
from deploy_tools.data.source import batches
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import DeployToolsError, UserError, nearest
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.static import StaticConfig, qdq_from_onnx
from deploy_tools.recipe import ModelTable
from deploy_tools.runtimes import RuntimeConfig, Session, open_session

PLAIN = "plain"
BY_HOST = "plain, normalized by the host"
MODELS = ("resnet50-random", "resnet18-flowers", "resnet20")
"""The largest and most telling first."""
_FAILED = "did not run"
NOTHING = "it finds nothing to change in this file."
SCENARIOS = {"single-stream": 1, "offline": 8}
JUDGED = 64
EXACT = 0.02
"""Largest difference of a logit, over the largest logit, of what computes the same: another kernel
may round the last bit of a float the other way, and that an integer further on."""
NOT_SLOWER = 0.98


@dataclass(frozen=True)
class _Ready:
    """A setting's file, loaded. change: its logits' largest difference from the plain file's, over
    the largest logit. same: the share of images with the same label. nodes: of the file.
    """

    setting: Setting | None
    session: Session
    make: MakeBatch
    change: float
    same: float
    nodes: int


def main(results: Results, data: Path, model: Sequence[str]) -> None:
    """Speed of each rewrite and setting over the plain INT8 file, interleaved, with intervals."""
    found = (random_case(data), *reversed(cases(data)))
    known = {case.name: case for case in found}
    for name in model:
        if name not in known:
            raise UserError(f'model "{name}" is not known.', nearest(name, known))
    for name in tuple(model) or (MODELS[-1:] if results.quick else MODELS):
        with tempfile.TemporaryDirectory() as folder:
            try:
                subject, count = _subject(Path(folder), data, known[name], results.quick)
            except Exception as error:  # the rest shall go on
                results.row(model=name, status=_FAILED, reason=reason_of(error))
                continue
            for runtime in TARGETS:
                _runtime(results, name, runtime, subject, count)
    if not any("speedup" in row for row in results.rows):
        raise UserError(f"nothing ran: {results.rows[-1]['reason']}")


def _subject(folder: Path, data: Path, case: Case, quick: bool) -> tuple[Subject, int]:
    """Return the model with its images, spread over all classes, and how many calibrate it."""
    total = len(open_source(case.data.source, case.data.root, case.data.evaluation))
    judged = tuple(i * total // JUDGED for i in range(JUDGED))
    checkpoint = str(data / "weights" / case.checkpoint) if case.checkpoint else ""
    table = ModelTable(
        case.arch, checkpoint, num_classes=case.num_classes, random_weights=not checkpoint
    )
    count = 32 if quick or not checkpoint else 128
    return prepare_subject(folder, table, case.given, case.data, judged), count


def _runtime(results: Results, name: str, runtime: str, subject: Subject, count: int) -> None:
    """Measure one model in one runtime; what fails as a whole is a row with the reason."""
    where = {"model": name, "runtime": runtime}
    try:
        base = _base(subject, TARGETS[runtime], count)
        open_session(base.int8, RuntimeConfig(runtime)).close()
    except Exception as error:  # onnx and the runtimes have their own classes
        results.row(**where, status=_FAILED, reason=reason_of(error))
        return
    for scenario in SCENARIOS:
        try:
            _scenario(results, where | {"scenario": scenario}, subject, base)
        except Exception as error:  # the other scenario may run
            results.row(**where, scenario=scenario, status=_FAILED, reason=reason_of(error))


def _scenario(results: Results, where: dict[str, Any], subject: Subject, base: Base) -> None:
    scenario = where["scenario"]
    batch = SCENARIOS[scenario]
    with ExitStack() as stack:
        ready = dict(_open_all(results, where, subject, base, batch, stack))
        runs = measure_speed(
            {key: one.session for key, one in ready.items()},
            {key: one.make for key, one in ready.items()},
            PLAIN,
            _length(results.quick, scenario, batch),
        )
    by_host = next(run.samples for run in runs if run.variant == BY_HOST)
    for run in runs:
        one = ready[run.variant]
        if one.setting is not None and one.setting.takes_pixels:
            run = SpeedRun(run.samples, by_host)
        _row(results, where, run, one, ready[PLAIN].nodes)


def _length(quick: bool, scenario: str, batch: int) -> SpeedConfig:
    rounds, seconds = (7, 0.05) if quick else (30, 0.3)
    return SpeedConfig((scenario,), batch=batch, rounds=rounds, seconds_per_round=seconds)


def _base(subject: Subject, target: str, count: int) -> Base:
    """Plain INT8: no correction, since none changes the speed."""
    statistics = subject.statistics(subject.select(count, seed=0))
    ranges = ranges_from_statistics(statistics, CalibrateConfig("mse"))
    path, config = subject.folder / f"{target}.onnx", StaticConfig(target)
    qdq_from_onnx(subject.model, ranges, path, config)
    return Base(subject.model, path, ranges, subject.spec, config)


def _open_all(
    results: Results, where: dict[str, Any], subject: Subject, base: Base, batch: int,
    stack: ExitStack,
) -> Iterator[tuple[str, _Ready]]:  # fmt: skip
    """Yield the plain file and every setting's; what cannot run is a row with the reason."""
    runtime = where["runtime"]
    images = _Images(subject, pixels=False), _Images(subject, pixels=True)
    config = RuntimeConfig(runtime)
    plain = open_session(base.int8, config)
    stack.callback(plain.close)
    wanted = _logits(plain, images[0], batch)
    nodes = _nodes(base.int8)
    yield PLAIN, _Ready(None, plain, images[0].batch, 0.0, 1.0, nodes)
    host = _ByHost(plain, subject.spec)
    yield BY_HOST, _Ready(None, host, images[1].batch, 0.0, 1.0, nodes)
    for number, setting in enumerate(SETTINGS):
        if runtime not in setting.runtimes:
            continue
        path = subject.folder / f"{base.config.target}-{number}-{batch}.onnx"
        own = images[setting.takes_pixels]
        try:
            setting.make(base, path, batch)
            if setting.rewrites and load_onnx(path).graph == load_onnx(base.int8).graph:
                raise UserError(NOTHING)
            session = setting.open(path, replace(config, fixed_batch=batch * setting.fixed))
            stack.callback(session.close)
            found = _logits(session, own, batch)
        except Exception as error:  # onnx and the runtimes have their own classes
            reason = str(error) if isinstance(error, DeployToolsError) else reason_of(error)
            results.row(**where, setting=setting.name, status=_FAILED, reason=short(reason))
            continue
        change = float(np.abs(found - wanted).max() / np.abs(wanted).max())
        same = float((found.argmax(1) == wanted.argmax(1)).mean())
        yield setting.name, _Ready(setting, session, own.batch, change, same, _nodes(path))


class _ByHost:
    """A session that takes pixels (N, H, W, C) and normalizes them as evaluation does."""

    def __init__(self, session: Session, spec: InputSpec) -> None:
        self._session, self._spec = session, replace(spec, resize=None, crop="none")
        self.runtime, self.provider = session.runtime, session.provider
        self.threads, self.precision = session.threads, session.precision
        self.input_name, self.output_names = session.input_name, session.output_names

    def run(self, inputs: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        return self._session.run(np.stack([preprocess(image, self._spec) for image in inputs]))

    def close(self) -> None:
        """The session is another one's."""


class _Images:
    """The judged images as a session takes them: preprocessed, or as pixels."""

    def __init__(self, subject: Subject, pixels: bool) -> None:
        spec = subject.spec.with_pixels() if pixels else subject.spec
        indices = subject.images or tuple(range(JUDGED))
        self.all = np.concatenate([i for i, _ in batches(subject.test, spec, 16, indices)])

    def batch(self, count: int) -> NDArray[Any]:
        return self.all[:count]


def _logits(session: Session, images: _Images, batch: int) -> NDArray[np.float32]:
    """In batches of the scenario's size: a file may take no other."""
    starts = range(0, len(images.all) - batch + 1, batch)
    return np.concatenate([session.run(images.all[at : at + batch])[0] for at in starts])


def _nodes(path: Path) -> int:
    return len(load_onnx(path).graph.node)


def _row(
    results: Results, where: dict[str, Any], run: SpeedRun, one: _Ready, plain_nodes: int
) -> None:
    setting, runtime = one.setting, where["runtime"]
    if setting is None:
        return  # what the others are compared with
    ratio = run.speedup
    results.row(
        **where, batch=run.batch, setting=setting.name,
        over=run.baseline.variant, speedup=ratio.estimate, low=ratio.low, high=ratio.high, nodes=one.nodes - plain_nodes,
        change=one.change, same_labels=one.same, on=runtime in setting.on,
    )  # fmt: skip
    what = f"{setting.name}, {where['model']}, {runtime}, {run.scenario}"
    if setting.exact:
        results.claim(f"{what}: change of the logits", one.change, "<=", EXACT)
    if runtime in setting.on:
        results.claim(f"{what}: not slower (low end)", ratio.low, ">=", NOT_SLOWER)


_OPTIONS = [
    click.Option(["--data"], type=click.Path(path_type=Path), required=True, help="See above."),
    click.Option(["--model"], multiple=True, help="Which, instead of all."),
]
command = run_study("ablation_speed", main, _OPTIONS)

if __name__ == "__main__":
    command()
