"""What `predict` writes about an image: a line for people, a line of JSON, a row of a table."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

import click

from deploy_tools.cli.common import print_json
from deploy_tools.errors import OutputError
from deploy_tools.pipeline.predict import Prediction


class Lines(Protocol):
    """Takes predictions one by one; what was written stays whole when the program is stopped."""

    on_stdout: bool

    def write(self, result: Prediction) -> None: ...


class StdoutLines:
    """One line an image on stdout; errors too, so that they stand in their place."""

    on_stdout = True

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def write(self, result: Prediction) -> None:
        name = str(result.path)
        if self._as_json:
            if result.error is None:
                print_json({"image": name, "classes": list(result.classes)})
            else:
                print_json({"image": name, "error": str(result.error)})
            return
        named = ", ".join(f"{c['label']} {c['probability']:.1%}" for c in result.classes)
        click.echo(f"{name}: {named if result.error is None else f'not read: {result.error}'}")


class CsvLines:
    """One row an image: image, error, then class, label and probability for each rank."""

    on_stdout = False

    def __init__(self, file: IO[str], top: int) -> None:
        self._file = file
        names = ("class", "label", "probability")
        ranked = [f"{name}_{rank}" for rank in range(1, top + 1) for name in names]
        self._width = 2 + len(ranked)
        self._row(["image", "error", *ranked])

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path, top: int) -> Iterator[CsvLines]:
        """Write to `path` itself: rows that were finished stay when the program is stopped.

        Raises OutputError where it cannot be written.
        """
        try:
            file = path.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from error
        with file:
            yield cls(file, top)

    def write(self, result: Prediction) -> None:
        cells = [str(result.path), "" if result.error is None else str(result.error)]
        for entry in result.classes:
            cells += [str(entry["class"]), entry["label"], f"{entry['probability']:.6f}"]
        self._row(cells)

    def _row(self, cells: list[str]) -> None:
        # One write and one flush, so that no other program ever sees a part of a row.
        row = io.StringIO()
        csv.writer(row).writerow(cells + [""] * (self._width - len(cells)))
        self._file.write(row.getvalue())
        self._file.flush()
