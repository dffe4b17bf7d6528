"""[[variant]] of a recipe: one artifact to make and to measure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deploy_tools.errors import UserError, nearest
from deploy_tools.training.qat_config import QatConfig

METHODS = ("minmax", "entropy", "percentile", "mse")
RANGES = (*METHODS, "auto")
ROUNDINGS = ("nearest", "gptq")
PRECISIONS = ("int8", "fp16", "bf16", "fp32")
ENGINE_TARGETS = ("tensorrt", "tensorrt-rtx")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RESERVED = ("fp32", "fused")
_STATIC = (
    "ranges", "percentile", "per_channel", "equalize", "rounding", "bias_correction",
    "float_branches", "exclude", "first_conv", "last_gemm",
)  # fmt: skip


@dataclass(frozen=True)
class BatchTable:
    """Batch sizes of an engine: it takes min to max and is fastest at opt."""

    min: int = 1
    opt: int = 8
    max: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise UserError(
                f"[[variant]] batch {self} is out of order.", "It needs 1 <= min <= opt <= max."
            )

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True)
class QatTable(QatConfig):
    """[variant.qat]: the fine-tuning of a method = "qat" variant.

    images: how many images of the calibration split to train on; 0 takes the calibration images.
    """

    images: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 0:
            raise UserError("[variant.qat] images must not be negative.")


@dataclass(frozen=True)
class VariantTable:
    """[[variant]]: one artifact to make and to measure beside the FP32 baseline."""

    precision: str
    method: str = ""
    target: str = ""
    ranges: str | None = None
    percentile: float | None = None
    per_channel: bool | None = None
    include_conv: bool | None = None
    equalize: bool | None = None
    rounding: str | None = None
    bias_correction: bool | None = None
    float_branches: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    first_conv: bool | None = None
    last_gemm: bool | None = None
    rest: str | None = None
    batch: BatchTable | None = None
    qat: QatTable | None = None
    id: str = ""

    def __post_init__(self) -> None:
        one_of("[[variant]] precision", self.precision, PRECISIONS)
        if self.precision == "int8":
            one_of("[[variant]] method", self.method, ("static", "dynamic", "qat"))
        elif self.method:
            raise UserError(f"a {self.precision} variant has no method.", "Leave method out.")
        if self.ranges is not None:
            one_of("[[variant]] ranges", self.ranges, RANGES)
        if self.rounding is not None:
            one_of("[[variant]] rounding", self.rounding, ROUNDINGS)
        if self.id and (not _ID.fullmatch(self.id) or self.id in _RESERVED):
            raise UserError(
                f'[[variant]] id "{self.id}" cannot name files.',
                "Use letters, digits, dots, dashes and underscores; not fp32 or fused.",
            )
        self._refuse_what_does_not_apply()

    def _refuse_what_does_not_apply(self) -> None:
        kind = self.method or "float"
        takes = {
            "static": _STATIC,
            "qat": (*_STATIC, "qat"),
            "dynamic": ("include_conv", "exclude"),
            "float": (),
        }[kind]
        if self.target in ENGINE_TARGETS and kind != "dynamic":
            takes = (*takes, "batch", *(("rest",) if kind in ("static", "qat") else ()))
        for key in (*_STATIC, "include_conv", "rest", "batch", "qat"):
            if getattr(self, key) not in (None, ()) and key not in takes:
                where = f"{kind} variant" + (f" of target {self.target}" if self.target else "")
                raise UserError(
                    f"[[variant]] {key} means nothing for a {where}.",
                    f"It takes: {', '.join(takes) or 'none of these keys'}.",
                )
        if self.percentile is not None and self.ranges != "percentile":
            raise UserError('[[variant]] percentile needs ranges = "percentile".')
        if self.percentile is not None and not 50 < self.percentile <= 100:
            raise UserError("[[variant]] percentile must lie above 50 and at most at 100.")
        if self.rest is not None:
            one_of("[[variant]] rest", self.rest, ("fp16", "fp32"))


def one_of(where: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is not among the known ones; the hint says the nearest."""
    if value not in known:
        raise UserError(f'{where} "{value}" is not known.', nearest(value, known))
