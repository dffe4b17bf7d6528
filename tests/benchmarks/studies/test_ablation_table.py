"""The table of `ablation_accuracy`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.studies.ablation_table import command, table
from deploy_tools.errors import ArtifactError


def _kept(target: str, rows: dict[str, float], met: bool = True) -> dict[str, Any]:
    values = [
        {
            "model": "m", "target": target, "row": name, "seeds": 5, "sqnr_db": sqnr, "sqnr_db_min": sqnr - 1,
            "sqnr_db_max": sqnr + 2, "agreement": 0.993, "agreement_min": 0.99,
            "agreement_max": 0.995,
        }
        for name, sqnr in rows.items()
    ]  # fmt: skip
    claim = {"name": "gptq helps", "value": -0.25, "target": ">= 0", "met": met}
    head = {"model": "m", "row": "fp32", "correct": 9}
    return {"study": "ablation_accuracy", "rows": [head, *values], "claims": [claim]}


def test_a_row_stands_once_with_a_cell_pair_a_target() -> None:
    text = table(
        [_kept("ort-cpu", {"plain": 30.0, "free": 33.0}), _kept("tensorrt", {"plain": 27})]
    )
    lines = text.splitlines()
    assert lines[0].count("|") == lines[1].count("|") == 6
    assert lines[2] == (
        "| plain | 30.00 (29.00 to 32.00) | 99.30 (99.00 to 99.50) "
        "| 27.00 (26.00 to 29.00) | 99.30 (99.00 to 99.50) |"
    )
    assert lines[3] == "| free | 33.00 (32.00 to 35.00) | 99.30 (99.00 to 99.50) |  |  |"
    assert len(lines) == 4


def test_a_claim_that_is_not_met_is_told() -> None:
    assert table([_kept("ort-cpu", {"plain": 30.0}, met=False)]).endswith(
        "Claims not met:\n\n- gptq helps: -0.25 (target >= 0)\n"
    )


def test_two_files_of_one_target_are_refused() -> None:
    with pytest.raises(ArtifactError, match="one of each target"):
        table([_kept("ort-cpu", {"plain": 30.0}), _kept("ort-cpu", {"plain": 31.0})])


def test_two_models_are_refused() -> None:
    other = _kept("tensorrt", {"plain": 30.0})
    for row in other["rows"]:
        row["model"] = "another"
    with pytest.raises(ArtifactError, match="several models: another, m"):
        table([_kept("ort-cpu", {"plain": 30.0}), other])


@pytest.mark.parametrize(
    "text", ["{", '{"study": "peers_accuracy"}', '{"study": "ablation_accuracy"}', "[]"]
)
def test_another_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    ended = CliRunner().invoke(command, [str(path)])
    assert ended.exit_code == 7
    assert "other.json" in ended.output


def test_the_command_prints_the_table(tmp_path: Path) -> None:
    kept = _kept("ort-cpu", {"plain": 30.0})
    path = tmp_path / "kept.json"
    path.write_text(json.dumps(kept))
    assert CliRunner().invoke(command, [str(path)]).output == table([kept])
