"""What is worth trying on a machine: threads, streams and pinning of each runtime, and batches.

onnxruntime's parallel execution mode is not among them: it runs independent branches at the same
time, and a ResNet has none but the one convolution beside a block. Nothing here changes what is
computed: precision is the user's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from deploy_tools.tuning.settings import DEFAULT_BATCH, Settings

BATCHES = (1, 2, 4, 8, 16, 32, 64)
_COPY = 3
"""A loaded model takes about so many times its file: weights, their packed form, activations."""

_CUTS = (2, 4)
"""Into how many parts a stream's share of a batch is cut."""

_UNKNOWN = 64
"""Copies that may be in memory where nobody says how large it is."""


@dataclass(frozen=True)
class Machine:
    """What limits the choice.

    cores: threads that this process may use; physical: cores that they lie on, None where unknown;
    limit: CPUs' worth of time that a cgroup allows, None without one; memory_bytes: likewise, of
    memory, None where unknown.
    """

    cores: int
    physical: int | None = None
    limit: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Skipped:
    """What was not tried, or not to the end, and why."""

    settings: Settings
    reason: str


def default_settings(runtime: str, precision: str, batch: int | None = DEFAULT_BATCH) -> Settings:
    """Return what the commands do where nothing is tuned."""
    return Settings(runtime, precision=precision, batch=batch)


def candidates_for(
    runtimes: Sequence[str], precision: str, machine: Machine, file_bytes: int, can_split: bool
) -> tuple[list[Settings], list[Skipped]]:
    """Return the settings to try, without batches, and those that are left out with the reason.

    can_split: whether the result of an image does not depend on the others in its call.
    """
    found: list[Settings] = []
    skipped: list[Skipped] = []
    # In turns: where the time or the memory ends before the list does, each runtime had its share.
    for turn in zip_longest(*(_shapes(runtime, precision, machine) for runtime in runtimes)):
        for wanted in filter(None, turn):
            reason = _why_not(wanted, machine, file_bytes, can_split)
            if reason:
                skipped.append(Skipped(wanted, reason))
            else:
                found.append(wanted)
    return list(dict.fromkeys(found)), list(dict.fromkeys(skipped))


def most_copies(machine: Machine, file_bytes: int) -> int:
    """Return how many copies of the model may be in memory at a time: half of it holds them.

    At least 3: a default without a rival would be no search.
    """
    if machine.memory_bytes is None:
        return _UNKNOWN
    return max(int(machine.memory_bytes / 2 / (_COPY * file_bytes)), 3)


def copies_of(wanted: Settings) -> int:
    """Return how many copies of the model its session holds.

    OpenVINO's streams share one, and so do onnxruntime's where a stream is one thread.
    """
    shared = wanted.runtime != "onnxruntime" or wanted.threads == wanted.streams
    return 1 if shared else wanted.streams


def with_batches(
    found: Sequence[Settings], can_split: bool, batches: Sequence[int] = BATCHES
) -> list[Settings]:
    """Return the settings at each batch that gives every stream something to do.

    Only at the default's batch where the images of a call are scaled together.
    """
    sizes = batches if can_split else (DEFAULT_BATCH,)
    return [replace(s, batch=size) for s in found for size in sizes if size >= s.streams]


def with_parts(found: Sequence[Settings]) -> list[Settings]:
    """Return what a runtime may do with the batch of these settings: sessions for that size alone,
    and streams that take smaller parts of it, one after the other.
    """
    wanted: list[Settings] = []
    for plain in found:
        parts = [0]
        if plain.streams > 1 and plain.batch is not None:
            shares = (plain.batch / (n * plain.streams) for n in _CUTS)
            parts += [int(share) for share in shares if share >= 1 and share.is_integer()]
        for part in parts:
            own = replace(plain, part=part)
            wanted += [own, replace(own, fixed=True)]
    return [settings for settings in wanted if settings not in found]


def _shapes(runtime: str, precision: str, machine: Machine) -> Iterator[Settings]:
    """Yield one stream of fewer and fewer threads, then more and more streams of all of them."""
    plain = Settings(runtime, precision=precision, batch=None)
    yield plain
    if runtime == "openvino":
        yield replace(plain, pinned=False)
    elif machine.cores > 1:
        yield replace(plain, spinning=False)
    for base in _bases(machine):
        for threads in _halves(base):
            if threads < machine.cores:
                yield replace(plain, threads=threads)
        for each in _halves(base):
            streams = base // each
            if streams > 1:
                shared = replace(plain, threads=streams * each, streams=streams)
                yield shared
                yield replace(shared, pinned=runtime == "onnxruntime")


def _bases(machine: Machine) -> list[int]:
    """Return how many threads could be used at most: all, one a physical core, what is allowed."""
    wanted = [
        machine.cores,
        machine.physical,
        None if machine.limit is None else int(machine.limit),
    ]
    return sorted({n for n in wanted if n is not None and 0 < n <= machine.cores}, reverse=True)


def _halves(number: int) -> Iterator[int]:
    while number:
        yield number
        number //= 2


def _why_not(wanted: Settings, machine: Machine, file_bytes: int, can_split: bool) -> str:
    if wanted.streams == 1:
        return ""
    if not can_split:
        return "the file scales the images of a call together: splitting a batch changes results"
    need = _COPY * file_bytes * copies_of(wanted)
    if machine.memory_bytes is not None and need > machine.memory_bytes / 2:
        return f"{wanted.streams} copies of the model would take about {need / 1e9:.1f} GB"
    return ""
