"""What QAT hands back beside the float file: activation ranges and the course of the run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy_tools.artifacts import write_json
from deploy_tools.errors import ArtifactError

_SCHEMA = 1


@dataclass(frozen=True)
class LearntRanges:
    """Activation ranges by tensor, for one grid: what the Q/DQ writer asks for.

    grid: "u8" or "s8". tensors: name -> (low, high), low <= 0 <= high.
    """

    grid: str
    tensors: Mapping[str, tuple[float, float]]

    def range_of(self, tensor: str, grid: str) -> tuple[float, float]:
        """Return (low, high); ArtifactError for another grid or an unknown tensor."""
        if grid != self.grid:
            raise ArtifactError(
                f'these ranges were learnt for the grid "{self.grid}", not "{grid}".',
                "Run QAT for the other target.",
            )
        if tensor not in self.tensors:
            raise ArtifactError(
                f'the learnt ranges have no tensor "{tensor}".', "Run QAT again for this model."
            )
        return self.tensors[tensor]

    def save(self, path: Path) -> None:
        """Write JSON with sorted keys, atomically."""
        tensors = {name: list(pair) for name, pair in self.tensors.items()}
        write_json(path, {"schema": _SCHEMA, "grid": self.grid, "tensors": tensors})

    @classmethod
    def load(cls, path: Path) -> LearntRanges:
        """Read what `save` wrote; ArtifactError where it is missing or damaged."""
        try:
            values = json.loads(path.read_text("utf-8"))
            if values["schema"] != _SCHEMA or values["grid"] not in ("u8", "s8"):
                raise ValueError(f"schema {values['schema']}, grid {values['grid']}")
            return cls(values["grid"], {t: _pair(t, p) for t, p in values["tensors"].items()})
        except KeyError as error:
            reason = f"it lacks {error}"
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            reason = str(error)
        raise ArtifactError(f"{path} holds no learnt ranges: {reason}.", "Run QAT again.")


@dataclass(frozen=True)
class QatEpoch:
    """One epoch; number 0 is the start, which is the quantized model without any training.

    lr: share of the peak rates at its last step. loss: mean over its steps, on augmented
    images (epoch 0: on the training images as they are), and so are train_sqnr_db and
    train_agreement. The others are of the held-out training images. SQNR (dB, of the logits) and
    agreement (share of equal predictions) are against the FP32 teacher.
    """

    epoch: int
    lr: float
    loss: float
    train_sqnr_db: float
    train_agreement: float
    validation_loss: float
    validation_sqnr_db: float
    validation_agreement: float
    seconds: float

    def to_dict(self) -> dict[str, float]:
        """Return plain values, for JSON and for the plot of the curve."""
        return asdict(self)


@dataclass(frozen=True)
class QatResult:
    """path: the float ONNX file. best: the epoch it holds; curve: all of them, 0 first."""

    path: Path
    ranges: LearntRanges
    best: QatEpoch
    curve: tuple[QatEpoch, ...]
    training_images: int
    validation_images: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "best_epoch": self.best.epoch,
            "training_images": self.training_images,
            "validation_images": self.validation_images,
            "curve": [epoch.to_dict() for epoch in self.curve],
        }

    def __str__(self) -> str:
        start = self.curve[0]
        return (
            f"{self.path}: epoch {self.best.epoch} of {len(self.curve) - 1}; on "
            f"{self.validation_images} held-out training images SQNR "
            f"{start.validation_sqnr_db:.2f} -> {self.best.validation_sqnr_db:.2f} dB, agreement "
            f"{start.validation_agreement:.2%} -> {self.best.validation_agreement:.2%}"
        )


def _pair(tensor: str, value: Any) -> tuple[float, float]:
    low, high = value
    for end in (low, high):
        if isinstance(end, bool) or not isinstance(end, (int, float)) or not math.isfinite(end):
            raise ValueError(f'{end!r} of tensor "{tensor}" is not a finite number')
    if not low <= 0 <= high:
        raise ValueError(f'the range {low}..{high} of tensor "{tensor}" does not hold zero')
    return float(low), float(high)
