"""`predict` on folders and lists: order, broken images, exit codes, memory, interruption."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy_tools.cli.main import main
from deploy_tools.data.source import ImageSource, batches
from deploy_tools.data.spec import InputSpec
from deploy_tools.onnx_files import known_input_spec, load_onnx
from deploy_tools.pipeline.predict import PredictConfig, predict_files
from deploy_tools.runtimes import RuntimeConfig, open_session

Capture = pytest.CaptureFixture[str]
IMAGES = 21


@pytest.fixture
def folder(tmp_path: Path, fashion_test: ImageSource) -> Path:
    """Test images by number, in two folders."""
    root = tmp_path / "images"
    for number in range(IMAGES):
        path = root / f"{number // 10}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(fashion_test.load(number)[..., 0]).save(path)
    return root


@pytest.fixture(scope="module")
def wanted(demo_onnx: Path, fashion_test: ImageSource) -> list[int]:
    """The classes that bench accuracy would see."""
    spec = known_input_spec(load_onnx(demo_onnx), demo_onnx)
    session = open_session(demo_onnx, RuntimeConfig())
    inputs, _ = next(iter(batches(fashion_test, spec, IMAGES)))
    return [int(i) for i in session.run(inputs)[0].argmax(axis=1)]


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("batch", ["1", "8", "64"])
@pytest.mark.parametrize("decoder", ["scaled", "cropped", "reference"])
def test_a_folder_is_predicted_in_order(
    demo_onnx: Path, folder: Path, wanted: list[int], batch: str, decoder: str, capsys: Capture
) -> None:
    args = ["--json", "--batch", batch, "--decoder", decoder]
    assert main(["predict", str(demo_onnx), str(folder), *args]) == 0
    found = rows(capsys.readouterr().out)
    assert [row["image"] for row in found] == [str(p) for p in sorted(folder.rglob("*.png"))]
    assert [row["classes"][0]["class"] for row in found] == wanted


def test_broken_images_stand_in_their_place(
    demo_onnx: Path, folder: Path, wanted: list[int], capsys: Capture
) -> None:
    (folder / "0" / "03.png").write_bytes(b"no image")
    (folder / "1" / "10.png").write_bytes((folder / "1" / "11.png").read_bytes()[:60])
    assert main(["predict", str(demo_onnx), str(folder), "--json", "--batch", "4"]) == 9
    said = capsys.readouterr()
    found = rows(said.out)
    assert [i for i, row in enumerate(found) if "error" in row] == [3, 10]
    assert "03.png is not an image" in found[3]["error"]
    assert [r["classes"][0]["class"] for r in found if "classes" in r] == [
        w for i, w in enumerate(wanted) if i not in (3, 10)
    ]
    assert "2 of 21 images could not be read" in said.err
    assert "Traceback" not in said.err
    assert main(["predict", str(demo_onnx), str(folder)]) == 9
    assert "03.png: not read: " in capsys.readouterr().out
    assert main(["predict", str(demo_onnx), str(folder), "--stop-on-error", "--json"]) == 2
    said = capsys.readouterr()
    assert len(rows(said.out)) == 3
    assert "03.png is not an image" in said.err


def test_where_none_can_be_read_the_code_is_2(
    demo_onnx: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["predict", str(demo_onnx), str(tmp_path / "away.png"), "--json"]) == 2
    said = capsys.readouterr()
    assert "away.png" in rows(said.out)[0]["error"]
    assert "1 of 1 images could not be read" in said.err


def test_a_table_has_one_row_an_image(
    demo_onnx: Path, folder: Path, wanted: list[int], capsys: Capture
) -> None:
    broken = folder / "0" / 'a, "b".png'
    broken.write_bytes(b"no image")
    table = folder / "classes.csv"
    args = ["predict", str(demo_onnx), str(folder), "--csv", str(table), "--top", "2"]
    assert main(args) == 9
    assert capsys.readouterr().out == ""
    with table.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == IMAGES + 1
    assert [int(r["class_1"]) for r in found if not r["error"]] == wanted
    assert [r["image"] for r in found if r["error"]] == [str(broken)]
    assert all(
        float(r["probability_1"]) >= float(r["probability_2"]) for r in found if not r["error"]
    )
    assert main([*args[:4], str(folder / "away" / "x.csv")]) == 8


def test_lists(
    demo_onnx: Path, folder: Path, wanted: list[int], tmp_path: Path, capsys: Capture
) -> None:
    names = tmp_path / "list.txt"
    names.write_text("images/1/10.png\nimages/0/02.png\n")
    assert main(["predict", str(demo_onnx), "--list", str(names), "--json"]) == 0
    found = rows(capsys.readouterr().out)
    assert [r["classes"][0]["class"] for r in found] == [wanted[10], wanted[2]]
    names.write_text("images/1/10.png\n{bad\n")
    assert main(["predict", str(demo_onnx), "--list", str(names), "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""  # before any work is done
    assert "line 2 is not JSON" in said.err


def test_bad_usage(demo_onnx: Path, folder: Path, capsys: Capture) -> None:
    assert main(["predict", str(demo_onnx)]) == 2
    assert "no images" in capsys.readouterr().err
    assert main(["predict", str(demo_onnx), str(folder), "--csv", "x", "--json"]) == 2
    (folder / "empty").mkdir()
    assert main(["predict", str(demo_onnx), str(folder / "empty")]) == 2
    assert "has no images" in capsys.readouterr().err


class Counting:
    """Stands where a session would; notes how many images were decoded when it is called."""

    output_names = ("logits",)

    def __init__(self) -> None:
        self.read = self.run_images = self.most_ahead = 0

    def paths(self, path: Path, count: int) -> object:
        for _ in range(count):
            self.read += 1
            yield path

    def run(self, inputs: np.ndarray) -> tuple[np.ndarray]:
        self.most_ahead = max(self.most_ahead, self.read - self.run_images)
        self.run_images += len(inputs)
        return (np.zeros((len(inputs), 3), np.float32),)


def test_decoding_is_ahead_of_the_model_but_not_far(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    spec = InputSpec((16, 16), (0.5,) * 3, (0.5,) * 3)
    session = Counting()
    paths = session.paths(tmp_path / "x.png", 300)
    found = list(predict_files(session, spec, paths, PredictConfig(batch=4, workers=2)))
    assert (len(found), session.run_images) == (300, 300)
    assert 8 <= session.most_ahead <= 12  # two batches, and the one that is being run


PREDICT = (
    # Whoever runs the tests in the background has Ctrl-C ignored, which children inherit.
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from deploy_tools.cli.main import entry; entry()"
)


def test_an_interrupted_run_leaves_whole_lines(demo_onnx: Path, folder: Path) -> None:
    """Names come through a pipe that stays open, so the program cannot end by itself."""
    name = str(folder / "0" / "00.png") + "\n"
    command = [sys.executable, "-c", PREDICT, "predict", str(demo_onnx), "--list", "-", "--json", "--batch", "1", "-q"]  # fmt: skip
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(name * 50)
        process.stdin.flush()
        first = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGINT)
        process.stdin.close()
        rest, said = process.stdout.read(), process.stderr.read() if process.stderr else ""
    assert process.returncode == 130, said
    assert "interrupted" in said
    text = "".join(first) + rest
    assert text.endswith("\n")
    assert all(row["classes"] for row in rows(text))


def test_memory_does_not_grow_with_the_images(demo_onnx: Path, folder: Path) -> None:
    def peak_bytes(images: int) -> int:
        names = folder.parent / f"{images}.txt"
        names.write_text(f"{folder / '0' / '00.png'}\n" * images)
        args = ["predict", str(demo_onnx), "--list", str(names), "--csv", os.devnull, "-q"]
        code = (
            "import resource; from deploy_tools.cli.main import main\n"
            f"assert main({args!r}) == 0\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    # Each input is 3 kB of floats: 4,000 of them kept would be 12 MB, with their results 20 MB.
    assert peak_bytes(4000) - peak_bytes(200) < 8_000_000
