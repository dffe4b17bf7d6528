"""Streams: a batch is split and put together again, calls overlap, threads keep to their cores."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy_tools.errors import UserError
from deploy_tools.runtimes import RuntimeConfig, open_session, openvino, streams
from deploy_tools.runtimes.streams import core_groups, open_streams, share_session


class Doubling:
    """A session that doubles what it is given, and remembers it."""

    runtime = provider = "fake"
    precision, threads, input_name = "fp32", 1, "x"
    output_names: tuple[str, ...] = ("y",)

    def __init__(self, barrier: threading.Barrier | None = None) -> None:
        self.seen: list[int] = []
        self.closed = 0
        self.barrier = barrier
        self.cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()

    def run(self, inputs: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        if self.barrier is not None:
            self.barrier.wait(20)  # a BrokenBarrierError where calls do not overlap
        self.seen.append(len(inputs))
        if (inputs < 0).any():
            raise UserError("negative")
        return (2 * inputs,)

    def close(self) -> None:
        self.closed += 1


def rows(count: int) -> NDArray[np.float32]:
    return np.arange(count, dtype=np.float32)[:, None]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_a_batch_is_split_among_the_streams_and_keeps_its_order(count: int) -> None:
    made = [Doubling() for _ in range(3)]
    left = list(made)
    session = open_streams(lambda: left.pop(0), 3, 3)
    np.testing.assert_array_equal(session.run(rows(count))[0], 2 * rows(count))
    sizes = sorted(size for one in made for size in one.seen)
    assert sizes == sorted(len(part) for part in np.array_split(rows(count), min(count, 3)))
    session.close()


@pytest.mark.parametrize(("count", "sizes"), [(8, [3, 3, 2]), (6, [3, 3]), (3, [3]), (2, [1, 1])])
def test_a_batch_is_cut_into_parts_of_a_given_size(count: int, sizes: list[int]) -> None:
    made = [Doubling(), Doubling()]
    left = list(made)
    session = open_streams(lambda: left.pop(0), 2, 2, part=3)
    np.testing.assert_array_equal(session.run(rows(count))[0], 2 * rows(count))
    assert sorted((size for one in made for size in one.seen), reverse=True) == sizes
    session.close()


def test_calls_of_several_threads_run_at_the_same_time() -> None:
    one = Doubling(threading.Barrier(2))
    session = share_session(one, 2)
    found: list[Any] = []
    callers = [
        threading.Thread(target=lambda n=n: found.append(float(session.run(rows(1) + n)[0][0, 0])))
        for n in (1, 5)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(found) == [2, 10]
    session.close()
    assert one.closed == 1  # shared by both streams, closed once


def test_an_error_reaches_the_caller_and_the_stream_is_free_again() -> None:
    session = share_session(Doubling(), 2)
    for _ in range(3):
        with pytest.raises(UserError, match="negative"):
            session.run(-1 - rows(4))
    np.testing.assert_array_equal(session.run(rows(4))[0], 2 * rows(4))
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run(rows(1))


def test_outputs_without_a_batch_axis_are_refused() -> None:
    class Summing(Doubling):
        def run(self, inputs: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
            return (inputs.sum(axis=0, keepdims=True),)

    session = share_session(Summing(), 2)
    assert session.run(rows(1))[0].shape == (1, 1)
    with pytest.raises(UserError, match="output y has no batch axis"):
        session.run(rows(4))
    session.close()


def test_what_cannot_be_opened_closes_what_was() -> None:
    made: list[Doubling] = []

    def open_one() -> Doubling:
        if made:
            raise UserError("no more")
        made.append(Doubling())
        return made[-1]

    with pytest.raises(UserError, match="no more"):
        open_streams(open_one, 2, 2)
    assert made[0].closed == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_each_stream_is_opened_on_its_own_cores() -> None:
    usable = sorted(os.sched_getaffinity(0))
    groups = [(usable[0],), (usable[-1],)]
    made: list[Doubling] = []
    session = open_streams(lambda: made.append(Doubling()) or made[-1], 2, 2, groups)
    assert [one.cores for one in made] == [set(group) for group in groups]
    assert os.sched_getaffinity(0) == set(usable)  # the caller's thread stays free
    session.close()


def test_cores_of_their_own_come_before_those_that_share_a_core(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for core, siblings in enumerate(["0,2\n", "1,3\n", "0,2\n", "1,3\n"]):
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(streams, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert core_groups(2, 1) == ((0,), (1,))
    assert core_groups(2, 2) == ((0, 2), (1, 3))  # no two streams on one physical core
    assert core_groups(1, 2) == ((0, 1),)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3})
    assert core_groups(2, 1) == ((0,), (3,))
    assert core_groups(3, 1) == ((0,), (2,), (3,))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    with pytest.raises(UserError, match="may use 4"):
        core_groups(5, 1)
    monkeypatch.delattr(os, "sched_setaffinity")
    with pytest.raises(UserError, match="cannot keep a thread"):
        core_groups(1, 1)


@pytest.mark.parametrize(
    "config",
    [
        RuntimeConfig(threads=2, streams=2),
        RuntimeConfig(threads=4, streams=2, spinning=False),
        RuntimeConfig(threads=1, pinned=True),
    ],
    ids=str,
)
def test_onnxruntime_gives_the_same_with_streams(
    small_onnx: Path, small_inputs: Any, config: RuntimeConfig
) -> None:
    single = open_session(small_onnx, RuntimeConfig(threads=1))
    session = open_session(small_onnx, config)
    assert (session.threads, session.streams) == (config.threads, config.streams)
    assert session.precision == single.precision
    for count in (1, 2, 5, 6):
        wanted = single.run(small_inputs[:count])[0]
        np.testing.assert_allclose(session.run(small_inputs[:count])[0], wanted, rtol=1e-5)
    session.close()


def test_openvino_gives_the_same_with_streams(small_onnx: Path, small_inputs: Any) -> None:
    pytest.importorskip("onnxruntime_ep_openvino")
    single = open_session(small_onnx, RuntimeConfig("openvino", 2, "fp32"))
    session = open_session(
        small_onnx, RuntimeConfig("openvino", 2, "fp32", streams=2, pinned=False)
    )
    assert (session.threads, session.streams, session.runtime) == (2, 2, "openvino")
    for count in (1, 5):
        wanted = single.run(small_inputs[:count])[0]
        np.testing.assert_allclose(
            session.run(small_inputs[:count])[0], wanted, rtol=1e-4, atol=1e-5
        )
    session.close()


def test_openvino_properties() -> None:
    plain = openvino._properties("fp32", 4, RuntimeConfig("openvino"))
    assert plain == {
        "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "4", "PERFORMANCE_HINT": "LATENCY"
    }  # fmt: skip
    shaped = openvino._properties("bf16", 4, RuntimeConfig("openvino", streams=2, pinned=False))
    assert shaped == {
        "INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": "4",
        "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": "2", "ENABLE_CPU_PINNING": "NO",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (RuntimeConfig(threads=3, streams=2), "3 threads cannot be shared equally by 2"),
        (RuntimeConfig(threads=1, streams=2), "cannot be shared"),
        (RuntimeConfig(streams=0), "streams must be 1 or more"),
        (RuntimeConfig("openvino", 1, spinning=False), "no option against spinning"),
        (RuntimeConfig("tensorrt", streams=2), "no streams, pinning, spinning or fixed batch"),
        (
            RuntimeConfig("tensorrt-rtx", pinned=True),
            "no streams, pinning, spinning or fixed batch",
        ),
    ],
)
def test_what_a_runtime_does_not_have_is_refused(
    small_onnx: Path, config: RuntimeConfig, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        open_session(small_onnx, config)
