"""The engine changes where work runs and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from sensitivity_samples import Demo

from deploy_tools.errors import MissingDependencyError, UserError
from deploy_tools.sensitivity.layers import Sensitivity, SensitivityConfig, sensitivity_from_onnx
from deploy_tools.sensitivity.run import Work
from deploy_tools.sensitivity.workers import map_tasks


def square(number: int) -> tuple[int, int]:
    if number == 99:
        raise UserError("99 is no number.", "Take another.")
    return number * number, os.getpid()


def vanish(number: int) -> int:
    os._exit(1)


def test_results_come_in_order_from_other_processes() -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(8):
            taken.append(number)
            yield number

    results = map_tasks(square, tasks(), "processes", 2)
    first = next(results)
    assert len(taken) <= 5  # the rest is made when somebody can work on it
    rest = [first, *results]
    assert [value for value, _ in rest] == [n * n for n in range(8)]
    assert os.getpid() not in {pid for _, pid in rest}
    assert {pid for _, pid in map_tasks(square, range(3))} == {os.getpid()}


def test_a_users_mistake_in_a_worker_stays_one() -> None:
    with pytest.raises(UserError, match="99 is no number") as caught:
        list(map_tasks(square, [1, 99], "processes", 2))
    assert caught.value.hint == "Take another."
    with pytest.raises(UserError, match="worker process died"):
        list(map_tasks(vanish, [1, 2], "processes", 2))
    with pytest.raises(UserError, match="processes"):
        map_tasks(square, [1], "proceses", 2)
    with pytest.raises(UserError, match="at least 1"):
        map_tasks(square, [1], "processes", 0)


def spread(demo: Demo, work: Work) -> Sensitivity:
    config = SensitivityConfig(work=work)
    return sensitivity_from_onnx(demo.model, demo.table(), demo.images(16), config)


def require_same(found: Sensitivity, wanted: Sensitivity) -> None:
    assert np.array_equal(found.everything, wanted.everything)
    assert list(found.alone) == list(wanted.alone)
    for name, logits in wanted.alone.items():
        assert np.array_equal(found.alone[name], logits), name


def test_worker_processes_change_no_bit(demo: Demo) -> None:
    require_same(spread(demo, Work("processes", 2)), spread(demo, Work()))


def test_ray_changes_no_bit(demo: Demo) -> None:
    pytest.importorskip("ray")
    require_same(spread(demo, Work("ray", 2)), spread(demo, Work()))


def test_a_cluster_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def init(**_: object) -> None:
        raise ConnectionError("no cluster at 10.0.0.9")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(MissingDependencyError, match=r"no cluster at 10\.0\.0\.9") as caught:
        list(map_tasks(square, [1], "ray", 2))
    assert "RAY_ADDRESS" in caught.value.hint


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"deploy-tools\[ray\]"):
        list(map_tasks(square, [1], "ray", 2))
