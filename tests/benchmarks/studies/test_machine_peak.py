"""What the machine can do at most."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.sessions import FunctionSession
from benchmarks.speed import SpeedConfig
from benchmarks.studies import machine_peak
from benchmarks.studies.base import Results
from benchmarks.studies.machine_peak import Load, convolution_chain, copy_size
from benchmarks.studies.multiply_adds import work_of
from deploy_tools.errors import MissingDependencyError, UserError
from deploy_tools.runtimes import open_session

TINY = SpeedConfig(("offline",), batch=8, warmup=1, settle=0, rounds=3, seconds_per_round=0)


class Sleeper(FunctionSession):
    """Sleeps the seconds that it is given."""

    def __init__(self, seconds: float) -> None:
        import time

        super().__init__("some", "int8", lambda rows: (time.sleep(seconds), rows)[1])


def test_the_best_load_is_the_peak_and_each_has_a_row() -> None:
    def broken():
        raise UserError("no such kernel here.")

    loads = [
        Load("slow", 1e6, lambda: Sleeper(0.02)),
        Load("much work", 1e8, lambda: Sleeper(0.02)),
        Load("broken", 1e9, broken),
    ]
    results = Results(True, lambda line: None)
    peak = machine_peak._best(results, loads, TINY, "things a second")
    assert peak.by == "much work"
    # 1e8 in 20 ms, and sleeping takes a little longer than asked.
    assert 1e9 < peak.value.estimate <= 5e9
    assert peak.value.low <= peak.value.estimate <= peak.value.high
    by_load = {row["load"]: row for row in results.rows}
    assert "no such kernel" in by_load["broken"]["reason"]
    assert by_load["much work"]["value"] == peak.value.estimate
    assert by_load["slow"]["value"] < by_load["much work"]["value"] / 50
    with pytest.raises(MissingDependencyError, match="things"):
        machine_peak._best(results, loads[2:], TINY, "things a second")


def test_the_chain_is_int8_and_its_work_is_what_is_counted(tmp_path: Path) -> None:
    proto = convolution_chain(16, 6, 3, 2)
    path = tmp_path / "chain.onnx"
    path.write_bytes(proto.SerializeToString())
    session = open_session(path)
    assert session.precision == "int8+fp32"
    (out,) = session.run(np.random.default_rng(0).random((2, 16, 6, 6), np.float32))
    # Neither all zero nor all at the end of the range, which would say little about a layer.
    assert out.shape == (2, 16)
    assert 0.01 < out.mean() < 4
    # A float chain of the same size, counted layer by layer.
    for node in proto.graph.node:
        if node.op_type == "Conv":
            node.input[1] = node.input[1].removesuffix("/dq")
    assert work_of(proto).multiply_adds == 2 * 6 * 6 * 16 * 16 * 9
    (three, one) = (machine_peak._SHAPES[name] for name in machine_peak._SHAPES)
    assert (three[2], one[2]) == (3, 1)


def test_loads_count_a_call_s_work(tmp_path: Path) -> None:
    loads = list(machine_peak._convolutions(tmp_path))
    assert len(loads) == 4
    channels, side, kernel = machine_peak._SHAPES["3x3 convolutions"]
    layer = channels * channels * kernel**2 * side**2
    assert loads[0].work == 8 * machine_peak._LAYERS * layer
    assert loads[0].make(8).shape == (8, channels, side, side)
    assert machine_peak._matrices().work == 2048**3


def test_copies_copy(monkeypatch) -> None:
    source, target = np.arange(1000, dtype=np.uint8), np.zeros(1000, np.uint8)
    session = machine_peak._NumpyCopy(source, target)
    session.run(np.arange(8))
    np.testing.assert_array_equal(target, source)
    session.close()
    pytest.importorskip("torch")
    target[:] = 0
    machine_peak._torch_copy(source, target).run(np.arange(8))
    np.testing.assert_array_equal(target, source)
    # Bytes are counted twice: read and written.
    monkeypatch.setattr(machine_peak, "copy_size", lambda: 1_000_000)
    seen = {}
    monkeypatch.setattr(
        machine_peak, "_best", lambda results, loads, config, unit: seen.update(loads=loads)
    )
    machine_peak.copy_bandwidth(Results(True, print), TINY)
    assert [load.work for load in seen["loads"]] == [2e6, 2e6]


def test_the_memory_at_hand_is_the_least_of_machine_and_cgroup(monkeypatch) -> None:
    free = machine_peak._available()
    monkeypatch.setattr(machine_peak, "limits", lambda: {"memory_bytes": 12345})
    assert machine_peak._available() == 12345
    monkeypatch.setattr(machine_peak, "limits", lambda: {"memory_bytes": None})
    assert free == 0 or machine_peak._available() > 12345


def test_arrays_are_larger_than_the_caches(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(machine_peak, "_available", lambda: 64 << 30)
    for index, text in enumerate(("48K", "2048K", "100M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{text}\n")
    assert copy_size(tmp_path) == 400 << 20
    (tmp_path / "index2" / "size").write_text("2G\n")
    assert copy_size(tmp_path) == 2 << 30
    monkeypatch.setattr(machine_peak, "_available", lambda: 4 << 30)
    assert copy_size(tmp_path) == 512 << 20
    assert copy_size(tmp_path / "none") == 256 << 20
