"""Polygraphy picks up from our files: its Python API, and the command lines of docs/tensorrt.md.

It decides which flavour it means when it is imported, so everything runs in a process of its own.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from engine_samples import Files

from deploy_tools.engine_files import Sidecar, read_sidecar
from deploy_tools.engines.build import BuildConfig, engine_from_onnx

pytest.importorskip("polygraphy", reason="polygraphy is not installed")
pytest.importorskip("tensorrt_rtx")

DOCS = Path(__file__).resolve().parents[3] / "docs" / "tensorrt.md"
ENVIRONMENT = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"}

# Builds with our profile; writes the engine and prints the network's input, as TensorRT has it.
BUILD = """
import json, sys
from pathlib import Path
from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
from polygraphy.backend.trt import EngineBytesFromNetwork, NetworkFromOnnxPath, Profile

model, sidecar, path = sys.argv[1:]
told = json.loads(Path(sidecar).read_text("utf-8"))
profile = Profile().add(told["input_name"], **told["profile"])
builder, network, parser = NetworkFromOnnxPath(model, strongly_typed=True)()
tensor = network.get_input(0)
config = CreateConfigRTX(profiles=[profile])
data = EngineBytesFromNetwork((builder, network, parser), config=config)()
Path(path).write_bytes(bytes(data))
outputs = [network.get_output(place).name for place in range(network.num_outputs)]
print(json.dumps([tensor.name, list(tensor.shape), outputs, "tensorrt_rtx" in sys.modules]))
"""


def run(*command: str) -> str:
    """Run a program that has to end with 0; returns all that it says."""
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def polygraphy(*args: str) -> str:
    """Run polygraphy's command line, without colours."""
    main = "import sys; from polygraphy.tools import main; sys.exit(main())"
    return re.sub(r"\x1b\[[0-9;]*m", "", run(sys.executable, "-c", main, *args))


@pytest.fixture(scope="module")
def ours(demo_files: Files, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sidecar]:
    """Our engine of INT8 with FP16 for the rest."""
    path = tmp_path_factory.mktemp("ours") / "ours.engine"
    sidecar = engine_from_onnx(
        demo_files.int8_fp16, path, BuildConfig("tensorrt-rtx", batch="1:4:16")
    )
    return path, sidecar


def require_like_ours(engine: Path, ours: Path) -> None:
    """Both are of the same weights in the same precision: INT8, a quarter of FP32."""
    assert engine.read_bytes()[:4] == ours.read_bytes()[:4]
    assert engine.stat().st_size == pytest.approx(ours.stat().st_size, rel=0.25)


def test_its_python_api_builds_our_file_with_our_profile(
    demo_files: Files, ours: tuple[Path, Sidecar], tmp_path: Path
) -> None:
    path, sidecar = ours
    engine = tmp_path / "own.engine"
    model = demo_files.int8_fp16
    said = run(sys.executable, "-c", BUILD, str(model), f"{path}.json", str(engine))
    assert '["input", [-1, 1, 28, 28], ["logits"], true]' in said
    shown = ", ".join(
        f"{which}=[{', '.join(str(size) for size in sidecar.profile[which])}]"
        for which in ("min", "opt", "max")
    )
    assert f"{{input [{shown}]}}" in said
    assert "4, 1, 28, 28" in shown
    require_like_ours(engine, path)
    assert read_sidecar(path) == sidecar


def test_inspect_shows_our_layers(demo_files: Files) -> None:
    said = polygraphy("inspect", "model", str(demo_files.fp32), "--show", "layers")
    nodes = onnx.load(str(demo_files.fp32)).graph.node
    assert f"---- {len(nodes)} Node(s) ----" in said
    for node in nodes:
        assert re.search(rf"^ +Node \d+ +\| {re.escape(node.name)} \[Op: {node.op_type}\]", said, re.M)  # fmt: skip
    assert re.search(r"\{input \[dtype=float32, shape=\('\w+', 1, 28, 28\)\]\}", said)


def test_convert_builds_an_engine(
    demo_files: Files, ours: tuple[Path, Sidecar], tmp_path: Path
) -> None:
    engine = tmp_path / "own.engine"
    shapes = []
    for which, batch in (("min", 1), ("opt", 4), ("max", 16)):
        shapes += [f"--trt-{which}-shapes", f"input:[{batch},1,28,28]"]
    said = polygraphy(
        "convert", str(demo_files.int8_fp16), "--strongly-typed", "--convert-to", "trt",
        "-o", str(engine), *shapes,
    )  # fmt: skip
    assert "{input [min=[1, 1, 28, 28], opt=[4, 1, 28, 28], max=[16, 1, 28, 28]]}" in said
    require_like_ours(engine, ours[0])


def test_run_compares_in_onnxruntime(demo_files: Files) -> None:
    said = polygraphy("run", str(demo_files.fp32), "--onnxrt", "--input-shapes", "input:[2,1,28,28]")  # fmt: skip
    assert "{input [dtype=float32, shape=(2, 1, 28, 28)]}" in said
    assert "{logits [dtype=float32, shape=(2, 10)]}" in said
    assert "PASSED" in said


def test_these_are_the_options_of_the_documentation() -> None:
    """The tests above use the options that docs/tensorrt.md shows, no others."""
    block = next(
        block
        for block in re.findall(r"```sh\n(.*?)```", DOCS.read_text("utf-8"), re.S)
        if "polygraphy convert" in block
    )
    lines = block.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.strip()]
    shown = {
        (command[1], tuple(word for word in command if word.startswith("-")))
        for command in commands
        if "--trt" not in command  # needs a GPU
    }
    assert shown == {
        ("inspect", ("--show",)),
        (
            "convert",
            ("--strongly-typed", "--convert-to", "-o", "--trt-min-shapes", "--trt-opt-shapes", "--trt-max-shapes"),
        ),
        ("run", ("--onnxrt", "--input-shapes")),
    }  # fmt: skip
