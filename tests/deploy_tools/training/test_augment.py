"""Crops and flips against a plain loop."""

from __future__ import annotations

import pytest
import torch

from deploy_tools.training.augment import random_crop, random_flip


def images(count: int, channels: int, height: int, width: int) -> torch.Tensor:
    numbers = torch.arange(1, count * channels * height * width + 1, dtype=torch.float32)
    return numbers.reshape(count, channels, height, width)


@pytest.mark.parametrize("shape", [(64, 1, 5, 7), (50, 3, 6, 4)])
def test_each_crop_is_a_window_of_its_own_padded_image(shape: tuple[int, ...]) -> None:
    padding, (_, _, height, width) = 2, shape
    original = images(*shape)
    cropped = random_crop(original, padding, torch.Generator().manual_seed(0))
    assert cropped.shape == original.shape
    offsets = set()
    for before, after in zip(original, cropped, strict=True):
        padded = torch.zeros(shape[1], height + 2 * padding, width + 2 * padding)
        padded[:, padding:-padding, padding:-padding] = before
        windows = {
            (row, column): padded[:, row : row + height, column : column + width]
            for row in range(2 * padding + 1)
            for column in range(2 * padding + 1)
        }
        match = [place for place, window in windows.items() if torch.equal(window, after)]
        assert len(match) == 1
        offsets.add(match[0])
    assert {row for row, _ in offsets} == set(range(2 * padding + 1))
    assert {column for _, column in offsets} == set(range(2 * padding + 1))


def test_no_padding_changes_nothing() -> None:
    original = images(3, 1, 4, 4)
    assert torch.equal(random_crop(original, 0, torch.Generator()), original)


def test_each_image_is_mirrored_or_left() -> None:
    original = images(200, 2, 3, 5)
    flipped = random_flip(original, torch.Generator().manual_seed(0))
    mirrored = 0
    for before, after in zip(original, flipped, strict=True):
        if torch.equal(after, before[:, :, torch.arange(4, -1, -1)]):
            mirrored += 1
        else:
            assert torch.equal(after, before)
    assert 70 < mirrored < 130  # 200 fair coins lie outside with probability 2e-5


def test_the_generator_decides() -> None:
    original = images(20, 1, 4, 4)
    for function in (lambda x, g: random_crop(x, 2, g), random_flip):
        results = [function(original, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])
