"""From a JPEG to 224x224 pixels: CPU time of each way, and what it changes in the predictions.

    python -m benchmarks.studies.decoding --data FLOWERS --checkpoint FILE [--quick] [--json]

The photos are an image folder with train and val splits and a ResNet-18 that was trained on it.
They are small (short side up to 232), so the sizes below are made from them by Lanczos and saved
as JPEG of quality 85: enlarged photos hold no fine detail. The row "small input" shows the
opposite: photos as they are, full of detail for their size, for an input of 56 pixels, which the
model was not trained for.
"""

from __future__ import annotations

import importlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.statistics import paired_ratio_interval
from benchmarks.studies.base import Results, run_study
from deploy_tools.data.decode import decode_pixels
from deploy_tools.data.files import decode_image
from deploy_tools.data.folder import open_folder
from deploy_tools.data.preprocess import preprocess, resize_and_crop
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError, require
from deploy_tools.export import onnx_from_module
from deploy_tools.pipeline.model import fold_model, load_model
from deploy_tools.recipe import InputTable, ModelTable
from deploy_tools.runtimes import RuntimeConfig, Session, open_session

SPEC = InputSpec((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 232, "center")
SMALL = replace(SPEC, size=(56, 56), resize=58)
SHORT_SIDES = (232, 375, 928, 1500)
ENLARGED = 928
"""The short side of the enlarged photos whose predictions are compared."""
ROUNDS = 7
_FULL, _QUICK = (48, 368), (12, 60)
"""Photos that are timed and photos whose predictions are compared."""
Way = Callable[[Path], NDArray[np.uint8]]


def main(results: Results, data: Path, checkpoint: Path) -> None:
    """Time the ways from a JPEG to pixels and compare their predictions."""
    timed, judged = _QUICK if results.quick else _FULL
    with tempfile.TemporaryDirectory() as folder:
        session = _session(checkpoint, Path(folder))
        photos = spread_photos(data, "val", judged)
        for short in SHORT_SIDES:
            made = [
                enlarged(p, short, Path(folder), data) for p in photos[:: judged // timed][:timed]
            ]
            _time(results, made, short)
        for name, short, spec in (
            ("as they are", 232, SPEC),
            ("enlarged", ENLARGED, SPEC),
            ("small input", 232, SMALL),
        ):
            files = [enlarged(p, short, Path(folder), data) for p in photos]
            for decoder in ("cropped", "scaled"):
                _compare(results, session, files, spec, f"{name}, {decoder}")


def ways() -> dict[str, Way]:
    """Return the ways to measure, by name; packages that are not installed are left out."""
    found: dict[str, Way] = {
        "reference": lambda path: resize_and_crop(decode_image(path), SPEC),
        "cropped": lambda path: decode_pixels(path, SPEC, "cropped"),
        "scaled": lambda path: decode_pixels(path, SPEC, "scaled"),
        "torchvision transforms, to float": _torchvision(),
        "torchvision.io, v2": _torchvision_io(),
    }
    for package, decode in (("simplejpeg", _simplejpeg), ("cv2", _opencv)):
        try:
            found[package] = decode(importlib.import_module(package))
        except ImportError:
            continue
    return found


def _torchvision() -> Way:
    transforms = require("torchvision.transforms", "torch", "the study")
    chain = transforms.Compose([
        transforms.Resize(232), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize(SPEC.mean, SPEC.std),
    ])  # fmt: skip
    return lambda path: chain(Image.open(path).convert("RGB"))


def _torchvision_io() -> Way:
    io = require("torchvision.io", "torch", "the study")
    v2 = require("torchvision.transforms.v2", "torch", "the study")
    chain = v2.Compose([v2.Resize(232, antialias=True), v2.CenterCrop(224)])
    return lambda path: chain(io.decode_image(str(path), mode="RGB")).numpy()


def _simplejpeg(package: Any) -> Way:
    """The smallest n/8 that is not below what is resized from: libjpeg-turbo's own fractions."""

    def way(path: Path) -> NDArray[np.uint8]:
        pixels = package.decode_jpeg(
            path.read_bytes(), "RGB", min_height=SPEC.resize, min_width=SPEC.resize, min_factor=1
        )
        return resize_and_crop(pixels, SPEC)

    return way


def _opencv(package: Any) -> Way:
    package.setNumThreads(1)
    return lambda path: resize_and_crop(package.imread(str(path), package.IMREAD_COLOR_RGB), SPEC)


def _time(results: Results, files: Sequence[Path], short: int) -> None:
    """CPU milliseconds an image, in interleaved rounds, and the ratio to torchvision's."""
    require("torch", "torch", "the study").set_num_threads(1)
    known = ways()
    samples: dict[str, list[float]] = {name: [] for name in known}
    generator = random.Random(0)
    for _ in range(ROUNDS):
        for name in generator.sample(list(known), len(known)):
            known[name](files[0])
            start = time.process_time()
            for path in files:
                known[name](path)
            samples[name].append(1e3 * (time.process_time() - start) / len(files))
    _rows(results, samples, short)


def _rows(results: Results, samples: Mapping[str, list[float]], short: int) -> None:
    base = [1 / s for s in samples["torchvision transforms, to float"]]
    for name, each in samples.items():
        ratio = paired_ratio_interval([1 / s for s in each], base, 0)
        results.row(
            short_side=short, way=name, cpu_ms=statistics.median(each),
            times_torchvision=ratio.estimate, low=ratio.low, high=ratio.high,
        )  # fmt: skip


def _compare(
    results: Results, session: Session, files: Sequence[Path], spec: InputSpec, name: str
) -> None:
    largest, mean, same = 0, [], 0
    fixed = replace(spec, resize=None, crop="none")
    for path in files:
        wanted = resize_and_crop(decode_image(path), spec)
        given = decode_pixels(path, spec, name.rpartition(", ")[2])
        apart = np.abs(wanted.astype(np.int16) - given)
        largest = max(largest, int(apart.max()))
        mean.append(float(apart.mean()))
        logits = [session.run(preprocess(p, fixed)[None])[0].argmax() for p in (wanted, given)]
        same += int(logits[0] == logits[1])
    agreement = same / len(files)
    results.row(
        photos=name, images=len(files), max_difference=largest,
        mean_difference=statistics.mean(mean), agreement=agreement,
    )  # fmt: skip
    # The small input is no use of the model; its row says how far the margin carries.
    results.claim(f"agreement, {name}", agreement, ">=", 0.9 if spec is SMALL else 0.99)


def _session(checkpoint: Path, folder: Path) -> Session:
    table = InputTable(SPEC.size, SPEC.mean, SPEC.std, 232, "center")
    loaded = load_model(ModelTable("resnet18", str(checkpoint), num_classes=5), table)
    path = folder / "fp32.onnx"
    onnx_from_module(fold_model(loaded)[0], loaded.spec, path)
    return open_session(path, RuntimeConfig(threads=1))


def spread_photos(data: Path, split: str, count: int) -> list[Path]:
    """Return `count` photos of a split, spread over it, so that every class is there."""
    source = open_folder(data, split)
    if len(source) < count:
        raise UserError(f"{data}/{split} has {len(source)} photos and {count} are needed.")
    return [source.path(i * len(source) // count) for i in range(count)]


def enlarged(path: Path, short: int, folder: Path, data: Path) -> Path:
    """Return the photo with this short side; 232 is the photo as it is.

    data: the folder above all photos: photos of two classes may have one name.
    """
    if short == 232:
        return path
    made = folder / str(short) / path.relative_to(data)
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(path).convert("RGB")
        scale = short / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image.resize(size, Image.Resampling.LANCZOS).save(made, quality=85)
    return made


_PATH = click.Path(path_type=Path, exists=True)
_OPTIONS = [
    click.Option(["--data"], type=_PATH, required=True, help="Photos: train, val."),
    click.Option(
        ["--checkpoint"], type=_PATH, required=True, metavar="FILE", help="Its ResNet-18."
    ),
]
command = run_study("decoding", main, _OPTIONS)

if __name__ == "__main__":
    command()
