"""Rows of `peers_accuracy` that an interrupted run has done already: it goes on behind them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import benchmarks
import calibration
import deploy_tools
from benchmarks.accuracy import Accuracy
from benchmarks.peers.base import PeerFile
from benchmarks.studies.peers_claims import Found
from benchmarks.studies.peers_rows import Row
from deploy_tools.artifacts import write_text


class DoneRows:
    """What each row gave, a JSON line a row behind one with the key of the run.

    path: the file, None to keep nothing. key: the command and the tools' versions; our own sources
    are added to it, so that no table mixes two versions. Another key's file is replaced.
    """

    def __init__(self, path: Path | None, key: dict[str, Any]) -> None:
        self._path = path
        self._rows: dict[str, list[dict[str, Any]]] = {}
        first = json.dumps(key | {"sources": sources_sha256()}, sort_keys=True)
        if path is None:
            return
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        kept = lines[1:] if lines[:1] == [first] else []
        self._rows = dict(entry for line in kept if (entry := _entry(line)))
        write_text(path, "\n".join([first, *map(json.dumps, self._rows.items())]) + "\n")

    def found(self, row: Row) -> list[Found] | None:
        """Return what the row gave, None where it was not run yet."""
        kept = self._rows.get(_name(row))
        return None if kept is None else [_found(row, values) for values in kept]

    def add(self, row: Row, everything: Sequence[Found]) -> None:
        """Keep what a row gave."""
        if self._path is not None:
            line = json.dumps([_name(row), [_values(found) for found in everything]])
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def close(self) -> None:
        """Remove the file: the study is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def sources_sha256() -> str:
    """Return one hash of this toolchain's Python files."""
    digest = hashlib.sha256()
    for package in (benchmarks, calibration, deploy_tools):
        root = Path(str(package.__file__)).resolve().parent
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root.parent).as_posix().encode() + b"\0")
            digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def _entry(line: str) -> tuple[str, list[dict[str, Any]]] | None:
    """Return a row's name and values; None for a line whose writing was interrupted."""
    try:
        name, values = json.loads(line)
    except (TypeError, ValueError):
        return None
    return name, values


def _name(row: Row) -> str:
    return json.dumps(asdict(row), sort_keys=True)


def _values(found: Found) -> dict[str, Any]:
    return {
        "runtime": found.runtime,
        "reason": found.reason,
        "accuracies": [[seed, asdict(each)] for seed, each in found.accuracies.items()],
        "files": [asdict(file) | {"path": file.path.name} for file in found.files],
    }


def _found(row: Row, values: dict[str, Any]) -> Found:
    accuracies = {seed: _accuracy(each) for seed, each in values["accuracies"]}
    files = [PeerFile(**(each | {"path": Path(each["path"])})) for each in values["files"]]
    return Found(row, values["runtime"], accuracies, files, values["reason"])


def _accuracy(values: dict[str, Any]) -> Accuracy:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Accuracy(**fields)
