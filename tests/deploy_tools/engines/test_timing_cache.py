"""The timing cache, through the calls that TensorRT for RTX still has; what it keeps is empty."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from engine_samples import Files

from deploy_tools.artifacts import read_manifest, sha256_of_file
from deploy_tools.cli.main import main
from deploy_tools.engine_files import read_sidecar
from deploy_tools.engines import build as build_module
from deploy_tools.engines.build import BuildConfig, engine_from_onnx
from deploy_tools.errors import OutputError

RTX = BuildConfig(flavour="tensorrt-rtx")

pytestmark = [
    pytest.mark.usefixtures("rtx", "with_cache"),
    pytest.mark.filterwarnings("ignore:Use Deprecated"),
]


@pytest.fixture
def with_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TensorRT for RTX have a timing cache: an empty one, but the calls are the same."""
    monkeypatch.setattr(build_module, "_RTX_LACKS", {})


def test_a_timing_cache_is_written_behind_the_engine(demo_files: Files, tmp_path: Path) -> None:
    cache, path = tmp_path / "kept" / "t.cache", tmp_path / "x.engine"
    config = dataclasses.replace(RTX, timing_cache=cache)
    engine_from_onnx(demo_files.fp32, path, config)
    assert cache.stat().st_size > 0
    assert read_sidecar(path).engine_sha256 == sha256_of_file(path)
    (tmp_path / "folder").mkdir()
    for bad in (tmp_path / "folder", path / "t.cache"):
        with pytest.raises(OutputError, match="cannot be written"):
            engine_from_onnx(demo_files.fp32, path, dataclasses.replace(config, timing_cache=bad))


def test_a_cache_that_cannot_be_written_does_not_lose_the_engine(
    demo_files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its folder is taken away during the build."""
    args = ["build", str(demo_files.fp32), "--flavour", "tensorrt-rtx", "-o", str(tmp_path / "out")]
    gone = tmp_path / "gone"
    gone.mkdir()
    build_engine = build_module.build_engine

    def build_then_break(*given: Any) -> Any:
        built = build_engine(*given)
        gone.rmdir()
        gone.write_bytes(b"")
        return built

    monkeypatch.setattr(build_module, "build_engine", build_then_break)
    assert main([*args, "--timing-cache", str(gone / "t.cache"), "-q"]) == 8
    said = capsys.readouterr().err
    engine = tmp_path / "out" / f"{demo_files.fp32.stem}.engine"
    assert f"{engine} is built and complete, but the timing cache is not saved" in said
    assert "--timing-cache" in said
    assert read_sidecar(engine).precision == "fp32"
    assert engine.name in read_manifest(tmp_path / "out")
