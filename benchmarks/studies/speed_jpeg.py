"""From JPEG to label: other tools' way, torchvision's transforms and their INT8 model, beside ours.

One core: decode and run, both with one thread, one after the other. All cores, offline: threads
decode ahead of the model, by the overlap that `predict` has; single-stream takes one photo at a
time and has no overlap. Every way is tried with the same few shapes (`shapes`: threads, streams,
images a call and threads that decode) and timed in its own best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.end_to_end import PathToLabel, rows_of
from benchmarks.peers.overlap import Decode, Overlapped
from benchmarks.peers.setting import Setting
from benchmarks.peers.torch_modes import use_threads
from benchmarks.peers.worker import reason_of, short
from benchmarks.speed import SpeedConfig, SpeedRun, measure_speed
from benchmarks.studies.base import Results
from benchmarks.studies.decoding import enlarged, spread_photos
from benchmarks.studies.speed_claims import ratio_of, run_values
from benchmarks.studies.speed_files import Files
from benchmarks.studies.speed_rows import US, Open, Source, native, onnxruntime, product
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
"""How many times faster than these ours shall be: the low end of the interval."""
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


def _openvino(source: Source, setting: Setting) -> Session:
    """OpenVINO's own API, in the mode that is for so many streams."""
    hint = "LATENCY" if setting.streams == 1 else "THROUGHPUT"
    return native(hint, True)(source, setting)


WAYS = (
    Way(REFERENCE, "ort-u8s8", onnxruntime),
    Way(OPENVINO, "nncf", _openvino),
    Way(f"{US}, onnxruntime", "ours-ort-cpu-uint8", product("onnxruntime"), pixels=True),
    Way(f"{US}, OpenVINO", "ours-openvino-uint8", product("openvino"), pixels=True),
)


@dataclass(frozen=True)
class Photos:
    """Photos of one size. source: their files. wanted: FP32's labels of the reference images."""

    short_side: int
    source: FileSource
    wanted: NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """How a way uses the cores. decoders: threads that decode ahead; 0: decoding and model take
    turns on the calling thread."""

    setting: Setting
    decoders: int = 0

    def __str__(self) -> str:
        return f"{self.setting}, {self.decoders} decoders"


@dataclass(frozen=True)
class Place:
    """Where the ways are compared: photos of one size, one core or all, and a scenario."""

    files: Files
    photos: Photos
    layout: str
    scenario: str

    @property
    def name(self) -> str:
        """In words, for claims."""
        return f"JPEG to label, {self.photos.short_side} pixels, {self.layout}, {self.scenario}"

    def names(self, way: Way) -> dict[str, Any]:
        """Return the columns that name a row."""
        return {
            "short_side": self.photos.short_side, "layout": self.layout, "scenario": self.scenario,
            "way": way.name,
        }  # fmt: skip

    def open(self, way: Way, shape: Shape) -> Session:
        """Open a way as a session from files to labels."""
        session = way.open(self.files.source(way.file), shape.setting)
        spec, source = self.files.job.spec, self.photos.source
        decode = way.decode(spec)
        if shape.decoders:
            images = shape.setting.chunk * shape.setting.streams
            return Overlapped(session, source, decode, images, shape.decoders)
        return PathToLabel(session, spec, source, lambda index: decode(source.path(index)))


def torchvision_transforms(spec: InputSpec) -> Decode:
    """Return torchvision's usual evaluation transforms, from a file to float32 (C, H, W)."""
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
        use_threads(1)  # as a data loader's workers do
        with Image.open(path) as image:
            made: NDArray[np.float32] = chain(image.convert("RGB")).numpy()
        return made

    return decode


def find_photos(data: Path, files: Files, folder: Path, count: int, short_side: int) -> Photos:
    """Spread photos over the val split, with this short side (232: as they are)."""
    made = [enlarged(path, short_side, folder, data) for path in spread_photos(data, "val", count)]
    source = FileSource("photos", "val", folder, made, [0] * len(made), ())
    session = open_session(files.path("fp32"))
    try:
        reference = [load_input(path, files.job.spec, "reference") for path in made]
        logits = [session.run(image[None])[0] for image in reference]
    finally:
        session.close()
    return Photos(short_side, source, np.concatenate(logits).argmax(axis=1))


def shapes(layout: str, scenario: str, cores: int) -> list[Shape]:
    """Return what every way is tried with, all the same: none is held to another's best."""
    if scenario == "single-stream":
        threads = [1] if layout == ONE_CORE else list(dict.fromkeys([cores, 1]))
        return [Shape(Setting(count)) for count in threads]
    if layout == ONE_CORE:
        return [Shape(Setting(chunk=chunk)) for chunk in (BATCH, 1)]
    # Streams times chunk must fit into the call: the largest power of two that does.
    each = 1 << (max(OFFLINE // cores, 1).bit_length() - 1)
    found = [
        Shape(Setting(cores, 1, BATCH), cores),
        Shape(Setting(cores, 1, 2 * BATCH), cores),
        Shape(Setting(1, cores, min(BATCH, each)), cores),
        Shape(Setting(1, 1, BATCH), max(cores - 1, 1)),
    ]
    return list(dict.fromkeys(found))


def compare_jpeg(
    results: Results, files: Files, photos: Photos, final: SpeedConfig, search: SpeedConfig
) -> None:
    """Time all ways with one core and with all, one photo at a time and many; rows and claims.

    final, search: how long; their scenarios and batch are filled in.
    """
    for layout in (ALL_CORES, ONE_CORE):
        for scenario in ("offline", "single-stream"):
            batch = BATCH if layout == ONE_CORE else OFFLINE
            place = Place(files, photos, layout, scenario)
            runs, rates = _timed(
                results,
                place,
                replace(final, scenarios=(scenario,), batch=batch),
                replace(search, scenarios=(scenario,), batch=batch),
            )
            claim_jpeg(results, place.name, runs, rates)


def claim_jpeg(
    results: Results, where: str, runs: Mapping[str, SpeedRun], rates: Mapping[str, float]
) -> None:
    """Claim our way over each of the others; a way that did not run is not met.

    rates: of the search, by which the faster of our ways is chosen; the final run judges it.
    """
    mine = [name for name in runs if name.startswith(US)]
    ours = runs[max(mine, key=lambda name: rates[name])] if mine else None
    for name, goal in GOALS.items():
        other = runs.get(name)
        found = None if ours is None or other is None else ratio_of(ours, other)
        if ours is None or found is None:
            results.claim(f"{where}: ours over {name}", None, ">=", goal)
            continue
        shown = f"{found.estimate:.2f}x [{found.low:.2f}, {found.high:.2f}], its low end"
        results.claim(f"{where}: {ours.variant} over {name}, {shown}", found.low, ">=", goal)


def _timed(
    results: Results, place: Place, final: SpeedConfig, search: SpeedConfig
) -> tuple[dict[str, SpeedRun], dict[str, float]]:
    """Return each way's final run and its images a second in the search."""
    found, reasons = _searched(place, search)
    sessions: dict[str, Session] = {}
    agreements: dict[str, float] = {}
    try:
        for way in WAYS:
            if way.name in found:
                try:
                    session = place.open(way, found[way.name][0])
                    sessions[way.name] = session
                    agreements[way.name] = _agreement(
                        session, place.photos, final.batch_of(place.scenario)
                    )
                except Exception as error:  # every tool has its own classes
                    reasons[way.name] = _why(error)
                    if way.name in sessions:
                        sessions.pop(way.name).close()
        # Ratios in the rows are over the reference; where it did not run there are none.
        baseline = REFERENCE if REFERENCE in sessions else next(iter(sessions), "")
        runs = measure_speed(sessions, rows_of, baseline, final) if sessions else []
    finally:
        for session in sessions.values():
            session.close()
    for way in WAYS:
        if way.name not in agreements:
            reason = reasons.get(way.name, "no setting runs.")
            results.row(**place.names(way), status="did not run", reason=reason)
    for run in runs:
        _row(results, place, run, found[run.variant][0], agreements[run.variant])
    return {run.variant: run for run in runs}, {name: rate for name, (_, rate) in found.items()}


def _searched(
    place: Place, config: SpeedConfig
) -> tuple[dict[str, tuple[Shape, float]], dict[str, str]]:
    """Time all ways in all shapes side by side; each way's best with its rate, or the reason."""
    opened: dict[str, tuple[Way, Shape]] = {}
    sessions: dict[str, Session] = {}
    reasons: dict[str, str] = {}
    try:
        for way in WAYS:
            for shape in shapes(place.layout, place.scenario, usable_cores()):
                name = f"{way.name}, {shape}"
                try:
                    sessions[name] = place.open(way, shape)
                    sessions[name].run(rows_of(config.batch_of(place.scenario)))
                    opened[name] = way, shape
                except Exception as error:  # every tool has its own classes
                    reasons.setdefault(way.name, _why(error))
                    if name in sessions:
                        sessions.pop(name).close()
        first = next(iter(sessions), "")
        runs = measure_speed(sessions, rows_of, first, config) if sessions else []
    finally:
        for session in sessions.values():
            session.close()
    found: dict[str, tuple[Shape, float]] = {}
    for run in runs:
        (way, shape), rate = opened[run.variant], run.images_per_s.estimate
        if way.name not in found or rate > found[way.name][1]:
            found[way.name] = shape, rate
    return found, reasons


def _row(results: Results, place: Place, run: SpeedRun, shape: Shape, agreement: float) -> None:
    way = next(way for way in WAYS if way.name == run.variant)
    setting = shape.setting
    values = place.names(way) | {
        "photos": len(place.photos.source), "agreement": agreement, "threads": setting.threads,
        "streams": setting.streams, "chunk": setting.chunk, "decoders": shape.decoders,
    } | run_values(run)  # fmt: skip
    if run.baseline.variant != REFERENCE:
        values |= {"speedup": None, "speedup_ci95": None}
    results.rows.append(values)
    results.say(f"{place.name}: {run}, {shape}, agreement {agreement:.4f}")
    if way.name.startswith(US):
        results.claim(f"{place.name}: {way.name}: FP32's labels", agreement, ">=", AGREEMENT)


def _why(error: Exception) -> str:
    return short(str(error)) if isinstance(error, DeployToolsError) else reason_of(error)


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
