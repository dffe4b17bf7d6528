"""Second moments of what a layer's outputs are made of, H = E x x', summed as images pass.

x are the values under a convolution's kernel, a column each output position. Unfolded, every value
stands in as many columns as the kernel has positions, and H is a product of (in * kernel) rows.
Where the stride is 1 two kernel positions meet the same pairs of values whenever they are shifted
against each other alike: the 81 blocks of a 3x3 kernel come from 13 shifts and what differs at
the borders, a seventh to a ninth of the products. The sums are the same, in another order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from deploy_tools.corrections.layers import Layer, attributes
from deploy_tools.corrections.observe import Batches, Progress
from deploy_tools.training.onnx_module import OnnxModule

Span = tuple[int, int]
"""Positions start <= i < stop of one axis."""


class Moments(Protocol):
    """The sum over columns, and how many there were."""

    def add(self, values: Tensor) -> None:
        """Add the columns of a batch of the layer's inputs (N, C, ...)."""

    def mean(self) -> Tensor:
        """Return E x x', float32: (groups, K, K), K = in / groups * kernel."""


def second_moments(
    proto: onnx.ModelProto,
    layers: Sequence[Layer],
    batches: Batches,
    positions: int,
    progress: Progress | None = None,
) -> dict[str, Moments]:
    """Run the images through the graph once; returns the sums by layer.

    positions: at most so many of an image's output positions are used. Memory: one sum a layer,
    whatever the number of images, and the tensors alive at one place of the graph.
    """
    module = OnnxModule(proto)
    kernels = {tensor.name: tuple(tensor.dims[2:]) for tensor in proto.graph.initializer}
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.input, []).append(layer)
    sums: dict[str, Moments] = {}
    done = 0
    with torch.inference_mode():
        for images in batches():
            for name, values in module.each_value(torch.tensor(images), readers.keys()):
                for layer in readers[name]:
                    if layer.name not in sums:
                        sums[layer.name] = moments_of(
                            layer, kernels[layer.weight], values.shape, positions
                        )
                    sums[layer.name].add(values)
            done += len(images)
            if progress:
                progress("second moments", done, 0)
    return sums


def moments_of(
    layer: Layer, kernel: tuple[int, ...], shape: Sequence[int], positions: int
) -> Moments:
    """Return empty sums for a layer whose input has this shape, in the cheaper way."""
    if layer.node.op_type != "Conv":
        return _Rows()
    window = _window(layer, kernel, shape)
    every = window.every(positions)
    plain = window.strides == (1, 1) and window.dilations == (1, 1) and math.prod(kernel) > 1
    if plain and every == 1 and shape[1] > layer.groups:
        return _Shifts(window, layer.groups)
    return _Columns(window, layer.groups, every)


@dataclass(frozen=True)
class _Window:
    """How a kernel moves over an image. size: of the image; pads: top, left, bottom, right."""

    kernel: tuple[int, int]
    size: tuple[int, int]
    pads: tuple[int, int, int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]

    @property
    def outputs(self) -> tuple[int, int]:
        """How many output positions there are, down and across."""
        down, across = (
            (self.size[a] + self.pads[a] + self.pads[a + 2] - self.dilations[a] * (k - 1) - 1)
            // self.strides[a] + 1
            for a, k in enumerate(self.kernel)
        )  # fmt: skip
        return down, across

    def every(self, positions: int) -> int:
        """Return n: every n-th output position is used, so that about `positions` are."""
        down, across = self.outputs
        every = max(1, math.ceil(down * across / positions))
        while math.gcd(every, across) > 1:  # else it would stay in a few columns of the image
            every += 1
        return every


def _window(layer: Layer, kernel: tuple[int, ...], shape: Sequence[int]) -> _Window:
    given = attributes(layer.node)
    return _Window(
        (kernel[0], kernel[1]),
        (int(shape[2]), int(shape[3])),
        tuple(given.get("pads", (0,) * 4)),
        tuple(given.get("strides", (1, 1))),
        tuple(given.get("dilations", (1, 1))),
    )


class _Sum:
    """A sum of products, and how many columns are in it."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._count = 0

    def _add(self, columns: Tensor) -> None:
        """Add columns (groups, K, columns)."""
        if self._total is None:
            self._total = columns @ columns.mT
        else:
            self._total.baddbmm_(columns, columns.mT)
        self._count += columns.shape[-1]

    def mean(self) -> Tensor:
        if self._total is None:
            raise RuntimeError("no image was seen")
        return self._total / max(self._count, 1)


class _Rows(_Sum):
    """Of a Gemm or MatMul: the last axis is what one output is made of."""

    def add(self, values: Tensor) -> None:
        self._add(values.reshape(-1, values.shape[-1]).T.unsqueeze(0))


class _Columns(_Sum):
    """Of any convolution: the columns themselves, at every n-th position."""

    def __init__(self, window: _Window, groups: int, every: int) -> None:
        super().__init__()
        self._window, self._groups = window, groups
        self._index = _positions(window, every)

    def add(self, values: Tensor) -> None:
        top, left, bottom, right = self._window.pads
        padded = functional.pad(values, (left, right, top, bottom))
        places = len(self._index[0])
        found = padded.flatten(2).index_select(2, self._index.flatten())
        columns = found.reshape(len(values), -1, places).transpose(0, 1)
        self._add(columns.reshape(self._groups, -1, len(values) * places))


def _positions(window: _Window, every: int) -> Tensor:
    """Return where in the flat padded image each kernel position (rows) falls for each output."""
    width = window.size[1] + window.pads[1] + window.pads[3]
    down, across = window.outputs
    place = torch.arange(0, down * across, every)
    start = (place // across) * (window.strides[0] * width) + place % across * window.strides[1]
    inside = [
        i * window.dilations[0] * width + j * window.dilations[1]
        for i, j in itertools.product(*map(range, window.kernel))
    ]
    return torch.tensor(inside).unsqueeze(1) + start


class _Shifts:
    """Of a convolution with stride 1, all positions: products of the image with itself, shifted.

    Along one axis a pair of kernel positions (u, v) meets the pixels q and q + v - u, for q in
    one span; the spans of all pairs with one shift are unions of a few pieces: what is common to
    them and single rows or columns at the borders. Each piece is summed once, over the images in
    float64; a block is the sum of its pieces, so nothing cancels.
    """

    def __init__(self, window: _Window, groups: int) -> None:
        self._window, self._groups = window, groups
        self._axes = [
            [
                [_span(size, start, outputs, u, v) for v in range(kernel)]
                for u in range(kernel)
            ]
            for size, start, outputs, kernel in zip(
                window.size, window.pads[:2], window.outputs, window.kernel, strict=True
            )
        ]  # fmt: skip
        self._pieces = [_pieces(spans) for spans in self._axes]
        self._sums: dict[tuple[int, Span, int, Span], Tensor] = {}
        self._count = 0

    def add(self, values: Tensor) -> None:
        images = len(values)
        grouped = values.transpose(0, 1).reshape(self._groups, -1, images, *values.shape[2:])
        for (down, rows), (across, columns) in itertools.product(*self._pieces):
            if (down, across) < (0, 0):
                continue  # the transposed product of the opposite shift
            for row, column in itertools.product(rows, columns):
                first = grouped[..., slice(*row), slice(*column)]
                second = grouped[..., _moved(row, down), _moved(column, across)]
                product = (first.flatten(2) @ second.flatten(2).mT).double()
                key = (down, row, across, column)
                self._sums[key] = self._sums[key].add_(product) if key in self._sums else product
        self._count += images * math.prod(self._window.outputs)

    def mean(self) -> Tensor:
        height, width = self._window.kernel
        places = list(itertools.product(range(height), range(width)))
        if not self._sums:
            raise RuntimeError("no image was seen")
        each = next(iter(self._sums.values()))
        inner = each.shape[-1]
        size = (self._groups, inner, len(places), inner, len(places))
        total = torch.zeros(size, dtype=torch.float32)
        for (a, one), (b, other) in itertools.combinations_with_replacement(enumerate(places), 2):
            block = self._block(one, other) / max(self._count, 1)
            total[:, :, a, :, b] = block
            total[:, :, b, :, a] = block.mT
        return total.reshape(self._groups, inner * len(places), inner * len(places))

    def _block(self, one: Sequence[int], other: Sequence[int]) -> Tensor:
        """Return the sum over positions of x[one] x[other]'; `other` does not come before `one`."""
        (down, rows), (across, columns) = (
            (v - u, _inside(dict(pieces)[v - u], spans[u][v]))
            for pieces, spans, u, v in zip(self._pieces, self._axes, one, other, strict=True)
        )
        total = torch.zeros_like(next(iter(self._sums.values())))
        for row, column in itertools.product(rows, columns):
            total += self._sums[(down, row, across, column)]
        return total


def _span(size: int, pad: int, outputs: int, u: int, v: int) -> Span:
    """Return the pixels q of an axis that kernel position u meets while v meets q + v - u.

    Both inside the image: the padding is zero and adds nothing.
    """
    low = max(0, u - v, u - pad)
    return low, max(low, min(size, size + u - v, outputs + u - pad))


def _pieces(spans: Sequence[Sequence[Span]]) -> list[tuple[int, list[Span]]]:
    """Return, for each shift v - u, the pieces that all its spans are unions of."""
    by_shift: dict[int, list[Span]] = {}
    for u, row in enumerate(spans):
        for v, span in enumerate(row):
            by_shift.setdefault(v - u, []).append(span)
    found = []
    for shift, each in sorted(by_shift.items()):
        cuts = sorted({end for start, stop in each if start < stop for end in (start, stop)})
        pieces = itertools.pairwise(cuts)
        found.append((shift, [p for p in pieces if any(_within(p, span) for span in each)]))
    return found


def _inside(pieces: Iterable[Span], span: Span) -> list[Span]:
    return [piece for piece in pieces if _within(piece, span)]


def _within(piece: Span, span: Span) -> bool:
    return span[0] <= piece[0] and piece[1] <= span[1]


def _moved(span: Span, shift: int) -> slice:
    return slice(span[0] + shift, span[1] + shift)
