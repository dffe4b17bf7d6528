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
fastest of their rows, whatever their precision; they and the baseline are timed once more, longer
and by themselves, and that run is what the claim, which names them, is judged by. In the server scenario a row that keeps the latency limit (--latency-limit) at
no rate has latencies alone. With --keep each model and scenario has a file of its own, written when
it is done, so what an interrupted run did is there; --model, --part and --scenario do the rest.
`python -m benchmarks.studies.peers_speed_table FILE...` makes tables of what --keep wrote.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import click

from benchmarks.peers.worker import short
from benchmarks.server import ServerConfig
from benchmarks.speed import DEFAULT_SCENARIOS, SCENARIOS, SpeedConfig
from benchmarks.statistics import Interval
from benchmarks.studies.base import Results, run_study, study_object
from benchmarks.studies.machine_peak import Peak, copy_bandwidth, int8_peak
from benchmarks.studies.machine_peak import speed_config as peak_config
from benchmarks.studies.multiply_adds import Work, work_of
from benchmarks.studies.speed_claims import best_of, claim_speed, duel_values, finalists, values_of
from benchmarks.studies.speed_files import Files
from benchmarks.studies.speed_jpeg import (
    agreement_photos,
    compare_jpeg,
    find_photos,
    short_sides,
)
from benchmarks.studies.speed_rows import rows
from benchmarks.studies.speed_run import Bench, Plan, Timed
from benchmarks.studies.subject import Case, Subject, cases, prepare_subject, random_case
from deploy_tools.artifacts import write_json
from deploy_tools.errors import DeployToolsError, UserError, nearest
from deploy_tools.onnx_files import load_onnx
from deploy_tools.recipe import ModelTable

PARTS = ("speed", "roofline", "jpeg")
JPEG = "resnet18-flowers"
"""The model whose photos are files and whose labels mean something."""
QUICK_IMAGES = 32
MLPERF_LIMIT_MS = ServerConfig().latency_limit_ms
_TOOLS = ("onnxruntime", "onnxruntime-ep-openvino", "nncf", "openvino", "torch", "torchao")
_FULL = SpeedConfig(warmup=2, settle=1, rounds=20, seconds_per_round=0.3, min_calls=1)
_FULL_SEARCH = SpeedConfig(
    warmup=1, settle=0, rounds=5, seconds_per_round=0.15, min_calls=1,
    server=ServerConfig(rounds=3, steps=4),
)  # fmt: skip
_DUEL = replace(_FULL, rounds=60, seconds_per_round=0.5)
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
    latency_limit: float,
    keep: Path | None,
) -> None:
    """Time every tool on every model; one row a tool and scenario, claims, a roofline."""
    parts, scenarios = parts or PARTS, scenarios or DEFAULT_SCENARIOS
    chosen = chosen_cases(data, models)
    peaks = None
    if "roofline" in parts:
        own = results.own()
        peaks = _peaks(own)
        _finish(results, own, keep, "roofline", "--part roofline")
    for case in chosen:
        timed = "speed" in parts and (bool(models) or not results.quick or case is chosen[-1])
        jpeg = "jpeg" in parts and case.name == JPEG
        if not timed and not jpeg:
            continue
        with tempfile.TemporaryDirectory() as folder:
            files, subject = _prepare(Path(folder), case, data, results.quick)
            plan = plan_of(case, results.quick, latency_limit)
            bench = Bench(files, subject.test, plan, results.say)
            for scenario in scenarios if timed else ():
                own = results.own()
                one_scenario(own, case.name, bench, scenario, peaks)
                name, options = _speed_part(case.name, scenario, peaks is not None, latency_limit)
                _finish(results, own, keep, name, options)
            for side in short_sides(results.quick) if jpeg else ():
                own = results.own()
                _jpeg(own, data, files, Path(folder), side)
                _finish(results, own, keep, f"jpeg-{side}", "--part jpeg")


def chosen_cases(data: Path, names: tuple[str, ...]) -> list[Case]:
    """Return the models by name, all of them without names, the largest and most telling first."""
    resnet20, _, flowers = cases(data)
    known = {case.name: case for case in (random_case(data), flowers, resnet20)}
    for name in names:
        if name not in known:
            raise UserError(f'there is no model "{name}".', nearest(name, known))
    return [known[name] for name in known if not names or name in names]


def one_scenario(
    results: Results, model: str, bench: Bench, scenario: str, peaks: Peaks | None
) -> None:
    """Time all rows in a scenario; rows, claims and the share of the peak.

    Where not even the baseline runs, one row says why and the claim is not met.
    """
    names = {"model": model, "scenario": scenario}
    chosen = [row for row in rows() if row.quick or not results.quick]
    try:
        timed = bench.measure(chosen, scenario, finalists)
    except DeployToolsError as error:
        nothing = {"tool": "every tool", "way": "", "input": "", "status": "did not run"}
        results.row(**names, **nothing, reason=short(str(error)))
        claim_speed(results, model, scenario, [])
        return
    for each in timed:
        results.rows.append(names | values_of(each))
        results.say(str(each.run) if each.run else f"{each.row.name}: {each.reason}")
    results.rows += [names | duel_values(each) for each in timed if each.duel is not None]
    claim_speed(results, model, scenario, timed)
    if peaks is not None:
        roofline(results, model, scenario, timed, work_of(load_onnx(bench.files.job.model)), peaks)


def plan_of(case: Case, quick: bool, latency_limit: float = MLPERF_LIMIT_MS) -> Plan:
    """Return how long a model is timed; smaller images make larger offline queries.

    latency_limit: of the server scenario, in ms.
    """
    small = case.given.size is not None and case.given.size[0] <= 64
    query = 256 if small else 64
    final, search, duel = (
        replace(config, server=replace(config.server, latency_limit_ms=latency_limit))
        for config in ((_QUICK, _QUICK_SEARCH, _QUICK) if quick else (_FULL, _FULL_SEARCH, _DUEL))
    )
    return Plan(query, final, search, duel)


def roofline(
    results: Results, model: str, scenario: str, timed: Sequence[Timed], work: Work, peaks: Peaks
) -> None:
    """Add the row that says which share of the machine's INT8 peak our fastest INT8 row reaches.

    compute_limit, memory_limit: images a second at the peak, and where only weights and input
    were read from memory, once a call.
    """
    ours = best_of(timed, lambda each: each.row.ours and each.row.kind == "int8")
    if ours is None or ours.duel is None or ours.search is None:
        return
    rate = ours.duel.images_per_s
    share = share_of_peak(rate, work, peaks.int8.value)
    chunk = ours.search.best.chunk
    results.row(
        model=model, scenario=scenario, roofline=ours.row.name, multiply_adds=work.multiply_adds,
        weights=work.weights, share_of_peak=share.estimate, share_of_peak_ci95=share.ends(),
        compute_limit=peaks.int8.value.estimate / work.multiply_adds,
        memory_limit=peaks.copy.value.estimate / work.bytes_an_image(chunk),
        images_per_s=rate.estimate, peak_by=peaks.int8.by,
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


def _jpeg(results: Results, data: Path, files: Files, folder: Path, side: int) -> None:
    final, search = (_QUICK, _QUICK_SEARCH) if results.quick else (_FULL, _FULL_SEARCH)
    photos = find_photos(data / "flowers", files, folder, agreement_photos(results.quick), side)
    compare_jpeg(results, files, photos, final, search)


def _speed_part(model: str, scenario: str, with_peaks: bool, limit: float) -> tuple[str, str]:
    """Return the name and the options of one model's scenario: no other part shares either."""
    options = f"--model {model} --part speed --scenario {scenario}"
    options += " --part roofline" if with_peaks else ""
    other = scenario == "server" and limit != MLPERF_LIMIT_MS
    options += f" --latency-limit {limit:g}" if other else ""
    name = f"{model}-{scenario}" + (f"-{limit:g}ms" if other else "")
    return name + ("" if with_peaks else "-no-roofline"), options


def _finish(results: Results, own: Results, keep: Path | None, name: str, options: str) -> None:
    """Add a part to the results and, with --keep, write it; a quick one has another name."""
    results.add(own)
    if keep is None:
        return
    command = f"python -m benchmarks.studies.peers_speed --data DIR {options}"
    kept = study_object(
        "peers_speed", own.rows, own.claims, command + (" --quick" if own.quick else "")
    )
    path = keep / f"peers_speed-{name}{'-quick' if own.quick else ''}.json"
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
    click.Option(
        ["--latency-limit"], type=click.FloatRange(0, 3_600_000, min_open=True), metavar="MS",
        default=MLPERF_LIMIT_MS, show_default=True, help="On p99 of the server scenario.",
    ),
    click.Option(["--keep"], type=_PATH, metavar="DIR", help="Write each part's results here."),
]  # fmt: skip
command = run_study("peers_speed", study, _OPTIONS)

if __name__ == "__main__":
    command()
