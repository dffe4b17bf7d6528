"""The study's rows and claims, on the CPU with another clock; its figures need a GPU."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.studies import gpu_baseline as study
from benchmarks.studies.base import Results, run_study

torch = pytest.importorskip("torch")

PLAN = study.Plan(size=32, rounds=3, repeats=2, warmup=1, settle=0, device="cpu")


def host_times(call: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return times


def as_it_is(call: Callable[[], Any]) -> Callable[[], Any]:
    """In the place of a CUDA graph, which a CPU has not."""
    return call


def test_without_a_gpu_it_ends_with_3_and_the_reason() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = CliRunner().invoke(run_study("gpu_baseline", study.main), ["--quick", "--json"])
    assert done.exit_code == 3
    assert "no GPU to use: " in done.stderr


def test_every_mode_gets_a_row_and_is_claimed_to_be_the_same_model() -> None:
    results = Results(True, lambda line: None)
    study.measure(results, PLAN, "resnet20-cifar", 4, study.MODES, host_times, as_it_is)
    assert [row["mode"] for row in results.rows] == [mode.name for mode in study.MODES]
    assert all(len(row["rounds_ms"]) == 3 for row in results.rows)
    assert results.rows[0]["speedup"] == 1.0
    assert [claim.name.split()[3].rstrip(":") for claim in results.claims] == [
        mode.name for mode in study.MODES[1:]
    ]
    assert all(claim.met for claim in results.claims)
    json.dumps(results.rows, allow_nan=False)


def test_the_modes_run_in_what_they_say() -> None:
    seen, graphs = {}, []
    calls = study._prepared(PLAN, "resnet20-cifar", 2, study.MODES, lambda c: graphs.append(c) or c)
    for mode in study.MODES:
        with study._as(mode, "cpu"):
            inside = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
            assert inside == (mode.tf32, mode.tf32)
            found = calls[mode.name]()
        assert found.is_inference()
        seen[mode.name] = found.dtype
    assert seen["fp32"] == seen["tf32"] == torch.float32
    assert seen["amp-fp16"] == seen["fp16-channels-last"] == torch.float16
    assert seen["amp-bf16-channels-last"] == torch.bfloat16
    assert graphs == [calls["fp16-channels-last-graph"]]


def test_what_is_timed_is_the_model_alone() -> None:
    """Inference mode, autocast and TF32 are set by then; a timed call does not set them again."""
    amp = study.MODES[4]
    states: list[Any] = []

    def times(call: Callable[[], Any], repeats: int) -> list[float]:
        states.append((torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
        return [1.0] * repeats

    study.measure(Results(True, print), PLAN, "resnet20-cifar", 2, (study.MODES[0], amp), times)
    assert amp.autocast
    assert sorted(set(states)) == [(True, False), (True, True)]


def test_a_row_has_an_interval_for_each_figure() -> None:
    results = Results(True, lambda line: None)
    study.measure(results, PLAN, "resnet20-cifar", 2, study.MODES[:2], host_times)
    for row in results.rows:
        for name in ("p50_ms", "p99_ms", "images_per_s", "speedup"):
            low, high = row[f"{name}_ci95"]
            assert low <= row[name] <= high


def test_another_function_misses_its_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = study._prepared

    def broken(*args: Any) -> dict[str, Any]:
        calls = prepared(*args)
        good = calls["amp-fp16"]
        return calls | {"amp-fp16": lambda: good() * 1.2}

    monkeypatch.setattr(study, "_prepared", broken)
    results = Results(True, lambda line: None)
    study.measure(results, PLAN, "resnet20-cifar", 2, (study.MODES[0], study.MODES[4]), host_times)
    assert [c.name for c in results.claims if not c.met] == [
        "resnet20-cifar batch 2 amp-fp16: logit SQNR against fp32, dB"
    ]
