"""How a tool runs a query of images, and the small search that finds each tool's best way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from deploy_tools.errors import UserError

DIVISORS = (8, 1, 2, 4, 16, 32)
"""A query is cut into so many chunks; the first is the one that layouts are compared with."""


@dataclass(frozen=True)
class Setting:
    """threads: of each stream. streams: calls at a time. chunk: images a call. fixed: whether the
    runtime is told that every call has so many."""

    threads: int = 1
    streams: int = 1
    chunk: int = 1
    fixed: bool = False

    def __post_init__(self) -> None:
        if min(self.threads, self.streams, self.chunk) < 1:
            raise UserError(f"threads, streams and chunk must be at least 1, got {self}.")

    def __str__(self) -> str:
        fixed = ", fixed" if self.fixed else ""
        return f"{self.streams} x {self.threads} threads, chunks of {self.chunk}{fixed}"


@dataclass(frozen=True)
class Space:
    """What a tool lets its user choose.

    streams: whether it runs several calls at a time. divisors: a query's possible numbers of
    chunks; fewer where each size costs a compilation. fixed: whether the batch can be fixed.
    """

    streams: bool = True
    divisors: tuple[int, ...] = DIVISORS
    fixed: bool = False

    def layouts(self, cores: int, scenario: str) -> list[Setting]:
        """Return threads and streams to compare: powers of two, of one image a call.

        One image after the other keeps one stream busy, so only its threads are a choice; with
        more to do the streams share all cores.
        """
        powers = [1 << bit for bit in range(cores.bit_length())]
        if scenario == "single-stream":
            return [Setting(threads=n) for n in dict.fromkeys([cores, *powers])]
        streams = powers if self.streams else [1]
        return [Setting(threads=cores // n, streams=n) for n in streams]

    def chunks(self, query: int) -> list[int]:
        """Return images a call: the query's parts, all of one size."""
        sizes = [query // n for n in self.divisors if query % n == 0]
        return list(dict.fromkeys(sizes)) or [query]


Rates = Callable[[Sequence[Setting]], Mapping[Setting, float]]
"""Measures settings side by side: images a second, 0.0 for one that does not run."""


@dataclass
class Search:
    """The best setting that was found, and all that were tried with their images a second."""

    best: Setting
    tried: dict[Setting, float] = field(default_factory=dict)


def find_setting(space: Space, cores: int, scenario: str, query: int, rates: Rates) -> Search:
    """Find a tool's setting for queries of `query` images: first the layout, then the chunk, then
    whether that is fixed.

    Every tool has the same search. A chunk is skipped where it leaves a stream without work.
    """
    first = space.chunks(query)[0]
    layouts = [
        replace(layout, chunk=min(first, max(query // layout.streams, 1)))
        for layout in space.layouts(cores, scenario)
    ]
    tried = dict(rates(layouts))
    best = max(layouts, key=lambda setting: tried[setting])
    sizes = [replace(best, chunk=size) for size in space.chunks(query)]
    sizes = [s for s in sizes if s not in tried and s.chunk * s.streams <= query]
    if sizes:
        tried |= rates(sizes)
    best = max(tried, key=lambda setting: tried[setting])
    if space.fixed and tried[best] > 0:
        tried |= rates([best, replace(best, fixed=True)])
        best = max(best, replace(best, fixed=True), key=lambda setting: tried[setting])
    return Search(best, tried)
