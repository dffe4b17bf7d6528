"""Who may import whom, read from the source, and what a light installation can do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("deploy_tools", "calibration", "benchmarks")
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "matplotlib",
    "openvino",
    "onnxruntime_ep_openvino",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "pycuda",
    "polygraphy",
    "nncf",
    "torchao",
    "modelopt",
    "ray",
)

# Rooms below the pipeline and what each may use beside itself. "deploy_tools.data" etc. are
# prefixes. What is not listed here (cli, pipeline, studies, peers) may use everything below it.
COMMON = (
    "deploy_tools.errors",
    "deploy_tools.version",
    "deploy_tools.tables",
    "deploy_tools.artifacts",
    "deploy_tools.data",
)
ONNX = (*COMMON, "deploy_tools.runtimes", "deploy_tools.onnx_files", "deploy_tools.onnx_names")
RULES = {
    "deploy_tools.errors": (),
    "deploy_tools.version": (),
    "deploy_tools.tables": ("deploy_tools.errors",),
    "deploy_tools.artifacts": ("deploy_tools.errors", "deploy_tools.version"),
    "deploy_tools.data": COMMON,
    "deploy_tools.onnx_files": COMMON,
    "deploy_tools.onnx_names": (),
    "deploy_tools.engine_files": COMMON,
    "deploy_tools.runtimes": (
        "deploy_tools.errors",
        "deploy_tools.artifacts",
        "deploy_tools.engine_files",
    ),
    "deploy_tools.models": COMMON,
    "deploy_tools.fuse": COMMON,
    "deploy_tools.training": (*ONNX, "deploy_tools.models", "deploy_tools.quantization"),
    "deploy_tools.corrections": (
        *ONNX,
        "deploy_tools.training.onnx_module",
        "deploy_tools.quantization.prepare",
    ),
    "deploy_tools.sensitivity": (*ONNX, "deploy_tools.quantization"),
    "deploy_tools.search": (*COMMON, "deploy_tools.recipe_variant"),
    "deploy_tools.tuning": (*COMMON, "deploy_tools.runtimes"),
    "deploy_tools.export": ONNX,
    "deploy_tools.quantization": ONNX,
    "deploy_tools.rewrite": ONNX,
    "deploy_tools.engines": (*ONNX, "deploy_tools.engine_files"),
    "deploy_tools.recipe": (
        *COMMON,
        "deploy_tools.training.config",
        "deploy_tools.training.qat_config",
    ),
    "calibration": (*COMMON, "deploy_tools.runtimes", "deploy_tools.version"),
    "benchmarks": (*COMMON, "deploy_tools.runtimes", "deploy_tools.version"),
}
PROGRAMS = ("benchmarks.studies", "benchmarks.peers")


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports, in functions and for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {f if f in known else node.module for f in full}
    return {f for f in found if f.split(".")[0] in PACKAGES and f != name}


def rule_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The room of a module: the longest prefix among the rules. None: it may use everything."""
    if any(within(name, program) for program in PROGRAMS):
        return None
    rooms = [room for room in RULES if within(name, room) or name.startswith(f"{room}_")]
    return (max(rooms, key=len), RULES[max(rooms, key=len)]) if rooms else None


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


KNOWN = modules()


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_module_imports_only_what_its_room_may(name: str) -> None:
    used = imports_of(name, KNOWN[name], KNOWN)
    if not name.startswith("deploy_tools.cli"):
        assert not {u for u in used if within(u, "deploy_tools.cli")}, "nothing imports cli"
    rule = rule_of(name)
    if rule is None:
        return
    room, allowed = rule
    strangers = {
        u
        for u in used
        if not within(u, room)
        and not u.startswith(f"{room}_")
        and not any(within(u, other) for other in allowed)
        and u not in ("deploy_tools", "calibration", "benchmarks")
    }
    assert not strangers, f"{name} (room {room}) imports {sorted(strangers)}"


def test_no_module_is_in_an_import_circle() -> None:
    graph = {n: imports_of(n, p, KNOWN) & set(KNOWN) for n, p in KNOWN.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"circle: {' -> '.join((*way[way.index(name) :], name))}"
        if name not in done:
            for other in graph[name]:
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_files_stay_small(name: str) -> None:
    assert len(KNOWN[name].read_text("utf-8").splitlines()) <= 420


def without_heavy(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code where none of the heavy libraries can be imported."""
    block = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {HEAVY!r}:
            raise ImportError(name + ' is hidden')
sys.meta_path.insert(0, Block())
"""
    return subprocess.run(
        [sys.executable, "-c", block + code], capture_output=True, text=True, timeout=300
    )


def test_packages_import_without_heavy_libraries() -> None:
    done = without_heavy(
        "import deploy_tools, calibration, benchmarks.report, deploy_tools.pipeline"
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import deploy_tools, sys; print([m for m in sys.modules if m in ('torch', 'onnx', 'onnxruntime', 'numpy')])"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_onnx_commands_work_without_torch(demo_onnx: Path, tmp_path: Path) -> None:
    commands = [
        ["inspect", str(demo_onnx)],
        ["quantize", "dynamic", str(demo_onnx), "-o", str(tmp_path)],
        ["calibrate", str(demo_onnx), "--source", "fashion-mnist", "--images", "20", "-q", "-o", str(tmp_path)],
        ["quantize", "static", str(demo_onnx), "--ranges", str(tmp_path / "calibration" / "ranges.json"), "-o", str(tmp_path)],
        ["bench", "accuracy", str(demo_onnx), str(tmp_path / "int8-static-ort.onnx"), "--source", "fashion-mnist", "--images", "100", "-q"],
        ["doctor"],
    ]  # fmt: skip
    code = f"""
from deploy_tools.cli.main import main
for args in {commands!r}:
    code = main(args)
    assert code == 0, (args, code)
"""
    done = without_heavy(code)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("args", "extra"),
    [
        (["export", "--arch", "resnet18", "--size", "32", "--mean", "0", "--std", "1", "-o", "x"], "torch"),
        (["fuse", "--arch", "resnet18", "--size", "32", "--mean", "0", "--std", "1", "-o", "x"], "torch"),
        (["train", str(ROOT / "deploy_tools/assets/train-resnet20-fashion-mnist.toml"), "-o", "x"], "torch"),
        (["demo", "-o", "OUT"], "torch"),
        (["bench", "speed", "MODEL", "--source", "fashion-mnist", "--provider", "openvino"], "openvino"),
    ],
)  # fmt: skip
def test_other_commands_exit_3_and_name_the_extra(
    args: list[str], extra: str, demo_onnx: Path, tmp_path: Path
) -> None:
    named = [
        str(demo_onnx) if a == "MODEL" else str(tmp_path / "out") if a == "OUT" else a for a in args
    ]
    done = without_heavy(
        f"import sys\nfrom deploy_tools.cli.main import main\nsys.exit(main({named!r}))"
    )
    assert done.returncode == 3, done.stderr
    assert f"deploy-tools[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr
