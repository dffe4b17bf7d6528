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

    batch: None leaves it to the command. Raises UserError for a value that means nothing.
    """

    runtime: str = "onnxruntime"
    threads: int = 0
    streams: int = 1
    pinned: bool | None = None
    spinning: bool = True
    precision: str = "fp32"
    batch: int | None = DEFAULT_BATCH

    def __post_init__(self) -> None:
        for key, value, known in (
            ("runtime", self.runtime, TUNABLE), ("precision", self.precision, PRECISIONS)
        ):  # fmt: skip
            if value not in known:
                raise UserError(f'{key} "{value}" cannot be tuned.', nearest(value, known))
        for key, number, least in (
            ("threads", self.threads, 0), ("streams", self.streams, 1), ("batch", self.batch, 1)
        ):  # fmt: skip
            if number is not None and number < least:
                raise UserError(f"{key} must be at least {least}, got {number}.")

    def config(self) -> RuntimeConfig:
        """Return how its session is opened; the same for all batches."""
        return RuntimeConfig(
            self.runtime, self.threads, self.precision,
            streams=self.streams, pinned=self.pinned, spinning=self.spinning,
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
        return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"
