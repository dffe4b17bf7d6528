"""Names of images from files, folders and lists."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from deploy_tools.data.names import STDIN, image_paths, listed_paths
from deploy_tools.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name in (
        "b/2.JPG",
        "b/1.png",
        "a.webp",
        "c/d/3.jpeg",
        ".hidden/x.jpg",
        "b/._1.png",
        "b/x.txt",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def names(paths: object, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_a_folder_is_searched_in_the_order_of_names(folder: Path) -> None:
    wanted = ["a.webp", "b/1.png", "b/2.JPG", "c/d/3.jpeg"]
    assert names(image_paths([folder]), folder) == wanted
    (folder / "c" / "up").symlink_to(folder)
    (folder / "c" / "e").symlink_to(folder / "b")
    again = ["c/e/1.png", "c/e/2.JPG"]
    assert names(image_paths([folder]), folder) == wanted + again


def test_files_keep_their_place_and_need_not_exist(folder: Path) -> None:
    given = [Path("away.jpg"), folder / "b", folder / "b" / "x.txt"]
    found = list(image_paths(given))
    assert found == [given[0], folder / "b" / "1.png", folder / "b" / "2.JPG", given[2]]


def test_a_folder_without_images_is_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no images in it"):
        list(image_paths([folder / "empty"]))


def test_lists_of_names_and_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "list.txt"
    text.write_text('1.jpg\n\n  sub/zwölf 12.jpg \n/far/3.jpg\n{"file": "4.jpg", "label": "x"}\n')
    wanted = [
        tmp_path / "1.jpg",
        tmp_path / "sub/zwölf 12.jpg",
        Path("/far/3.jpg"),
        tmp_path / "4.jpg",
    ]
    assert list(listed_paths(text)) == wanted
    assert list(image_paths([Path("0.jpg")], text)) == [Path("0.jpg"), *wanted]
    lines = tmp_path / "list.jsonl"
    lines.write_text('{"classes": ["a"]}\n{"file": "4.jpg", "label": 0}\n')
    assert list(listed_paths(lines)) == [tmp_path / "4.jpg"]
    monkeypatch.setattr("sys.stdin", io.StringIO("x.jpg\n"))
    assert list(listed_paths(STDIN)) == [Path("x.jpg")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.jpg\n{bad\n", "line 2 is not JSON"),
        ('a.jpg\n{"label": 1}\n', 'line 2 lacks "file"'),
        ('{"file": 3}\n', 'line 1 lacks "file"'),
        ("\n \n", "names no images"),
        ('{"classes": []}', "names no images"),
        ("\udcff", "cannot be read"),
    ],
)
def test_bad_lists_are_named_with_their_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "list"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=said):
        list(listed_paths(path))
    with pytest.raises(UserError, match=r"away cannot be read"):
        list(listed_paths(tmp_path / "away"))
