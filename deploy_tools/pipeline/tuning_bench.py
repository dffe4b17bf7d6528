"""Measures candidates of a tuning side by side, in the way that `bench speed` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.server import LIMITS_A_PROBE, ServerConfig, Tools
from benchmarks.speed import SpeedConfig, SpeedRun, measure_speed
from deploy_tools.errors import DeployToolsError, MissingDependencyError, UserError
from deploy_tools.runtimes import RuntimeConfig, Session
from deploy_tools.tuning.candidates import Skipped, copies_of, with_parts
from deploy_tools.tuning.settings import Settings

Progress = Callable[[str, int, int], None]
MIN_ROUNDS = 3
TEST_ROUNDS = 6
"""The least on which something is accepted. So few rounds have an interval above 1 only where each
of them lies there, which n rounds of two that are equally fast do once in 2^n: of 6 in 1.6 %."""
MAX_ROUNDS = 30
MAX_SEARCHES = 10
_CALLS_A_SLOT = 2
"""A slot has one call to settle and one that is timed, however long they take."""
_SLOT_S = 0.15
_USED = 0.75
"""The share of a slot that is measured, besides those calls; the rest waits for idle threads."""
_STEPS = 5
"""Bisections of a server search."""


@dataclass
class TuningBench:
    """Opens candidates and times them beside the default.

    open_one: opens the model. images: real inputs, as many as the largest call takes. tools: clock
    and the like. most_copies: of the model, over all sessions. They stay open until `keep` or the
    end; all settings that differ in their batch only share one.
    """

    open_one: Callable[[RuntimeConfig], Session]
    images: NDArray[Any]
    tools: Tools
    seed: int = 0
    progress: Progress | None = None
    most_copies: int = 64
    _sessions: dict[RuntimeConfig, Session] = field(default_factory=dict)
    _copies: dict[RuntimeConfig, int] = field(default_factory=dict)
    _image_s: dict[RuntimeConfig, float] = field(default_factory=dict)

    def __enter__(self) -> TuningBench:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.keep(())

    @property
    def now(self) -> float:
        """Seconds on the clock."""
        return self.tools.clock() / 1e9

    def open_all(
        self, default: Settings, wanted: Sequence[Settings], until: float
    ) -> tuple[list[Settings], list[Skipped]]:
        """Open the default and the others, and run a call of each; return those that can be timed.

        until: the time at which no more are opened. What cannot be opened or run, and what would
        compute in another precision than the default, is left out with the reason; of a runtime
        that is missing only the first. Raises what the default itself raises.
        """
        precision = self._open(default).precision
        usable, skipped = [default], []
        missing: set[str] = set()
        for place, settings in enumerate(s for s in wanted if s != default):
            if settings.runtime in missing:
                continue
            reason = self._why_full(settings, until)
            try:
                found = precision if reason else self._open(settings).precision
                if found != precision:
                    reason = f"it would run in {found}, the default runs in {precision}"
            except DeployToolsError as error:
                reason = str(error)
                if isinstance(error, MissingDependencyError):
                    missing.add(settings.runtime)
            if reason:
                skipped.append(Skipped(settings, reason))
                self._close(settings.config())
            else:
                usable.append(settings)
            if self.progress is not None:
                self.progress("tune, opening", place + 1, len(wanted))
        return usable, skipped

    def open_told(
        self,
        default: Settings,
        best: Sequence[Settings],
        candidates: Sequence[Settings],
        seconds: float,
    ) -> tuple[list[Settings], tuple[Skipped, ...]]:
        """Open, of the best, what knows the size of its calls, within about so many seconds.

        candidates: without a batch; of what is none of them nothing is opened. All others but the
        default and the best are closed. Returns what can be timed besides those, as `open_all` does.
        """
        self.keep((default, *best))
        wanted = with_parts([s for s in best if replace(s, batch=None) in candidates])
        usable, skipped = self.open_all(default, wanted, self.now + seconds)
        return [settings for settings in usable if settings != default], tuple(skipped)

    def _why_full(self, wanted: Settings, until: float) -> str:
        """Return why this one may not be opened too, "" where it may."""
        if self.now > until:
            return "the time was spent with opening the others"
        held, more = sum(self._copies.values()), copies_of(wanted)
        if held + more > self.most_copies:
            return (
                f"{held} copies of the model are in memory, it would take {more} more, and there "
                f"may be {self.most_copies}"
            )
        return ""

    def keep(self, settings: Iterable[Settings]) -> None:
        """Close the sessions of all others."""
        kept = {some.config() for some in settings}
        for config in [config for config in self._sessions if config not in kept]:
            self._close(config)

    def call_s(self, settings: Settings) -> float:
        """Return about how many seconds a call takes, as far as is known by now."""
        return (settings.batch or settings.streams) * self._image_s.get(settings.config(), 0.0)

    def image_s(self, settings: Settings) -> float:
        """Return about how many seconds an image takes; opens the settings where they are not."""
        self._open(settings)
        return max(self._image_s[settings.config()], 1e-9)

    def times(
        self,
        some: Sequence[Settings],
        default: Settings,
        seconds: float,
        stage: str,
        least: int = MIN_ROUNDS,
    ) -> dict[Settings, SpeedRun]:
        """Time one call after the other of each, within about so many seconds.

        A call takes the batch of its settings, or one image a stream where they name none. least:
        rounds.
        """
        rounds, slot = rounds_in(seconds, [self.call_s(settings) for settings in some], least)
        config = SpeedConfig(
            ("offline",), warmup=1, settle=1, rounds=rounds, seconds_per_round=slot, min_calls=1,
            seed=self.seed,
        )  # fmt: skip
        makers = {str(s): partial(self._rows, s.batch or s.streams) for s in some}
        runs = self._measure(some, default, makers, config, stage)
        self._image_s |= {s.config(): 1 / run.images_per_s.estimate for s, run in runs.items()}
        return runs

    def server(
        self,
        rates: Mapping[Settings, float],
        baseline: Settings,
        limit_ms: float,
        seconds: float,
        stage: str,
        least: int = MIN_ROUNDS,
    ) -> dict[Settings, SpeedRun]:
        """Search for the largest rate of random arrivals of each whose p99 keeps a limit.

        rates: about the result of each, images a second, from which follows how many rounds fit
        into the time; never fewer than `least`.
        """
        some = list(rates)
        one = sum(seconds_of_search(limit_ms, self.image_s(s), rates[s]) for s in some)
        rounds = int(min(max(seconds / one, least), MAX_SEARCHES))
        config = SpeedConfig(
            ("server",), warmup=1, settle=1, seed=self.seed,
            server=ServerConfig(limit_ms, rounds=rounds, steps=_STEPS),
        )  # fmt: skip
        makers = {str(s): partial(self._rows, 1) for s in some}
        return self._measure(some, baseline, makers, config, stage)

    def _measure(
        self,
        some: Sequence[Settings],
        default: Settings,
        makers: Mapping[str, Callable[[int], NDArray[Any]]],
        config: SpeedConfig,
        stage: str,
    ) -> dict[Settings, SpeedRun]:
        tools = self.tools
        runs = measure_speed(
            {str(s): self._open(s) for s in some}, makers, str(default), config,
            None if self.progress is None else partial(self._tell, self.progress, stage),
            clock=tools.clock, wait=tools.wait, sleep=tools.sleep, meter=tools.meter,
        )  # fmt: skip
        by_name = {run.variant: run for run in runs}
        return {settings: by_name[str(settings)] for settings in some}

    @staticmethod
    def _tell(progress: Progress, stage: str, _: str, done: int, total: int) -> None:
        progress(f"tune, {stage}", done, total)

    def _rows(self, count: int, _: int) -> NDArray[Any]:
        if count > len(self.images):
            raise UserError(f"a call of {count} images needs as many to measure with.")
        return self.images[:count]

    def _open(self, settings: Settings) -> Session:
        config = settings.config()
        if config not in self._sessions:
            session = self._sessions[config] = self.open_one(config)
            self._copies[config] = copies_of(settings)
            inputs = self._rows(settings.batch or settings.streams, 0)
            session.run(inputs)  # the first call of a shape may compile or allocate
            begin = self.now
            session.run(inputs)
            self._image_s[config] = (self.now - begin) / len(inputs)
        return self._sessions[config]

    def _close(self, config: RuntimeConfig) -> None:
        session = self._sessions.pop(config, None)
        self._copies.pop(config, None)
        if session is not None:
            session.close()


def rounds_in(
    seconds: float, calls_s: Sequence[float], least: int = MIN_ROUNDS
) -> tuple[int, float]:
    """Return rounds, at least so many, and the seconds of one slot, for variants in so much time.

    calls_s: seconds a call of each variant. A slot has at least a call to settle and one timed.
    """
    shortest = sum(call + max(_SLOT_S, call) for call in calls_s)
    rounds = int(min(max(seconds / shortest, least), MAX_ROUNDS))
    slot = (seconds / rounds - sum(calls_s)) / len(calls_s)
    return rounds, max(_USED * slot, 0.0)


def least_seconds(calls_s: Iterable[float]) -> float:
    """Return what one comparison of variants takes at least; calls_s: seconds a call of each."""
    return MIN_ROUNDS * _CALLS_A_SLOT * sum(calls_s)


def seconds_of_search(limit_ms: float, image_s: float, rate: float) -> float:
    """Return about what a server search of one variant takes in one round.

    image_s: seconds an image under full load, 0 where that is not known; rate: about what will be
    found, images a second. A probe lasts so many limits, and as long as its least number of queries
    takes at its rate.
    """
    least = LIMITS_A_PROBE * limit_ms / 1e3
    if not image_s:
        return _STEPS * least
    queries = ServerConfig().queries
    low, high, seconds = 0.0, 1 / image_s, queries / 4 * image_s
    for _ in range(_STEPS):
        middle = (low + high) / 2
        seconds += max(least, queries / middle)
        low, high = (middle, high) if middle <= rate else (low, middle)
    return seconds


def service_times(run: SpeedRun) -> NDArray[np.float64]:
    """Return the seconds of each call of a run."""
    return np.concatenate([slot.durations_ns for slot in run.samples.slots]) / 1e9
