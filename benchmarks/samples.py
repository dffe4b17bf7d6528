"""Raw timings: one line of JSON a slot, so that every statistic can be derived again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.artifacts import write_text
from deploy_tools.errors import ArtifactError

_KEYS = ("variant", "scenario", "batch", "threads", "streams")
# Absent where they have this value, so that older files stay readable.
_LATER = {"end_to_end": False, "latency_limit_ms": None, "target_rate": None}
_LATER_OF_SLOT = {"rate": None, "energy_j": None}


@dataclass(frozen=True, eq=False)
class Slot:
    """The calls that one model made in one round.

    round: counted from 0; position: the model's turn in that round.
    starts_ns: int64, since the measurement began; durations_ns: int64, of each call.
    In the server scenario a call starts when its query arrives, not when a worker takes it up:
    durations hold the time in the queue. rate: of those arrivals, queries per second.
    energy_j: joules of the CPU packages during the slot, None where nothing tells.
    """

    round: int
    position: int
    starts_ns: NDArray[np.int64]
    durations_ns: NDArray[np.int64]
    rate: float | None = None
    energy_j: float | None = None

    @property
    def calls(self) -> int:
        """How many calls were timed."""
        return len(self.durations_ns)

    @property
    def wall_s(self) -> float:
        """Seconds from the first call's start to the last call's end."""
        end = (self.starts_ns + self.durations_ns).max()  # of several workers not the last one's
        return max(float(end - self.starts_ns[0]), 1.0) / 1e9  # a coarse clock may not have moved

    @property
    def latencies_ms(self) -> NDArray[np.float64]:
        """Milliseconds of each call."""
        return self.durations_ns / 1e6

    def late(self, limit_ms: float) -> int:
        """Return how many calls took longer than a limit in milliseconds."""
        return int((self.latencies_ms > limit_ms).sum())


@dataclass(frozen=True, eq=False)
class SampleSet:
    """The raw timings of one variant in one scenario.

    end_to_end: whether a call takes image files and gives labels, decoding included.
    latency_limit_ms: of the server scenario. target_rate: the rate that the user gave; None
    where the largest one was searched for in each round (and in other scenarios).
    """

    variant: str
    scenario: str
    batch: int
    threads: int
    streams: int
    slots: tuple[Slot, ...]
    end_to_end: bool = False
    latency_limit_ms: float | None = None
    target_rate: float | None = None

    @property
    def searched(self) -> bool:
        """Whether each slot's rate is the largest one found in its round."""
        return self.scenario == "server" and self.target_rate is None

    def latencies_ms(self) -> NDArray[np.float64]:
        """Return the milliseconds of every call of every round."""
        return np.concatenate([slot.latencies_ms for slot in self.slots])


def write_samples(path: Path, sets: Iterable[SampleSet]) -> None:
    """Write the timings of one variant, atomically: one slot a line."""
    lines = [json.dumps(_line(samples, slot)) for samples in sets for slot in samples.slots]
    write_text(path, "".join(line + "\n" for line in lines))


def read_samples(path: Path) -> list[SampleSet]:
    """Read what `write_samples` wrote; ArtifactError where the file is missing or damaged."""
    found: dict[tuple[Any, ...], list[Slot]] = {}
    try:
        for text in path.read_text("utf-8").splitlines():
            line = json.loads(text)
            key = tuple(line[name] for name in _KEYS)
            key += tuple(line.get(name, value) for name, value in _LATER.items())
            found.setdefault(key, []).append(
                Slot(
                    line["round"],
                    line["position"],
                    np.array(line["starts_ns"], np.int64),
                    np.array(line["durations_ns"], np.int64),
                    **{name: line.get(name) for name in _LATER_OF_SLOT},
                )
            )
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is not a readable samples file: {error}") from error
    return [
        SampleSet(**dict(zip((*_KEYS, *_LATER), key, strict=True)), slots=tuple(slots))
        for key, slots in found.items()
    ]


def _line(samples: SampleSet, slot: Slot) -> dict[str, Any]:
    return {name: getattr(samples, name) for name in _KEYS} | {
        "round": slot.round,
        "position": slot.position,
        "starts_ns": slot.starts_ns.tolist(),
        "durations_ns": slot.durations_ns.tolist(),
        **{
            name: getattr(samples, name)
            for name, value in _LATER.items()
            if getattr(samples, name) != value
        },
        **{name: getattr(slot, name) for name in _LATER_OF_SLOT if getattr(slot, name) is not None},
    }
