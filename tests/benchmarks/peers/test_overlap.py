"""From files to labels with decoding ahead of the model."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from benchmarks.end_to_end import rows_of
from benchmarks.peers.overlap import Overlapped
from benchmarks.peers.sessions import FunctionSession
from deploy_tools.data.files import FileSource
from deploy_tools.data.source import ArraySource
from deploy_tools.errors import UserError


def source_of(count: int) -> FileSource:
    files = [Path(f"{index}.jpg") for index in range(count)]
    return FileSource("photos", "val", Path(), files, [0] * count, ())


def decode(path: Path) -> np.ndarray:
    """One-hot of the number in the name, so that the label is that number."""
    return np.eye(10, dtype=np.float32)[int(path.stem)]


def test_labels_come_in_order_and_calls_go_on_through_the_source() -> None:
    sizes = []

    def model(inputs):
        sizes.append(len(inputs))
        return inputs

    session = Overlapped(FunctionSession("some", "int8", model), source_of(10), decode, 3, 2)
    assert session.run(rows_of(7))[0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert session.run(rows_of(7))[0].tolist() == [7, 8, 9, 0, 1, 2, 3]
    assert sizes == [3, 3, 1, 3, 3, 1]
    assert session.end_to_end
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run(rows_of(1))


def test_decoding_goes_on_while_the_model_runs() -> None:
    """The model's first call waits until the last of the two batches ahead is decoded."""
    later = threading.Event()

    def slow(path: Path) -> np.ndarray:
        if int(path.stem) == 5:
            later.set()
        return decode(path)

    def model(inputs):
        assert later.wait(10), "nothing was decoded beside the model"
        return inputs

    session = Overlapped(FunctionSession("some", "int8", model), source_of(6), slow, 2, 1)
    assert session.run(rows_of(6))[0].tolist() == list(range(6))


def test_a_broken_file_ends_the_call() -> None:
    def broken(path: Path) -> np.ndarray:
        if path.stem == "4":
            raise UserError("4.jpg is damaged.")
        return decode(path)

    session = Overlapped(FunctionSession("some", "int8", lambda x: x), source_of(6), broken, 2, 2)
    with pytest.raises(UserError, match="damaged"):
        session.run(rows_of(6))


def test_what_cannot_be_decoded_ahead_is_refused() -> None:
    session = FunctionSession("some", "int8", lambda inputs: inputs)
    with pytest.raises(UserError, match="at least 1"):
        Overlapped(session, source_of(2), decode, 0, 1)
    arrays = ArraySource("a", "val", np.zeros((2, 4, 4), np.uint8), np.zeros(2, np.int64), ())
    with pytest.raises(UserError, match="no files"):
        Overlapped(session, arrays, decode, 1, 1)  # type: ignore[arg-type]
