from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from calibration.identity import RangeIdentity, StatisticsIdentity
from calibration.table import RangeTable, TensorRange, require_fresh
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import ArtifactError

SPEC = InputSpec(size=(8, 8), mean=(0.4,), std=(0.2,))


def tensor(high: float = 2.0) -> TensorRange:
    return TensorRange(
        low=-1.0,
        high=high,
        count=100,
        zero_share=0.25,
        ranges={"u8": (-1.0, high), "s8": (-high, high)},
        clipped={"u8": 0.0, "s8": 0.001},
    )


def identity(**changes: Any) -> RangeIdentity:
    values: dict[str, Any] = {
        "model": "m" * 64,
        "data": "d" * 64,
        "spec": SPEC,
        "tensors": ["relu", "conv"],
        "method": "percentile",
        "settings": {"percentile": 99.99},
    } | changes
    statistics = StatisticsIdentity.of(
        values["model"], values["data"], values["spec"], values["tensors"]
    )
    return RangeIdentity(statistics, values["method"], values["settings"])


@pytest.fixture
def table() -> RangeTable:
    return RangeTable(
        identity(), 12, SPEC.to_json(), "0.1", {"conv": tensor(), "relu": tensor(3.0)}
    )


def test_range_of(table):
    assert table.range_of("conv", "u8") == (-1.0, 2.0)
    assert table.range_of("relu", "s8") == (-3.0, 3.0)


def test_unknown_tensor_or_grid(table):
    with pytest.raises(ArtifactError, match='no tensor "conv9"'):
        table.range_of("conv9", "u8")
    with pytest.raises(ArtifactError, match='no grid "u16"'):
        table.range_of("conv", "u16")


def test_save_and_load(table, tmp_path: Path):
    path = tmp_path / "calibration" / "ranges.json"
    table.save(path)
    loaded = RangeTable.load(path)
    assert loaded == table
    assert loaded.key() == table.key()
    again = tmp_path / "again.json"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()
    assert list(path.parent.iterdir()) == [path]


def test_prints_itself(table):
    text = str(table)
    assert "2 tensors, percentile, percentile 99.99, 12 images" in text
    row = next(line for line in text.splitlines() if line.startswith("relu"))
    assert row.split() == ["relu", "-1..3", "25%", "-1..3", "0.0000%", "-3..3", "0.1000%"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model": "n" * 64}, "model changed"),
        ({"data": "e" * 64}, "data changed"),
        ({"spec": InputSpec(size=(8, 8), mean=(0.4,), std=(0.3,))}, "preprocessing changed"),
        ({"tensors": ["relu"]}, "tensors changed"),
        ({"method": "mse", "settings": {}}, "method changed"),
        ({"settings": {"percentile": 99.9}}, "method changed"),
        ({"model": "n" * 64, "data": "e" * 64}, "model and data changed"),
    ],
)
def test_stale_table_is_refused_and_says_why(table, changes, word):
    require_fresh(table, identity())
    other = identity(**changes)
    assert other.key() != table.key()
    with pytest.raises(ArtifactError, match=word) as error:
        require_fresh(table, other)
    assert error.value.exit_code == 7


def test_labels_do_not_make_a_table_stale(table):
    require_fresh(table, identity(spec=SPEC.with_labels(("a", "b"))))
    require_fresh(table, identity(tensors=["conv", "relu", "conv"]))


def _set(path: str, value: Any):
    def change(values: dict[str, Any]) -> None:
        *keys, last = path.split("/")
        for key in keys:
            values = values[key]
        values[last] = value

    return change


def _drop(path: str):
    def change(values: dict[str, Any]) -> None:
        *keys, last = path.split("/")
        for key in keys:
            values = values[key]
        del values[last]

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("schema", 99),
        _set("schema", None),
        _set("key", "0" * 64),
        _set("method", 3),
        _set("method", "mse"),
        _set("settings", []),
        _set("settings/percentile", "99"),
        _set("images", -1),
        _set("images", True),
        _set("model_sha256", "0" * 64),
        _set("tensors", []),
        _set("tensors", {}),
        _set("tensors/conv", 3),
        _set("tensors/conv/low", 5.0),
        _set("tensors/conv/low", float("nan")),
        _set("tensors/conv/high", float("inf")),
        _set("tensors/conv/count", 1.5),
        _set("tensors/conv/zero_share", 2.0),
        _set("tensors/conv/ranges", {}),
        _set("tensors/conv/ranges/u8", [2.0, 1.0]),
        _set("tensors/conv/ranges/u8", [1.0, 2.0]),
        _set("tensors/conv/ranges/u8", [0.0]),
        _set("tensors/conv/ranges/u8", "0..1"),
        _set("tensors/conv/ranges/s8", [-1.0, 2.0]),
        _set("tensors/conv/clipped/s8", None),
        _drop("key"),
        _drop("tensors"),
        _drop("tensors/relu"),
        _drop("tensors/conv/high"),
    ],
)
def test_damaged_table_is_refused(table, tmp_path: Path, change):
    path = tmp_path / "ranges.json"
    values = copy.deepcopy(table.to_dict())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match="damaged"):
        RangeTable.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000])
def test_file_that_is_no_table(tmp_path: Path, content):
    path = tmp_path / "ranges.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged"):
        RangeTable.load(path)
    with pytest.raises(ArtifactError, match="does not exist"):
        RangeTable.load(tmp_path / "none.json")
