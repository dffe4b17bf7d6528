"""Several sessions of one model that share a query's images: a session again."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.errors import UserError
from deploy_tools.runtimes import Session


class Streams:
    """Cuts what it is given into chunks; each stream takes the next one when it is free.

    sessions: one a stream, all of the same model; or a single one with `streams` of its own, which
    shares out what it is given among them. chunk: images a call of one stream, so a session with
    streams of its own gets a chunk for each. `run` may be called by as many threads at a time as
    there are streams.
    Raises UserError without sessions and for a chunk below 1.
    """

    def __init__(self, sessions: Sequence[Session], chunk: int) -> None:
        if not sessions or chunk < 1:
            raise UserError(f"{len(sessions)} streams with chunks of {chunk} run nothing.")
        first = sessions[0]
        self.runtime, self.provider = first.runtime, first.provider
        self.precision = first.precision
        self.input_name, self.output_names = first.input_name, first.output_names
        self.chunk = chunk
        self._sessions = tuple(sessions)
        self._free: SimpleQueue[Session] = SimpleQueue()
        for session in sessions:
            for _ in range(getattr(session, "streams", 1)):
                self._free.put(session)
        self.streams = self._free.qsize()
        own = self.streams // len(sessions)
        self.threads = max(first.threads // own, 1)  # of one stream
        self._size = chunk * own
        self._pool = ThreadPoolExecutor(len(sessions)) if len(sessions) > 1 else None

    def run(self, inputs: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        """Return the outputs for all inputs, in their order."""
        parts = [inputs[at : at + self._size] for at in range(0, len(inputs), self._size)]
        if len(parts) == 1:
            return self._run_one(parts[0])
        mapped = map(self._run_one, parts) if self._pool is None else self._pool.map(
            self._run_one, parts
        )  # fmt: skip
        return tuple(np.concatenate(each) for each in zip(*mapped, strict=True))

    def close(self) -> None:
        """Close every session."""
        if self._pool is not None:
            self._pool.shutdown()
        for session in self._sessions:
            session.close()

    def _run_one(self, inputs: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        session = self._free.get()
        try:
            return session.run(inputs)
        finally:
            self._free.put(session)
