"""The input spec: how an image becomes the model's input, decided once.

It is written into the ONNX metadata and the manifest, and every later stage
(calibration, evaluation, bench, predict) reads it from there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from deploy_tools.errors import UserError, nearest

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box")
METADATA_KEY = "deploy_tools.input_spec"
DTYPES = {"float32": "NCHW", "uint8": "NHWC"}
"""What a model may take, each in its one layout: normalized values, or the pixels themselves."""


@dataclass(frozen=True)
class InputSpec:
    """Shape, layout and preprocessing of a classifier's input.

    size: (height, width) in pixels of the model's input.
    mean, std: one value a channel, applied to pixels scaled to [0, 1].
    resize: an int scales the short side to it, a pair (height, width) squashes,
        None leaves the image as it is.
    crop: "center" cuts `size` out of the middle, "none" demands the exact size.
    dtype, layout: "float32" and "NCHW" for normalized values; "uint8" and "NHWC" for pixels,
        which the graph normalizes itself, with the same mean and std.
    labels: class names in the order of the logits; empty where unknown.
    Raises UserError where a value is not one of these.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | tuple[int, int] | None = None
    crop: str = "none"
    interpolation: str = "bilinear"
    layout: str = "NCHW"
    dtype: str = "float32"
    input_name: str = "input"
    output_name: str = "logits"
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _is_pair(self.size):
            raise UserError(
                f"input size must be [height, width], two whole numbers above 0, got {self.size!r}."
            )
        if not (self.resize is None or _is_pixels(self.resize) or _is_pair(self.resize)):
            raise UserError(
                "input resize must be one whole number above 0 or [height, width], "
                f"got {self.resize!r}."
            )
        for key, values in (("mean", self.mean), ("std", self.std)):
            if not all(_is_finite(value) for value in values):
                raise UserError(f"input {key} must hold finite numbers, got {list(values)}.")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise UserError(
                f"mean has {len(self.mean)} and std {len(self.std)} values.",
                "Both need one value a channel: 1 for grey images, 3 for RGB.",
            )
        if min(self.std) <= 0:
            raise UserError(f"std must be positive, got {list(self.std)}.")
        for key, value, allowed in (
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("crop", self.crop, ("center", "none")),
            ("layout", self.layout, tuple(DTYPES.values())),
            ("dtype", self.dtype, tuple(DTYPES)),
        ):
            if value not in allowed:
                raise UserError(f'input {key} "{value}" is not known.', nearest(value, allowed))
        if self.layout != DTYPES[self.dtype]:
            raise UserError(
                f'input dtype "{self.dtype}" and layout "{self.layout}" do not go together.',
                f"{self.dtype} inputs are {DTYPES[self.dtype]}.",
            )

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return len(self.mean)

    @property
    def takes_pixels(self) -> bool:
        """Whether the model takes uint8 pixels (N, H, W, C) and normalizes them itself."""
        return self.dtype == "uint8"

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The type of a batch's values."""
        return np.dtype(self.dtype)

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """Return the shape of a batch: (N, C, H, W), or (N, H, W, C) for pixels."""
        if self.takes_pixels:
            return (batch, *self.size, self.channels)
        return (batch, self.channels, *self.size)

    def with_pixels(self) -> InputSpec:
        """Return the spec of the same model with its normalization inside the graph."""
        return replace(self, dtype="uint8", layout=DTYPES["uint8"])

    def with_floats(self) -> InputSpec:
        """Return the spec of the same model without the normalization: the host does it."""
        return replace(self, dtype="float32", layout=DTYPES["float32"])

    def with_labels(self, labels: tuple[str, ...]) -> InputSpec:
        """Return the same spec with these class names."""
        return replace(self, labels=labels)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def value_bounds(self) -> tuple[float, float]:
        """Return the least and the largest value that a preprocessed pixel can have."""
        if self.takes_pixels:
            return 0.0, 255.0
        ends = [
            (pixel - m) / s for m, s in zip(self.mean, self.std, strict=True) for pixel in (0, 1)
        ]
        return min(ends), max(ends)

    def to_json(self) -> str:
        """Return one line of JSON with sorted keys: the same spec gives the same bytes."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputSpec:
        """Read what `to_dict` or a recipe's [input] table holds; unknown keys are errors."""
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise UserError(f'unknown key "{key}" in the input spec.', nearest(key, known))
        missing = {"size", "mean", "std"} - set(values)
        if missing:
            raise UserError(f"the input spec lacks {', '.join(sorted(missing))}.")
        try:
            return cls(**{k: _frozen(v) for k, v in values.items()})
        except TypeError as error:
            raise UserError(f"the input spec has a value of the wrong type: {error}.") from error

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> InputSpec | None:
        """Read the spec that `export` wrote into an ONNX file; None where there is none."""
        text = metadata.get(METADATA_KEY)
        if text is None:
            return None
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            # Beside bad JSON: a number with thousands of digits, a list in a list in a list.
            raise UserError(f"the model's {METADATA_KEY} metadata is not JSON: {error}.") from error
        if not isinstance(values, dict):
            raise UserError(f"the model's {METADATA_KEY} metadata is not a table.")
        return cls.from_dict(values)


def _is_pixels(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(_is_pixels(v) for v in value)


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond float64
        return False


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


IMAGENET_SPEC = InputSpec(
    size=(224, 224),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    resize=256,
    crop="center",
)
"""The usual ImageNet evaluation preprocessing (torchvision's V1 weights)."""
