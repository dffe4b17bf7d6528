from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from calibration.select import SelectConfig, Selection, select_images
from deploy_tools.errors import ArtifactError, UserError


def test_stratified_choice_keeps_each_class_share(images):
    selection = select_images(images, SelectConfig(images=12))
    assert np.bincount(images.labels[list(selection.indices)]).tolist() == [6, 4, 2]
    assert selection.ids[0].startswith("train/")
    assert selection.sha256[0] == images.content_hash(selection.indices[0])


def test_random_choice_is_fixed_for_every_machine(images):
    """The literal indices: a change of generator or order would make kept selections stale."""
    selection = select_images(images, SelectConfig(images=5, choose="random", seed=3))
    assert selection.indices == (0, 3, 22, 37, 38)


@pytest.mark.parametrize("choose", ["stratified", "random"])
def test_same_seed_same_images_other_seed_others(images, choose):
    first, again, other = (
        select_images(images, SelectConfig(images=20, choose=choose, seed=seed))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first.content_hash != other.content_hash


def test_content_hash_tells_images_apart_and_not_their_reason(images):
    chosen = select_images(images, SelectConfig(images=4))
    listed = select_images(images, SelectConfig(choose="list", list=chosen.ids))
    assert listed.content_hash == chosen.content_hash
    fewer = select_images(images, SelectConfig(choose="list", list=chosen.ids[:3]))
    assert fewer.content_hash != chosen.content_hash


def test_list_from_a_file(images, tmp_path: Path):
    path = tmp_path / "ids.txt"
    path.write_text("train/000007\n\ntrain/000002\n")
    assert select_images(images, SelectConfig(choose="list", list=path)).indices == (2, 7)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SelectConfig(images=61), "61 images and noise train has 60"),
        (SelectConfig(images=61, choose="random"), "61 images and noise train has 60"),
        (SelectConfig(choose="list", list=()), "empty"),
        (SelectConfig(choose="list", list=("train/000001",) * 2), "more than once"),
        (SelectConfig(choose="list", list=("train/00001",)), 'Did you mean "train/0000'),
        (SelectConfig(choose="list", list=Path("nowhere.txt")), "nowhere.txt"),
    ],
)
def test_impossible_choices_are_refused(images, config, message):
    with pytest.raises(UserError, match="(?s)" + message):
        select_images(images, config)


@pytest.mark.parametrize(
    "values",
    [
        {"choose": "stratify"},
        {"images": 0},
        {"seed": -1},
        {"choose": "list"},
        {"list": ("a",)},
    ],
)
def test_bad_settings_are_refused(values):
    with pytest.raises(UserError):
        SelectConfig(**values)


def test_save_and_load(images, tmp_path: Path):
    selection = select_images(images, SelectConfig(images=6))
    path = selection.save(tmp_path / "calibration")
    assert path.name == "selection.json"
    assert Selection.load(path) == selection
    assert "6 images of noise train (stratified, seed 0)" in str(selection)


def test_changed_file_is_refused(images, tmp_path: Path):
    path = select_images(images, SelectConfig(images=6)).save(tmp_path)
    values = json.loads(path.read_text())
    values["images"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match="damaged"):
        Selection.load(path)
    path.write_text("[1]")
    with pytest.raises(ArtifactError, match="damaged"):
        Selection.load(path)
    with pytest.raises(ArtifactError, match="does not exist"):
        Selection.load(tmp_path / "none.json")
