"""Names of image files: given one by one, below folders, or in a list; read as they are needed."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from deploy_tools.data.folder import EXTENSIONS
from deploy_tools.errors import UserError

STDIN = Path("-")


def image_paths(inputs: Sequence[Path], list_file: Path | None = None) -> Iterator[Path]:
    """Yield every file of `inputs` (folders with all images below them), then those of the list.

    Nothing is kept but the names of the folders on the way to the one being read. A file that is
    named is yielded whether it exists or not: whoever opens it says so in its place.
    Raises UserError for a folder without images, and what `listed_paths` raises.
    """
    for path in inputs:
        if not path.is_dir():
            yield path
            continue
        found = False
        for found_path in _below(path, frozenset()):
            found = True
            yield found_path
        if not found:
            raise UserError(
                f"{path} has no images in it.", f"Known endings: {', '.join(EXTENSIONS)}."
            )
    if list_file is not None:
        yield from listed_paths(list_file)


def listed_paths(list_file: Path) -> Iterator[Path]:
    """Yield the names in a text file, one a line, or in JSON lines with a "file" each.

    Names are relative to the list's folder; for "-", standard input, to the current one. Empty
    lines and a first line {"classes": ...}, which image sources in JSON lines may have, are
    passed over. Raises UserError, naming the line, for a line that is neither, and for a list
    that cannot be read or names nothing.
    """
    folder = Path() if list_file == STDIN else list_file.parent
    found = False
    try:
        with _opened(list_file) as lines:
            for number, line in enumerate(lines, start=1):
                name = _name_in(line.strip(), number, list_file)
                if name:
                    found = True
                    yield folder / name
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list {list_file} cannot be read: {error}.") from error
    if not found:
        raise UserError(f"the list {list_file} names no images.")


@contextlib.contextmanager
def _opened(list_file: Path) -> Iterator[IO[str]]:
    if list_file == STDIN:
        yield sys.stdin
        return
    with list_file.open(encoding="utf-8") as lines:
        yield lines


def _name_in(line: str, number: int, list_file: Path) -> str:
    """Return the name that a line holds, "" for a line that holds none."""
    if not line.startswith("{"):
        return line
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{list_file} line {number} is not JSON: {error}.") from error
    if number == 1 and set(row) == {"classes"}:
        return ""
    name = row.get("file")
    if not isinstance(name, str) or not name:
        raise UserError(f'{list_file} line {number} lacks "file", the path of the image.')
    return name


def _below(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Yield the images below a folder by name, links followed, but into no folder it lies in."""
    try:
        status = folder.stat()
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}.") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for name in names:
        path = folder / name
        if path.is_dir():
            yield from _below(path, above | {here})
        elif name.lower().endswith(EXTENSIONS):
            yield path
