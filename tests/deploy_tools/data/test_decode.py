"""Decoding for a model: the reference's pixels within the tolerances, from less work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy_tools.data.decode import CROPPED_TOLERANCE, MARGIN, decode_pixels, load_input
from deploy_tools.data.files import decode_image
from deploy_tools.data.npz import open_npz
from deploy_tools.data.preprocess import preprocess
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError

SPEC = InputSpec((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 232, "center")
GREY = InputSpec((24, 20), (0.5,), (0.25,), 30, "center")


def photos(shared_data: Path, count: int) -> list[Path]:
    return sorted((shared_data / "flowers" / "train").rglob("*.jpg"))[:: 2934 // count][:count]


def levels(path: Path, spec: InputSpec, decoder: str) -> np.ndarray:
    """How many levels of 255 each value is away from the reference."""
    wanted = preprocess(decode_image(path), spec)
    got = load_input(path, spec, decoder)
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    return np.abs(got - wanted) * 255 * np.array(spec.std, np.float32)[:, None, None]


@pytest.mark.parametrize("how", ["nearest", "bilinear", "bicubic", "lanczos", "box"])
@pytest.mark.parametrize(
    "shape",
    [
        {"size": (224, 224), "resize": 232},
        {"size": (96, 64), "resize": 101},
        {"size": (120, 150), "resize": (130, 170)},
        {"size": (130, 170), "resize": (130, 170), "crop": "none"},
        {"size": (200, 200), "resize": 150},  # padded
        {"size": (100, 100), "resize": None},
    ],
)
def test_cropped_stays_within_its_tolerance(shared_data: Path, how: str, shape: dict) -> None:
    spec = replace(SPEC, interpolation=how, **shape)
    for path in photos(shared_data, 4):
        apart = levels(path, spec, "cropped")
        # A cut that is off by one pixel differs by tens of levels on photos.
        assert apart.max() < CROPPED_TOLERANCE + 0.5
        assert apart.mean() < 0.05


def test_photos_that_are_not_scaled_are_the_same_with_both(shared_data: Path) -> None:
    for path in photos(shared_data, 5):
        one, other = (decode_pixels(path, SPEC, d) for d in ("cropped", "scaled"))
        assert np.array_equal(one, other)


def test_a_scaled_decode_stays_near_the_reference(shared_data: Path) -> None:
    spec = replace(SPEC, size=(56, 56), resize=58)
    means = []
    for path in photos(shared_data, 20):
        if min(Image.open(path).size) < 2 * MARGIN * 58:
            continue
        apart = levels(path, spec, "scaled")
        means.append(apart.mean())
        assert not np.array_equal(decode_pixels(path, spec), decode_pixels(path, spec, "cropped"))
    # A cut that is a pixel out of place gives 8 and more on these photos.
    assert len(means) > 8
    assert np.mean(means) < 2.5


@pytest.mark.parametrize(
    ("width", "height", "resize", "divisor"),
    [
        (928, 928, 232, 2), (927, 1000, 232, 1), (1856, 1900, 232, 4), (1855, 1900, 232, 2),
        (3712, 3800, 232, 8), (20000, 929, 232, 2), (1000, 1000, None, 1),
        (1000, 1000, (100, 400), 1), (1000, 1000, (100, 250), 2), (500, 375, 232, 1),
    ],
)  # fmt: skip
def test_no_scaled_decode_goes_below_the_margin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    width: int, height: int, resize: int | tuple[int, int] | None, divisor: int,
) -> None:  # fmt: skip
    from PIL import JpegImagePlugin

    path = tmp_path / "x.jpg"
    Image.new("RGB", (width, height)).save(path)
    decoded: list[tuple[int, int]] = []
    load = JpegImagePlugin.JpegImageFile.load

    def watch(self: Image.Image) -> object:
        decoded.append(self.size)
        return load(self)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", watch)
    spec = replace(SPEC, size=(64, 64), resize=resize)
    assert decode_pixels(path, spec).shape == (64, 64, 3)
    assert set(decoded) == {(-(-width // divisor), -(-height // divisor))}
    short = min(decoded[0])
    if isinstance(resize, int) and divisor > 1:
        assert short >= MARGIN * resize


def test_odd_sizes_keep_their_place(tmp_path: Path) -> None:
    """A scaled decode rounds its size up; the cut must not stretch with it."""
    ramp = np.tile(np.linspace(0, 255, 1003)[None, :, None], (905, 1, 3)).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "x.jpg", quality=95)
    spec = replace(SPEC, size=(56, 56), resize=(57, 63))
    assert levels(tmp_path / "x.jpg", spec, "scaled").max() < 2


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("spec", [SPEC, GREY], ids=["rgb", "grey"])
def test_every_mode_is_read_as_the_reference_reads_it(
    tmp_path: Path, shared_data: Path, mode: str, spec: InputSpec
) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    photo = Image.open(photos(shared_data, 1)[0])
    if mode == "I;16":
        Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257).save(path)
    else:
        photo.convert(mode).save(path)
    assert levels(path, spec, "scaled").max() < CROPPED_TOLERANCE + 0.5


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_large_jpegs_of_other_modes_are_scaled_too(
    tmp_path: Path, shared_data: Path, mode: str
) -> None:
    path = tmp_path / "x.jpg"
    Image.open(photos(shared_data, 1)[0]).convert(mode).save(path)
    for spec in (GREY, replace(SPEC, size=(56, 56), resize=58)):
        assert levels(path, spec, "scaled").mean() < 3
        assert not np.array_equal(decode_pixels(path, spec), decode_pixels(path, spec, "cropped"))


def test_exif_orientation_is_left_alone(tmp_path: Path, shared_data: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photos(shared_data, 1)[0]).save(tmp_path / "x.jpg", exif=exif)
    assert levels(tmp_path / "x.jpg", SPEC, "cropped").max() < CROPPED_TOLERANCE + 0.5


def test_cifar_images_are_the_very_pixels(tmp_path: Path, shared_data: Path) -> None:
    source = open_npz(shared_data / "cifar10" / "cifar10_test.npz", "test")
    spec = replace(SPEC, size=(32, 32), resize=None)
    for index in range(0, 10_000, 250):
        Image.fromarray(source.load(index)).save(tmp_path / "x.png")
        for decoder in ("reference", "cropped", "scaled"):
            assert np.array_equal(
                load_input(tmp_path / "x.png", spec, decoder), preprocess(source.load(index), spec)
            )


@pytest.mark.parametrize("decoder", ["reference", "cropped", "scaled"])
def test_damaged_files_are_refused_in_the_same_words(
    tmp_path: Path, shared_data: Path, decoder: str
) -> None:
    whole = photos(shared_data, 1)[0].read_bytes()
    small = replace(SPEC, size=(24, 24), resize=28)
    (tmp_path / "text.jpg").write_text("not an image")
    for cut in (2, 200, 4000, len(whole) // 2):
        (tmp_path / f"{cut}.jpg").write_bytes(whole[:cut])
    for path in [*tmp_path.iterdir(), tmp_path / "away.jpg"]:
        with pytest.raises(UserError) as wanted:
            decode_image(path)
        with pytest.raises(UserError) as got:
            load_input(path, small, decoder)
        assert str(path) in str(got.value)
        assert got.value.message.split(":")[0] == wanted.value.message.split(":")[0]


@pytest.mark.filterwarnings("ignore")
def test_bombs_are_measured_before_they_are_scaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (600, 600)).save(tmp_path / "x.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600 * 600 - 1)
    with pytest.raises(UserError, match=r"x.jpg is larger than Pillow's limit"):
        decode_pixels(tmp_path / "x.jpg", replace(SPEC, size=(24, 24), resize=28))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x.png is 20x30 pixels and the model takes 224x224"):
        load_input(tmp_path / "x.png", replace(SPEC, resize=None, crop="none"), "scaled")
    with pytest.raises(UserError, match='decoder "scalde" is not known'):
        load_input(tmp_path / "x.png", SPEC, "scalde")
