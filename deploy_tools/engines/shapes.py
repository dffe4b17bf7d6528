"""The shapes an engine takes: one optimization profile, batch first.

Two spellings of shapes are read: trtexec's `input:1x3x224x224,other:1x8` and Polygraphy's
`input:[1,3,224,224] other:[1,8]`. Both allow colons inside a name: the last one counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deploy_tools.errors import UserError

Dims = Sequence[int | None]
"""A shape in an ONNX file; None is a dimension that may be anything."""

LARGEST = 2**31 - 1
"""The largest size of a dimension: TensorRT counts an image's elements in 32 bits."""

_X_SHAPE = re.compile(r"[0-9]+(x[0-9]+)*")
_LIST_SHAPE = re.compile(r"\[\s*[0-9]+(\s*,\s*[0-9]+)*\s*\]")
# A comma or a space ends an entry, except inside brackets or quotes.
_ENTRY = re.compile(r"(?:\[[^\[\]]*\]|'[^']*'|\"[^\"]*\"|[^,\s])+")


@dataclass(frozen=True)
class Shapes:
    """The smallest, the usual and the largest input shape, each with the batch first."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def profile(self) -> dict[str, list[int]]:
        """The same as a sidecar keeps it."""
        return {"min": list(self.min), "opt": list(self.opt), "max": list(self.max)}


def shapes_of_batch(text: str, input_shape: Dims) -> Shapes:
    """Return the shapes for "1:8:32" (smallest, usual, largest batch) or "8" (only that one).

    input_shape: of the ONNX file, batch first. Raises UserError where the text is not three
    sizes in order, or where another dimension than the batch is not fixed.
    """
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        raise UserError(
            f'the batch "{text}" is not MIN:OPT:MAX.', "Write it like 1:8:32, or 8 for one size."
        )
    low, opt, high = (int(part) for part in (parts if len(parts) == 3 else parts * 3))
    if not 1 <= low <= opt <= high:
        raise UserError(
            f'the batch "{text}" is not in order.', "It must be 1 <= MIN <= OPT <= MAX."
        )
    rest = tuple(size for size in input_shape[1:] if size is not None)
    if len(rest) != len(input_shape) - 1:
        raise UserError(
            f"the input has shape {_shown(input_shape)}: more than the batch may vary.",
            "deploy-tools build takes whole shapes: --min-shapes, --opt-shapes and --max-shapes; "
            "deploy-tools explain reads the engine that it makes.",
        )
    return Shapes((low, *rest), (opt, *rest), (high, *rest))


def parse_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Read shapes by tensor name, in trtexec's or Polygraphy's spelling.

    Raises UserError that quotes the part which is neither.
    """
    found: dict[str, tuple[int, ...]] = {}
    for entry in _ENTRY.findall(text):
        name, _, shape = entry.rpartition(":")
        name = name.strip("'\"")
        if not name or not (_X_SHAPE.fullmatch(shape) or _LIST_SHAPE.fullmatch(shape)):
            raise UserError(
                f'"{entry}" is not a shape.',
                "Write it like input:1x3x224x224 or input:[1,3,224,224].",
            )
        if name in found:
            raise UserError(f'the shape of "{name}" is given twice.')
        found[name] = tuple(_size(number, entry) for number in re.findall(r"[0-9]+", shape))
    if not found:
        raise UserError(
            f'"{text}" has no shape in it.', "Write it like input:1x3x224x224."
        )  # fmt: skip
    return found


def _size(number: str, entry: str) -> int:
    # The length first: Python itself refuses to read thousands of digits.
    if len(number) > len(str(LARGEST)) or int(number) > LARGEST:
        shown = number if len(number) < 24 else f"{number[:20]}..."
        raise UserError(
            f'the size {shown} of "{entry.rpartition(":")[0]}" is above {LARGEST}, '
            "the largest that TensorRT takes."
        )
    return int(number)


def shapes_of_options(texts: Mapping[str, str], input_name: str) -> Shapes:
    """Return the shapes of the options --min-shapes, --opt-shapes and --max-shapes.

    texts: by "min", "opt" and "max". Raises UserError where one names another tensor than the
    model's input.
    """
    shapes = {}
    for which in ("min", "opt", "max"):
        named = parse_shapes(texts[which])
        if set(named) != {input_name}:
            raise UserError(
                f'--{which}-shapes speaks of "{", ".join(named)}".',
                f'The model has one input: "{input_name}".',
            )
        shapes[which] = named[input_name]
    return Shapes(shapes["min"], shapes["opt"], shapes["max"])


def require_fit(shapes: Shapes, input_name: str, input_shape: Dims) -> None:
    """Refuse shapes that the model's input cannot take, or that are not in order.

    Raises UserError that names the tensor, the shape and the dimension.
    """
    for which, shape in (("min", shapes.min), ("opt", shapes.opt), ("max", shapes.max)):
        shown = f'the {which} shape {_shown(shape)} of "{input_name}"'
        if len(shape) != len(input_shape):
            raise UserError(
                f"{shown} has {len(shape)} dimensions; the model's input has {len(input_shape)}: "
                f"{_shown(input_shape)}."
            )
        for place, (size, fixed) in enumerate(zip(shape, input_shape, strict=True)):
            if size < 1:
                raise UserError(f"{shown}: dimension {place} must be 1 or more.")
            if size > LARGEST:
                raise UserError(f"{shown}: dimension {place} is above {LARGEST}.")
            if fixed is not None and size != fixed:
                raise UserError(
                    f"{shown} does not fit the model: dimension {place} is {fixed} in "
                    f"{_shown(input_shape)}."
                )
    for low, high in (("min", "opt"), ("opt", "max")):
        pairs = zip(getattr(shapes, low), getattr(shapes, high), strict=True)
        if any(a > b for a, b in pairs):
            raise UserError(
                f'the {low} shape {_shown(getattr(shapes, low))} of "{input_name}" is larger than '
                f"the {high} shape {_shown(getattr(shapes, high))}."
            )


def _shown(shape: Dims) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)
