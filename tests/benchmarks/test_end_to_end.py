import itertools
import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.end_to_end import PathToLabel, rows_of
from benchmarks.predictions import predictions_from_images
from benchmarks.samples import read_samples
from benchmarks.server import ServerConfig
from benchmarks.speed import SpeedConfig, measure_speed, save_samples
from deploy_tools.data import fashion_mnist, open_source
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError
from deploy_tools.runtimes import open_session

SPEC = InputSpec(size=(28, 28), mean=(0.2860,), std=(0.3530,))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten real images as PNG files, in folders of their classes."""
    source, root = fashion_mnist.load("test"), tmp_path_factory.mktemp("photos")
    for index in range(10):
        folder = root / "test" / str(source.labels[index])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.load(index)[..., 0]).save(folder / f"{index}.png")
    return open_source("imagefolder", root, "test")


def test_labels_are_those_of_the_evaluation(photos, demo_onnx):
    session = open_session(demo_onnx)
    wanted = predictions_from_images(session, photos, SPEC, 4).logits.argmax(axis=1)
    timed = PathToLabel(session, SPEC, photos)
    (first,) = timed.run(rows_of(4))
    (second,) = timed.run(rows_of(4))
    (third,) = timed.run(rows_of(4))
    found = np.concatenate([first, second, third])
    np.testing.assert_array_equal(found[:10], wanted)
    np.testing.assert_array_equal(found[10:], wanted[:2])  # from the start again
    assert len(set(wanted.tolist())) > 3


def test_every_call_reads_its_files_anew(photos, demo_onnx, monkeypatch):
    loaded = []
    real = type(photos).load

    def load(self, index):
        loaded.append(index)
        return real(self, index)

    monkeypatch.setattr(type(photos), "load", load)
    timed = PathToLabel(open_session(demo_onnx), SPEC, photos)
    for _ in range(4):
        timed.run(rows_of(3))
    assert loaded == [*range(10), 0, 1]


def test_a_slow_and_a_fast_variant_see_the_same_images_in_a_round(photos, demo_onnx):
    """In slots that end by time; the fast one only gets further."""
    log = {"slow": [], "fast": []}
    clock = [0]

    def prepare(name, ns):
        def read(index):
            clock[0] += ns
            log[name].append(index)
            return np.zeros((1, 28, 28), np.float32)

        return read

    session = open_session(demo_onnx)
    timed = {
        "slow": PathToLabel(session, SPEC, photos, prepare("slow", 1_000_000)),
        "fast": PathToLabel(session, SPEC, photos, prepare("fast", 400_000)),
    }
    begun = {name: [] for name in timed}
    for name, one in timed.items():
        real = one.begin_slot

        def begin_slot(number, name=name, real=real):
            begun[name].append(len(log[name]))
            real(number)

        one.begin_slot = begin_slot
    for scenario in ("single-stream", "server"):
        config = SpeedConfig(
            (scenario,), rounds=3, seconds_per_round=0.005, warmup=1, settle=1,
            server=ServerConfig(latency_limit_ms=2, target_rate=500, rounds=3),
        )  # fmt: skip
        for name in timed:
            log[name].clear()
            begun[name].clear()
        measure_speed(
            timed, rows_of, "slow", config, clock=lambda: clock[0], wait=lambda: None,
            sleep=lambda seconds: clock.__setitem__(0, clock[0] + round(seconds * 1e9) + 1000),
        )  # fmt: skip
        slots = {
            name: [
                log[name][low:high]
                for low, high in itertools.pairwise([*begun[name], len(log[name])])
            ]
            for name in timed
        }
        assert len(slots["slow"]) == len(slots["fast"]) == 3
        for slow, fast in zip(slots["slow"], slots["fast"], strict=True):
            assert len(slow) >= 2
            assert fast[: len(slow)] == slow
        assert len({slot[0] for slot in slots["slow"]}) == 3


def test_another_way_to_prepare_images_can_be_timed(photos, demo_onnx):
    asked = []

    def prepare(index):
        asked.append(index)
        return np.zeros((1, 28, 28), np.float32)

    PathToLabel(open_session(demo_onnx), SPEC, photos, prepare).run(rows_of(2))
    assert asked == [0, 1]


def test_runs_and_samples_say_that_they_are_end_to_end(photos, demo_onnx, tmp_path):
    sessions = {"a": PathToLabel(open_session(demo_onnx), SPEC, photos)}
    config = SpeedConfig(
        ("single-stream", "multi-stream", "server"), rounds=3, seconds_per_round=0.005, warmup=1,
        samples_per_query=3,
        server=ServerConfig(latency_limit_ms=5, target_rate=500, rounds=3),
    )  # fmt: skip
    runs = measure_speed(sessions, rows_of, "a", config)
    assert [(run.scenario, run.batch) for run in runs] == [
        ("single-stream", 1), ("multi-stream", 3), ("server", 1)
    ]  # fmt: skip
    assert all(run.to_dict()["end_to_end"] for run in runs)
    path = save_samples(runs, tmp_path)["a"]
    assert [found.end_to_end for found in read_samples(path)] == [True] * 3
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:  # as files written before these keys existed
        line.pop("end_to_end")
        line.pop("latency_limit_ms", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [found.end_to_end for found in read_samples(path)] == [False] * 3


def test_images_in_memory_are_refused(demo_onnx):
    source = fashion_mnist.load("test")
    with pytest.raises(UserError, match="no files to decode"):
        PathToLabel(open_session(demo_onnx), SPEC, source)
