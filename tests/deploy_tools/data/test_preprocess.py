"""The same pixels and the same numbers as torchvision's transforms give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from deploy_tools.data import open_source
from deploy_tools.data.preprocess import preprocess, resize_and_crop
from deploy_tools.data.source import ArraySource, batches
from deploy_tools.data.spec import IMAGENET_SPEC, InputSpec
from deploy_tools.errors import UserError

# (height, width): portrait, landscape, square, smaller than the crop, and odd ones.
SIZES = [(301, 232), (233, 640), (256, 256), (17, 45), (100, 99), (224, 224), (257, 1), (999, 231)]


def picture(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    """Smooth waves with some noise, so that every filter and shift shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / (7 + c)) + np.cos(columns / (5 + c)) for c in range(channels)]
    noise = np.random.default_rng(height * 1000 + width).uniform(
        -0.3, 0.3, (height, width, channels)
    )
    return np.clip((np.stack(waves, 2) + noise) * 50 + 128, 0, 255).astype(np.uint8)


def check_against_torchvision(image: NDArray[np.uint8], spec: InputSpec) -> None:
    mode = InterpolationMode(spec.interpolation)
    resize = spec.resize if isinstance(spec.resize, int) else list(spec.resize or ())
    pixels = transforms.Compose(
        [transforms.Resize(resize, mode), transforms.CenterCrop(list(spec.size))]
    )(Image.fromarray(image))
    assert np.array_equal(resize_and_crop(image, spec), np.asarray(pixels))
    numbers = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]
    )(pixels).numpy()
    assert np.allclose(preprocess(image, spec), numbers, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box"])
def test_synthetic_images_of_every_size(size: tuple[int, int], interpolation: str) -> None:
    check_against_torchvision(picture(*size), replace(IMAGENET_SPEC, interpolation=interpolation))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("resize", "crop"), [(16, (24, 24)), (33, (20, 29)), ((40, 30), (40, 30)), ((21, 50), (16, 17))]
)
def test_small_odd_and_squashed(
    size: tuple[int, int], resize: int | tuple[int, int], crop: tuple[int, int]
) -> None:
    check_against_torchvision(picture(*size), replace(IMAGENET_SPEC, resize=resize, size=crop))


def test_real_photos(shared_data: Path) -> None:
    source = open_source("imagefolder", shared_data / "flowers", "val")
    for resize, interpolation in ((232, "bilinear"), (256, "bicubic")):
        spec = replace(IMAGENET_SPEC, resize=resize, interpolation=interpolation)
        for index in range(0, len(source), 37):
            check_against_torchvision(source.load(index), spec)


GREY = InputSpec(size=(8, 8), mean=(0.5,), std=(0.25,))


def test_grey_and_color() -> None:
    grey, color = picture(8, 8, 1), picture(8, 8, 3)
    assert np.allclose(preprocess(grey, GREY)[0], (grey[..., 0] / 255 - 0.5) / 0.25, atol=1e-6)
    luma = np.asarray(Image.fromarray(color).convert("L"))
    assert np.array_equal(preprocess(color, GREY), preprocess(luma[..., None], GREY))
    three = InputSpec(size=(8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    assert np.array_equal(preprocess(grey, three), preprocess(np.repeat(grey, 3, 2), three))
    assert resize_and_crop(grey, replace(GREY, size=(4, 6), resize=(4, 6))).shape == (4, 6, 1)


def test_the_result_is_what_runtimes_take() -> None:
    found = preprocess(picture(300, 250), IMAGENET_SPEC)
    assert found.shape == (3, 224, 224)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous


def test_a_wrong_size_without_resize_is_refused() -> None:
    with pytest.raises(UserError, match=r"a.png is 9x8 pixels and the model takes 8x8"):
        preprocess(picture(9, 8, 1), GREY, "a.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_what_the_floats_are_made_of(channels: int) -> None:
    spec = InputSpec((20, 24), (0.4,) * channels, (0.2,) * channels, resize=30, crop="center")
    image = picture(50, 70, channels)
    pixels = preprocess(image, spec.with_pixels())
    assert pixels.dtype == np.uint8
    assert pixels.shape == spec.with_pixels().shape(1)[1:]
    floats = (pixels.transpose(2, 0, 1) / 255 - 0.4) / 0.2
    assert np.allclose(preprocess(image, spec), floats, rtol=0, atol=1e-6)


def test_batches_of_pixels_are_uint8() -> None:
    spec = InputSpec((6, 6), (0.4,), (0.2,)).with_pixels()
    images = np.arange(5 * 36, dtype=np.uint8).reshape(5, 6, 6)
    source = ArraySource("some", "train", images, np.arange(5), [])
    (first, labels), (second, _) = batches(source, spec, 3)
    assert first.dtype == second.dtype == np.uint8
    assert np.array_equal(np.concatenate([first, second])[..., 0], images)
    assert labels.tolist() == [0, 1, 2]


def test_a_spec_takes_floats_or_pixels_and_nothing_between() -> None:
    with pytest.raises(UserError, match='dtype "uint8" and layout "NCHW" do not go together'):
        replace(IMAGENET_SPEC, dtype="uint8")
    pixels = IMAGENET_SPEC.with_pixels()
    assert InputSpec.from_dict(pixels.to_dict()) == pixels
    assert pixels.with_floats() == IMAGENET_SPEC
