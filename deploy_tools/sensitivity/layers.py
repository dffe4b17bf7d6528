"""What quantizing one layer, or one residual branch, costs in accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from deploy_tools.errors import UserError
from deploy_tools.onnx_files import load_onnx
from deploy_tools.quantization.prepare import prepared
from deploy_tools.quantization.static import Ranges, StaticConfig
from deploy_tools.sensitivity.figures import agreeing, logit_sqnr_db
from deploy_tools.sensitivity.items import (
    Item,
    in_float,
    in_int8,
    items_of,
    leavable,
    written_plan,
)
from deploy_tools.sensitivity.partial import Trial, WholeTrial
from deploy_tools.sensitivity.plan import quantized_graph, with_stored
from deploy_tools.sensitivity.run import Work, run_trials

Values = NDArray[np.float32]
Progress = Callable[[str, int, int], None]

_WHOLE = ":whole"


@dataclass(frozen=True)
class SensitivityConfig:
    """static: how the model would be quantized. work: where the trials run.

    left_out: also measure the INT8 model with each item left in float; it takes as long again.
    leavable: count for an item only what leaving it in float would take off its grid; see there.
    """

    static: StaticConfig = field(default_factory=StaticConfig)
    left_out: bool = False
    leavable: bool = False
    work: Work = field(default_factory=Work)


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Logits (N, C) of the same N images under each change; all figures come from them.

    items: in graph order. reference: of the float model. everything: with all in INT8, simulated
    in float. alone: by item, with only that item in INT8. left_out: by item, with all but that
    item in INT8; {} where it was not asked for.
    """

    items: tuple[Item, ...]
    reference: Values
    everything: Values
    alone: Mapping[str, Values]
    left_out: Mapping[str, Values]

    @property
    def images(self) -> int:
        """How many images were run."""
        return len(self.reference)

    @property
    def whole_db(self) -> float:
        """The logit SQNR with everything in INT8, in dB."""
        return logit_sqnr_db(self.reference, self.everything)

    def sqnr_db(self, name: str) -> float:
        """Return the logit SQNR with only that item in INT8, in dB; inf where nothing changes."""
        return logit_sqnr_db(self.reference, self.alone[name])

    def agreeing(self, name: str) -> int:
        """Return on how many images the class stays, with only that item in INT8."""
        return agreeing(self.reference, self.alone[name])

    def gain_db(self, name: str) -> float:
        """Return how much the SQNR of the INT8 model rises when that item stays in float."""
        return logit_sqnr_db(self.reference, self.left_out[name]) - self.whole_db

    @property
    def worst_first(self) -> tuple[Item, ...]:
        """The items by their SQNR alone; those that cost most come first."""
        return tuple(sorted(self.items, key=lambda item: (self.sqnr_db(item.name), item.name)))

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, worst first; an infinite SQNR is null."""
        rows = []
        for item in self.worst_first:
            row: dict[str, Any] = {
                "name": item.name,
                "kind": item.kind,
                "op": item.op,
                "sqnr_db": _finite(self.sqnr_db(item.name)),
                "agreeing": self.agreeing(item.name),
            }
            if self.left_out:
                row["gain_db"] = _finite(self.gain_db(item.name))
            rows.append(row)
        whole = agreeing(self.reference, self.everything)
        return {
            "images": self.images,
            "all_int8": {"sqnr_db": _finite(self.whole_db), "agreeing": whole},
            "items": rows,
        }

    def __str__(self) -> str:
        width = max(len(item.name) for item in self.items)
        lines = [
            f"{item.name:<{width}}  {item.kind:<6}  {self.sqnr_db(item.name):6.2f} dB  "
            f"{self.agreeing(item.name)} of {self.images} agree"
            + (f"  {self.gain_db(item.name):+.2f} dB in float" if self.left_out else "")
            for item in self.worst_first
        ]
        return "\n".join([*lines, f"everything in INT8: {self.whole_db:.2f} dB"])


def sensitivity_from_onnx(
    model: Path,
    ranges: Ranges,
    images: Callable[[], Iterable[Values]],
    config: SensitivityConfig | None = None,
    progress: Progress | None = None,
    total: int = 0,
) -> Sensitivity:
    """Measure every item of a float ONNX file that the settings would quantize.

    ranges: a range table of the file. images: gives a new pass over `total` preprocessed images
    in batches (n, C, H, W), none of which the ranges were made from. Only a chunk of them is in
    memory at a time. Raises UserError as `qdq_from_onnx` and `run_trials` do.
    """
    config = config or SensitivityConfig()
    proto = prepared(load_onnx(model))
    plan = written_plan(model, ranges, config.static)
    items = items_of(proto, plan)
    if not items:
        raise UserError(f"{model} has no layer that these settings quantize.")

    def run(graph: onnx.ModelProto, trials: list[Trial], what: str) -> dict[str, Values]:
        def tell(done: int) -> None:
            if progress:
                progress(what, done, total)

        return run_trials(graph, [WholeTrial(_WHOLE), *trials], images(), config.work, tell)

    either = config.left_out or config.leavable
    freed = leavable(items, model, ranges, config.static) if either else items
    counted = freed if config.leavable else items
    alone = run(with_stored(proto, plan), [in_int8(i, plan) for i in counted], "each in INT8")
    others: list[Trial] = [in_float(i, proto) for i in freed] if config.left_out else []
    left_out = run(quantized_graph(proto, plan), others, "all but each in INT8")
    return Sensitivity(items, alone.pop(_WHOLE), left_out.pop(_WHOLE), alone, left_out)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
