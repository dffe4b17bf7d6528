"""What a tuning is asked for, and what it chose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.speed import SpeedRun
from benchmarks.statistics import Interval
from deploy_tools.errors import UserError
from deploy_tools.pipeline.tuning_bench import MIN_ROUNDS, TEST_ROUNDS, seconds_of_search
from deploy_tools.tuning.candidates import Skipped
from deploy_tools.tuning.halving import Rung
from deploy_tools.tuning.settings import Settings

DEFAULT_SECONDS = 60.0
REPLAY_SHARE = 0.75
"""Of the time, where there is a latency limit: its searches cannot be made shorter."""
_SEARCHES = 2 * MIN_ROUNDS + 2 * TEST_ROUNDS
"""With a latency limit: to choose one of two, and to compare that one with the default."""
NOTHING = "nothing was faster than the default"


@dataclass(frozen=True)
class TuneConfig:
    """What to look for.

    latency_limit_ms: of p99 in the server scenario; None asks for throughput alone. seconds: about
    how long it may take, once the file and the images are loaded; None takes 60, or what the limit
    needs. seed: of orders, arrivals and intervals.
    Raises UserError where the time is too short for the limit.
    """

    latency_limit_ms: float | None = None
    seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seconds is not None and not 0 < self.seconds <= 86_400:
            raise UserError(f"seconds must lie in (0, 86400], got {self.seconds}.")
        if self.latency_limit_ms is not None and not 0 < self.latency_limit_ms <= 60_000:
            raise UserError(
                f"the latency limit must lie in (0, 60000] ms, got {self.latency_limit_ms}."
            )
        self.budget_s()

    def budget_s(self, image_s: float = 0.0) -> float:
        """Return the seconds to spend; image_s: what an image takes at least, 0 where it is not known.

        Raises UserError where those that were given are too few for the limit.
        """
        limit_ms = self.latency_limit_ms
        if limit_ms is None:
            return self.seconds or DEFAULT_SECONDS
        one = seconds_of_search(limit_ms, image_s, math.inf)
        least = _SEARCHES * one / REPLAY_SHARE
        if self.seconds is not None and self.seconds < least:
            raise UserError(
                f"whether a limit of {limit_ms:g} ms is kept cannot be seen in {self.seconds:g} s.",
                f"Give --seconds {math.ceil(least)} or more.",
            )
        return self.seconds or max(DEFAULT_SECONDS, least)


@dataclass(frozen=True)
class Choice:
    """What was chosen, and all that was tried.

    default: what it was compared with. reason: in words. runs: the replay, the default's among
    them; empty where nothing was left to replay. tried: the rungs, in their order; scores are speed
    over the default, or with a latency limit the predicted rate of arrivals (below 0: minus the p99
    of a call that is too slow, ms).
    """

    settings: Settings
    default: Settings
    reason: str
    runs: Mapping[Settings, SpeedRun] = field(default_factory=dict)
    tried: tuple[Rung[Settings], ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def is_default(self) -> bool:
        """Whether nothing was found to be faster than what it was compared with."""
        return self.settings == self.default

    def measured(self) -> dict[str, Any]:
        """Return the replay of the choice and of the default, as `bench speed --json` has it."""
        named = {"chosen": self.settings, "default": self.default}
        return {
            name: self.runs[settings].to_dict()
            for name, settings in named.items()
            if settings in self.runs
        }


def kept_if_faster(
    default: Settings, winner: Settings, ratio: Interval, runs: Mapping[Settings, SpeedRun]
) -> Choice:
    """Return the winner where the interval of its speed over the default's lies above 1."""
    said = f"{winner}: {ratio.estimate:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}] of the default"
    if ratio.low > 1:
        return Choice(winner, default, said, runs)
    return Choice(default, default, f"{said} in the replay: that may be no gain", runs)
