"""Our static INT8 beside other tools', on the same models, images and seeds.

    python -m benchmarks.studies.peers_accuracy --data DIR [--model NAME] [--keep RESULTS]

DIR holds `cifar10/`, `flowers/` and `weights/`, as for `tensorrt_accuracy`. Each seed draws other
calibration images from the training split; every file is judged on all evaluation images by its
top-1, its agreement with FP32 and its logit SQNR. Each tool makes its file in a process of its
own, where its seconds and its peak memory are measured. A tool that is not installed or does not
run has a row with the reason. `pip install 'deploy-tools[peers]'` installs the tools;
`python -m benchmarks.peers.environment modelopt` the one that has an environment of its own.

The claims hold our default row against the best row of all other tools, which is chosen after
the fact, on the evaluation images, and so flatters them. Rows whose convolutions stay in float
are shown and not compared with. With --keep each model's results are written as they are done,
and a run that was interrupted goes on with the row it was at;
`python -m benchmarks.studies.peers_table FILE...` makes one table of them.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from benchmarks.peers.base import PeerFile
from benchmarks.peers.environment import ENVIRONMENTS, python_of
from benchmarks.peers.measure import measure
from benchmarks.peers.sessions import open_peer
from benchmarks.peers.worker import reason_of, short
from benchmarks.studies.base import Results, run_study, study_object
from benchmarks.studies.peers_claims import Found, claim_all
from benchmarks.studies.peers_resume import DoneRows
from benchmarks.studies.peers_rows import FEW, FEW_IMAGES, HARD, PLAIN, Row, rows
from benchmarks.studies.subject import Case, Subject, cases, prepare_subject, shipped_case, spread
from deploy_tools.artifacts import write_json
from deploy_tools.data import open_source
from deploy_tools.errors import DeployToolsError, UserError, nearest
from deploy_tools.recipe import ModelTable

SEEDS = 5
HARD_SEEDS = 3
QUICK_IMAGES = 2000
HELD_OUT = 500
_TOOLS = ("onnxruntime", "nncf", "openvino", "torch", "torchao")


def study(
    results: Results,
    data: Path,
    models: tuple[str, ...],
    seeds: int,
    settings: tuple[str, ...],
    keep: Path | None,
    modelopt: Path | None,
) -> None:
    """Fill in, for each model, one row a file and runtime: mean and spread over the seeds."""
    for case in _chosen(data, models, results.quick):
        own = results.own()
        with tempfile.TemporaryDirectory() as folder:
            subject = _prepare(Path(folder), case, data, results.quick)
            done = _done_rows(case, keep, seeds, settings, results.quick, modelopt)
            _one_model(own, case, subject, seeds, settings, modelopt, done)
        results.add(own)
        if keep is not None:
            command = _command(case.name, seeds, settings, results.quick)
            kept = study_object("peers_accuracy", own.rows, own.claims, command)
            name = _name(case, seeds, settings, results.quick)
            write_json(keep / f"{name}.json", kept | _versions())
        done.close()


def _name(case: Case, seeds: int, settings: tuple[str, ...], quick: bool) -> str:
    """Only the whole study has the plain name, so that no part replaces it or what it has done."""
    return f"peers_accuracy-{case.name}{'-part' if seeds or settings or quick else ''}"


def _done_rows(
    case: Case,
    keep: Path | None,
    seeds: int,
    settings: tuple[str, ...],
    quick: bool,
    modelopt: Path | None,
) -> DoneRows:
    path = None if keep is None else keep / f"{_name(case, seeds, settings, quick)}.done.jsonl"
    # Without ModelOpt its rows say so; with it they are to be made.
    key = {"command": _command(case.name, seeds, settings, quick), "modelopt": bool(modelopt)}
    return DoneRows(path, key | _versions())


def _command(model: str, seeds: int, settings: tuple[str, ...], quick: bool) -> str:
    parts = ["python -m benchmarks.studies.peers_accuracy --data DIR --model", model]
    parts += [f"--seeds {seeds}"] if seeds else []
    parts += [f'--setting "{setting}"' for setting in settings]
    return " ".join([*parts, *(["--quick"] if quick else [])])


def _chosen(data: Path, names: tuple[str, ...], quick: bool) -> tuple[Case, ...]:
    known = {case.name: case for case in (*cases(data), shipped_case())}
    for name in names:
        if name not in known:
            raise UserError(f'there is no model "{name}".', nearest(name, known))
    found = tuple(known[name] for name in names or known)
    return found[:1] if quick else found


def _prepare(folder: Path, case: Case, data: Path, quick: bool) -> Subject:
    checkpoint = str((data / "weights" / case.checkpoint).absolute())
    model = ModelTable(case.arch, checkpoint, num_classes=case.num_classes)
    root = case.data.root
    where = case.data if root is None else replace(case.data, root=root.absolute())
    images = None
    if quick:
        total = len(open_source(where.source, where.root, where.evaluation))
        images = tuple(range(min(total, QUICK_IMAGES)))
    return prepare_subject(folder, model, case.given, where, images)


def _one_model(
    results: Results,
    case: Case,
    subject: Subject,
    seeds: int,
    settings: tuple[str, ...],
    modelopt: Path | None,
    done: DoneRows,
) -> None:
    correct = int(subject.baseline.correct.sum())
    results.row(model=case.name, tool="fp32", images=len(subject.baseline), correct=correct)
    everything: list[Found] = []
    for row in rows():
        if row.setting in (settings or (PLAIN, *HARD)) and (row.quick or not results.quick):
            limit = 1 if results.quick else seeds or (SEEDS if row.setting == PLAIN else HARD_SEEDS)
            found = done.found(row)
            if found is None:
                found = run_row(row, case, subject, min(limit, row.seeds or limit), modelopt)
                done.add(row, found)
            for each in found:
                results.row(model=case.name, **values_of(each))
            everything += found
    claim_all(results, case.name, everything)


def run_row(
    row: Row, case: Case, subject: Subject, seeds: int, modelopt: Path | None = None
) -> list[Found]:
    """Make the row's file from each seed's images and judge it in each of its runtimes.

    modelopt: the folder of that tool's environment. A failure is kept as the reason, and what
    failed is not tried with further seeds.
    """
    found = [Found(row, runtime) for runtime in row.runtimes]
    path = subject.folder / f"candidate{row.suffix}"
    count = FEW_IMAGES if row.setting == FEW else case.images
    for seed in range(seeds):
        job = subject.job(subject.select(count, seed), HELD_OUT)
        path.unlink(missing_ok=True)
        try:
            python = python_of(row.environment, modelopt) if row.environment else None
            made = measure(row.adapter, job, path, row.options, python)
        except DeployToolsError as error:
            for each in found:
                each.reason = each.reason or short(str(error))
            break
        for each in found:
            if not each.reason:
                _judge(each, subject, seed, made)
    return found


def _judge(each: Found, subject: Subject, seed: int, made: PeerFile) -> None:
    try:
        each.accuracies[seed] = subject.judge_session(open_peer(made.path, each.runtime))
        each.files.append(made)
    except DeployToolsError as error:
        each.reason = short(str(error))
    except Exception as error:  # every runtime has its own classes
        each.reason = reason_of(error)


def values_of(found: Found) -> dict[str, Any]:
    """Return the columns of a row: means over the seeds.

    drop_low_pp, drop_high_pp: means of the ends of each seed's 95 % interval over the images.
    """
    row = found.row
    values: dict[str, Any] = {
        "setting": row.setting, "tool": row.tool, "method": row.method, "runtime": found.runtime,
    }  # fmt: skip
    if found.reason:
        values |= {"status": "did not run", "reason": found.reason}
    accuracies = list(found.accuracies.values())
    if not accuracies:
        return values
    drops = [accuracy.drop_ci95_pp for accuracy in accuracies]
    values |= {"top1": statistics.fmean([a.top1 for a in accuracies])} | spread(accuracies)
    return values | {
        "drop_low_pp": statistics.fmean([low for low, _ in drops]),
        "drop_high_pp": statistics.fmean([high for _, high in drops]),
        "sqnr_db_by_seed": [a.logit_sqnr_db for a in accuracies],
        "seconds": statistics.fmean([file.seconds for file in found.files]),
        "cpu_seconds": statistics.fmean([file.cpu_seconds for file in found.files]),
        "peak_rss_bytes": max(file.peak_rss_bytes for file in found.files),
        "file_bytes": max(file.file_bytes for file in found.files),
        "whole": row.whole,
        "free": row.free,
    }


def _versions() -> dict[str, dict[str, str]]:
    """The tools' versions; a tool with an environment of its own is pinned there."""
    found = {}
    for name in _TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    pins = [pin for alone, _ in ENVIRONMENTS.values() for pin in alone]
    return {"tools": found | dict(pin.split("==", 1) for pin in pins)}


_PATH = click.Path(path_type=Path)
_OPTIONS = [
    click.Option(["--data"], type=_PATH, required=True, help="cifar10, flowers and weights."),
    click.Option(["--model", "models"], multiple=True, metavar="NAME", help="Only this one."),
    click.Option(
        ["--seeds"], type=click.IntRange(0, 5), default=0,
        help=f"Calibration seeds; 0: {SEEDS}, and {HARD_SEEDS} for the hard settings.",
    ),
    click.Option(
        ["--setting", "settings"], multiple=True, type=click.Choice([PLAIN, *HARD]),
        help="Only this one.",
    ),
    click.Option(["--keep"], type=_PATH, metavar="DIR", help="Write each model's results here."),
    click.Option(["--modelopt"], type=_PATH, metavar="DIR", help="ModelOpt's environment."),
]  # fmt: skip
command = run_study("peers_accuracy", study, _OPTIONS)

if __name__ == "__main__":
    command()
