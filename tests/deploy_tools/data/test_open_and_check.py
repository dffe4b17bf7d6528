"""Sources by name, and the checks that keep wrong data away from a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deploy_tools.data import open_source
from deploy_tools.data.check import check_classes, refuse_overlap
from deploy_tools.data.source import ArraySource
from deploy_tools.errors import UserError

GENERATOR = np.random.default_rng(0)
PIXELS = GENERATOR.integers(0, 256, (20, 4, 4), np.uint8)


def source(split: str, first: int, last: int, classes: tuple[str, ...] = ("a", "b")) -> ArraySource:
    pixels = PIXELS[first:last]
    return ArraySource("small", split, pixels, np.arange(len(pixels)) % 2, classes)


def test_importing_the_registry_is_light() -> None:
    code = (
        "import sys, deploy_tools.data; print(sorted({'numpy', 'PIL', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_source_needs_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib\n"
        "from deploy_tools.data import SOURCES\n"
        "print(all(hasattr(importlib.import_module(m), f) for m, f in SOURCES.values()))\n"
        "import deploy_tools.data.check, deploy_tools.data.splits\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_unknown_names_and_roots(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'"imagefoldr" is not known. Did you mean "imagefolder"'):
        open_source("imagefoldr", tmp_path, "val")
    with pytest.raises(UserError, match="data source npz needs the folder"):
        open_source("npz", None, "val")
    with pytest.raises(UserError, match=r"the data folder .*nowhere does not exist"):
        open_source("imagefolder", tmp_path / "nowhere", "val")
    with pytest.raises(UserError, match="does not hold Fashion-MNIST"):
        open_source("fashion-mnist", tmp_path, "test")


def test_class_counts() -> None:
    check_classes(source("val", 0, 5), 2)
    with pytest.raises(UserError, match=r"small \(val\) has 2 classes and the model 10"):
        check_classes(source("val", 0, 5), 10)
    unnamed = source("val", 0, 5, ())
    check_classes(unnamed, 10)
    with pytest.raises(UserError, match=r"has the label 1 and the model only 1 classes"):
        check_classes(unnamed, 1)


def test_separate_images_pass() -> None:
    refuse_overlap(source("train", 0, 10), range(10), source("test", 10, 20), range(10))
    # The same source, but different images of it.
    whole = source("all", 0, 20)
    refuse_overlap(whole, range(0, 20, 2), whole, range(1, 20, 2))


def test_shared_images_are_counted_and_named() -> None:
    train, test = source("train", 0, 10), source("test", 6, 16)
    with pytest.raises(UserError) as caught:
        refuse_overlap(train, range(10), test, range(10))
    assert "4 of 10 calibration images are also evaluation images" in caught.value.message
    assert "train/000006 = test/000000" in caught.value.message
    assert caught.value.message.endswith("test/000002, ....")
    refuse_overlap(train, range(6), test, range(10))
    refuse_overlap(train, range(10), test, range(4, 10))
