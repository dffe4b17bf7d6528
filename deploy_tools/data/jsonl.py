"""Labels in JSON lines: {"file": "a/1.jpg", "label": "rose"}, one image a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy_tools.data.files import FileSource
from deploy_tools.errors import UserError

Label = str | int


def open_jsonl(root: Path, split: str) -> FileSource:
    """Open `root` where it is a file, else root/<split>.jsonl.

    Files are relative to the JSON lines' folder. Labels are all names (then the classes are
    the names in alphabetical order) or all indices (then the class names are unknown). A first
    line {"classes": [...]} fixes names and order for both kinds.
    Raises UserError, naming the line, for anything else and for a file that is missing.
    """
    path = _file_of(root, split)
    rows = _rows(path)
    classes: tuple[str, ...] = ()
    if rows and set(rows[0][1]) == {"classes"}:
        classes = _classes(rows.pop(0)[1]["classes"], path)
    if not rows:
        raise UserError(f"{path} names no images.")
    entries = [_entry(row, f"{path} line {number}") for number, row in rows]
    named = {isinstance(label, str) for _, label in entries}
    if len(named) > 1:
        raise UserError(f"{path} mixes label names and label indices.", "Use one kind.")
    if named == {True} and not classes:
        classes = tuple(sorted({str(label) for _, label in entries}))
    labels = [
        _index(label, classes, f"{path} line {number}")
        for (number, _), (_, label) in zip(rows, entries, strict=True)
    ]
    files = [path.parent / file for file, _ in entries]
    for (number, _), file in zip(rows, files, strict=True):
        if not file.is_file():
            raise UserError(f"{path} line {number}: {file} does not exist.")
    return FileSource("jsonl", split, path.parent, files, labels, classes)


def _file_of(root: Path, split: str) -> Path:
    if root.is_file():
        return root
    path = root / f"{split}.jsonl"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist.", "Name the file itself, or a folder that holds SPLIT.jsonl."
        )
    return path


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {number} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise UserError(f'{path} line {number} must be {{"file": ..., "label": ...}}.')
        rows.append((number, row))
    return rows


def _classes(value: object, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise UserError(f'{path}: "classes" must be a list of names.')
    if len(set(value)) < len(value):
        raise UserError(f'{path}: "classes" has a name twice.')
    return tuple(value)


def _entry(row: dict[str, Any], where: str) -> tuple[str, Label]:
    file, label = row.get("file"), row.get("label")
    if not isinstance(file, str) or not file:
        raise UserError(f'{where} lacks "file", the path of the image.')
    if isinstance(label, bool) or not isinstance(label, (str, int)):
        raise UserError(f'{where} lacks "label", a class name or index.')
    return file, label


def _index(label: Label, classes: tuple[str, ...], where: str) -> int:
    if isinstance(label, str):
        if label not in classes:
            raise UserError(f'{where}: label "{label}" is not among the {len(classes)} classes.')
        return classes.index(label)
    if label < 0 or (classes and label >= len(classes)):
        limit = f"0 to {len(classes) - 1}" if classes else "0 or more"
        raise UserError(f"{where}: label {label} is out of range, needed {limit}.")
    return label
