"""What is tried on which machine, and what is left out with its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploy_tools.errors import UserError
from deploy_tools.runtimes import RuntimeConfig
from deploy_tools.tuning.candidates import (
    BATCHES,
    Machine,
    candidates_for,
    copies_of,
    default_settings,
    most_copies,
    with_batches,
    with_parts,
)
from deploy_tools.tuning.settings import Settings

BOTH = ("onnxruntime", "openvino")
TWO = Machine(2, 2, None, 8 * 10**9)


def found(machine: Machine, runtimes=BOTH, file_bytes: int = 10**6, can_split: bool = True):
    return candidates_for(runtimes, "fp32", machine, file_bytes, can_split)


def test_two_cores() -> None:
    settings, skipped = found(TWO)
    assert skipped == []
    assert {(s.threads, s.streams, s.pinned, s.spinning) for s in settings if s.runtime == "onnxruntime"} == {
        (0, 1, None, True), (0, 1, None, False), (1, 1, None, True), (2, 2, None, True), (2, 2, True, True)
    }  # fmt: skip
    assert {(s.threads, s.streams, s.pinned, s.spinning) for s in settings if s.runtime == "openvino"} == {
        (0, 1, None, True), (0, 1, False, True), (1, 1, None, True), (2, 2, None, True), (2, 2, False, True)
    }  # fmt: skip
    assert {s.precision for s in settings} == {"fp32"}
    assert len({str(s) for s in settings}) == len(settings)  # names tell them apart


def test_the_default_is_among_them_and_is_what_commands_do() -> None:
    default = default_settings("onnxruntime", "fp32", None)
    assert default in found(TWO)[0]
    assert default.config() == RuntimeConfig("onnxruntime", 0, "fp32")


def test_one_core_has_nothing_to_share() -> None:
    settings, _ = found(Machine(1, 1), ("onnxruntime",))
    assert settings == [default_settings("onnxruntime", "fp32", None)]


def test_physical_cores_and_cgroup_limits_are_tried_too() -> None:
    settings, _ = found(Machine(16, 8, 6.0), ("onnxruntime",))
    single = {s.threads for s in settings if s.streams == 1}
    assert {0, 8, 6, 4, 3, 2, 1} <= single
    shapes = {(s.streams, s.threads) for s in settings if s.streams > 1}
    assert {(16, 16), (2, 16), (8, 8), (6, 6), (2, 6)} <= shapes
    assert all(threads % streams == 0 for streams, threads in shapes)
    assert all(s.threads <= 16 for s in settings)


def test_copies_of_a_large_model_are_left_out() -> None:
    settings, skipped = found(Machine(8, 8, None, 10**10), file_bytes=10**9)
    assert {(s.settings.runtime, s.settings.streams) for s in skipped} == {("onnxruntime", 4), ("onnxruntime", 2)}  # fmt: skip
    assert all("copies of the model" in s.reason for s in skipped)
    # One thread a stream: they share one session. OpenVINO's streams do so always.
    assert any(s.runtime == "onnxruntime" and s.streams == 8 for s in settings)
    assert any(s.runtime == "openvino" and s.streams == 4 for s in settings)


def test_the_runtimes_take_turns() -> None:
    settings, _ = found(TWO)
    assert [s.runtime for s in settings[:4]] == [*BOTH, *BOTH]


def test_copies_fit_half_the_memory() -> None:
    assert most_copies(Machine(2, memory_bytes=6 * 10**9), 10**8) == 10
    assert most_copies(Machine(2, memory_bytes=10**9), 10**9) == 3  # two to compare, and a third
    assert most_copies(Machine(2), 10**8) == 64


def test_streams_of_several_threads_are_copies() -> None:
    assert copies_of(Settings(threads=8, streams=2)) == 2
    assert copies_of(Settings(threads=8, streams=4, pinned=True)) == 4
    assert copies_of(Settings(threads=8, streams=8, pinned=True)) == 1
    assert copies_of(Settings("openvino", threads=8, streams=4)) == copies_of(Settings()) == 1


def test_a_file_that_scales_calls_together_is_not_split() -> None:
    settings, skipped = found(TWO, can_split=False)
    assert {s.streams for s in settings} == {1}
    assert {s.settings.streams for s in skipped} == {2}
    assert all("changes results" in s.reason for s in skipped)
    assert {s.batch for s in with_batches(settings, can_split=False)} == {8}


def test_batches_give_each_stream_an_image() -> None:
    few, many = Settings(batch=None), Settings(threads=8, streams=8, batch=None)
    sized = with_batches([few, many], can_split=True)
    assert [s.batch for s in sized if s.streams == 1] == list(BATCHES)
    assert [s.batch for s in sized if s.streams == 8] == [8, 16, 32, 64]


@pytest.mark.parametrize(
    "values",
    [
        {"runtime": "tensorrt"}, {"precision": "int8"}, {"threads": -1}, {"streams": 0}, {"batch": 0}
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(values: dict) -> None:
    with pytest.raises(UserError):
        Settings(**values)


def test_settings_say_what_they_are() -> None:
    assert str(Settings("openvino", precision="bf16")) == "openvino, every core, bf16, batch 8"
    assert str(Settings()) == "onnxruntime, every core, batch 8"
    shaped = Settings("openvino", 4, 2, False, batch=None)
    assert str(shaped) == "openvino, 4 threads, 2 streams, not pinned"
    assert str(Settings(threads=1, pinned=True, spinning=False, batch=1)) == (
        "onnxruntime, 1 thread, pinned, not spinning, batch 1"
    )


def test_what_a_runtime_may_know_of_its_calls() -> None:
    one, two = Settings(batch=8), Settings(threads=2, streams=2, batch=8)
    assert with_parts([one]) == [replace(one, fixed=True)]
    found = [(s.part, s.fixed) for s in with_parts([two])]
    assert found == [(0, True), (2, False), (2, True), (1, False), (1, True)]
    assert [s.config().fixed_batch for s in with_parts([two])] == [4, 0, 2, 0, 1]
    assert [s.config().part for s in with_parts([two])] == [0, 2, 2, 1, 1]
    # Without a batch they are single images, and there is nothing to cut.
    single = replace(two, batch=None)
    assert with_parts([single]) == [replace(single, fixed=True)]
    assert replace(single, fixed=True).config().fixed_batch == 1
    uneven = replace(two, batch=6)
    assert {s.part for s in with_parts([uneven])} == {0}
    assert str(replace(two, part=2, fixed=True)).endswith(
        "batch 8, parts of 2, for that size alone"
    )
    for wrong in ({"part": 2}, {"part": -1, "streams": 2}):
        with pytest.raises(UserError):
            Settings(**wrong)
