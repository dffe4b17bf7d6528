"""A tool in a process of its own: what comes back, whatever the tool does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.peers.base import Job, PeerError
from benchmarks.peers.measure import measure, size_of
from benchmarks.peers.worker import reason_of
from deploy_tools.errors import MissingDependencyError

TOOL = """
import os, sys, time
from deploy_tools.errors import require

def load():
    if os.environ.get("TOOL_MISSING"):
        require("no_such_tool", "peers", "The tool")
    # The clock shows 10 when quantizing starts and 17 when it ends, if it is read then.
    time.monotonic = iter([10.0, 17.0]).__next__

def quantize(job, path, what):
    print("tools print where they like")
    if what == "memory":
        kept = bytearray(300_000_000)
        for place in range(0, len(kept), 4096):
            kept[place] = 1
    if what == "fail":
        raise ValueError("no such tensor in /some/where/model.onnx\\nsecond line")
    if what == "fold":
        from deploy_tools.fuse import FoldError

        raise FoldError("conv1 cannot be folded")
    if what == "die":
        print("the last word", file=sys.stderr, flush=True)
        os._exit(3)
    if what == "slow":
        time.sleep(30)
    if what != "nothing":
        path.write_bytes(b"x" * len(job.indices))
"""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "some_tool.py").write_text(TOOL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "some_tool"


def test_a_file_and_its_cost(tool: str, demo_job: Job, tmp_path: Path) -> None:
    small = measure(tool, demo_job, tmp_path / "a.onnx", {"what": "write"})
    big = measure(tool, demo_job, tmp_path / "b.onnx", {"what": "memory"}, Path(sys.executable))
    assert small.file_bytes == len(demo_job.indices)
    assert small.seconds == 7.0
    assert big.peak_rss_bytes - small.peak_rss_bytes > 250_000_000


def test_failures_are_told_apart(
    tool: str, demo_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(PeerError, match=r"^ValueError: no such tensor in model\.onnx$"):
        measure(tool, demo_job, path, {"what": "fail"})
    with pytest.raises(PeerError, match="conv1 cannot be folded"):
        measure(tool, demo_job, tmp_path / "x.onnx", {"what": "fold"})
    with pytest.raises(PeerError, match="code 3: the last word"):
        measure(tool, demo_job, path, {"what": "die"})
    with pytest.raises(PeerError, match="without a file"):
        measure(tool, demo_job, path, {"what": "nothing"})
    with pytest.raises(PeerError, match="over 3 seconds"):
        measure(tool, demo_job, path, {"what": "slow"}, timeout_s=3.0)
    monkeypatch.setenv("TOOL_MISSING", "1")
    with pytest.raises(MissingDependencyError, match=r"deploy-tools\[peers\]"):
        measure(tool, demo_job, path, {"what": "write"})


def test_openvinos_weights_count(tmp_path: Path) -> None:
    for name, size in (("m.xml", 3), ("m.bin", 5), ("m.onnx", 7)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert size_of(tmp_path / "m.xml") == 8
    assert size_of(tmp_path / "m.onnx") == 7


def test_a_reason_names_no_folder() -> None:
    assert reason_of(RuntimeError("\n  /a/b/c.py:3 broke\nmore")) == "RuntimeError: c.py:3 broke"
    assert reason_of(KeyError()) == "KeyError"
