"""Several sessions behind one."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers.sessions import FunctionSession
from benchmarks.peers.streams import Streams
from deploy_tools.errors import UserError
from deploy_tools.runtimes import RuntimeConfig, open_session


def test_streams_give_the_model_s_logits_in_order(tiny: Path) -> None:
    inputs = np.random.default_rng(0).normal(size=(13, 1, 8, 8)).astype(np.float32)
    whole = open_session(tiny)
    (wanted,) = whole.run(inputs)
    for count, chunk in ((1, 4), (2, 3), (3, 1), (2, 13), (2, 50)):
        sessions = [open_session(tiny, RuntimeConfig(threads=1)) for _ in range(count)]
        streams = Streams(sessions, chunk)
        (found,) = streams.run(inputs)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        assert (streams.streams, streams.threads, streams.precision) == (count, 1, "fp32")
        streams.close()
        with pytest.raises(RuntimeError):
            sessions[0].run(inputs)


class Recorder(FunctionSession):
    """Notes how many calls run at a time, and that none of its own overlap."""

    running = most = 0
    lock = threading.Lock()

    def __init__(self) -> None:
        super().__init__("some", "fp32", self.call)
        self.own = threading.Lock()

    def call(self, inputs):
        assert self.own.acquire(blocking=False), "a session runs one call at a time"
        with Recorder.lock:
            Recorder.running += 1
            Recorder.most = max(Recorder.most, Recorder.running)
        time.sleep(0.02)
        with Recorder.lock:
            Recorder.running -= 1
        self.own.release()
        return inputs


def test_streams_run_side_by_side_each_one_call_at_a_time() -> None:
    Recorder.most = 0
    streams = Streams([Recorder(), Recorder(), Recorder()], 1)
    inputs = np.arange(9.0)[:, None]
    np.testing.assert_array_equal(streams.run(inputs)[0], inputs)
    assert Recorder.most == 3
    # Several callers at a time, as the server scenario has them, share the sessions too.
    callers = [threading.Thread(target=streams.run, args=(inputs[:1],)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert Recorder.running == 0
    streams.close()


def test_a_session_with_streams_of_its_own_takes_as_many_callers() -> None:
    met = threading.Barrier(2, timeout=10)

    def model(inputs):
        met.wait()  # both callers are inside
        return inputs

    session = FunctionSession("some", "fp32", model)
    session.streams = 2  # type: ignore[attr-defined]
    streams = Streams([session], 4)
    assert streams.streams == 2
    callers = [threading.Thread(target=streams.run, args=(np.zeros((4, 1)),)) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(20)
    assert met.n_waiting == 0
    assert not met.broken


def test_a_session_with_streams_of_its_own_gets_a_chunk_for_each() -> None:
    sizes = []

    def model(inputs):
        sizes.append(len(inputs))
        return inputs

    session = FunctionSession("some", "fp32", model)
    session.streams, session.threads = 2, 6  # type: ignore[attr-defined, misc]
    streams = Streams([session], 3)
    inputs = np.arange(15.0)[:, None]
    np.testing.assert_array_equal(streams.run(inputs)[0], inputs)
    assert sizes == [6, 6, 3]
    assert streams.threads == 3  # of each stream


def test_nothing_to_run_is_refused() -> None:
    with pytest.raises(UserError, match="run nothing"):
        Streams([], 1)
    with pytest.raises(UserError, match="run nothing"):
        Streams([Recorder()], 0)
