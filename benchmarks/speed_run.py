"""What a speed measurement found: raw timings, and the statistics derived from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.samples import SampleSet
from benchmarks.server import LATE_SHARE
from benchmarks.statistics import (
    Interval,
    median_interval,
    paired_ratio_interval,
    percentile_intervals,
)
from deploy_tools.errors import UserError

NOISY_SPREAD = 0.25
"""Above this relative spread of the baseline's rounds, a run carries a note."""


@dataclass(frozen=True, eq=False)
class SpeedRun:
    """One variant in one scenario: the raw timings and the statistics derived from them."""

    samples: SampleSet
    baseline: SampleSet
    """The baseline's timings in the same rounds."""
    seed: int = 0

    @property
    def variant(self) -> str:
        return self.samples.variant

    @property
    def scenario(self) -> str:
        return self.samples.scenario

    @property
    def batch(self) -> int:
        return self.samples.batch

    @property
    def sample_count(self) -> int:
        """How many calls were timed."""
        return sum(slot.calls for slot in self.samples.slots)

    @cached_property
    def latency_ms(self) -> dict[str, Interval]:
        """Percentiles p50, p90 and p99 of a call, in milliseconds, over all rounds."""
        rounds = [slot.latencies_ms for slot in self.samples.slots]
        return dict(
            zip(
                ("p50", "p90", "p99"),
                percentile_intervals(rounds, (50, 90, 99), self.seed),
                strict=True,
            )
        )

    @property
    def met(self) -> bool | None:
        """Whether p99 keeps the latency limit; None in scenarios without one.

        At a given rate over all rounds; where the rate was searched for, whether every round
        found one.
        """
        return _met(self.samples)

    @property
    def has_rate(self) -> bool:
        """Whether `images_per_s` means something: not where no rate keeps the limit."""
        return not self.samples.searched or self.met is True

    @property
    def has_speedup(self) -> bool:
        """Whether `speedup` means something: not at a given rate, which all variants share."""
        if self.scenario != "server":
            return True
        return self.samples.searched and self.has_rate and _met(self.baseline) is True

    @cached_property
    def images_per_s(self) -> Interval:
        """The median over rounds of images per second of wall time.

        In the server scenario of the largest rate of arrivals that keeps the limit.
        Raises UserError where no rate does (`has_rate`).
        """
        if not self.has_rate:
            raise UserError(f"{self.variant} has no rate: {self.miss}.")
        return median_interval(_rates(self.samples), self.seed)

    @cached_property
    def joules_per_image(self) -> Interval | None:
        """The median over rounds of the CPU packages' energy an image, None where not counted."""
        slots = self.samples.slots
        spent = [slot.energy_j for slot in slots if slot.energy_j is not None]
        if len(spent) < len(slots):
            return None
        images = [slot.calls * self.batch for slot in slots]
        return median_interval([j / n for j, n in zip(spent, images, strict=True)], self.seed)

    @cached_property
    def speedup(self) -> Interval:
        """The median over rounds of the ratio of images per second, variant over baseline.

        Raises UserError where there is none (`has_speedup`).
        """
        if not self.has_speedup:
            raise UserError(f"{self.variant} has no speedup in this scenario: see has_speedup.")
        if self.samples is self.baseline:
            return Interval(1.0, 1.0, 1.0)
        return paired_ratio_interval(_rates(self.samples), _rates(self.baseline), self.seed)

    @cached_property
    def baseline_spread(self) -> float:
        """How unsteady the machine was: (p90 - p10) / p50 of the baseline's rounds."""
        low, middle, high = np.percentile(_rates(self.baseline), (10, 50, 90))
        return float((high - low) / middle)

    @property
    def miss(self) -> str:
        """In words that the latency limit is missed; "" where it is kept or there is none."""
        if self.met is not False:
            return ""
        limit = self.samples.latency_limit_ms
        if not self.samples.searched:
            return f"{self.variant}: p99 is above the limit of {limit:g} ms at this rate"
        least = self.latency_ms["p50"].estimate
        return (
            f"{self.variant}: not every round found a rate that keeps p99 within {limit:g} ms "
            f"(p50 at the lowest rates: {least:.1f} ms); allow more"
        )

    @property
    def note(self) -> str:
        """A missed limit, and a machine too unsteady for small differences; "" without."""
        return "; ".join(text for text in (self.miss, self._noise) if text)

    @property
    def _noise(self) -> str:
        if self.baseline_spread <= NOISY_SPREAD:
            return ""
        return (
            f"noisy: the baseline's images/s varied by {100 * self.baseline_spread:.0f} % "
            "(p10 to p90) from round to round"
        )

    def to_dict(self, samples: str | None = None) -> dict[str, Any]:
        """Return the values under report.json's names; samples: path of the raw timings."""
        values: dict[str, Any] = {
            "scenario": self.scenario,
            "batch": self.batch,
            "threads": self.samples.threads,
            "streams": self.samples.streams,
            "end_to_end": self.samples.end_to_end,
            "target_rate": self._target_rate,
            "latency_limit_ms": self.samples.latency_limit_ms,
            "latency_limit_met": self.met,
            "rounds": len(self.samples.slots),
            "sample_count": self.sample_count,
        }
        for name, interval in self.latency_ms.items():
            values[f"{name}_ms"] = interval.estimate
            values[f"{name}_ms_ci95"] = interval.ends()
        figures = {
            "images_per_s": self.images_per_s if self.has_rate else None,
            "speedup": self.speedup if self.has_speedup else None,
            "joules_per_image": self.joules_per_image,
        }
        for name, found in figures.items():
            values[name] = None if found is None else found.estimate
            values[f"{name}_ci95"] = None if found is None else found.ends()
        return values | {
            "baseline_spread": self.baseline_spread,
            "note": self.note,
            "samples": samples,
        }

    def __str__(self) -> str:
        p50, p99 = self.latency_ms["p50"], self.latency_ms["p99"]
        text = (
            f"{self.variant} {self.scenario} batch {self.batch}: p50 {p50.estimate:.2f} ms, "
            f"p99 {p99.estimate:.2f} ms"
        )
        if self.has_rate:
            text += f", {self.images_per_s.estimate:.0f} images/s"
        if self.has_speedup:
            ratio = self.speedup
            text += f", {ratio.estimate:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
        return text if not self.miss else f"{text} ({self.miss})"

    @property
    def _target_rate(self) -> float | None:
        """Arrivals per second: as given, or the median of those found."""
        if self.samples.searched:
            return self.images_per_s.estimate if self.has_rate else None
        return self.samples.target_rate


def _rates(samples: SampleSet) -> list[float]:
    """Images per second, round by round: of wall time, or the rate of arrivals that was found."""
    return [
        slot.rate * samples.batch
        if samples.searched and slot.rate is not None
        else slot.calls * samples.batch / slot.wall_s
        for slot in samples.slots
    ]


def _met(samples: SampleSet) -> bool | None:
    """Whether the p99 limit is kept: in every round's search, or over all at a given rate."""
    limit = samples.latency_limit_ms
    if limit is None:
        return None
    counts = [(slot.late(limit), slot.calls) for slot in samples.slots]
    if not samples.searched:
        counts = [(sum(late for late, _ in counts), sum(calls for _, calls in counts))]
    return all(late <= LATE_SHARE * calls for late, calls in counts)
