"""What can be tried, and in which order: what costs no speed first, then float by its worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from deploy_tools.recipe_variant import METHODS, VariantTable

# All of these leave the file's layers and placement as they are, so its speed too.
OFF: dict[str, str | bool | None] = {
    "equalize": False,
    "rounding": "nearest",
    "bias_correction": False,
}
# None: held-out calibration images decide.
ON: dict[str, str | bool | None] = {"equalize": True, "rounding": "gptq", "bias_correction": None}
RANGES = ("mse", "auto", *(method for method in METHODS if method != "mse"))


@dataclass(frozen=True)
class Step:
    """A layer or residual branch that can be left in float.

    name: of the node. kind: "layer" or "branch". noise: what it costs the logits in INT8, as the
    share of their energy. cost: what it costs in float, in multiply-adds an image.
    """

    name: str
    kind: str
    noise: float
    cost: float

    @property
    def worth(self) -> float:
        """Noise that goes away for each multiply-add."""
        return self.noise / max(self.cost, 1.0)


def plain(base: VariantTable) -> VariantTable:
    """Return the assignment that everything is compared with: the base without corrections."""
    return _changed(replace(base, id="", ranges=base.ranges or "mse"), OFF)


def corrected(base: VariantTable) -> VariantTable:
    """Return the assignment with all corrections, and automatic ranges where the base names none."""
    return _changed(replace(base, id="", ranges=base.ranges or "auto"), ON)


def neighbours(best: VariantTable) -> Iterator[VariantTable]:
    """Return the assignments that differ from one in its range method or in one correction.

    None of them is faster or slower. Ranges first: they are made anew in less time.
    """
    for ranges in RANGES:
        if ranges != best.ranges:
            yield replace(best, ranges=ranges, percentile=None)
    for key in ON:
        other = OFF if getattr(best, key) == ON[key] else ON
        yield _changed(best, {key: other[key]})


def in_float(assignment: VariantTable, steps: Sequence[Step]) -> VariantTable:
    """Return the assignment with these layers and branches in float too."""
    layers = [step.name for step in steps if step.kind == "layer"]
    branches = [step.name for step in steps if step.kind == "branch"]
    return replace(
        assignment,
        exclude=(*assignment.exclude, *layers),
        float_branches=(*assignment.float_branches, *branches),
    )


def chains(steps: Sequence[Step]) -> list[tuple[Step, ...]]:
    """Return orders in which to leave things in float; one layer always stays in INT8.

    By worth, branches and layers together; branches before layers, since the multiply-adds stay
    in INT8; and layers alone, where the runtime makes float branches dear.
    """
    mixed = sorted(steps, key=lambda step: (-step.worth, step.name))
    branches = [step for step in mixed if step.kind == "branch"]
    layers = [step for step in mixed if step.kind == "layer"]
    kept = layers[-1:]
    orders = [
        tuple(step for step in mixed if step not in kept),
        (*branches, *layers[:-1]),
        tuple(layers[:-1]),
    ]
    return [order for order in dict.fromkeys(orders) if order]


def _changed(assignment: VariantTable, values: dict[str, str | bool | None]) -> VariantTable:
    return replace(assignment, **values)  # type: ignore[arg-type]
