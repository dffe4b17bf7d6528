"""What `deploy-tools tune` chooses."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from deploy_tools.errors import UserError, nearest
from deploy_tools.runtimes import ENGINE_RUNTIMES, RUNTIMES, RuntimeConfig

TUNABLE = tuple(name for name in RUNTIMES if name not in ENGINE_RUNTIMES)
PRECISIONS = ("fp32", "bf16")

DEFAULT_BATCH = 8
"""What `predict` and `bench speed` take where nothing else is said."""


@dataclass(frozen=True)
class Settings:
    """How a file is opened, as in `RuntimeConfig`, and how many images a call takes.

    batch: None leaves it to the command. part: with streams, images that one takes at a time; 0
    for an equal share. fixed: whether sessions are made for that many, so that a call of another
    number opens a second one; without a batch, for single images.
    Raises UserError for a value that means nothing.
    """

    runtime: str = "onnxruntime"
    threads: int = 0
    streams: int = 1
    pinned: bool | None = None
    spinning: bool = True
    precision: str = "fp32"
    batch: int | None = DEFAULT_BATCH
    part: int = 0
    fixed: bool = False

    def __post_init__(self) -> None:
        for key, value, known in (
            ("runtime", self.runtime, TUNABLE), ("precision", self.precision, PRECISIONS)
        ):  # fmt: skip
            if value not in known:
                raise UserError(f'{key} "{value}" cannot be tuned.', nearest(value, known))
        for key, number, least in (
            ("threads", self.threads, 0), ("streams", self.streams, 1), ("batch", self.batch, 1),
            ("part", self.part, 0),
        ):  # fmt: skip
            if number is not None and number < least:
                raise UserError(f"{key} must be at least {least}, got {number}.")
        if self.part and self.streams == 1:
            raise UserError(f"parts of {self.part} images need more than one stream.")

    def config(self) -> RuntimeConfig:
        """Return how its session is opened; the same for all batches unless that is fixed."""
        share = self.part or -(-(self.batch or 1) // self.streams)
        return RuntimeConfig(
            self.runtime, self.threads, self.precision,
            streams=self.streams, pinned=self.pinned, spinning=self.spinning, part=self.part,
            fixed_batch=share if self.fixed else 0,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, by the names of the fields."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [self.runtime, "every core" if not self.threads else _count(self.threads, "thread")]
        if self.streams > 1:
            parts.append(_count(self.streams, "stream"))
        if self.pinned is not None:
            parts.append("pinned" if self.pinned else "not pinned")
        if not self.spinning:
            parts.append("not spinning")
        if self.precision != "fp32":
            parts.append(self.precision)
        if self.batch is not None:
            parts.append(f"batch {self.batch}")
        if self.part:
            parts.append(f"parts of {self.part}")
        if self.fixed:
            parts.append("for that size alone")
        return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
