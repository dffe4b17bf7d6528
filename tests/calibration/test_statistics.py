from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from calibration.identity import StatisticsIdentity
from calibration.observers import TensorObserver
from calibration.statistics import Statistics
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import ArtifactError

SPEC = InputSpec(size=(8, 8), mean=(0.4,), std=(0.2,))


@pytest.fixture
def statistics() -> Statistics:
    tensors = {}
    for seed, name in enumerate(["b", "a"]):
        observer = TensorObserver(name)
        observer.observe(np.random.default_rng(seed).normal(size=500 + seed).astype(np.float32))
        tensors[name] = observer.statistics
    identity = StatisticsIdentity.of("m" * 64, "d" * 64, SPEC, tensors)
    return Statistics(identity, 4, SPEC.to_json(), tensors)


def test_save_and_load(statistics, tmp_path: Path):
    path = tmp_path / "calibration" / "statistics.npz"
    statistics.save(path)
    loaded = Statistics.load(path)
    assert loaded.identity == statistics.identity
    assert loaded.key() == statistics.key()
    assert (loaded.images, loaded.input_spec) == (4, SPEC.to_json())
    assert sorted(loaded.tensors) == ["a", "b"]
    for name, tensor in statistics.tensors.items():
        found = loaded.tensors[name]
        np.testing.assert_array_equal(found.counts, tensor.counts)
        assert {**vars(found), "counts": 0} == {**vars(tensor), "counts": 0}


def _damage(statistics: Statistics, path: Path, change) -> None:
    statistics.save(path)
    with np.load(path) as file:
        header, counts = json.loads(file["header"].tobytes()), file["counts"].copy()
    counts = change(header, counts)
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, header=text, counts=counts)


def _header(key, value):
    def change(header, counts):
        header[key] = value
        return counts

    return change


def _tensor(key, value):
    def change(header, counts):
        header["tensors"][0][key] = value
        return counts

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda header, counts: counts[:-1],
        lambda header, counts: -counts,
        lambda header, counts: counts + 1,
        lambda header, counts: counts.astype(np.float64),
        _header("schema", 2),
        _header("identity", 3),
        _header("images", "many"),
        _header("tensors", {}),
        _tensor("name", "c"),
        _tensor("low", 9.0),
        _tensor("low", None),
        _tensor("high", float("nan")),
        _tensor("zeros", -1),
        _tensor("exponent", 0.5),
        _tensor("bins", 1 << 40),
        _tensor("surprise", 1),
    ],
)
def test_damaged_statistics_are_refused(statistics, tmp_path: Path, change):
    path = tmp_path / "statistics.npz"
    _damage(statistics, path, change)
    with pytest.raises(ArtifactError, match="damaged"):
        Statistics.load(path)


def test_file_that_is_no_archive(statistics, tmp_path: Path):
    path = tmp_path / "statistics.npz"
    with pytest.raises(ArtifactError, match="does not exist"):
        Statistics.load(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ArtifactError, match="damaged"):
        Statistics.load(path)
    statistics.save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ArtifactError, match="damaged"):
        Statistics.load(path)
    np.savez(path, header=np.array([{}], dtype=object))
    with pytest.raises(ArtifactError, match="damaged"):
        Statistics.load(path)
