"""Interleaving, statistics and kept samples of the GPU timings, with planted times.

The times come from CUDA events only in tests/gpu.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_speed import (
    GpuSpeedConfig,
    measure_gpu_speed,
    read_gpu_samples,
    save_gpu_samples,
)
from deploy_tools.errors import ArtifactError, UserError

CONFIG = GpuSpeedConfig(batches=(1, 4), warmup=7, settle=2, rounds=5, repeats=10)


class Engine:
    """Takes `ms(call)` milliseconds an image, and half as much again for the copies."""

    def __init__(self, name: str, ms: Any, log: list[Any]) -> None:
        self.name, self.ms, self.log, self.turns = name, ms, log, 0

    cuda_graph = True
    largest = 8

    def require_batch(self, batch: int) -> None:
        if batch > self.largest:
            raise UserError(f"{self.name} takes no {batch}")

    def time_batches(self, inputs: Any, repeats: int, warmup: int, read_state: bool) -> Any:
        assert not read_state  # nvidia-smi would let the GPU cool down between the calls
        self.log.append((self.name, len(inputs), repeats, warmup))
        compute = np.full(repeats, self.ms(self.turns) * len(inputs))
        self.turns += 1
        return SimpleNamespace(compute_ms=compute, with_copies_ms=1.5 * compute)


def measured(config: GpuSpeedConfig = CONFIG, **options: Any) -> tuple[Any, list[Any]]:
    log: list[Any] = []
    engines = {
        "fp16": Engine("fp16", options.pop("base", lambda turn: 0.2), log),
        "int8": Engine("int8", options.pop("other", lambda turn: 0.1), log),
    }
    heat = iter(range(1000))
    runs = measure_gpu_speed(
        engines,
        lambda n: np.zeros((n, 1, 4, 4), np.float32),
        "fp16",
        config,
        state=lambda: {"temperature.gpu": next(heat)},
        **options,
    )
    return {(run.variant, run.batch): run for run in runs}, log


def test_planted_times_come_out() -> None:
    runs, _ = measured()
    assert list(runs) == [("fp16", 1), ("int8", 1), ("fp16", 4), ("int8", 4)]
    run = runs["int8", 4]
    assert run.percentiles_ms("compute")["p50"].estimate == pytest.approx(0.4)
    assert run.percentiles_ms("with_copies")["p99"].estimate == pytest.approx(0.6)
    assert run.images_per_s["compute"].estimate == pytest.approx(10_000)
    assert run.images_per_s["with_copies"].estimate == pytest.approx(10_000 / 1.5)
    assert run.speedup["compute"].ends() == pytest.approx([2, 2])
    assert runs["fp16", 4].speedup["compute"].ends() == [1.0, 1.0]
    assert str(run).startswith("int8 batch 4: 0.4000 ms compute, 0.6000 ms with copies")


def test_warm_up_comes_first_and_rounds_are_interleaved() -> None:
    runs, log = measured()
    assert log[:2] == [("fp16", 1, 1, 7), ("int8", 1, 1, 7)]
    rounds = [log[2 + 2 * i : 4 + 2 * i] for i in range(5)]
    for turn in rounds:
        assert sorted(turn) == [("fp16", 1, 10, 2), ("int8", 1, 10, 2)]
    assert len({turn[0] for turn in rounds}) == 2  # not always the same one first
    assert [t.round for t in runs["int8", 1].turns] == list(range(5))
    assert {t.position for t in runs["int8", 1].turns} == {0, 1}
    assert measured()[1] == log
    assert measured(GpuSpeedConfig((1, 4), 7, 2, 5, 10, seed=1))[1] != log


def test_a_slow_spell_of_the_gpu_does_not_move_the_speedup() -> None:
    slow = {"base": lambda turn: 0.2 * (1 + turn), "other": lambda turn: 0.1 * (1 + turn)}
    run = measured(**slow)[0]["int8", 1]
    assert run.speedup["compute"].ends() == pytest.approx([2, 2])
    assert run.percentiles_ms("compute")["p99"].estimate > 0.5


def test_the_state_is_read_before_the_first_round_and_after_each() -> None:
    runs, _ = measured()
    assert [s["temperature.gpu"] for s in runs["fp16", 1].states] == list(range(6))
    assert runs["fp16", 4].to_dict()["before"] == {"temperature.gpu": 6}
    assert runs["fp16", 4].to_dict()["after"] == {"temperature.gpu": 11}


def test_samples_come_back(tmp_path: Path) -> None:
    runs, _ = measured(other=lambda turn: 0.1 + 0.01 * turn)
    paths = save_gpu_samples(list(runs.values()), tmp_path, CONFIG)
    assert paths["int8"] == tmp_path / "samples" / "int8.gpu.jsonl"
    head, turns = read_gpu_samples(paths["int8"])
    assert head["variant"] == "int8"
    assert head["config"]["warmup"] == 7
    assert {"cpu", "packages", "os"} <= set(head["environment"])
    for batch in (1, 4):
        for found, kept in zip(turns[batch], runs["int8", batch].turns, strict=True):
            assert (found.round, found.position) == (kept.round, kept.position)
            np.testing.assert_array_equal(found.compute_ms, kept.compute_ms)
            np.testing.assert_array_equal(found.with_copies_ms, kept.with_copies_ms)
    lines = [json.loads(line) for line in paths["int8"].read_text().splitlines()[1:]]
    assert [line["before"]["temperature.gpu"] for line in lines[:5]] == list(range(5))
    assert [line["after"]["temperature.gpu"] for line in lines[:5]] == list(range(1, 6))


def test_damaged_samples_are_artifact_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.gpu.jsonl"
    with pytest.raises(ArtifactError, match="does not exist"):
        read_gpu_samples(path)
    for text in ("", "{", "[1]", '{"a": 1}\n{"batch": 1}', "1\n2"):
        path.write_text(text)
        with pytest.raises(ArtifactError, match="not a readable"):
            read_gpu_samples(path)


def test_the_dict_is_json_and_carries_intervals() -> None:
    values = measured()[0]["int8", 4].to_dict("samples/int8.gpu.jsonl")
    json.dumps(values, allow_nan=False)
    for clock in ("compute", "with_copies"):
        for name in ("p50_ms", "p90_ms", "p99_ms", "images_per_s", "speedup"):
            low, high = values[f"{clock}_{name}_ci95"]
            assert low <= values[f"{clock}_{name}"] <= high
    assert (values["cuda_graph"], values["note"]) == (True, "")
    assert (values["warmup"], values["rounds"], values["sample_count"]) == (7, 5, 50)


def test_bad_settings_and_names_are_refused() -> None:
    for wrong in (
        {"batches": ()}, {"batches": (0,)}, {"batches": (1, 1)}, {"rounds": 2}, {"repeats": 0},
        {"warmup": -1}, {"settle": -1},
    ):  # fmt: skip
        with pytest.raises(UserError):
            GpuSpeedConfig(**wrong)
    with pytest.raises(UserError, match='Did you mean "fp16"'):
        measure_gpu_speed({"fp16": Engine("x", None, [])}, lambda n: None, "fp61")


def test_a_batch_that_one_cannot_take_is_refused_before_anything_is_timed() -> None:
    log: list[Any] = []
    engines = {"a": Engine("a", lambda turn: 0.1, log), "b": Engine("b", lambda turn: 0.1, log)}
    engines["b"].largest = 3
    with pytest.raises(UserError, match="b takes no 4"):
        measure_gpu_speed(engines, lambda n: np.zeros((n, 1, 4, 4), np.float32), "a", CONFIG)
    assert log == []


def test_rows_and_samples_say_whether_graphs_were_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for used in (True, False):
        monkeypatch.setattr(Engine, "cuda_graph", used)
        runs = list(measured()[0].values())
        assert {run.cuda_graph for run in runs} == {used}
        assert ("--cuda-graph" in runs[0].to_dict()["note"]) is not used
        path = save_gpu_samples(runs, tmp_path, CONFIG)["int8"]
        lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        assert {line["cuda_graph"] for line in lines} == {used}


def test_progress_counts_rounds() -> None:
    steps: list[Any] = []
    measured(progress=lambda *step: steps.append(step))
    assert steps[0] == ("GPU speed, batch 1", 1, 5)
    assert steps[-1] == ("GPU speed, batch 4", 5, 5)
