"""Work on files in a few threads, ahead of whoever takes the results, in memory that is bounded.

Threads, since the decoders leave Python's lock while they decode and resize: no copy between
processes, no second interpreter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

from deploy_tools.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of one file: a value, or the error that its user can do something about."""

    path: Path
    value: T | None
    error: UserError | None = None


def in_order(
    paths: Iterable[Path], make: Callable[[Path], T], workers: int, ahead: int
) -> Generator[Outcome[T], None, None]:
    """Yield make(path) for each path, in the order of the paths.

    At most `ahead` results exist that were not taken yet, and `paths` is read no further than
    that, so memory does not depend on how many there are. A UserError of `make` becomes the
    outcome of its path; any other error ends the iteration. Whoever stops early closes the
    iterator: what is waiting is dropped, what runs is waited for.
    Raises UserError for workers or ahead below 1.
    """
    if workers < 1 or ahead < 1:
        raise UserError(f"workers and ahead must be at least 1, got {workers} and {ahead}.")
    source = iter(paths)
    waiting: deque[Future[Outcome[T]]] = deque()

    def outcome(path: Path) -> Outcome[T]:
        try:
            return Outcome(path, make(path))
        except UserError as error:
            # The traceback would keep the decoded image alive.
            return Outcome(path, None, error.with_traceback(None))

    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        waiting.extend(pool.submit(outcome, path) for path in islice(source, ahead))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(outcome, path) for path in islice(source, 1))
            yield done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
