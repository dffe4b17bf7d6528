"""What doctor says: features, limits, providers, and what INT8 brings, with its source."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from deploy_tools.cli import doctor
from deploy_tools.cli.expectation import RESNET50, expectation_of
from deploy_tools.cli.main import main

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parents[3]
AMX = ["avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"]
NONE = {"cpus": None, "memory_bytes": None}


def cpu(**changes: Any) -> dict[str, Any]:
    base = {
        "architecture": "x86_64", "flags": AMX, "cores_usable": 8, "cores_total": 8,
        "cores_physical": 8,
    }  # fmt: skip
    return base | changes


def test_figures_are_those_of_the_kept_measurement() -> None:
    report = json.loads((ROOT / RESNET50).read_text("utf-8"))
    assert report["model"]["arch"] == "resnet50"
    assert report["environment"]["cpu"]["cores_total"] == 2
    expected = expectation_of("x86_64", report["environment"]["cpu"]["flags"])
    said = expected.int8 + expected.bf16
    for name in ("int8-static-ort", "int8-static-openvino", "bf16-openvino"):
        variant = next(v for v in report["variants"] if v["id"] == name)
        run = next(r for r in variant["speed"]["runs"] if r["scenario"] == "offline")
        assert run["batch"] == 8
        low, high = run["speedup_ci95"]
        assert f"{run['speedup']:.2f}x [{low:.2f}, {high:.2f}]" in said, name
    assert expected.source == RESNET50


@pytest.mark.parametrize(
    ("architecture", "flags", "words", "bf16"),
    [
        ("x86_64", AMX, "INT8 pays: this CPU has AMX", True),
        ("x86_64", ["avx512_vnni"], "INT8 should pay: this CPU has VNNI", False),
        ("x86_64", ["avx_vnni"], "INT8 should pay: this CPU has VNNI", False),
        ("x86_64", ["avx512_vnni", "avx512_bf16"], "INT8 should pay", True),
        ("x86_64", ["avx2", "avx512f"], "INT8 may not pay: without VNNI", False),
        ("aarch64", ["asimd", "asimddp"], "INT8 should pay: this CPU has 8-bit dot", False),
        ("arm64", ["asimd"], "INT8 may not pay", False),
    ],
)
def test_one_line_for_each_kind_of_cpu(
    architecture: str, flags: list[str], words: str, bf16: bool
) -> None:
    found = expectation_of(architecture, flags)
    assert found.int8.startswith(words)
    assert "\n" not in found.int8
    assert found.source
    assert bool(found.bf16) is bf16
    # Only what was measured carries a figure.
    assert bool(re.search(r"\d\.\d+x", found.int8)) is ("amx_int8" in flags)
    assert ("ot measured by us" in found.int8) is ("amx_int8" not in flags)


def test_cores_threads_and_the_cgroups_limit() -> None:
    assert doctor._cores(cpu(), NONE) == "8 threads on 8 cores"
    shared = doctor._cores(cpu(cores_physical=4), NONE)
    assert "8 threads on 4 cores" in shared
    assert "try --threads 4" in shared
    limited = doctor._cores(cpu(cores_usable=6), NONE | {"cpus": 1.5})
    assert "6 usable by this process" in limited
    assert "time of 1.5" in limited
    assert "give --threads 1" in limited
    assert "--threads" not in doctor._cores(cpu(), NONE | {"cpus": 8.0})
    assert doctor._cores(cpu(cores_physical=None), NONE) == "8 threads"


def test_features_go_by_the_architecture() -> None:
    assert doctor._can_use(cpu(flags=["avx_vnni"])) == {
        "AVX-512": False, "VNNI": True, "AMX (INT8)": False, "bf16": False
    }  # fmt: skip
    arm = doctor._can_use(cpu(architecture="aarch64", flags=["asimddp"]))
    assert arm == {"8-bit dot products": True, "8-bit matrix products": False, "bf16": False}


def test_the_command_says_all_of_it(capsys: Capture) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for line in (
        "cores: ",
        "onnxruntime providers: ",
        "GPU: ",
        "INT8 target",
        "(source: ",
        "energy: ",
    ):
        assert line in text, line
    assert "CPUExecutionProvider" in text
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["expect"]) == {"int8", "bf16", "source"}
    assert found["expect"]["int8"] in text
    assert "CPUExecutionProvider" in found["providers"]
    assert found["cores"] in text
