"""Several streams behind one session: a batch is split among them, concurrent calls get one each.

On a CPU the threads of one call wait for each other at every operator. Streams that share nothing
do not: together they give more images per second, while a single image takes longer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy_tools.errors import UserError
from deploy_tools.runtimes.base import Session

_TOPOLOGY = Path("/sys/devices/system/cpu")
Outputs = tuple[NDArray[np.float32], ...]


class StreamSession:
    """A session of `streams` streams; each is a thread that runs one call at a time.

    A call with one image goes to a stream that is free; a batch is cut into as many parts as there
    are streams, and the parts' outputs are put together in their order. Calls may come from several
    threads. sessions: one for each worker; the same one more than once where its calls may overlap.
    part: how many images the sessions are made for: a batch is cut into parts of that size, and a
    stream takes the next one when it is free; 0 for any number.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        workers: Sequence[ThreadPoolExecutor],
        threads: int,
        part: int = 0,
    ) -> None:
        first = sessions[0]
        self.runtime, self.provider = first.runtime, first.provider
        self.precision, self.threads = first.precision, threads
        self.input_name, self.output_names = first.input_name, first.output_names
        self.streams, self.part = len(workers), part
        self._sessions, self._workers = tuple(sessions), tuple(workers)
        self._free: SimpleQueue[int] = SimpleQueue()
        for place in range(self.streams):
            self._free.put(place)
        self._closed = False

    def run(self, inputs: NDArray[Any]) -> Outputs:
        if self._closed:
            raise RuntimeError("the session is closed")
        if 0 < self.part <= len(inputs):
            parts = [inputs[at : at + self.part] for at in range(0, len(inputs), self.part)]
        else:
            parts = np.array_split(inputs, min(self.streams, max(len(inputs), 1)))
        waiting = [self._submit(part) for part in parts]
        done = [future.result() for future in waiting]
        if len(done) == 1:
            return done[0]
        self._require_batch_axis(parts, done)
        return tuple(np.concatenate(pieces) for pieces in zip(*done, strict=True))

    def close(self) -> None:
        self._closed = True
        for worker in self._workers:
            worker.shutdown()
        for session in set(self._sessions):
            session.close()

    def _submit(self, part: NDArray[Any]) -> Future[Outputs]:
        place = self._free.get()
        future = self._workers[place].submit(self._sessions[place].run, part)
        future.add_done_callback(lambda _: self._free.put(place))
        return future

    def _require_batch_axis(
        self, parts: Sequence[NDArray[Any]], done: Sequence[Sequence[NDArray[Any]]]
    ) -> None:
        """Refuse outputs that do not have one row an image: their parts do not make a whole."""
        for part, outputs in zip(parts, done, strict=True):
            for name, output in zip(self.output_names, outputs, strict=True):
                if output.shape[:1] != (len(part),):
                    raise UserError(
                        f"output {name} has no batch axis, so a batch cannot be split.",
                        "Run it with one stream.",
                    )


def open_streams(
    open_one: Callable[[], Session],
    streams: int,
    threads: int,
    cores: Sequence[Sequence[int]] = (),
    shared: bool = False,
    part: int = 0,
) -> StreamSession:
    """Return a StreamSession of what `open_one` opens, one session a stream.

    threads: over all streams. cores: those that each stream keeps to; a session is opened on its
    stream's thread, and the threads it makes are born with that thread's cores. shared: one session
    for all streams, which must be able to run calls at the same time. part: as in StreamSession.
    """
    workers = [
        ThreadPoolExecutor(1, "stream", _keep_to, (cores[place] if cores else (),))
        for place in range(streams)
    ]
    sessions: list[Session] = []
    try:
        for worker in workers[:1] if shared else workers:
            sessions.append(worker.submit(open_one).result())
    except BaseException:
        for worker in workers:
            worker.shutdown()
        for session in sessions:
            session.close()
        raise
    return StreamSession(sessions * (streams if shared else 1), workers, threads, part)


def share_session(session: Session, streams: int, part: int = 0) -> StreamSession:
    """Return `streams` streams of one session, which has as many of its own."""
    workers = [ThreadPoolExecutor(1, "stream") for _ in range(streams)]
    return StreamSession([session] * streams, workers, session.threads, part)


def core_groups(streams: int, threads: int) -> tuple[tuple[int, ...], ...]:
    """Return the cores of each stream: `threads` each, none of them twice.

    Each thread has a physical core of its own where there are enough. Otherwise physical cores are
    dealt out whole, so that it is the threads of one stream that share one (but for an odd number
    of threads, where a core lies between two streams). Raises UserError where there are too few
    cores, and where the system cannot keep a thread to one.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("this system cannot keep a thread to a core.", "Leave the pinning out.")
    physical: dict[int, list[int]] = {}
    for core in sorted(os.sched_getaffinity(0)):
        physical.setdefault(_physical(core), []).append(core)
    if streams * threads <= len(physical):
        cores = [group[0] for group in physical.values()]
    else:
        cores = [core for group in physical.values() for core in group]
    if streams * threads > len(cores):
        raise UserError(
            f"{streams} streams of {threads} threads cannot have cores of their own: this process "
            f"may use {len(cores)}."
        )
    return tuple(tuple(cores[i * threads : (i + 1) * threads]) for i in range(streams))


def _physical(core: int) -> int:
    """Return the first of the cores that share its physical core; itself where that is unknown."""
    try:
        text = (_TOPOLOGY / f"cpu{core}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return core
    first = re.match(r"\d+", text)
    return int(first.group()) if first else core


def _keep_to(cores: Sequence[int]) -> None:
    """Keep this thread, and those that it starts, to some cores; none leaves it as it is."""
    if cores:
        os.sched_setaffinity(0, set(cores))
