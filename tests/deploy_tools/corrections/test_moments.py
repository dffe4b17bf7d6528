"""Second moments by shifts are those of the unfolded columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from correction_samples import Graph, in_batches, normal_images
from torch.nn import functional

from deploy_tools.corrections import moments
from deploy_tools.corrections.layers import Layer, layers_of
from deploy_tools.corrections.moments import moments_of, second_moments


def layer(inner: int, kernel: int, **attributes: Any) -> Layer:
    graph = Graph(None, inner, 8, 8)
    group = attributes.get("group", 1)
    made = graph.conv("a", graph.input, inner, 2 * group, kernel, **attributes)
    return layers_of(graph.model(graph.head(made, 2 * group)))[0]


def unfolded(one: Layer, kernel: int, values: torch.Tensor) -> torch.Tensor:
    """E x x' by torch's unfold, in float64."""
    given = {a.name: list(a.ints) for a in one.node.attribute if a.ints}
    top, left, bottom, right = given.get("pads", [0] * 4)
    padded = functional.pad(values.double(), (left, right, top, bottom))
    stride, dilation = given.get("strides", 1), given.get("dilations", 1)
    found = functional.unfold(padded, kernel, dilation=dilation, stride=stride)
    columns = found.transpose(0, 1).reshape(one.groups, -1, found.shape[0] * found.shape[2])
    return columns @ columns.mT / columns.shape[-1]


FORMS: list[tuple[str, int, int, tuple[int, int], dict[str, Any]]] = [
    ("as in a ResNet", 6, 3, (7, 7), {}),
    ("not square", 4, 3, (5, 9), {}),
    ("no padding", 4, 3, (6, 5), {"pads": [0] * 4}),
    ("uneven padding", 4, 3, (6, 5), {"pads": [0, 2, 1, 0]}),
    ("more padding than kernel", 3, 3, (4, 4), {"pads": [3] * 4}),
    ("5x5", 3, 5, (6, 6), {}),
    ("2x2", 3, 2, (5, 4), {"pads": [0, 0, 1, 1]}),
    ("grouped", 6, 3, (6, 6), {"group": 2}),
    ("one pixel", 4, 3, (1, 1), {}),
    ("two rows", 4, 3, (2, 3), {}),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[0])
def test_shifts_give_the_moments_of_the_columns(form: tuple[Any, ...]) -> None:
    _, inner, kernel, size, given = form
    one = layer(inner, kernel, **given)
    images = torch.from_numpy(normal_images(5, inner, *size)) + 0.5
    found = moments_of(one, (kernel, kernel), images.shape, 10_000)
    assert isinstance(found, moments._Shifts)
    for part in images.split(2):
        found.add(part)
    expected = unfolded(one, kernel, images).float()
    torch.testing.assert_close(found.mean(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.mean(), found.mean().mT)


SHIFTS = [(0, 0), (0, 1), (0, 2), *((down, across) for down in (1, 2) for across in range(-2, 3))]


def test_the_shifts_are_a_seventh_of_the_products() -> None:
    one = layer(6, 3)
    found = moments_of(one, (3, 3), (1, 6, 14, 14), 10_000)
    assert isinstance(found, moments._Shifts)
    found.add(torch.ones(1, 6, 14, 14))
    pixels = sum(
        (rows[1] - rows[0]) * (columns[1] - columns[0]) for _, rows, _, columns in found._sums
    )
    # 13 of 81, less what falls off the border where the image is shifted.
    assert pixels == sum((14 - d) * (14 - abs(a)) for d, a in SHIFTS)
    assert 81 * 14 * 14 / pixels > 7
    assert len(found._sums) == 29


@pytest.mark.parametrize(
    ("attributes", "positions"),
    [({"strides": [2, 2]}, 100), ({"dilations": [2, 1]}, 100), ({}, 20), ({"group": 4}, 100)],
)
def test_what_shifts_cannot_do_is_unfolded(attributes: dict[str, Any], positions: int) -> None:
    one = layer(4, 3, **attributes)
    found = moments_of(one, (3, 3), (3, 4, 8, 8), positions)
    assert isinstance(found, moments._Columns)
    images = torch.from_numpy(normal_images(3, 4, 8, 8))
    found.add(images[:1])
    found.add(images[1:])
    if positions == 100:  # all of them
        torch.testing.assert_close(
            found.mean(), unfolded(one, 3, images).float(), rtol=1e-5, atol=1e-5
        )
    else:
        assert found._count == 3 * 13  # every 5th of 64, since every 4th stays in two columns


def test_some_positions_are_every_nth_of_the_unfolded() -> None:
    one = layer(4, 3, strides=[1, 2])
    images = torch.from_numpy(normal_images(3, 4, 9, 8))
    found = moments_of(one, (3, 3), images.shape, 13)
    found.add(images)
    padded = functional.pad(images, (1, 1, 1, 1))
    columns = functional.unfold(padded, 3, stride=(1, 2))[:, :, ::3]  # 9 * 4 outputs
    flat = columns.transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.mean()[0], flat @ flat.T / flat.shape[1])


def test_one_tensor_feeds_two_layers() -> None:
    graph = Graph(None, 3, 8, 8)
    first = graph.relu(graph.conv("a", graph.input, 3, 4))
    left, right = graph.conv("b", first, 4, 4), graph.conv("c", first, 4, 4, 1)
    proto = graph.model(graph.head(graph.node("Add", "add", left, right), 4))
    layers = layers_of(proto)
    said: list[tuple[str, int, int]] = []
    images = normal_images(6, 3, 8, 8)
    found = second_moments(proto, layers, in_batches(images, 4), 64, lambda *a: said.append(a))
    assert {name: tuple(one.mean().shape) for name, one in found.items()} == {
        "a": (1, 27, 27), "b": (1, 36, 36), "c": (1, 4, 4), "fc": (1, 4, 4),
    }  # fmt: skip
    center = found["b"].mean()[0].reshape(4, 9, 4, 9)[:, 4, :, 4]  # what the 1x1 kernel sees
    np.testing.assert_allclose(center, found["c"].mean()[0], rtol=1e-5)
    assert said == [("second moments", 4, 0), ("second moments", 6, 0)]
