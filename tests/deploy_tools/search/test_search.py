"""The way through a search, with an evaluator whose answers can be counted by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deploy_tools.errors import UserError
from deploy_tools.recipe_variant import VariantTable
from deploy_tools.search.budget import Budget, Judged
from deploy_tools.search.candidates import Step, chains, corrected, in_float, neighbours, plain
from deploy_tools.search.found import Found, Speed, Tried
from deploy_tools.search.search import search_assignments

BASE = VariantTable("int8", "static", "ort-cpu", exclude=("stem",))
STEPS = [
    *(Step(f"conv{i}", "layer", 0.001 * (i + 1), 1000.0) for i in range(8)),
    Step("big", "layer", 0.004, 100000.0),
    Step("add0", "branch", 0.002, 100.0),
    Step("add1", "branch", 0.001, 500.0),
]
NOISE = {step.name: step.noise for step in STEPS}
COST = {step.name: step.cost for step in STEPS}


class World:
    """An assignment's noise is the sum of what is not in float; half of it with corrections."""

    def __init__(self, allowed: float, refuse: str = "") -> None:
        self.allowed, self.refuse = allowed, refuse
        self.seen: list[VariantTable] = []
        self.timed: list[VariantTable] = []
        self.asked = 0

    def evaluate(self, assignment: VariantTable) -> Judged:
        assert assignment not in self.seen, "nothing is judged twice"
        self.seen.append(assignment)
        if self.refuse and assignment.ranges == self.refuse:
            raise UserError("these ranges cannot be made.")
        noise = sum(NOISE[name] for name in self.in_int8(assignment))
        for key, on in (("equalize", True), ("rounding", "gptq")):
            noise *= 0.8 if getattr(assignment, key) == on else 1.0
        return Judged(500, 1 - noise, (0.9, 1.0), 100 * noise, (0.0, 1.0), -10 * math.log10(noise))

    def time(self, assignments: Sequence[VariantTable]) -> list[Speed]:
        self.timed = list(assignments)
        return [
            Speed({"single-stream": (v, v - 1e-5, v + 1e-5)})
            for v in (1 - self.cost(a) / 1e6 for a in assignments)
        ]

    def steps(self, assignment: VariantTable) -> list[Step]:
        self.asked += 1
        return STEPS

    @staticmethod
    def in_int8(assignment: VariantTable) -> list[str]:
        return [n for n in NOISE if n not in (*assignment.exclude, *assignment.float_branches)]

    @staticmethod
    def cost(assignment: VariantTable) -> float:
        names = (*assignment.exclude, *assignment.float_branches)
        return sum(COST.get(name, 0.0) for name in names)

    def search(self, tell: list[Tried] | None = None) -> Found:
        budget = Budget(min_agreement=1 - self.allowed)
        told = (lambda tried: tell.append(tried)) if tell is not None else None
        return search_assignments(BASE, budget, self.evaluate, self.time, self.steps, told)


ALL = sum(NOISE.values())


def test_plain_int8_that_keeps_the_budget_ends_the_search() -> None:
    world = World(ALL * 1.01)
    found = world.search()
    assert found.chosen is not None
    assert found.chosen.assignment == plain(BASE)
    assert len(world.seen) == 1
    assert world.asked == 0
    assert found.chosen.assignment.exclude == ("stem",)


def test_free_corrections_come_before_any_float() -> None:
    world = World(ALL * 0.65)
    found = world.search()
    assert found.chosen is not None
    assert found.chosen.assignment == corrected(BASE)
    assert found.chosen.assignment.float_branches == ()
    assert world.asked == 0
    assert len(world.seen) == 2
    assert world.timed == [plain(BASE), corrected(BASE)]


def test_the_least_float_that_keeps_the_budget_is_found() -> None:
    world = World(ALL * 0.64 - 0.0015)
    told: list[Tried] = []
    found = world.search(told)
    assert found.chosen is not None
    assignment = found.chosen.assignment
    # add0 and add1 take 0.003 * 0.64 = 0.0019 away: enough, and cheaper than any layer.
    assert set(assignment.float_branches) == {"add0", "add1"}
    assert assignment.exclude == ("stem",)
    assert world.timed[0] == plain(BASE)
    assert [t.assignment for t in told] == world.seen == [t.assignment for t in found.tried]
    assert found.nearest == found.chosen


def test_a_long_chain_is_halved_not_walked() -> None:
    world = World(ALL * 0.64 - 0.0100)
    found = world.search()
    assert found.chosen is not None
    assert "big" not in found.chosen.assignment.exclude
    free = 2 + len(list(neighbours(corrected(BASE))))
    # three orders of at most ten steps; walking them alone would take more
    assert len(world.seen) - free <= 24
    kept = world.evaluate.__self__.in_int8(found.chosen.assignment)
    assert sum(NOISE[name] for name in kept) * 0.64 <= world.allowed


def test_halving_ends_at_exactly_as_much_float_as_is_needed() -> None:
    steps = [Step(f"c{i:02}", "layer", 0.001, 1.0) for i in range(40)]
    counts: list[int] = []

    def evaluate(assignment: VariantTable) -> Judged:
        count = len(assignment.exclude) - 1
        counts.append(count)
        return Judged(500, 0.999 if count >= 19 else 0.99, (0, 1), 0.0, (0, 0), 10.0 + count)

    def time(assignments: Sequence[VariantTable]) -> list[Speed]:
        return [Speed({"s": (1.0, 1.0, 1.0)}) for _ in assignments]

    found = search_assignments(BASE, Budget(min_agreement=0.995), evaluate, time, lambda a: steps)
    assert found.chosen is not None
    assert len(found.chosen.assignment.exclude) == 20
    free = counts.count(0)
    # 1, 2, 4, 8, 16, 32, then 24, 20, 18, 19, then six that cannot be given back
    assert counts[free:][:10] == [1, 2, 4, 8, 16, 32, 24, 20, 18, 19]
    assert counts[free:][10:] == [18] * 6


def test_what_is_not_needed_is_given_back() -> None:
    steps = [
        Step("dear", "layer", 0.010, 5e5),
        Step("small", "layer", 0.004, 1e3),
        Step("least", "layer", 0.0001, 1e6),
    ]
    noise = {step.name: step.noise for step in steps}

    def evaluate(assignment: VariantTable) -> Judged:
        left = sum(v for k, v in noise.items() if k not in assignment.exclude)
        # Without "small" the other cannot keep it; with it, it alone does.
        fine = "small" in assignment.exclude
        share = 0.999 if fine else 0.99
        return Judged(500, share, (0, 1), 0.0, (0, 0), -10 * math.log10(left + 1e-9))

    def time(assignments: Sequence[VariantTable]) -> list[Speed]:
        return [Speed({"s": (1.0 - 0.1 * len(a.exclude),) * 3}) for a in assignments]

    wanted = [Step(s.name, s.kind, s.noise, 1.0) for s in steps]  # by noise: dear, then small
    found = search_assignments(BASE, Budget(min_agreement=0.995), evaluate, time, lambda a: wanted)
    assert found.chosen is not None
    assert found.chosen.assignment.exclude == ("stem", "small")


def test_a_budget_that_nothing_keeps_tells_the_nearest() -> None:
    world = World(0.0001)
    found = world.search()
    assert found.chosen is None
    assert found.timed == ()
    assert world.timed == []
    best = min(found.tried, key=lambda t: 1 - t.judged.agreement)
    assert found.nearest == best
    assert len(best.assignment.exclude) > 5
    values = found.to_dict(Budget(min_agreement=0.9999))
    assert values["chosen"] is None
    assert values["nearest"]["missing_pp"] > 0
    assert len(values["tried"]) == len(world.seen)


def test_an_assignment_that_cannot_be_made_is_told_and_passed_over() -> None:
    world = World(ALL * 0.64 - 0.0015, refuse="auto")
    found = world.search()
    refused = [tried for tried in found.tried if tried.judged is None]
    assert refused
    assert all("cannot be made" in tried.problem for tried in refused)
    assert found.chosen is not None
    assert found.chosen.assignment.ranges != "auto"


def test_the_fastest_wins_and_a_tie_goes_to_the_more_accurate() -> None:
    class Noisy(World):
        def time(self, assignments: Sequence[VariantTable]) -> list[Speed]:
            super().time(assignments)
            return [Speed({"s": (1.0 + 0.001 * i, 0.9, 1.1)}) for i, _ in enumerate(assignments)]

    world = Noisy(ALL * 0.64 - 0.0100)
    found = world.search()
    assert found.chosen is not None
    candidates = [tried for tried, _ in found.timed[1:]]
    assert len(candidates) > 1
    assert found.chosen == max(candidates, key=lambda t: t.judged.sqnr_db)
    exact = World(ALL * 0.64 - 0.0100)
    fastest = exact.search().chosen
    assert fastest is not None
    assert world.cost(fastest.assignment) == min(exact.cost(a) for a in exact.timed[1:])


def test_chains_leave_one_layer_in_int8() -> None:
    mixed, first, layers = chains(STEPS)
    assert [step.name for step in mixed[:3]] == ["add0", "conv7", "conv6"]
    assert "big" not in {step.name for step in mixed}  # the least worth: it stays
    assert [step.name for step in first[:3]] == ["add0", "add1", "conv7"]
    assert {step.kind for step in layers} == {"layer"}
    assert len(layers) == 8
    assert chains(STEPS[:1]) == []
    table = in_float(BASE, [STEPS[0], STEPS[-1]])
    assert (table.exclude, table.float_branches) == (("stem", "conv0"), ("add1",))
