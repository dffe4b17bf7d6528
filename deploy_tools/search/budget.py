"""What must be kept, and how near an assignment comes to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from deploy_tools.errors import UserError


@dataclass(frozen=True)
class Judged:
    """How a file compares with the float model on the same held-out images.

    agreement: fraction of images with the same class. drop_pp: accuracy lost, percentage points.
    sqnr_db: of the logits; inf where they are equal. The intervals are 95 %.
    """

    images: int
    agreement: float
    agreement_ci95: tuple[float, float]
    drop_pp: float
    drop_ci95_pp: tuple[float, float]
    sqnr_db: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; an infinite SQNR is null."""
        values: dict[str, Any] = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }
        if not math.isfinite(self.sqnr_db):
            values["sqnr_db"] = None
        return values


@dataclass(frozen=True)
class Budget:
    """max_drop_pp: percentage points of accuracy. min_agreement: a fraction. None asks nothing.

    Estimates are compared, not the ends of their intervals: those are reported beside them.
    """

    max_drop_pp: float | None = None
    min_agreement: float | None = None

    def __post_init__(self) -> None:
        if self.max_drop_pp is None and self.min_agreement is None:
            raise UserError("a search needs a budget.", "Give --min-agreement or --max-drop.")

    def missing_pp(self, judged: Judged) -> float:
        """Return by how many percentage points the budget is missed, the larger of the two; 0
        where it is kept."""
        missing = [0.0]
        if self.max_drop_pp is not None:
            missing.append(judged.drop_pp - self.max_drop_pp)
        if self.min_agreement is not None:
            missing.append(100 * (self.min_agreement - judged.agreement))
        found = max(missing)
        return found if found > 1e-9 else 0.0  # 1 - 5/1000 is not 0.995 in floating point

    def met(self, judged: Judged) -> bool:
        """Whether the budget is kept."""
        return self.missing_pp(judged) == 0.0

    def said(self, judged: Judged) -> str:
        """Return what was reached against what was asked, in words."""
        parts = []
        if self.max_drop_pp is not None:
            low, high = judged.drop_ci95_pp
            parts.append(
                f"drop {judged.drop_pp:+.2f} pp [{low:+.2f}, {high:+.2f}] of at most "
                f"{self.max_drop_pp:g}"
            )
        if self.min_agreement is not None:
            low, high = (100 * end for end in judged.agreement_ci95)
            parts.append(
                f"agreement {100 * judged.agreement:.2f} % [{low:.2f}, {high:.2f}] of at least "
                f"{100 * self.min_agreement:g}"
            )
        return f"{', '.join(parts)}, on {judged.images} images"

    def to_dict(self) -> Mapping[str, float | None]:
        """Return the keys that are set."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def parse_drop(text: str) -> float:
    """Read "0.1pp" or "0.1" as percentage points; UserError for anything else."""
    number = _number(text.strip().lower().removesuffix("pp"), "--max-drop", text, "0.1pp")
    if not 0 <= number <= 100:
        raise UserError(f"--max-drop {text} is not between 0 and 100 percentage points.")
    return number


def parse_agreement(text: str) -> float:
    """Read "99.5" or "99.5%" as a fraction; UserError for anything else."""
    number = _number(text.strip().removesuffix("%"), "--min-agreement", text, "99.5")
    if not 1 < number <= 100:
        raise UserError(
            f"--min-agreement {text} is not a percentage above 1 and at most 100.",
            "Write 99.5 for 99.5 %.",
        )
    return number / 100


def _number(digits: str, option: str, text: str, example: str) -> float:
    try:
        number = float(digits)
    except ValueError as error:
        raise UserError(f'{option} "{text}" is no number.', f"Write {example}.") from error
    if not math.isfinite(number):
        raise UserError(f'{option} "{text}" is no finite number.', f"Write {example}.")
    return number
