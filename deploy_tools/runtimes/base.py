"""The one interface of every runtime; its users never ask which one they hold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy_tools.errors import UserError


@dataclass(frozen=True)
class RuntimeConfig:
    """How to open a session.

    runtime: a name in `deploy_tools.runtimes.RUNTIMES`.
    threads: of a CPU runtime, over all streams; 0 takes every core this process may use. An
        engine runs on the GPU and takes one thread of the host, whatever this says.
    precision: "" lets the runtime use its default for the file; "fp32" and "bf16" demand one.
        A runtime that cannot do it refuses.
    fusions: False switches off graph optimizations that change the arithmetic.
    memory: which device memory an engine uses: "" or "cuda-python", or "pycuda".
    cuda_graph: whether an engine's calls are captured as CUDA graphs.
    streams: of a CPU runtime, how many calls run at the same time, each on threads / streams
        threads; a batch is split among them.
    pinned: whether the threads of each stream keep to cores of their own. None leaves it to the
        runtime: onnxruntime does not pin them, OpenVINO does on Linux.
    part: with streams, into parts of how many images a batch is cut; a stream takes the next one
        when it is free. 0: one part for each stream.
    fixed_batch: of a CPU runtime, how many images a call has, with streams a part of it; sessions
        are made for that many, and a call of another number opens a second one. 0: any number.
    spinning: whether onnxruntime's idle threads wait awake for the next operator; a stream of one
        thread has none.
    """

    runtime: str = "onnxruntime"
    threads: int = 0
    precision: str = ""
    fusions: bool = True
    memory: str = ""
    cuda_graph: bool = False
    streams: int = 1
    pinned: bool | None = None
    spinning: bool = True
    part: int = 0
    fixed_batch: int = 0


class Session(Protocol):
    """A model that is loaded and ready to run."""

    runtime: str
    provider: str
    threads: int
    precision: str
    """What the arithmetic really runs in: "fp32", "bf16", or "int8+fp32" and "int8+bf16",
    where the part behind the plus is what the layers that are not quantized run in."""
    input_name: str
    output_names: tuple[str, ...]

    def run(self, inputs: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch as the input spec has it: float32 (N, C, H, W) or uint8 (N, H, W, C).

        Returns the outputs in `output_names` order."""
        ...

    def close(self) -> None:
        """Give back memory and threads; the session cannot run afterwards."""
        ...


def usable_cores() -> int:
    """Return how many cores this process may use (affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(config: RuntimeConfig) -> tuple[int, int]:
    """Return the threads over all streams, and those of one stream.

    Raises UserError where they cannot be shared out equally.
    """
    threads = config.threads or usable_cores()
    if threads % config.streams:
        raise UserError(
            f"{threads} threads cannot be shared equally by {config.streams} streams.",
            "Give a number of threads that is a multiple of the streams.",
        )
    return threads, threads // config.streams


def part_of(config: RuntimeConfig) -> int:
    """Return how many images a stream takes at a time, 0 for an equal share of each batch.

    Raises UserError where that is not what its session is made for.
    """
    if config.part and config.fixed_batch not in (0, config.part):
        raise UserError(
            f"parts of {config.part} images do not fit sessions for {config.fixed_batch}."
        )
    return config.part or config.fixed_batch
