"""Our INT8 beside other tools', in speed: every tool at its own best, all in one interleaved run.

    python -m benchmarks.studies.peers_speed --data DIR [--model NAME] [--part PART] [--keep RESULTS]

DIR holds `cifar10/`, `flowers/` and `weights/`, as for `peers_accuracy`. ResNet-50 has random
weights: speed does not depend on them, and its files are calibrated on the flower photos without
corrections. Three parts:

- speed: onnxruntime, OpenVINO through its own API, torch in its modes, and ours, which take float
  or uint8 input. Before a scenario is timed each tool is searched for its own threads, streams and
  images a call (`benchmarks.peers.setting`), all by the same rule; then all are timed in one run.
  A row whose logits are not those of the FP32 file does not count; a tool that is not installed or
  does not run has a row with the reason. An offline query holds so many images that every tool
  can cut it as it likes.
- roofline: the machine's INT8 peak and memory bandwidth, measured (`machine_peak`), and the share
  of that peak that our fastest INT8 row reaches.
- jpeg: from photo file to label with ResNet-18 (`speed_jpeg`).

The ratios are over onnxruntime FP32. In "ours over the best of the others" both sides are the
fastest of their rows in that very run, whatever their precision; the claim names them.
`python -m benchmarks.studies.peers_speed_table FILE...` makes tables of what --keep wrote.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import click

from benchmarks.server import ServerConfig
from benchmarks.speed import DEFAULT_SCENARIOS, SCENARIOS, SpeedConfig
from benchmarks.statistics import Interval
from benchmarks.studies.base import Results, run_study, study_object
from benchmarks.studies.machine_peak import Peak, copy_bandwidth, int8_peak
from benchmarks.studies.machine_peak import speed_config as peak_config
from benchmarks.studies.multiply_adds import Work, work_of
from benchmarks.studies.speed_claims import best_of, claim_speed, values_of
from benchmarks.studies.speed_files import Files
from benchmarks.studies.speed_jpeg import (
    agreement_photos,
    compare_jpeg,
    find_photos,
    short_sides,
)
from benchmarks.studies.speed_rows import rows
from benchmarks.studies.speed_run import Bench, Plan, Timed
from benchmarks.studies.subject import Case, Subject, cases, prepare_subject
from deploy_tools.artifacts import write_json
from deploy_tools.errors import UserError, nearest
from deploy_tools.onnx_files import load_onnx
from deploy_tools.recipe import ModelTable

PARTS = ("speed", "roofline", "jpeg")
RANDOM = "resnet50-random"
JPEG = "resnet18-flowers"
"""The model whose photos are files and whose labels mean something."""
QUICK_IMAGES = 32
_TOOLS = ("onnxruntime", "onnxruntime-ep-openvino", "nncf", "openvino", "torch", "torchao")
_FULL = SpeedConfig(warmup=2, settle=1, rounds=20, seconds_per_round=0.3, min_calls=1)
_FULL_SEARCH = SpeedConfig(
    warmup=1, settle=0, rounds=5, seconds_per_round=0.15, min_calls=1,
    server=ServerConfig(rounds=3, steps=4),
)  # fmt: skip
_QUICK = replace(_FULL, rounds=8, seconds_per_round=0.1)
_QUICK_SEARCH = replace(_FULL_SEARCH, rounds=3, seconds_per_round=0.05)


@dataclass(frozen=True)
class Peaks:
    """What the machine does at most: INT8 multiply-adds and copied bytes a second."""

    int8: Peak
    copy: Peak


def study(
    results: Results,
    data: Path,
    models: tuple[str, ...],
    parts: tuple[str, ...],
    scenarios: tuple[str, ...],
    keep: Path | None,
) -> None:
    """Time every tool on every model; one row a tool and scenario, claims, a roofline."""
    parts, scenarios = parts or PARTS, scenarios or DEFAULT_SCENARIOS
    chosen = chosen_cases(data, models)
    first = Results(results.quick, results.say)
    peaks = _peaks(first) if "roofline" in parts else None
    _merge(results, first)

    def finish(own: Results, name: str) -> None:
        _merge(results, own)
        if keep is not None:
            own.rows = [*first.rows, *own.rows]
            _keep(keep, name, own, scenarios)

    for case in chosen:
        timed = "speed" in parts and (bool(models) or not results.quick or case is chosen[0])
        jpeg = "jpeg" in parts and case.name == JPEG
        if not timed and not jpeg:
            continue
        with tempfile.TemporaryDirectory() as folder:
            files, subject = _prepare(Path(folder), case, data, results.quick)
            if timed:
                own = Results(results.quick, results.say)
                one_model(own, case, files, subject, scenarios, peaks)
                finish(own, case.name)
            if jpeg:
                own = Results(results.quick, results.say)
                _jpeg(own, data, files, Path(folder))
                finish(own, "jpeg")


def chosen_cases(data: Path, names: tuple[str, ...]) -> list[Case]:
    """Return the models by name, all of them without names, the smallest first."""
    resnet20, _, flowers = cases(data)
    fifty = replace(flowers, name=RANDOM, arch="resnet50", checkpoint="", num_classes=1000, images=64)  # fmt: skip
    known = {case.name: case for case in (resnet20, flowers, fifty)}
    for name in names:
        if name not in known:
            raise UserError(f'there is no model "{name}".', nearest(name, known))
    return [known[name] for name in known if not names or name in names]


def one_model(
    results: Results,
    case: Case,
    files: Files,
    subject: Subject,
    scenarios: Sequence[str],
    peaks: Peaks | None,
) -> None:
    """Time all rows in each scenario; rows, claims and the share of the peak."""
    bench = Bench(files, subject.test, plan_of(case, results.quick), results.say)
    work = work_of(load_onnx(files.job.model))
    chosen = [row for row in rows() if row.quick or not results.quick]
    for scenario in scenarios:
        timed = bench.measure(chosen, scenario)
        for each in timed:
            values = {"model": case.name, "scenario": scenario} | values_of(each)
            results.rows.append(values)
            results.say(str(each.run) if each.run else f"{each.row.name}: {each.reason}")
        claim_speed(results, case.name, scenario, timed)
        if peaks is not None:
            roofline(results, case.name, scenario, timed, work, peaks)


def plan_of(case: Case, quick: bool) -> Plan:
    """Return how long a model is timed; smaller images make larger offline queries."""
    small = case.given.size is not None and case.given.size[0] <= 64
    query = 256 if small else 64
    return Plan(query, *((_QUICK, _QUICK_SEARCH) if quick else (_FULL, _FULL_SEARCH)))


def roofline(
    results: Results, model: str, scenario: str, timed: Sequence[Timed], work: Work, peaks: Peaks
) -> None:
    """Add the row that says which share of the machine's INT8 peak our fastest INT8 row reaches.

    compute_limit, memory_limit: images a second at the peak, and where only weights and input
    were read from memory, once a call.
    """
    ours = best_of(timed, lambda each: each.row.ours and each.row.kind == "int8")
    if ours is None or ours.run is None or ours.search is None:
        return
    share = share_of_peak(ours.run.images_per_s, work, peaks.int8.value)
    chunk = ours.search.best.chunk
    results.row(
        model=model, scenario=scenario, roofline=ours.row.name, multiply_adds=work.multiply_adds,
        weights=work.weights, share_of_peak=share.estimate, share_of_peak_ci95=share.ends(),
        compute_limit=peaks.int8.value.estimate / work.multiply_adds,
        memory_limit=peaks.copy.value.estimate / work.bytes_an_image(chunk),
        images_per_s=ours.run.images_per_s.estimate, peak_by=peaks.int8.by,
    )  # fmt: skip


def share_of_peak(rate: Interval, work: Work, peak: Interval) -> Interval:
    """Return the share of the peak's multiply-adds; its ends take the opposite ends of both."""
    pairs = ((rate.estimate, peak.estimate), (rate.low, peak.high), (rate.high, peak.low))
    return Interval(*(images * work.multiply_adds / most for images, most in pairs))


def _peaks(results: Results) -> Peaks:
    config = peak_config(results.quick)
    return Peaks(int8_peak(results, config), copy_bandwidth(results, config))


def _prepare(folder: Path, case: Case, data: Path, quick: bool) -> tuple[Files, Subject]:
    """Export the model and draw its calibration images; the tools work when they are asked."""
    trained = bool(case.checkpoint)
    model = ModelTable(
        case.arch,
        str((data / "weights" / case.checkpoint).absolute()) if trained else "",
        num_classes=case.num_classes,
        random_weights=not trained,
    )
    root = case.data.root
    where = case.data if root is None else replace(case.data, root=root.absolute())
    subject = prepare_subject(folder, model, case.given, where, tuple(range(8)))
    count = QUICK_IMAGES if quick else case.images
    job = subject.job(subject.select(count, 0))
    return Files(job, folder, plain=quick or not trained), subject


def _jpeg(results: Results, data: Path, files: Files, folder: Path) -> None:
    base = _QUICK if results.quick else _FULL

    def config(scenario: str, batch: int) -> SpeedConfig:
        return replace(base, scenarios=(scenario,), batch=batch)

    for side in short_sides(results.quick):
        photos = find_photos(data / "flowers", files, folder, agreement_photos(results.quick), side)
        compare_jpeg(results, files, photos, config)


def _merge(results: Results, own: Results) -> None:
    results.rows += own.rows
    results.claims += own.claims


def _keep(folder: Path, name: str, own: Results, scenarios: Sequence[str]) -> None:
    """Write a part's results; only those of the whole study have the plain name."""
    whole = not own.quick and tuple(scenarios) == DEFAULT_SCENARIOS
    command = "python -m benchmarks.studies.peers_speed --data DIR"
    command += " --part jpeg" if name == "jpeg" else f" --model {name}"
    command += "".join(f" --scenario {s}" for s in scenarios if not whole)
    command += " --quick" if own.quick else ""
    kept = {"command": command} | study_object("peers_speed", own.rows, own.claims)
    path = folder / f"peers_speed-{name}{'' if whole else '-part'}.json"
    write_json(path, kept | {"tools": _versions()})


def _versions() -> dict[str, str]:
    found = {}
    for name in _TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


_PATH = click.Path(path_type=Path)
_OPTIONS = [
    click.Option(["--data"], type=_PATH, required=True, help="cifar10, flowers and weights."),
    click.Option(["--model", "models"], multiple=True, metavar="NAME", help="Only this one."),
    click.Option(["--part", "parts"], multiple=True, type=click.Choice(PARTS), help="Only this."),
    click.Option(
        ["--scenario", "scenarios"], multiple=True, type=click.Choice(SCENARIOS),
        help=f"Default: {' and '.join(DEFAULT_SCENARIOS)}.",
    ),
    click.Option(["--keep"], type=_PATH, metavar="DIR", help="Write the results here."),
]  # fmt: skip
command = run_study("peers_speed", study, _OPTIONS)

if __name__ == "__main__":
    command()
