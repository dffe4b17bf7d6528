"""The server scenario: queries arrive at random, and 99 % of them must be answered in time.

MLPerf Inference Rules, section "Scenarios": queries of one sample arrive as a Poisson process;
the result is the largest rate at which the p99 latency stays within the limit, and latency counts
"from when the LoadGen was scheduled to pass a query" to the reply. A query that finds every
worker busy waits in line, and that wait is a part of its latency: a stall of the model is charged
to all who arrive while it lasts, not to the one query that it hit.

Search: in every round each variant bisects for its own rate. All variants make the same number of
steps, and in each step every variant has one slot, in an order drawn anew, with the same random
arrivals (scaled by its rate). So what slows the machine down for a while meets all alike, and a
speedup is a ratio of two rates found side by side.
"""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.energy import EnergyMeter
from benchmarks.samples import Slot
from deploy_tools.errors import UserError
from deploy_tools.runtimes import Session

LATE_SHARE = 0.01
"""The share of queries that may miss the limit: it is one on p99."""
LIMITS_A_PROBE = 50.0
"""The least length of a slot, in latency limits. A rate that is above the capacity by a share e
makes the line longer by e seconds a second; so a slot of 50 limits shows any e above 2 %."""
_HEADROOM = 1.1  # the slot that measures the capacity is short and may meet a slow spell
_SPIN_NS = 200_000  # a sleep ends late by less than this; the rest is waited for awake


@dataclass(frozen=True)
class ServerConfig:
    """How the server scenario is measured.

    latency_limit_ms: of p99; MLPerf's for ResNet-50 by default. target_rate: queries per second;
    None searches for the largest. rounds: searches (or slots at target_rate). steps: bisections
    of a search, which end within capacity / 2^steps. queries, seconds: the least of one slot.
    """

    latency_limit_ms: float = 15.0
    target_rate: float | None = None
    rounds: int = 5
    steps: int = 6
    queries: int = 100
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.latency_limit_ms <= 3_600_000:
            raise UserError(
                f"the latency limit must lie in (0, 3600000] ms, got {self.latency_limit_ms}."
            )
        if self.target_rate is not None and not 0 < self.target_rate <= 1e6:
            raise UserError(f"the target rate must lie in (0, 1000000], got {self.target_rate}.")
        for key, least in (("rounds", 3), ("steps", 1), ("queries", 100), ("seconds", 0)):
            if getattr(self, key) < least:
                raise UserError(
                    f"server: {key} must be at least {least}, got {getattr(self, key)}."
                )

    def queries_at(self, rate: float) -> int:
        """Return how many queries a slot at this rate has."""
        seconds = max(self.seconds, LIMITS_A_PROBE * self.latency_limit_ms / 1e3)
        return max(self.queries, math.ceil(rate * seconds))


@dataclass(frozen=True)
class Tools:
    """What measures, all of it replaceable: nanoseconds, a sleep in seconds, what waits until the
    process is idle, and the energy counters."""

    clock: Callable[[], int]
    sleep: Callable[[float], None]
    wait: Callable[[], None]
    meter: EnergyMeter


def poisson_arrivals(count: int, rate: float, seed: Sequence[int]) -> NDArray[np.int64]:
    """Return arrival times in nanoseconds from 0 on, int64 (count,), rising.

    Exponential gaps with mean 1 / rate. The same seed gives the same gaps at any rate but for
    the scale, and a longer series begins with the shorter one.
    """
    generator = np.random.Generator(np.random.PCG64(list(seed)))
    return np.rint(np.cumsum(generator.standard_exponential(count)) / rate * 1e9).astype(np.int64)


class RateSearch:
    """Bisection for the largest rate that is kept, between 0 and the capacity."""

    def __init__(self, capacity: float) -> None:
        self._low, self._high = 0.0, capacity
        self._found: Slot | None = None
        self._last: Slot | None = None

    @property
    def rate(self) -> float:
        """The rate to try next."""
        return (self._low + self._high) / 2

    def tell(self, slot: Slot, kept: bool) -> None:
        """Take in what the slot at `rate` showed."""
        self._last = slot
        if kept:
            self._low, self._found = self.rate, slot
        else:
            self._high = self.rate

    @property
    def slot(self) -> Slot:
        """The slot at the largest rate that was kept; without one, that at the lowest rate."""
        slot = self._found or self._last
        if slot is None:
            raise RuntimeError("nothing was tried")
        return slot


class Queue:
    """Queries in the order of their arrival, handed to whichever worker is free first.

    A worker that has nothing to do takes the next query before it arrives and waits for it; that
    is the same as one line and several servers. late_ns, allowed: where more than `allowed`
    queries take longer, the rest is not served (the rate is lost already); None serves all.
    """

    def __init__(
        self, arrivals: NDArray[np.int64], late_ns: float | None = None, allowed: int = 0
    ) -> None:
        self.arrivals = arrivals
        self.ends = np.full(len(arrivals), -1, np.int64)
        self._late_ns, self._allowed, self._late = late_ns, allowed, 0
        self._next, self._lock = 0, threading.Lock()

    def work(self, run: Callable[[], Any], begin: int, tools: Tools) -> None:
        """Serve until nothing is left. begin: the clock at arrival time 0."""
        while (place := self._take()) is not None:
            arrival = begin + int(self.arrivals[place])
            while (left := arrival - tools.clock()) > 0:
                tools.sleep(max(left - _SPIN_NS, 0) / 1e9)
            run()
            self._finish(place, tools.clock() - begin)

    def served(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the arrival and the latency, in nanoseconds, of each query that was served."""
        done = self.ends >= 0
        return self.arrivals[done], self.ends[done] - self.arrivals[done]

    def stop(self) -> None:
        """Hand out no more queries."""
        with self._lock:
            self._next = len(self.arrivals)

    def _take(self) -> int | None:
        with self._lock:
            if self._next >= len(self.arrivals):
                return None
            self._next += 1
            return self._next - 1

    def _finish(self, place: int, end: int) -> None:
        self.ends[place] = end
        if self._late_ns is not None and end - self.arrivals[place] > self._late_ns:
            with self._lock:
                self._late += 1
            if self._late > self._allowed:
                self.stop()


def serve(queue: Queue, run: Callable[[], Any], workers: int, tools: Tools) -> int:
    """Serve a queue with some workers; returns the clock at arrival time 0.

    One worker is this thread itself. What a worker raises is raised here.
    """
    if workers == 1:
        begin = tools.clock()
        queue.work(run, begin, tools)
        return begin
    failures: list[BaseException] = []
    begin = tools.clock()

    def work() -> None:
        try:
            queue.work(run, begin, tools)
        except BaseException as error:  # it would be lost in the thread
            failures.append(error)
            queue.stop()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return begin


def for_every_stream(session: Session, inputs: NDArray[Any]) -> NDArray[Any]:
    """Return a query for each stream of a session, in one call: it warms all of them up."""
    return np.concatenate([inputs] * getattr(session, "streams", 1))


def begin_slot(session: Session, number: int) -> None:
    """Tell a session that chooses its own images (`end_to_end.PathToLabel`) that a slot begins.

    number: the same for the slots of all variants that are compared with each other.
    """
    if hasattr(session, "begin_slot"):
        session.begin_slot(number)


@dataclass(frozen=True)
class ServerBench:
    """The server scenario of several sessions, side by side.

    inputs: one query of each. settle: untimed calls at the start of each slot. begin: the clock that
    slots count from.
    """

    sessions: Mapping[str, Session]
    inputs: Mapping[str, NDArray[Any]]
    config: ServerConfig
    settle: int
    seed: int
    begin: int
    tools: Tools

    def slots(self, progress: Callable[[str, int, int], None] | None) -> dict[str, list[Slot]]:
        """Return one slot a round for each session: at the target rate, or at the rate found."""
        generator = np.random.Generator(np.random.PCG64(self.seed))
        found: dict[str, list[Slot]] = {variant: [] for variant in self.sessions}
        rounds = self.config.rounds
        for number in range(rounds):
            fixed = self.config.target_rate
            made = self._search(number, generator) if fixed is None else {
                variant: self.probe(variant, fixed, number, place, 0, abort=False)[0]
                for place, variant in enumerate(self._order(generator))
            }  # fmt: skip
            for variant, slot in made.items():
                found[variant].append(slot)
            if progress is not None:
                progress("speed, server", number + 1, rounds)
        return found

    def _search(self, number: int, generator: np.random.Generator) -> dict[str, Slot]:
        searches = {
            variant: RateSearch(_HEADROOM * self.capacity(variant, number))
            for variant in self._order(generator)
        }
        for step in range(self.config.steps):
            for place, variant in enumerate(self._order(generator)):
                search = searches[variant]
                search.tell(*self.probe(variant, search.rate, number, place, step, abort=True))
        return {variant: search.slot for variant, search in searches.items()}

    def capacity(self, variant: str, number: int) -> float:
        """Return queries per second of a round when all of them wait in line from the start.

        At a higher rate the line grows for ever, so a search needs not look far above it.
        """
        queue = Queue(np.zeros(max(self.config.queries // 4, 20), np.int64))
        self._served(variant, queue, number, 0)
        _, latencies = queue.served()
        return len(latencies) / max(float(latencies.max()), 1.0) * 1e9

    def probe(
        self, variant: str, rate: float, number: int, place: int, step: int, abort: bool
    ) -> tuple[Slot, bool]:
        """Serve arrivals at a rate; returns the slot and whether its p99 keeps the limit.

        abort: stop once the limit is lost.
        """
        count = self.config.queries_at(rate)
        allowed = math.floor(LATE_SHARE * count)
        arrivals = poisson_arrivals(count, rate, (self.seed, number, step))
        limit = self.config.latency_limit_ms
        queue = Queue(arrivals, limit * 1e6 if abort else None, allowed)
        begin, energy = self._served(variant, queue, number, step + 1)
        starts, latencies = queue.served()
        slot = Slot(number, place, starts + (begin - self.begin), latencies, rate, energy)
        return slot, slot.late(limit) <= allowed

    def _served(
        self, variant: str, queue: Queue, number: int, turn: int
    ) -> tuple[int, float | None]:
        """Serve a queue once the machine is idle; returns its begin and the joules it took.

        turn: of the slot within its round.
        """
        session, meter = self.sessions[variant], self.tools.meter
        inputs = self.inputs[variant]
        settling = for_every_stream(session, inputs)
        self.tools.wait()
        begin_slot(session, number * (self.config.steps + 1) + turn)
        collecting = gc.isenabled()
        gc.disable()  # a collection in the middle of a call would be billed to the model
        try:
            for _ in range(self.settle):
                session.run(settling)
            before = meter.read()
            begin = serve(
                queue, lambda: session.run(inputs), getattr(session, "streams", 1), self.tools
            )
            return begin, meter.joules(before, meter.read())
        finally:
            if collecting:
                gc.enable()

    def _order(self, generator: np.random.Generator) -> list[str]:
        names = list(self.sessions)
        return [names[place] for place in generator.permutation(len(names))]
