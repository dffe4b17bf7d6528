"""Every row can be made: its adapter takes its options, its format runs in its runtimes."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from benchmarks.peers import environment, sessions
from benchmarks.studies.peers_rows import HARD, PLAIN, Row, rows

ROWS = rows()


def name_of(row: Row) -> str:
    return f"{row.setting}-{row.tool}-{row.method}-{'+'.join(row.runtimes)}"


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_a_row_fits_its_adapter(row: Row) -> None:
    tool = importlib.import_module(row.adapter)
    inspect.signature(tool.quantize).bind("job", Path("file"), **row.options)
    assert callable(tool.load)
    assert set(row.runtimes) <= set(sessions._FORMATS[row.suffix])
    assert set(row.runtimes) <= set(sessions.RUNTIMES)
    assert row.setting in (PLAIN, *HARD)
    assert row.environment in ("", *environment.ENVIRONMENTS)


def test_no_row_is_there_twice() -> None:
    assert len({name_of(row) for row in ROWS}) == len(ROWS)


def test_what_the_study_must_hold() -> None:
    plain = {(row.tool, row.method) for row in ROWS if row.setting == PLAIN}
    assert {m for t, m in plain if t == "onnxruntime"} == {
        "MinMax", "Percentile", "Entropy", "Distribution",
    }  # fmt: skip
    for tool in ("nncf (onnx)", "nncf (openvino)"):
        methods = " ".join(m for t, m in plain if t == tool)
        for word in ("performance", "mixed", "fast", "accurate", "accuracy control"):
            assert word in methods
    assert {m for t, m in plain if t == "modelopt"} == {"max", "entropy"}
    assert {t for t, _ in plain} == {
        "deploy-tools", "onnxruntime", "nncf (onnx)", "nncf (openvino)", "torch FX",
        "torchao PT2E", "modelopt",
    }  # fmt: skip
    # Each hard setting has ours and at least two other tools.
    for setting in HARD:
        tools = {row.tool for row in ROWS if setting in (row.setting, *row.also)}
        assert "deploy-tools" in tools
        assert len(tools) >= 3


def test_rows_that_keep_convolutions_in_float_are_not_compared_with() -> None:
    apart = {row.method for row in ROWS if not row.whole}
    assert apart == {"dynamic, Linear only", "accuracy control, 99.5 % agreement"}


def test_the_quick_run_has_every_tool() -> None:
    assert {row.tool for row in ROWS if row.quick} == {row.tool for row in ROWS}
    assert sum(row.quick for row in ROWS) <= 10
