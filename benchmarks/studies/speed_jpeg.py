"""From JPEG to label: other tools' way, torchvision's transforms and their INT8 model, beside ours.

One core: decode and run batch by batch, both with one thread, one after the other. All cores:
threads decode ahead of the model; every row has the same overlap, the one that `predict` has.
Offline calls run the model on batches of `BATCH`; single-stream takes one photo at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.end_to_end import PathToLabel, rows_of
from benchmarks.peers.overlap import Decode, Overlapped
from benchmarks.peers.setting import Setting
from benchmarks.peers.worker import reason_of, short
from benchmarks.speed import SpeedConfig, SpeedRun, measure_speed
from benchmarks.studies.base import Results
from benchmarks.studies.decoding import enlarged, spread_photos
from benchmarks.studies.speed_claims import ratio_of, run_values
from benchmarks.studies.speed_files import Files
from benchmarks.studies.speed_rows import US, Open, native, product
from deploy_tools.data.decode import load_input
from deploy_tools.data.files import FileSource
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import DeployToolsError, UserError, require
from deploy_tools.runtimes import Session, open_session
from deploy_tools.runtimes.base import usable_cores

BATCH = 8
OFFLINE = 64
"""Photos of an offline call on all cores; on one core a call is one batch."""
ONE_CORE, ALL_CORES = "one core", "all cores"
REFERENCE = "torchvision transforms + onnxruntime INT8"
OPENVINO = "torchvision transforms + OpenVINO INT8"
GOALS = {REFERENCE: 3.0, OPENVINO: 1.6}
"""How many times faster than these ours shall be."""
AGREEMENT = 0.98
"""The least share of photos that get FP32's label on the reference preprocessing."""


@dataclass(frozen=True)
class Way:
    """A way from file to label. file: a name in `FILES`. pixels: ours: decoding at a fraction of
    the size, uint8 into the graph; else torchvision's transforms."""

    name: str
    file: str
    open: Open
    pixels: bool = False

    def decode(self, spec: InputSpec) -> Decode:
        """Return what makes the model's input of a file."""
        if self.pixels:
            return partial(load_input, spec=spec.with_pixels(), decoder="scaled")
        return torchvision_transforms(spec)


WAYS = (
    Way(REFERENCE, "ort-u8s8", product("onnxruntime")),
    Way(OPENVINO, "nncf", native("LATENCY", True)),
    Way(f"{US}, onnxruntime", "ours-ort-cpu-uint8", product("onnxruntime"), pixels=True),
    Way(f"{US}, OpenVINO", "ours-openvino-uint8", product("openvino"), pixels=True),
)


@dataclass(frozen=True)
class Photos:
    """Photos of one size. source: their files. wanted: FP32's labels of the reference images."""

    short_side: int
    source: FileSource
    wanted: NDArray[np.int64]


def torchvision_transforms(spec: InputSpec) -> Decode:
    """Return torchvision's usual evaluation transforms, from a file to float32 (C, H, W)."""
    torch: Any = require("torch", "torch", "The JPEG comparison")
    transforms = require("torchvision.transforms", "torch", "The JPEG comparison")
    if (
        not isinstance(spec.resize, int)
        or spec.crop != "center"
        or spec.interpolation != "bilinear"
    ):
        raise UserError("the comparison needs a bilinear resize of the short side and a crop.")
    chain = transforms.Compose([
        transforms.Resize(spec.resize), transforms.CenterCrop(spec.size), transforms.ToTensor(),
        transforms.Normalize(spec.mean, spec.std),
    ])  # fmt: skip

    def decode(path: Path) -> NDArray[np.float32]:
        torch.set_num_threads(1)  # as a data loader's workers do; it holds for this thread only
        with Image.open(path) as image:
            made: NDArray[np.float32] = chain(image.convert("RGB")).numpy()
        return made

    return decode


def find_photos(data: Path, files: Files, folder: Path, count: int, short_side: int) -> Photos:
    """Spread photos over the val split, with this short side (232: as they are)."""
    made = [enlarged(path, short_side, folder) for path in spread_photos(data, "val", count)]
    source = FileSource("photos", "val", folder, made, [0] * len(made), ())
    session = open_session(files.path("fp32"))
    try:
        reference = [load_input(path, files.job.spec, "reference") for path in made]
        logits = [session.run(image[None])[0] for image in reference]
    finally:
        session.close()
    return Photos(short_side, source, np.concatenate(logits).argmax(axis=1))


def compare_jpeg(
    results: Results, files: Files, photos: Photos, config: Callable[[str, int], SpeedConfig]
) -> None:
    """Time all ways with one core and with all, one photo at a time and many; rows and claims.

    config: from a scenario and the photos of an offline call to how long it is timed.
    """
    for layout in (ONE_CORE, ALL_CORES):
        for scenario in ("single-stream", "offline"):
            batch = BATCH if layout == ONE_CORE else OFFLINE
            runs = _timed(results, files, photos, layout, config(scenario, batch))
            claim_jpeg(results, f"JPEG to label, {photos.short_side} pixels, {layout}, {scenario}", runs)  # fmt: skip


def claim_jpeg(results: Results, where: str, runs: dict[str, SpeedRun]) -> None:
    """Claim our fastest way over each of the others; a way that did not run is not met."""
    ours = max(
        (run for name, run in runs.items() if name.startswith(US)),
        key=lambda run: run.images_per_s.estimate,
        default=None,
    )
    for name, goal in GOALS.items():
        other = runs.get(name)
        found = None if ours is None or other is None else ratio_of(ours, other)
        if ours is None or found is None:
            results.claim(f"{where}: ours over {name}", None, ">=", goal)
            continue
        shown = f"{found.estimate:.2f}x [{found.low:.2f}, {found.high:.2f}]"
        results.claim(f"{where}: {ours.variant} over {name}, {shown}", found.estimate, ">=", goal)


def _timed(
    results: Results, files: Files, photos: Photos, layout: str, config: SpeedConfig
) -> dict[str, SpeedRun]:
    sessions: dict[str, Session] = {}
    agreements: dict[str, float] = {}
    scenario = config.scenarios[0]
    try:
        for way in WAYS:
            try:
                session = _open(way, files, photos, layout, scenario)
                sessions[way.name] = session
                agreements[way.name] = _agreement(session, photos, config.batch_of(scenario))
            except Exception as error:  # every tool has its own classes
                if way.name in sessions:
                    sessions.pop(way.name).close()
                reason = short(str(error)) if isinstance(error, DeployToolsError) else reason_of(error)  # fmt: skip
                results.row(
                    short_side=photos.short_side, layout=layout, scenario=scenario, way=way.name,
                    status="did not run", reason=reason,
                )  # fmt: skip
        if not sessions:
            return {}
        baseline = next(iter(sessions))
        runs = {run.variant: run for run in measure_speed(sessions, rows_of, baseline, config)}
    finally:
        for session in sessions.values():
            session.close()
    for name, run in runs.items():
        _row(results, photos, layout, name, run, agreements[name])
    return runs


def _row(
    results: Results, photos: Photos, layout: str, name: str, run: SpeedRun, agreement: float
) -> None:
    names: dict[str, Any] = {
        "short_side": photos.short_side, "photos": len(photos.source), "layout": layout,
        "scenario": run.scenario, "way": name, "agreement": agreement,
    }  # fmt: skip
    results.rows.append(names | run_values(run))
    results.say(f"{photos.short_side} pixels, {layout}: {run}, agreement {agreement:.4f}")
    if name.startswith(US):
        where = f"JPEG to label, {photos.short_side} pixels, {layout}, {run.scenario}"
        results.claim(f"{where}: {name}: FP32's labels", agreement, ">=", AGREEMENT)


def _open(way: Way, files: Files, photos: Photos, layout: str, scenario: str) -> Session:
    threads = 1 if layout == ONE_CORE else usable_cores()
    batch = 1 if scenario == "single-stream" else BATCH
    session = way.open(files.source(way.file), Setting(threads, 1, batch))
    spec, source = files.job.spec, photos.source
    decode = way.decode(spec)
    if layout == ALL_CORES and scenario == "offline":
        return Overlapped(session, source, decode, BATCH, usable_cores())
    return PathToLabel(session, spec, source, lambda index: decode(source.path(index)))


def _agreement(session: Session, photos: Photos, batch: int) -> float:
    """Run every photo once, in calls of `batch`, and count FP32's labels; it also warms up."""
    count = len(photos.source) // batch * batch
    labels = [session.run(rows_of(batch))[0] for _ in range(count // batch)]
    return float((np.concatenate(labels) == photos.wanted[:count]).mean())


def agreement_photos(quick: bool) -> int:
    """Return how many photos are used: a multiple of `OFFLINE`."""
    return OFFLINE if quick else 5 * OFFLINE


def short_sides(quick: bool) -> Sequence[int]:
    """Return the sizes: 375 is that of the usual 500x375 photo, enlarged; 232 as they are."""
    return (375,) if quick else (232, 375)
