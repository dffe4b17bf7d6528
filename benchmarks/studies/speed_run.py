"""One model in one scenario: find each row's setting, then time all rows in one interleaved run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.setting import Search, Setting, find_setting
from benchmarks.peers.worker import reason_of, short
from benchmarks.speed import MakeBatch, SpeedConfig, SpeedRun, measure_speed
from benchmarks.statistics import logit_sqnr
from benchmarks.studies.speed_files import Files
from benchmarks.studies.speed_rows import BASELINE, Row
from deploy_tools.data.source import ImageSource, batches
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import DeployToolsError, UserError
from deploy_tools.runtimes import Session
from deploy_tools.runtimes.base import usable_cores

Say = Callable[[str], None]
LEAST_SQNR_DB = 5.0
"""Below this against FP32 a row does not compute the model, whatever its speed."""


@dataclass(frozen=True)
class Plan:
    """How to measure. query: images of an offline query; final, search, duel: how long all rows,
    the settings of one row, and the best rows against each other (their scenarios and batch are
    filled in)."""

    query: int
    final: SpeedConfig
    search: SpeedConfig
    duel: SpeedConfig

    def config(self, base: SpeedConfig, scenario: str) -> SpeedConfig:
        """Return `base` for one scenario and this plan's query."""
        return replace(base, scenarios=(scenario,), batch=self.query)


@dataclass
class Timed:
    """What became of a row. run: None where it did not run, and `reason` says why.

    sqnr_db: of its logits against the baseline's, None for the baseline. duel: of the best rows,
    which are timed once more.
    """

    row: Row
    reason: str = ""
    search: Search | None = None
    runs_in: str = ""
    sqnr_db: float | None = None
    run: SpeedRun | None = None
    duel: SpeedRun | None = None


Choose = Callable[[Sequence[Timed]], Sequence[Timed]]


@dataclass
class Bench:
    """The rows of one model with their files and images."""

    files: Files
    images: ImageSource
    plan: Plan
    say: Say = field(default=lambda line: None)
    _made: dict[tuple[InputSpec, int], NDArray[Any]] = field(default_factory=dict)

    def measure(self, rows: Sequence[Row], scenario: str, best: Choose) -> list[Timed]:
        """Return one `Timed` a row, in their order; a row that fails stops no other.

        best: chooses the rows that are timed against each other once more, the baseline among
        them: what was chosen by one measurement is judged by another.
        In the server scenario a row that keeps the limit at no rate is timed all the same, with
        the setting that answers soonest: it has latencies, and neither a rate nor a speedup.
        Raises UserError where the baseline itself does not run.
        """
        timed = [Timed(row) for row in rows]
        sessions: dict[str, Session] = {}
        try:
            for each in timed:
                self._guarded(each, partial(self._open_best, each, scenario, sessions))
            self._compare(timed, scenario, sessions)
            running = {e.row.name: e for e in timed if e.row.name in sessions}
            for run in self._timed(running.values(), sessions, self.plan.final, scenario):
                running[run.variant].run = run
            for run in self._timed(best(timed), sessions, self.plan.duel, scenario):
                running[run.variant].duel = run
        finally:
            for session in sessions.values():
                session.close()
        return timed

    def _timed(
        self, some: Iterable[Timed], sessions: dict[str, Session], base: SpeedConfig, scenario: str
    ) -> list[SpeedRun]:
        chosen = {each.row.name: each.row for each in some}
        makers = {name: self.maker(row) for name, row in chosen.items()}
        own = {name: sessions[name] for name in chosen}
        return measure_speed(own, makers, BASELINE, self.plan.config(base, scenario))

    def maker(self, row: Row) -> MakeBatch:
        """Return what makes a row's inputs: real images, as it takes them."""
        spec = self.files.job.spec
        return partial(self._inputs, spec.with_pixels() if row.pixels else spec)

    def _inputs(self, spec: InputSpec, count: int) -> NDArray[Any]:
        """Real images, repeated from the start where there are fewer; decoded once."""
        if (spec, count) not in self._made:
            indices = [i % len(self.images) for i in range(count)]
            self._made[spec, count] = next(batches(self.images, spec, count, indices))[0]
        return self._made[spec, count]

    def _open_best(self, each: Timed, scenario: str, sessions: dict[str, Session]) -> None:
        row, query = each.row, self.plan.config(self.plan.final, scenario).batch_of(scenario)
        source = self.files.source(row.file)
        failures: dict[Setting, str] = {}
        waits: dict[Setting, float] = {}

        def rates(settings: Sequence[Setting]) -> dict[Setting, float]:
            return self._rates(row, settings, scenario, failures, waits)

        each.search = find_setting(row.space, usable_cores(), scenario, query, rates)
        if each.search.tried[each.search.best] <= 0:
            if not waits:
                raise UserError(next(iter(failures.values()), "no setting runs."))
            each.search.best = min(waits, key=lambda setting: waits[setting])
        session = row.open(source, each.search.best)
        sessions[row.name] = session
        each.runs_in = session.precision
        self.say(f"{row.name}, {scenario}: {each.search.best}")

    def _rates(
        self,
        row: Row,
        settings: Sequence[Setting],
        scenario: str,
        failures: dict[Setting, str],
        waits: dict[Setting, float],
    ) -> dict[Setting, float]:
        """Time a row's settings side by side; 0.0 for those that fail or keep the limit at no rate.

        waits: gets the median latency of those that run, in ms.
        """
        found = dict.fromkeys(settings, 0.0)
        source, config = self.files.source(row.file), self.plan.config(self.plan.search, scenario)
        inputs = self.maker(row)(config.batch_of(scenario))
        opened: dict[str, Session] = {}
        by_name = {str(setting): setting for setting in settings}
        try:
            for name, setting in by_name.items():
                try:
                    opened[name] = row.open(source, setting)
                    opened[name].run(inputs)
                except Exception as error:  # every tool has its own classes
                    failures[setting] = _why(error)
                    if name in opened:
                        opened.pop(name).close()
            if opened:
                first = next(iter(opened))
                for run in measure_speed(opened, self.maker(row), first, config):
                    waits[by_name[run.variant]] = run.latency_ms["p50"].estimate
                    if run.has_rate:
                        found[by_name[run.variant]] = run.images_per_s.estimate
        finally:
            for session in opened.values():
                session.close()
        return found

    def _compare(self, timed: Sequence[Timed], scenario: str, sessions: dict[str, Session]) -> None:
        """Hold the logits of each row against the baseline's; drop rows that compute otherwise."""
        count = self.plan.query
        if BASELINE not in sessions:
            reason = next((e.reason for e in timed if e.row.name == BASELINE), "it is no row")
            raise UserError(f"the baseline does not run: {reason}")
        base = next(each for each in timed if each.row.name == BASELINE)
        wanted = self._logits(base, sessions[BASELINE], count)
        for each in timed:
            name = each.row.name
            if name not in sessions or name == BASELINE:
                continue
            self._guarded(each, partial(self._judge, each, sessions[name], wanted))
            if each.reason:
                sessions.pop(name).close()

    def _judge(self, each: Timed, session: Session, wanted: NDArray[np.float32]) -> None:
        sqnr = logit_sqnr(wanted, self._logits(each, session, len(wanted)))
        if not sqnr >= LEAST_SQNR_DB:  # nan too
            raise UserError(f"its logits are not the model's: {sqnr:.1f} dB")
        each.sqnr_db = min(sqnr, 200.0)  # inf where they are equal

    def _logits(self, each: Timed, session: Session, count: int) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(self.maker(each.row)(count))[0]
        return found

    def _guarded(self, each: Timed, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # every tool has its own classes
            each.reason = _why(error)
            self.say(f"{each.row.name} did not run: {each.reason}")


def _why(error: Exception) -> str:
    return short(str(error)) if isinstance(error, DeployToolsError) else reason_of(error)
