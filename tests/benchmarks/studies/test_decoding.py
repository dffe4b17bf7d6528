"""The study of decoding: its ways, its rows and claims on a few real photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks.peers.sessions import FunctionSession
from benchmarks.studies import decoding
from deploy_tools.data.decode import CROPPED_TOLERANCE
from deploy_tools.errors import UserError


@pytest.fixture
def photos(shared_data: Path) -> Path:
    return shared_data / "flowers"


def test_the_study_times_every_way_and_compares_predictions(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchvision")

    def mean_colour(inputs: np.ndarray) -> np.ndarray:
        return inputs.mean(axis=(2, 3))

    monkeypatch.setattr(
        decoding, "_session", lambda *rest: FunctionSession("some", "fp32", mean_colour)
    )
    monkeypatch.setattr(decoding, "_QUICK", (2, 5))
    monkeypatch.setattr(decoding, "ROUNDS", 3)
    monkeypatch.setattr(decoding, "SHORT_SIDES", (232, 300))
    checkpoint = tmp_path / "weights"
    checkpoint.touch()
    arguments = ["--data", str(photos), "--checkpoint", str(checkpoint), "--quick", "--json"]
    done = CliRunner().invoke(decoding.command, arguments)
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout.splitlines()[-1])
    assert values["command"].endswith("decoding --quick --data DIR --checkpoint FILE")
    timed = [row for row in values["rows"] if "way" in row]
    assert {row["short_side"] for row in timed} == {232, 300}
    assert {row["way"] for row in timed} == set(decoding.ways())
    for row in timed:
        assert row["low"] <= row["times_torchvision"] <= row["high"]
        assert row["cpu_ms"] > 0
    compared = {row["photos"]: row for row in values["rows"] if "photos" in row}
    assert len(compared) == len(values["claims"]) == 6
    # A photo that is hardly larger than the input is decoded in full: it is only cropped.
    assert compared["as they are, scaled"] == (
        compared["as they are, cropped"] | {"photos": "as they are, scaled"}
    )
    assert compared["as they are, cropped"]["max_difference"] <= CROPPED_TOLERANCE
    assert compared["enlarged, scaled"]["max_difference"] > 0


def test_photos_of_one_name_are_kept_apart(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    files = [data / "val" / name / "1.png" for name in ("a", "b")]
    for file, value in zip(files, (10, 200), strict=True):
        file.parent.mkdir(parents=True)
        Image.new("RGB", (40, 30), (value, value, value)).save(file)
    made = [decoding.enlarged(file, 60, tmp_path / "made", data) for file in files]
    assert [np.asarray(Image.open(path)).shape for path in made] == [(60, 80, 3)] * 2
    assert [
        round(
            float(
                np.asarray(Image.open(path)).mean(),
            )
        )
        for path in made
    ] == [10, 200]
    assert decoding.enlarged(files[0], 232, tmp_path, data) == files[0]


def test_photos_are_spread_over_the_classes(photos: Path) -> None:
    found = decoding.spread_photos(photos, "val", 20)
    assert len(found) == len(set(found)) == 20
    assert len({path.parent.name for path in found}) == 5
    with pytest.raises(UserError, match="are needed"):
        decoding.spread_photos(photos, "val", 100_000)
