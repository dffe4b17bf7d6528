"""One scenario of one model: searched, compared with FP32, timed; nobody's failure is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.peers.base import PeerError
from benchmarks.peers.sessions import FunctionSession
from benchmarks.peers.setting import Space
from benchmarks.server import ServerConfig
from benchmarks.speed import SpeedConfig
from benchmarks.studies import speed_run
from benchmarks.studies.speed_claims import values_of
from benchmarks.studies.speed_rows import BASELINE, Row, Source
from benchmarks.studies.speed_run import Bench, Plan, Timed
from deploy_tools.data.source import ArraySource
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import MissingDependencyError, UserError

SPEC = InputSpec((8, 8), (0.5,), (0.25,))
CONFIG = SpeedConfig(
    warmup=1, settle=0, rounds=3, seconds_per_round=0.0, min_calls=1, samples_per_query=4
)
WEIGHTS = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)


class Files:
    """Every file but "missing" is there; nothing is made."""

    job = SimpleNamespace(spec=SPEC)

    def source(self, name: str) -> Source:
        if name == "missing":
            raise MissingDependencyError("the tool needs x.", "Install it.")
        return Source(Path(name), lambda: None)  # type: ignore[arg-type, return-value]


def product(noise: float = 0.0):
    """A session that multiplies; noise: relative, of its logits."""

    def opened(source, setting):
        def call(inputs):
            if inputs.dtype == np.uint8:
                inputs = (inputs.transpose(0, 3, 1, 2) / np.float32(255) - 0.5) / 0.25
            logits = inputs.reshape(len(inputs), -1) @ WEIGHTS
            spread = noise * np.random.default_rng(1).normal(size=logits.shape)
            return (logits * (1 + spread)).astype(np.float32)

        return FunctionSession("some", "int8+fp32", call)

    return opened


def fails(source, setting):
    raise RuntimeError("/a/b/kernel.cpp: no such kernel")


def fails_with_two_streams(source, setting):
    if setting.streams > 1:
        raise RuntimeError("one stream only")
    return product()(source, setting)


def row(tool: str, way: str, opened, **more) -> Row:
    return Row(tool, way, "int8", more.pop("file", "file"), opened, **more)


ROWS = (
    Row("onnxruntime", "FP32", "fp32", "fp32", product()),
    row("good", "int8", product(0.01)),
    row("good", "uint8", product(), pixels=True),
    row("other", "model", lambda source, setting: FunctionSession(
        "some", "int8", lambda x: np.ones((len(x), 5), np.float32))),
    row("tool", "missing", product(), file="missing"),
    row("tool", "broken", fails),
    row("tool", "picky", fails_with_two_streams),
)  # fmt: skip


def first_two(timed: list[Timed]) -> list[Timed]:
    return [each for each in timed[:2] if each.run is not None]


@pytest.fixture
def bench(monkeypatch) -> Bench:
    monkeypatch.setattr(speed_run, "usable_cores", lambda: 2)
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
    source = ArraySource("some", "test", images, np.zeros(6, np.int64), ())
    return Bench(Files(), source, Plan(16, CONFIG, CONFIG, replace(CONFIG, rounds=4)))  # type: ignore[arg-type]


@pytest.mark.parametrize("scenario", ["single-stream", "offline", "multi-stream"])
def test_every_row_is_timed_or_has_a_reason(bench: Bench, scenario: str) -> None:
    timed = {each.row.name: each for each in bench.measure(ROWS, scenario, first_two)}
    assert list(timed) == [each.name for each in ROWS]
    ran = {name for name, each in timed.items() if each.run is not None}
    assert ran == {BASELINE, "good int8", "good uint8", "tool picky"}
    query = {"single-stream": 1, "offline": 16, "multi-stream": 4}[scenario]
    for name in ran:
        run = timed[name].run
        assert (run.scenario, run.batch, len(run.samples.slots)) == (scenario, query, 3)
        assert run.baseline is timed[BASELINE].run.samples
        assert timed[name].reason == ""
    # The chosen ones are timed once more, in another run.
    again = {name: each.duel for name, each in timed.items() if each.duel is not None}
    assert list(again) == [BASELINE, "good int8"]
    for name, run in again.items():
        assert (run.scenario, len(run.samples.slots)) == (scenario, 4)
        assert run.baseline is again[BASELINE].samples
        assert run.samples is not timed[name].run.samples
    assert "needs x. Install it." in timed["tool missing"].reason
    assert timed["tool broken"].reason == "RuntimeError: kernel.cpp: no such kernel"
    assert "not the model's" in timed["other model"].reason
    assert timed["good int8"].runs_in == "int8+fp32"
    assert 30 < timed["good int8"].sqnr_db < 50
    # Pixels are normalized inside the session: the same model on the same images.
    assert timed["good uint8"].sqnr_db > 90
    assert timed[BASELINE].sqnr_db is None


def test_a_limit_that_nobody_keeps_loses_no_row(bench: Bench) -> None:
    """No rate and no speedup, but latencies, for the baseline too."""
    server = ServerConfig(latency_limit_ms=1e-4, rounds=3, steps=1)
    config = replace(CONFIG, server=server)
    bench.plan = Plan(16, config, config, config)
    rows = (*ROWS[:2], row("tool", "broken", fails))
    timed = bench.measure(rows, "server", first_two)
    for each in timed[:2]:
        assert each.run is not None, each.reason
        assert (each.run.has_rate, each.run.has_speedup, each.run.met) == (False, False, False)
        assert each.run.latency_ms["p99"].estimate > 1e-4
        assert set(each.search.tried.values()) == {0.0}
        json.dumps(values_of(each), allow_nan=False)
    assert "no such kernel" in timed[2].reason


def test_logits_that_are_no_numbers_are_not_the_model(bench: Bench) -> None:
    def opened(source, setting):
        return FunctionSession("some", "int8", lambda x: np.full((len(x), 5), np.nan, np.float32))

    found = bench.measure((ROWS[0], row("tool", "nan", opened)), "offline", first_two)[1]
    assert found.run is None
    assert "not the model's: nan dB" in found.reason


def test_a_row_that_breaks_on_the_judged_images_stops_no_other(bench: Bench) -> None:
    def opened(source, setting):
        def call(inputs):
            if len(inputs) > 1:
                raise RuntimeError("one image only")
            return product()(source, setting).run(inputs)[0]

        return FunctionSession("some", "int8", call)

    timed = bench.measure((*ROWS[:2], row("tool", "single", opened)), "single-stream", first_two)
    assert timed[1].run is not None
    assert (timed[2].run, timed[2].reason) == (None, "RuntimeError: one image only")


def test_a_setting_that_fails_is_not_chosen(bench: Bench) -> None:
    picky = next(
        each for each in bench.measure(ROWS, "offline", first_two) if each.row.way == "picky"
    )
    assert picky.search.best.streams == 1
    assert {s.streams for s, rate in picky.search.tried.items() if rate == 0} == {2}


def test_the_fastest_setting_is_chosen(bench: Bench, monkeypatch) -> None:
    def rates(row, settings, scenario, failures, waits):
        return {setting: {4: 900.0}.get(setting.chunk, 100.0) for setting in settings}

    opened = []

    def remembered(source, setting):
        opened.append(setting.chunk)
        return product()(source, setting)

    monkeypatch.setattr(bench, "_rates", rates)
    space = Space(streams=False, divisors=(8, 4, 1))
    rows = (ROWS[0], row("slow", "fast at 4", remembered, space=space))
    found = bench.measure(rows, "offline", first_two)[1]
    assert found.search.best.chunk == 4
    assert {setting.chunk for setting in found.search.tried} == {2, 4, 16}
    assert opened == [4]
    assert found.run is not None


def test_sessions_are_closed_whatever_happens(bench: Bench, monkeypatch) -> None:
    sessions = []

    def opened(source, setting):
        sessions.append(product()(source, setting))
        return sessions[-1]

    rows = (Row("onnxruntime", "FP32", "fp32", "fp32", opened), row("tool", "way", opened))
    bench.measure(rows, "single-stream", first_two)
    monkeypatch.setattr(bench, "_compare", lambda *rest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench.measure(rows, "offline", first_two)
    assert len(sessions) > 6
    for session in sessions:
        with pytest.raises(RuntimeError, match="closed"):
            session.run(np.zeros((1, 1, 8, 8), np.float32))


def test_without_the_baseline_nothing_is_measured(bench: Bench) -> None:
    broken = (Row("onnxruntime", "FP32", "fp32", "fp32", fails), ROWS[1])
    with pytest.raises(UserError, match="baseline does not run: RuntimeError"):
        bench.measure(broken, "offline", first_two)
    with pytest.raises(UserError, match="it is no row"):
        bench.measure(ROWS[1:2], "offline", first_two)


def test_images_are_decoded_once(bench: Bench, monkeypatch) -> None:
    loads = []
    load = bench.images.load
    monkeypatch.setattr(bench.images, "load", lambda index: loads.append(index) or load(index))
    bench.measure(ROWS[:3], "offline", first_two)
    # 16 images of 6, as floats and as pixels.
    assert len(loads) == 32
    assert loads[:8] == [0, 1, 2, 3, 4, 5, 0, 1]


def test_reasons_of_our_own_errors_keep_their_hint() -> None:
    assert speed_run._why(PeerError("it failed.", "Try this.")) == "it failed. Try this."
