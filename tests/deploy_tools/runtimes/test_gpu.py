"""Finding a GPU, and saying in words why there is none; nvidia-smi's answers."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy_tools.runtimes import gpu

bindings: Any = pytest.importorskip("cuda.bindings.runtime")
ERRORS = bindings.cudaError_t


def answers(monkeypatch: pytest.MonkeyPatch, **calls: Any) -> None:
    """Let the real bindings give these answers, as they would on another machine."""
    for name, answer in calls.items():
        monkeypatch.setattr(bindings, name, lambda *args, _answer=answer: _answer)


def test_find_and_why_agree_on_this_machine() -> None:
    found, why = gpu.find_gpu(), gpu.why_no_gpu()
    assert (found is None) == (why != "")
    if found is None:
        assert gpu.gpu_state() == {}


@pytest.mark.parametrize(
    ("error", "driver", "visible", "words"),
    [
        ("cudaErrorInsufficientDriver", 0, None, "^no CUDA driver$"),
        ("cudaErrorInsufficientDriver", 12040, None, r"driver too old for CUDA 13\.1 \(it runs up to CUDA 12\.4\)"),
        ("cudaErrorNoDevice", 13000, None, "^no CUDA device$"),
        ("cudaErrorNoDevice", 13000, "", r"no CUDA device is visible \(CUDA_VISIBLE_DEVICES is empty\)"),
        ("cudaErrorNoDevice", 13000, "-1", r'CUDA_VISIBLE_DEVICES is "-1"'),
        ("cudaErrorSystemDriverMismatch", 13000, None, "CUDA says cudaErrorSystemDriverMismatch: "),
    ],
)  # fmt: skip
def test_why_in_words(
    monkeypatch: pytest.MonkeyPatch, error: str, driver: int, visible: str | None, words: str
) -> None:
    answers(
        monkeypatch,
        cudaGetDeviceCount=(getattr(ERRORS, error), None),
        cudaDriverGetVersion=(ERRORS.cudaSuccess, driver),
        cudaRuntimeGetVersion=(ERRORS.cudaSuccess, 13010),
    )
    monkeypatch.delenv(gpu.VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(gpu.VISIBLE, visible)
    assert gpu.find_gpu() is None
    assert re.search(words, gpu.why_no_gpu()), gpu.why_no_gpu()


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = bindings.cudaDeviceProp()
    properties.major, properties.minor, properties.totalGlobalMem = 8, 9, 24 << 30
    properties.name = b"NVIDIA L4".ljust(256, b"\0")
    answers(
        monkeypatch,
        cudaGetDeviceCount=(ERRORS.cudaSuccess, 1),
        cudaGetDeviceProperties=(ERRORS.cudaSuccess, properties),
        cudaDriverGetVersion=(ERRORS.cudaSuccess, 13000),
        cudaRuntimeGetVersion=(ERRORS.cudaSuccess, 12090),
    )
    assert gpu.find_gpu() == gpu.Gpu("NVIDIA L4", "8.9", "13.0", "12.9", 24 << 30)
    assert gpu.why_no_gpu() == ""
    assert gpu.find_gpu(1) is None
    assert gpu.why_no_gpu(1) == "there is no GPU 1; this process sees 1"


def test_missing_bindings_and_broken_drivers_are_reasons_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> Any:
        raise RuntimeError("libcuda is damaged")

    monkeypatch.setattr(bindings, "cudaGetDeviceCount", broken)
    assert gpu.find_gpu() is None
    assert "libcuda is damaged" in gpu.why_no_gpu()

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(gpu, "importlib", SimpleNamespace(import_module=missing))
    assert gpu.find_gpu() is None
    assert "cuda-bindings is not installed" in gpu.why_no_gpu()
    assert "deploy-tools[tensorrt-rtx]" in gpu.why_no_gpu()
    assert gpu.gpu_state() == {}


def fake_smi(folder: Path, known: str, line: str, code: str = "") -> None:
    """A program that answers like nvidia-smi: it fails as a whole where a field is unknown."""
    program = folder / "nvidia-smi"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys, time\n"
        f"{code}\n"
        "fields = sys.argv[2].partition('=')[2].split(',')\n"
        "assert sys.argv[1] == '--id=0000:65:00.0', sys.argv\n"
        f"values = dict(zip({known!r}.split(','), {line!r}.split(',')))\n"
        "if not all(f in values for f in fields):\n"
        "    print('Field is not a valid field to query.'); sys.exit(2)\n"
        "print(', '.join(values[f] for f in fields))\n"
    )
    program.chmod(0o755)


KNOWN = "clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,utilization.gpu,pstate"
LINE = "1980,9001,2040,41,[N/A],3,P0"


@pytest.fixture
def smi_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    answers(monkeypatch, cudaDeviceGetPCIBusId=(ERRORS.cudaSuccess, b"0000:65:00.0\0"))
    return tmp_path


@pytest.mark.parametrize("reasons", ["clocks_event_reasons", "clocks_throttle_reasons", ""])
def test_the_state_of_drivers_new_and_old(smi_folder: Path, reasons: str) -> None:
    extra = (f",{reasons}.active", ",0x0000000000000001") if reasons else ("", "")
    fake_smi(smi_folder, KNOWN + extra[0], LINE + extra[1])
    state = gpu.gpu_state()
    assert state["clocks.sm"] == 1980.0
    assert state["temperature.gpu"] == 41.0
    assert state["power.draw"] is None
    assert state["pstate"] == "P0"
    assert state.get("clocks_event_reasons.active") == ("0x0000000000000001" if reasons else None)


def test_no_smi_a_failing_one_and_a_hanging_one(
    smi_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu.gpu_state() == {}
    fake_smi(smi_folder, KNOWN, LINE, "sys.exit(9)")
    assert gpu.gpu_state() == {}
    monkeypatch.setattr(gpu, "_SMI_SECONDS", 0.2)
    fake_smi(smi_folder, KNOWN, LINE, "time.sleep(30)")
    assert gpu.gpu_state() == {}


def test_importing_it_loads_no_cuda() -> None:
    code = "import sys, deploy_tools.runtimes.gpu; print([m for m in sys.modules if m.split('.')[0] in ('cuda', 'numpy')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cuda" not in done.stdout
    assert importlib.util.find_spec("cuda") is not None
