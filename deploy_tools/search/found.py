"""What a search tried, and what it came to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from deploy_tools.recipe_variant import VariantTable
from deploy_tools.search.budget import Budget, Judged


@dataclass(frozen=True)
class Tried:
    """One assignment that was made and judged.

    why: what led to it. judged: None where it could not be made; problem says why.
    """

    assignment: VariantTable
    why: str
    judged: Judged | None
    problem: str = ""

    def to_dict(self, budget: Budget) -> dict[str, Any]:
        """Return plain values for the log."""
        return {
            "assignment": assignment_dict(self.assignment),
            "why": self.why,
            "judged": self.judged.to_dict() if self.judged else None,
            "met": self.judged is not None and budget.met(self.judged),
            "problem": self.problem,
        }


@dataclass(frozen=True)
class Speed:
    """Speed of an assignment over that of the plain one in the same rounds.

    ratios: scenario -> (estimate, low, high), 95 %; above 1 is faster.
    """

    ratios: Mapping[str, tuple[float, float, float]]

    def overall(self) -> tuple[float, float, float]:
        """Return the geometric mean over the scenarios: of estimates, of low and of high ends."""
        columns = zip(*self.ratios.values(), strict=True)
        estimate, low, high = (math.exp(sum(map(math.log, c)) / len(c)) for c in columns)
        return estimate, low, high


@dataclass(frozen=True)
class Found:
    """What the search came to.

    chosen: None where nothing keeps the budget. timed: speed of the assignments that were timed,
    over the first of them, which is the plain one where that could be made. nearest: what misses the budget least, or the chosen one. stopped: why the
    search ended where it did.
    """

    chosen: Tried | None
    nearest: Tried
    tried: tuple[Tried, ...]
    timed: tuple[tuple[Tried, Speed], ...]
    stopped: str

    def to_dict(self, budget: Budget) -> dict[str, Any]:
        """Return plain values: what was asked, chosen, tried and timed."""
        judged = self.nearest.judged
        missing = budget.missing_pp(judged) if judged else None
        return {
            "budget": dict(budget.to_dict()),
            "stopped": self.stopped,
            "chosen": self.chosen.to_dict(budget) if self.chosen else None,
            "nearest": self.nearest.to_dict(budget) | {"missing_pp": missing},
            "tried": [tried.to_dict(budget) for tried in self.tried],
            "timed": [
                {"assignment": assignment_dict(tried.assignment), "over_first": dict(speed.ratios)}
                for tried, speed in self.timed
            ],
        }


def assignment_dict(assignment: VariantTable) -> dict[str, Any]:
    """Return the keys that are set, as a recipe's [[variant]] would have them."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(assignment).items()
        if value not in (None, "", (), {})
    }
