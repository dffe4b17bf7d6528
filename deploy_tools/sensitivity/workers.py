"""The same work in this process, in worker processes, or on machines that Ray holds."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from deploy_tools.errors import MissingDependencyError, UserError, nearest, require

ENGINES = ("processes", "ray")

T = TypeVar("T")
R = TypeVar("R")


def map_tasks(
    function: Callable[[T], R], tasks: Iterable[T], engine: str = "processes", workers: int = 1
) -> Iterator[R]:
    """Yield function(task) for each task, in order.

    function, tasks and results must pickle. engine: "processes", new processes of this machine,
    or "ray", tasks of the Ray cluster that RAY_ADDRESS names, else of a local one; `workers` of
    them at a time. One worker with "processes" is this very process. Tasks are taken from the
    iterable as workers become free, so that only a few are in memory.
    Raises UserError for an unknown engine and where a worker dies; MissingDependencyError where
    Ray is not installed.
    """
    if engine not in ENGINES:
        raise UserError(f'engine "{engine}" is not known.', nearest(engine, ENGINES))
    if workers < 1:
        raise UserError(f"workers must be at least 1, got {workers}.")
    if engine == "ray":
        return _with_ray(function, tasks, workers)
    if workers == 1:
        return map(function, tasks)
    return _with_processes(function, tasks, workers)


def _with_processes(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[R]:
    # Spawn: a fork would copy the threads of onnxruntime in a broken state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context)
    try:
        submit = lambda task: pool.submit(function, task)  # noqa: E731
        yield from _windowed(tasks, workers, submit, lambda future: future.result())
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died.", "Was it out of memory? Use fewer workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _with_ray(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[R]:
    ray: Any = require("ray", "ray", "Spreading work with --engine ray")
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(**_local_options(workers), log_to_driver=False)
        except (ConnectionError, RuntimeError) as error:
            raise MissingDependencyError(
                f"Ray cannot be reached: {error}",
                "RAY_ADDRESS names the cluster; without it one is started on this machine.",
            ) from error
    remote = ray.remote(function)
    try:
        yield from _windowed(tasks, workers, remote.remote, ray.get)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise UserError(f"a worker of Ray failed: {error}", "Use fewer workers.") from error
    finally:
        if started:
            ray.shutdown()


def _local_options(workers: int) -> dict[str, Any]:
    """Return how to start a cluster of this machine; nothing where RAY_ADDRESS names one."""
    if os.environ.get("RAY_ADDRESS"):
        return {}
    return {"num_cpus": workers, "include_dashboard": False}


def _windowed(
    tasks: Iterable[T],
    workers: int,
    submit: Callable[[T], Any],
    result: Callable[[Any], R],
) -> Iterator[R]:
    """Keep one task more than there are workers under way; yield results in order."""
    waiting: deque[Any] = deque()
    remaining = iter(tasks)
    for task in itertools.islice(remaining, workers + 1):
        waiting.append(submit(task))
    while waiting:
        found = result(waiting.popleft())
        for task in itertools.islice(remaining, 1):
            waiting.append(submit(task))
        yield found
