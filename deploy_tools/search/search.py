"""The search: free things, then as little float as keeps the budget, then the fastest of those."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deploy_tools.errors import UserError
from deploy_tools.recipe_variant import VariantTable
from deploy_tools.search.budget import Budget, Judged
from deploy_tools.search.candidates import Step, chains, corrected, in_float, neighbours, plain
from deploy_tools.search.found import Found, Speed, Tried

_GIVE_BACK = 6


Evaluate = Callable[[VariantTable], Judged]
Time = Callable[[Sequence[VariantTable]], Sequence[Speed]]
Steps = Callable[[VariantTable], Sequence[Step]]


@dataclass
class _Search:
    """The log of everything tried; nothing is judged twice."""

    budget: Budget
    evaluate: Evaluate
    tell: Callable[[Tried], None]
    tried: list[Tried] = field(default_factory=list)

    def judge(self, assignment: VariantTable, why: str) -> Tried:
        for tried in self.tried:
            if tried.assignment == assignment:
                return tried
        try:
            found = Tried(assignment, why, self.evaluate(assignment))
        except UserError as error:  # this one cannot be made; the others may
            found = Tried(assignment, why, None, str(error))
        self.tried.append(found)
        self.tell(found)
        return found

    def met(self, tried: Tried) -> bool:
        return tried.judged is not None and self.budget.met(tried.judged)

    def best(self) -> Tried:
        """Return the most accurate so far: agreement is too coarse to rank by, its logits not."""
        made = [tried for tried in self.tried if tried.judged is not None]
        if not made:
            raise UserError(f"no assignment could be made: {self.tried[0].problem}")
        return max(made, key=_accuracy)


def search_assignments(
    base: VariantTable,
    budget: Budget,
    evaluate: Evaluate,
    time: Time,
    steps: Steps,
    tell: Callable[[Tried], None] | None = None,
) -> Found:
    """Return the fastest assignment that keeps the budget.

    base: the variant to start from; its target, exclude and such stay. evaluate: makes and judges
    an assignment on held-out images; a UserError rules that one out. time: measures assignments
    side by side; the first is the plain one. steps: what could stay in float under an assignment;
    asked for only where nothing free keeps the budget. tell: hears of everything tried.
    """
    log = _Search(budget, evaluate, tell or (lambda tried: None))
    first = log.judge(plain(base), "plain")
    free = _free(log, base)
    if free is not None:
        stopped = "an assignment without any more float keeps the budget: none is faster"
        return _finished(log, first, [free], time, stopped)
    ground = log.best()
    kept = [_shortest(log, ground.assignment, chain) for chain in chains(steps(ground.assignment))]
    found = list(dict.fromkeys(tried for tried in kept if tried is not None))
    if not found:
        stopped = "every order of leaving layers in float was followed to its end"
        return Found(None, _nearest(log), tuple(log.tried), (), stopped)
    stopped = f"{len(found)} assignments keep the budget with no float to give back"
    return _finished(log, first, found, time, stopped)


def _free(log: _Search, base: VariantTable) -> Tried | None:
    """Try what costs no speed; return the first that keeps the budget."""
    if log.met(log.tried[0]):
        return log.tried[0]
    found = log.judge(corrected(base), "all corrections")
    if log.met(found):
        return found
    for assignment in neighbours(log.best().assignment):
        found = log.judge(assignment, "another range method or correction")
        if log.met(found):
            return found
    return None


def _shortest(log: _Search, ground: VariantTable, chain: Sequence[Step]) -> Tried | None:
    """Return the assignment with the shortest beginning of a chain that keeps the budget.

    Twice as much float until it is kept, then halving in between; what turned out not to be
    needed is given back, the dearest first. None where the whole chain does not keep it.
    """

    def judged(count: int) -> Tried:
        return log.judge(in_float(ground, chain[:count]), f"{count} of {len(chain)} in float")

    low, high = 0, 1
    while not log.met(judged(high)):
        if high == len(chain):
            return None
        low, high = high, min(2 * high, len(chain))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if log.met(judged(middle)) else (middle, high)
    return _given_back(log, ground, list(chain[:high]))


def _given_back(log: _Search, ground: VariantTable, steps: list[Step]) -> Tried:
    dearest = sorted(steps[:-1], key=lambda step: -step.cost)  # without the last it is not kept
    for step in dearest[:_GIVE_BACK]:
        fewer = [other for other in steps if other != step]
        if log.met(log.judge(in_float(ground, fewer), f"{step.name} given back")):
            steps = fewer
    return log.judge(in_float(ground, steps), "")


def _finished(
    log: _Search, first: Tried, found: Sequence[Tried], time: Time, stopped: str
) -> Found:
    """Time what keeps the budget beside the plain assignment and choose."""
    wanted = list(dict.fromkeys([first, *found] if first.judged else found))
    speeds = time([tried.assignment for tried in wanted])
    timed = tuple(zip(wanted, speeds, strict=True))
    chosen = _fastest([pair for pair in timed if pair[0] in found])
    return Found(chosen, chosen, tuple(log.tried), timed, stopped)


def _fastest(timed: Sequence[tuple[Tried, Speed]]) -> Tried:
    """Return the fastest; among those that the intervals do not tell from it the most accurate."""
    _, low, _ = max((speed.overall() for _, speed in timed), key=lambda found: found[0])
    tied = [tried for tried, speed in timed if speed.overall()[2] >= low]
    return max(tied, key=_accuracy)


def _nearest(log: _Search) -> Tried:
    made = [tried for tried in log.tried if tried.judged is not None]
    return min(made, key=lambda t: (_missing(log, t), *(-v for v in _accuracy(t))))


def _missing(log: _Search, tried: Tried) -> float:
    return log.budget.missing_pp(tried.judged) if tried.judged else math.inf


def _accuracy(tried: Tried) -> tuple[float, float]:
    judged = tried.judged
    return (judged.sqnr_db, judged.agreement) if judged else (-math.inf, 0.0)
