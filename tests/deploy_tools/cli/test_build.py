"""deploy-tools build: what it writes and tells, and what it refuses with which exit code."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import onnx
import pytest
import tensorrt_samples as samples
from engine_samples import Files, files_of

from deploy_tools.artifacts import read_manifest, sha256_of_file
from deploy_tools.cli.main import main
from deploy_tools.engine_files import NO_GPU, Sidecar, read_sidecar, sidecar_path

Capture = pytest.CaptureFixture[str]

RTX = ("--flavour", "tensorrt-rtx")
PROFILE = {"min": [1, 1, 28, 28], "opt": [8, 1, 28, 28], "max": [32, 1, 28, 28]}


@pytest.fixture(scope="module")
def files(demo_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The shipped ResNet-20 in every precision."""
    return files_of(demo_onnx, tmp_path_factory.mktemp("build"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model that builds in no time; its input is N x 3 x 16 x 16."""
    path = tmp_path / "tiny.onnx"
    onnx.save(samples.tiny(), str(path))
    return path


def build(model: Path, out: Path, *more: str) -> int:
    return main(["build", str(model), *RTX, "-q", "-o", str(out), *more])


def built(model: Path, out: Path, *more: str) -> Sidecar:
    """Build and read back what was written."""
    pytest.importorskip("tensorrt_rtx")
    assert build(model, out, *more) == 0
    return read_sidecar(out / f"{model.stem}.engine")


# What it writes, and that it tells the same.


@pytest.mark.parametrize(
    ("kind", "precision", "int8"),
    [("fp32", "fp32", 0), ("fp16", "fp16", 0), ("int8", "int8+fp32", 22), ("int8_fp16", "int8+fp16", 22)],
)  # fmt: skip
def test_the_engine_its_sidecar_and_the_line(
    kind: str, precision: str, int8: int, files: Files, out: Path, capsys: Capture
) -> None:
    model: Path = getattr(files, kind)
    sidecar = built(model, out)
    engine = out / f"{model.stem}.engine"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [".lock", "manifest.json", engine.name, f"{engine.name}.json"]
    )
    assert (sidecar.precision, sidecar.gpu, sidecar.profile) == (precision, NO_GPU, PROFILE)
    assert sidecar.onnx_sha256 == sha256_of_file(model)
    assert (sidecar.tf32, sidecar.workspace_bytes) == (False, None)
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out == (
        f"{engine}: {engine.stat().st_size / 1e6:.2f} MB in {sidecar.build_seconds:.1f} s, "
        f"{precision}, {int8} of 22 convolutions and matrix products in INT8; "
        f"tensorrt-rtx {sidecar.tensorrt_version}, {NO_GPU}\n"
    )


def test_json_is_the_sidecar_and_more(files: Files, out: Path, capsys: Capture) -> None:
    built(files.int8_fp16, out, "--json")
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    told = json.loads(shown)
    engine = out / f"{files.int8_fp16.stem}.engine"
    written = json.loads(sidecar_path(engine).read_text("utf-8"))
    assert {key: told[key] for key in written} == written
    assert {key: value for key, value in told.items() if key not in written} == {
        "file": str(engine),
        "size_bytes": engine.stat().st_size,
        "int8_layers": 22,
        "weighted_layers": 22,
    }


def test_verbose_lists_the_precision_of_every_layer(
    files: Files, out: Path, capsys: Capture
) -> None:
    built(files.int8, out, "-v")
    *rows, line = capsys.readouterr().out.splitlines()
    assert "22 of 22" in line
    assert len(rows) == 22
    assert rows[0].split() == ["int8", "conv1"]
    assert {row.split()[0] for row in rows} == {"int8"}


def test_the_manifest_has_the_onnx_file_as_the_parent(files: Files, out: Path) -> None:
    sidecar = built(files.int8, out, "--workspace", "64", "--tf32")
    manifest = read_manifest(out)
    assert sorted(manifest) == ["int8.engine", "int8.engine.json"]
    engine, beside = manifest["int8.engine"], manifest["int8.engine.json"]
    assert engine.parents == {"int8.onnx": sha256_of_file(files.int8)}
    assert beside.parents == {"int8.engine": sha256_of_file(out / "int8.engine")}
    for entry in (engine, beside):
        assert (entry.stage, entry.file) == ("build", entry.name)
        assert entry.sha256 == sha256_of_file(out / entry.file)
        assert entry.settings["profile"] == PROFILE
        assert entry.settings["flavour"] == "tensorrt-rtx"
        assert (entry.settings["tf32"], entry.settings["workspace_mib"]) == (True, 64)
    assert engine.notes == {
        "precision": "int8+fp32", "gpu": NO_GPU, "tensorrt_version": sidecar.tensorrt_version,
    }  # fmt: skip


def test_other_settings_are_another_key(tiny: Path, out: Path) -> None:
    """The same build may be used again, another one may not."""
    keys = []
    for more in ((), (), ("--tf32",), ("--batch", "1:8:33")):
        built(tiny, out, *more)
        keys.append(read_manifest(out)["tiny.engine"].key)
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


@pytest.mark.parametrize("spelling", ["input:{}x1x28x28", "input:[{},1,28,28]", "input:[{}, 1, 28, 28]"])  # fmt: skip
def test_both_spellings_of_shapes(spelling: str, files: Files, out: Path) -> None:
    args = []
    for which, batch in (("min", 2), ("opt", 3), ("max", 5)):
        args += [f"--{which}-shapes", spelling.format(batch)]
    assert built(files.fp32, out, *args).profile == {
        "min": [2, 1, 28, 28], "opt": [3, 1, 28, 28], "max": [5, 1, 28, 28],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "sizes"), [("8", [8, 8, 8]), ("1:2:4", [1, 2, 4]), ("2:2:2", [2, 2, 2])]
)
def test_the_batch_reaches_the_sidecar(batch: str, sizes: list[int], tiny: Path, out: Path) -> None:
    profile = built(tiny, out, "--batch", batch).profile
    assert [profile[which] for which in ("min", "opt", "max")] == [[n, 3, 16, 16] for n in sizes]


@pytest.mark.parametrize(
    ("text", "mib"), [("64", 64), ("512M", 512), ("1G", 1024), ("1g", 1024), ("1.5GiB", 1536)]
)
def test_the_workspace_reaches_the_sidecar(text: str, mib: int, tiny: Path, out: Path) -> None:
    assert built(tiny, out, "--workspace", text).workspace_bytes == mib * 2**20


def test_tf32_is_recorded(files: Files, tmp_path: Path) -> None:
    """Off unless it is asked for: the FP32 baseline is FP32.

    Whether it reaches the builder is asked in engines/test_build.py: two builds of one network may
    differ in their bytes, so bytes prove nothing.
    """
    found = {
        option: built(files.fp32, tmp_path / (option or "none"), *([option] if option else []))
        for option in ("", "--no-tf32", "--tf32")
    }
    assert {option: sidecar.tf32 for option, sidecar in found.items()} == {
        "": False, "--no-tf32": False, "--tf32": True,
    }  # fmt: skip


# What it refuses. Nothing is left behind, and what was there stays.

THREE = ("--min-shapes", "--opt-shapes", "--max-shapes")


def shapes(*texts: str) -> tuple[str, ...]:
    return tuple(word for pair in zip(THREE, texts, strict=True) for word in pair)


GOOD = "input:1x3x16x16"
REFUSED = {
    "batch-and-shapes": (("--batch", "1:2:4", "--min-shapes", GOOD), "--batch and --min-shapes exclude each other"),
    "min-shapes-alone": (("--min-shapes", GOOD), "--min-shapes needs --opt-shapes and --max-shapes too"),
    "max-shapes-alone": (("--max-shapes", GOOD), "--max-shapes needs --min-shapes and --opt-shapes too"),
    "batch-out-of-order": (("--batch", "8:1:2"), '"8:1:2" is not in order'),
    "batch-of-none": (("--batch", "0"), '"0" is not in order'),
    "batch-of-two": (("--batch", "1:2"), '"1:2" is not MIN:OPT:MAX'),
    "batch-empty": (("--batch", ""), '"" is not MIN:OPT:MAX'),
    "shapes-out-of-order": (shapes("input:4x3x16x16", GOOD, GOOD), "is larger than the opt shape"),
    "another-image-size": (shapes(GOOD, GOOD, "input:4x3x32x32"), "dimension 2 is 16 in ?x3x16x16"),
    "too-few-dimensions": (shapes(GOOD, GOOD, "input:4x3"), "has 2 dimensions; the model's input has 4"),
    "unknown-input": (shapes(GOOD, "image:1x3x16x16", GOOD), '--opt-shapes speaks of "image"'),
    "one-input-too-many": (shapes(f"{GOOD},more:1", GOOD, GOOD), 'The model has one input: "input"'),
    "no-shape": (shapes("1x3x16x16", GOOD, GOOD), '"1x3x16x16" is not a shape'),
    "workspace-word": (("--workspace", "much"), '--workspace "much" is not a size of 1 MiB or more'),
    "workspace-of-none": (("--workspace", "0"), '--workspace "0" is not a size of 1 MiB or more'),
    "timing-cache": (("--timing-cache", "t.cache"), "has no timing cache"),
    "hardware-compatible": (("--hardware-compatible",), "has no hardware compatibility level"),
    "version-compatible": (("--version-compatible",), "cannot build version-compatible engines"),
    "flavour": (("--flavour", "rtx"), "'rtx' is not one of 'tensorrt', 'tensorrt-rtx'"),
}  # fmt: skip


def require_nothing(folder: Path) -> None:
    """At most the lock: no engine, no sidecar, no manifest, nothing half-written."""
    assert [path.name for path in folder.rglob("*") if path.name != ".lock"] == []


def refused(code: int, words: str, capsys: Capture, model: Path, out: Path, *more: str) -> str:
    """The build ends with this exit code and one message; what it said is returned."""
    assert build(model, out, *more) == code
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.startswith("deploy-tools: ")
    assert "Traceback" not in shown.err
    assert shown.out == ""
    return shown.err


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_do_not_fit_are_refused(
    case: str, tiny: Path, out: Path, capsys: Capture
) -> None:
    pytest.importorskip("tensorrt_rtx")
    more, words = REFUSED[case]
    refused(2, words, capsys, tiny, out, *more)
    require_nothing(out)
    assert not list(tiny.parent.glob("*.cache"))


def test_a_flavour_that_is_not_installed(tiny: Path, out: Path, capsys: Capture) -> None:
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("the full TensorRT is installed")
    said = refused(3, "tensorrt", capsys, tiny, out, "--flavour", "tensorrt")
    assert "pip install 'deploy-tools[tensorrt]'" in said
    require_nothing(out)


def test_a_fixed_batch(tmp_path: Path, out: Path, capsys: Capture) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = tmp_path / "fixed.onnx"
    onnx.save(samples.tiny(4), str(model))
    for more in ((), ("--batch", "4")):
        assert "fixed-batch" in refused(2, "fixed.onnx cannot become", capsys, model, out, *more)
        require_nothing(out)


@pytest.mark.parametrize("more", [(), shapes(GOOD, GOOD, GOOD)], ids=["batch", "shapes"])
@pytest.mark.parametrize("data", [b"", b"no ONNX at all", b"\x08\x0a" * 40, None])
def test_a_file_that_is_no_onnx(
    data: bytes | None, more: tuple[str, ...], tmp_path: Path, out: Path, capsys: Capture
) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = tmp_path / "m.onnx"
    if data is not None:
        model.write_bytes(data)
    refused(2, str(model), capsys, model, out, *more)
    require_nothing(out)


def test_a_folder_that_cannot_be_made(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "file").write_bytes(b"kept")
    refused(8, "cannot be written", capsys, tiny, tmp_path / "file" / "out")
    assert (tmp_path / "file").read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "tiny.onnx"]


@pytest.mark.parametrize("name", ["tiny.engine", "tiny.engine.json"])
def test_a_folder_in_the_place_of_a_file(name: str, tiny: Path, out: Path, capsys: Capture) -> None:
    pytest.importorskip("tensorrt_rtx")
    (out / name).mkdir(parents=True)
    refused(8, f"{out / name} cannot be written: it is a folder", capsys, tiny, out)
    assert sorted(path.name for path in out.iterdir()) == [".lock", name]


def test_a_folder_without_the_right_to_write(tiny: Path, out: Path, capsys: Capture) -> None:
    pytest.importorskip("tensorrt_rtx")
    out.mkdir()
    out.chmod(0o500)
    try:
        (out / "probe").touch()
    except PermissionError:
        refused(8, "cannot be written", capsys, tiny, out)
        assert not list(out.iterdir())
    else:
        pytest.skip("this user may write everywhere")
    finally:
        out.chmod(0o700)


# The failures that happen early, in the lint, in the parser and in the builder itself.
FAILING = {
    "option": ("--batch", "8:1:2"),
    "shape": shapes("input:1x1x29x28", "input:1x1x29x28", "input:1x1x29x28"),
    "flavour": ("--version-compatible",),
    "builder": ("--workspace", "1"),
    "lint": (),
    "file": (),
}


@pytest.mark.parametrize("case", FAILING)
def test_an_engine_that_was_there_stays(
    case: str, files: Files, tmp_path: Path, out: Path, capsys: Capture
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(files.fp32.read_bytes())
    before = built(model, out)
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    if case == "lint":
        onnx.save(samples.tiny(4), str(model))
    elif case == "file":
        model.write_bytes(b"no ONNX at all")
    refused(2, "", capsys, model, out, *FAILING[case])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    assert read_sidecar(out / "m.engine") == before


def test_a_build_replaces_the_one_before(tiny: Path, out: Path) -> None:
    first = built(tiny, out, "--batch", "4")
    second = built(tiny, out, "--batch", "5")
    assert (first.profile["max"][0], second.profile["max"][0]) == (4, 5)
    assert read_sidecar(out / "tiny.engine") == second
    entry = read_manifest(out)["tiny.engine"]
    assert entry.sha256 == second.engine_sha256 != first.engine_sha256
