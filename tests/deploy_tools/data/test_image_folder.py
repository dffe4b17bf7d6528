"""Image folders and single files: order, labels, hashes, and everything that can be wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from deploy_tools.data import open_source
from deploy_tools.data.files import FileSource, decode_image
from deploy_tools.data.folder import open_folder
from deploy_tools.data.source import source_hash
from deploy_tools.errors import UserError


def save(path: Path, value: int = 0, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    color: int | tuple[int, ...] = value if mode == "L" else (value, 10, 20)
    Image.new(mode, size, color).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(["b/2.JPG", "b/1.png", "a/x/deep.jpeg", "c/z.webp", "a/0.bmp"]):
        save(tmp_path / "val" / name, number * 40)
    (tmp_path / "val" / "b" / "notes.txt").write_text("not an image")
    (tmp_path / "val" / "b" / "._1.png").write_text("left by a copy from macOS")
    (tmp_path / "val" / ".cache").mkdir()
    (tmp_path / "val" / "d").mkdir()
    return tmp_path


def test_order_and_labels(root: Path) -> None:
    source = open_source("imagefolder", root, "val")
    assert source.classes == ("a", "b", "c", "d")
    assert [source.image_id(i) for i in range(len(source))] == [
        "val/a/0.bmp", "val/a/x/deep.jpeg", "val/b/1.png", "val/b/2.JPG", "val/c/z.webp",
    ]  # fmt: skip
    assert source.labels.tolist() == [0, 0, 1, 1, 2]
    assert source.labels.dtype == np.int64
    assert source.load(0).shape == (4, 6, 3)


def test_labels_are_torchvisions(shared_data: Path) -> None:
    theirs = ImageFolder(str(shared_data / "flowers" / "val"))
    ours = open_folder(shared_data / "flowers", "val")
    assert tuple(theirs.classes) == ours.classes
    assert [(Path(path), label) for path, label in theirs.samples] == [
        (ours.path(i), int(ours.labels[i])) for i in range(len(ours))
    ]
    assert np.array_equal(np.asarray(theirs.loader(str(ours.path(5)))), ours.load(5))


def test_content_hash_is_that_of_the_file(root: Path) -> None:
    source = open_folder(root, "val")
    expected = hashlib.sha256((root / "val" / "a" / "0.bmp").read_bytes()).hexdigest()
    assert source.content_hash(0) == expected
    before = source_hash(source)
    save(root / "val" / "a" / "0.bmp", 200)
    assert source_hash(open_folder(root, "val")) != before
    source.path(0).unlink()
    with pytest.raises(UserError, match=r"0.bmp cannot be read"):
        source.content_hash(0)


def test_missing_things_are_named(tmp_path: Path, root: Path) -> None:
    with pytest.raises(UserError, match=r'no folder for the split "vall". Did you mean "val"'):
        open_folder(root, "vall")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="It holds no folders"):
        open_folder(empty, "val")
    (empty / "val").mkdir()
    with pytest.raises(UserError, match="holds no class folders"):
        open_folder(empty, "val")
    save(empty / "val" / "1.png")
    with pytest.raises(UserError, match="images but no class folders"):
        open_folder(empty, "val")
    (empty / "val" / "roses").mkdir()
    with pytest.raises(UserError, match="1 class folders and no images"):
        open_folder(empty, "val")
    with pytest.raises(UserError, match="is not a folder"):
        open_folder(empty / "val" / "1.png", "val")


def test_imagenet_wants_wordnet_ids(tmp_path: Path, root: Path) -> None:
    save(tmp_path / "in" / "val" / "n01440764" / "1.JPEG")
    source = open_source("imagenet", tmp_path / "in", "val")
    assert (source.name, source.classes) == ("imagenet", ("n01440764",))
    with pytest.raises(UserError, match='class folder "a", which is no WordNet id'):
        open_source("imagenet", root, "val")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("RGB", (3, 2), (250, 120, 10)).convert(mode).save(path)
    image = decode_image(path)
    assert image.shape == (2, 3, 3)
    assert image.dtype == np.uint8


def test_exif_orientation_is_left_alone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "x.jpg", exif=exif)
    assert decode_image(tmp_path / "x.jpg").shape == (4, 6, 3)


def test_damaged_images_are_named(tmp_path: Path) -> None:
    whole = save(tmp_path / "x.jpg", size=(64, 64)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "none.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"cut.jpg is damaged"):
        decode_image(tmp_path / "cut.jpg")
    for name in ("text.jpg", "none.jpg"):
        with pytest.raises(UserError, match=rf"{name} is not an image"):
            decode_image(tmp_path / name)
    with pytest.raises(UserError, match=r"away.jpg is damaged or cannot be read"):
        decode_image(tmp_path / "away.jpg")


@pytest.mark.parametrize("limit", [10, 20])
@pytest.mark.filterwarnings("ignore")
def test_decompression_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    save(tmp_path / "x.png", size=(6, 4))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=r"x.png is larger than Pillow's limit"):
        decode_image(tmp_path / "x.png")


def test_a_file_outside_the_root_keeps_its_path(tmp_path: Path) -> None:
    file = save(tmp_path / "far" / "x.png")
    source = FileSource("jsonl", "val", tmp_path / "near", [file], [0], ())
    assert source.image_id(0) == file.as_posix()
