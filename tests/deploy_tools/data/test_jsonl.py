"""Labels in JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deploy_tools.data import open_source
from deploy_tools.errors import UserError


def write(folder: Path, rows: list[Any]) -> Path:
    (folder / "img").mkdir(exist_ok=True)
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (3, 2)).save(folder / "img" / name)
    path = folder / "val.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def row(name: str, label: Any) -> dict[str, Any]:
    return {"file": f"img/{name}.png", "label": label}


def test_names(tmp_path: Path) -> None:
    path = write(tmp_path, [row("a", "tulip"), "", row("b", "rose"), row("c", "tulip")])
    for root in (tmp_path, path):
        source = open_source("jsonl", root, "val")
        assert source.classes == ("rose", "tulip")
        assert source.labels.tolist() == [1, 0, 1]
        assert source.image_id(1) == "img/b.png"
        assert source.load(2).shape == (2, 3, 3)


def test_indices_leave_the_names_unknown(tmp_path: Path) -> None:
    source = open_source("jsonl", write(tmp_path, [row("a", 4), row("b", 0)]), "val")
    assert source.classes == ()
    assert source.labels.tolist() == [4, 0]


def test_a_first_line_fixes_the_classes(tmp_path: Path) -> None:
    classes = {"classes": ["tulip", "rose", "daisy"]}
    source = open_source("jsonl", write(tmp_path, [classes, row("a", "rose")]), "val")
    assert (source.classes, source.labels.tolist()) == (("tulip", "rose", "daisy"), [1])
    source = open_source("jsonl", write(tmp_path, [classes, row("a", 2)]), "val")
    assert source.labels.tolist() == [2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "names no images"),
        ([{"classes": ["a"]}], "names no images"),
        (["{"], "line 1 is not JSON"),
        (["[1]"], "line 1 must be"),
        ([row("a", 1), {"label": 1}], 'line 2 lacks "file"'),
        ([{"file": "img/a.png"}], 'line 1 lacks "label"'),
        ([row("a", True)], 'line 1 lacks "label"'),
        ([row("a", 1), row("b", "x")], "mixes label names and label indices"),
        ([row("a", -1)], "label -1 is out of range, needed 0 or more"),
        ([{"classes": ["x"]}, row("a", 1)], "line 2: label 1 is out of range, needed 0 to 0"),
        ([{"classes": ["x"]}, row("a", "y")], 'line 2: label "y" is not among the 1 classes'),
        ([{"classes": "x"}, row("a", "y")], '"classes" must be a list'),
        ([{"classes": ["x", "x"]}, row("a", "x")], '"classes" has a name twice'),
        ([row("a", 1), row("gone", 1)], r"line 2: .*gone.png does not exist"),
    ],
)
def test_mistakes_are_named_by_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source("jsonl", write(tmp_path, rows), "val")


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test.jsonl does not exist"):
        open_source("jsonl", tmp_path, "test")
    (tmp_path / "test.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        open_source("jsonl", tmp_path, "test")
