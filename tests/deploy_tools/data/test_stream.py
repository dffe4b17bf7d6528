"""Results in order, work ahead, and memory that does not depend on how many files there are."""

from __future__ import annotations

import threading
import tracemalloc
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest

from deploy_tools.data.stream import in_order
from deploy_tools.errors import UserError


def endless() -> object:
    return (Path(str(n)) for n in count())


def test_the_order_is_that_of_the_paths_whoever_is_done_first() -> None:
    later = threading.Event()

    def make(path: Path) -> int:
        number = int(path.name)
        if number == 0:
            assert later.wait(60), "nothing ran beside the first"
        if number == 3:
            later.set()
        return number

    stream = in_order(endless(), make, workers=2, ahead=4)
    assert [o.value for o in islice(stream, 20)] == list(range(20))
    stream.close()


def test_it_reads_no_further_ahead_than_allowed() -> None:
    read = 0

    def paths() -> object:
        nonlocal read
        for path in endless():
            read += 1
            yield path

    stream = in_order(paths(), lambda path: path.name, workers=2, ahead=5)
    for taken in range(1, 50):
        next(stream)
        assert read <= taken + 5
    stream.close()
    assert read <= 49 + 5
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_memory_does_not_grow_with_the_files() -> None:
    def peak(files: int) -> int:
        tracemalloc.start()
        stream = in_order(
            islice(endless(), files), lambda _: np.zeros(100_000, np.uint8), workers=2, ahead=8
        )
        assert sum(outcome.value is not None for outcome in stream) == files
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(50), peak(1000)
    assert few > 800_000  # it does see the arrays
    assert many < few + 500_000  # all of them would be 100 MB


def test_a_user_error_stands_in_its_place_and_others_end_it() -> None:
    def make(path: Path) -> str:
        if path.name == "2":
            raise UserError("broken")
        if path.name == "5":
            raise ZeroDivisionError
        return path.name

    stream = in_order(endless(), make, workers=2, ahead=4)
    found = [(o.value, str(o.error)) for o in islice(stream, 4)]
    assert found == [("0", "None"), ("1", "None"), (None, "broken"), ("3", "None")]
    with pytest.raises(ZeroDivisionError):
        list(stream)
    with pytest.raises(UserError, match="at least 1"):
        next(in_order(endless(), make, workers=0, ahead=4))
