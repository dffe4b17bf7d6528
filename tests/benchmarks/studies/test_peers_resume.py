"""An interrupted study goes on behind the rows that are done, with the same results."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from benchmarks.accuracy import Accuracy
from benchmarks.peers.base import PeerFile
from benchmarks.studies import peers_resume
from benchmarks.studies.peers_accuracy import values_of
from benchmarks.studies.peers_claims import Found
from benchmarks.studies.peers_resume import DoneRows
from benchmarks.studies.peers_rows import HARD, Row

ROW = Row("tool", "best", "peer", {"method": "best"}, ("onnxruntime", "openvino"))
KEY = {"command": "python -m some.study", "tools": {"nncf": "3.4.0"}}


def accuracy(sqnr: float) -> Accuracy:
    return Accuracy(
        100, 0.91, (0.9, 0.92), None, 0.1, (-0.2, 0.4), 0.5, 0.99, (0.98, 1.0), sqnr, (20.0, sqnr)
    )


def gave(row: Row) -> list[Found]:
    files = [PeerFile(Path("candidate.onnx"), 1.5, 2.5, 300, 7)]
    fine = Found(row, "onnxruntime", {0: accuracy(30.123456789), 1: accuracy(math.inf)}, files)
    return [fine, Found(row, "openvino", reason="it says no")]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "done.jsonl"
    done = DoneRows(path, KEY)
    assert done.found(ROW) is None
    done.add(ROW, gave(ROW))
    again = DoneRows(path, KEY).found(ROW)
    assert again == gave(ROW)
    assert [values_of(found) for found in again] == [values_of(found) for found in gave(ROW)]
    assert DoneRows(path, KEY).found(replace(ROW, setting=HARD[0])) is None
    done.close()
    assert not path.exists()


def test_a_line_whose_writing_was_interrupted_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "done.jsonl"
    done = DoneRows(path, KEY)
    other = replace(ROW, method="other")
    done.add(ROW, gave(ROW))
    done.add(other, gave(other))
    path.write_text(path.read_text("utf-8")[:-30], "utf-8")
    resumed = DoneRows(path, KEY)
    assert resumed.found(ROW) == gave(ROW)
    assert resumed.found(other) is None
    resumed.add(other, gave(other))
    with path.open("a", encoding="utf-8") as file:
        file.write("5\n")
    assert DoneRows(path, KEY).found(other) == gave(other)


def test_another_run_and_another_version_of_ours_start_anew(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "done.jsonl"
    DoneRows(path, KEY).add(ROW, gave(ROW))
    assert DoneRows(path, KEY).found(ROW) is not None
    assert DoneRows(path, KEY | {"command": "another"}).found(ROW) is None
    DoneRows(path, KEY).add(ROW, gave(ROW))
    monkeypatch.setattr(peers_resume, "sources_sha256", lambda: "changed")
    assert DoneRows(path, KEY).found(ROW) is None


def test_nothing_is_kept_without_a_folder(tmp_path: Path) -> None:
    done = DoneRows(None, KEY)
    done.add(ROW, gave(ROW))
    done.close()
    assert done.found(ROW) is None
