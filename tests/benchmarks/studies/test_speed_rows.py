"""The rows of `peers_speed`, and the files that they name."""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from benchmarks.peers.base import PeerError, PeerFile
from benchmarks.peers.setting import Setting
from benchmarks.studies import speed_files, speed_rows
from benchmarks.studies.speed_files import Files
from benchmarks.studies.speed_rows import (
    BASELINE,
    FILES,
    FP32,
    MODULE,
    US,
    Made,
    Source,
    product,
    rows,
)
from deploy_tools.errors import MissingDependencyError
from deploy_tools.onnx_files import input_spec_of
from deploy_tools.runtimes import RuntimeConfig, open_session


def test_every_tool_that_the_study_names_is_there() -> None:
    found = rows()
    names = [row.name for row in found]
    assert names[0] == BASELINE
    assert max(Counter(names).values()) == 1
    assert {row.tool for row in found} == {"onnxruntime", "OpenVINO", "torch", "deploy-tools"}
    for part in (
        "quantize_static's defaults", "LATENCY", "THROUGHPUT", "eager", "channels_last",
        "bf16 autocast", "FX x86", "PT2E", "torch.compile", "int8-static-ort",
        "int8-static-openvino", "uint8 input", "bf16-openvino",
    ):  # fmt: skip
        assert any(part in name for name in names), part
    quick = [row for row in found if row.quick]
    assert BASELINE in {row.name for row in quick}
    assert any(row.ours for row in quick)
    assert not all(row.ours or row.name == BASELINE for row in quick)


def test_files_of_the_rows_exist_and_their_adapters_too() -> None:
    for row in rows():
        assert row.file in (*FILES, FP32, MODULE)
        made = FILES.get(row.file)
        assert row.pixels == bool(made is not None and made.target)
    for made in FILES.values():
        if made.target:
            assert made.of in (*FILES, FP32)
        else:
            assert hasattr(importlib.import_module(made.adapter), "quantize")


def test_what_runs_at_a_time_is_what_the_setting_says(tiny: Path) -> None:
    source = Source(tiny, lambda: None)  # type: ignore[arg-type, return-value]
    by_name = {row.name: row for row in rows()}
    session = by_name[BASELINE].open(source, Setting(1, 2, 3))
    assert (session.threads, session.streams, session.chunk) == (1, 2, 3)  # type: ignore[attr-defined]
    ours = by_name[f"{US} int8-static-ort"].open(source, Setting(1, 2, 3))
    assert (ours.threads, ours.streams, ours.part) == (2, 2, 3)  # type: ignore[attr-defined]
    one = by_name[f"{US} int8-static-ort"].open(source, Setting(2, 1, 3, fixed=True))
    assert (one.threads, one.streams, one.chunk) == (2, 1, 3)  # type: ignore[attr-defined]
    assert one._sessions[0].batch == 3  # type: ignore[attr-defined]
    for each in (session, ours, one):
        assert each.runtime == "onnxruntime"
        each.close()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_ours_runs_in_the_product_s_own_streams(tiny: Path, runtime: str, monkeypatch) -> None:
    if runtime == "openvino":
        pytest.importorskip("onnxruntime_ep_openvino")
    opened = []

    def recorded(path, config):
        opened.append(config)
        return open_session(path, config)

    monkeypatch.setattr(speed_rows, "open_session", recorded)
    source = Source(tiny, lambda: None)  # type: ignore[arg-type, return-value]
    inputs = np.random.default_rng(0).normal(size=(9, 1, 8, 8)).astype(np.float32)
    session = product(runtime, "fp32")(source, Setting(1, 2, 3))
    assert opened == [RuntimeConfig(runtime, 2, "fp32", streams=2, part=3)]
    (found,) = session.run(inputs)
    session.close()
    whole = open_session(tiny)
    np.testing.assert_allclose(found, whole.run(inputs)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("threads", "sessions"), [(1, 1), (2, 3)])
def test_other_tools_share_an_onnxruntime_session_where_it_can_be(
    tiny: Path, threads: int, sessions: int, monkeypatch
) -> None:
    opened = []
    monkeypatch.setattr(
        speed_rows, "open_session",
        lambda path, config: opened.append(open_session(path, config)) or opened[-1],
    )  # fmt: skip
    source = Source(tiny, lambda: None)  # type: ignore[arg-type, return-value]
    session = speed_rows.onnxruntime(source, Setting(threads, 3, 2))
    assert (len(opened), session.streams, session.threads) == (sessions, 3, threads)  # type: ignore[attr-defined]
    assert session.run(np.zeros((7, 1, 8, 8), np.float32))[0].shape[0] == 7
    session.close()


@pytest.fixture
def files(tmp_path: Path, tiny: Path, monkeypatch) -> Files:
    calls = []

    def measure(adapter, job, path, options):
        calls.append((adapter, dict(options)))
        if adapter == "missing":
            raise MissingDependencyError("the tool needs x.", "Install it.")
        path.write_bytes(tiny.read_bytes())
        return PeerFile(path, 1.0, 1.0, 1, 1)

    monkeypatch.setattr(speed_files, "measure", measure)
    known = {
        "one": Made("one", "tool", {"row": "default", "target": "x"}),
        "other": Made("other", "tool", {"activations": "u8"}, ".xml"),
        "missing": Made("missing", "missing"),
        "pixels": Made("pixels", of="fp32", target="openvino"),
        "broken pixels": Made("broken pixels", of="missing", target="openvino"),
    }
    job = SimpleNamespace(model=tiny, module=lambda: calls.append("module") or "the module")
    made = Files(job, tmp_path / "made", known=known)  # type: ignore[arg-type]
    made.folder.mkdir()
    made.calls = calls  # type: ignore[attr-defined]
    return made


def test_a_file_is_made_once(files: Files) -> None:
    first = files.path("one")
    assert files.path("one") == first == files.source("one").path
    assert files.path("other").suffix == ".xml"
    assert files.calls == [  # type: ignore[attr-defined]
        ("tool", {"row": "default", "target": "x"}), ("tool", {"activations": "u8"}),
    ]  # fmt: skip


def test_plain_changes_our_row_alone(files: Files) -> None:
    plain = replace(files, plain=True, _made={}, _failed={})
    plain.path("one")
    plain.path("other")
    assert files.calls == [  # type: ignore[attr-defined]
        ("tool", {"row": "plain minmax", "target": "x"}), ("tool", {"activations": "u8"}),
    ]  # fmt: skip


def test_a_failure_is_not_tried_again_and_keeps_its_reason(files: Files) -> None:
    with pytest.raises(MissingDependencyError):
        files.path("missing")
    for _ in range(2):
        with pytest.raises(PeerError, match="Install it"):
            files.path("missing")
    with pytest.raises(PeerError, match="needs x"):
        files.path("broken pixels")
    assert len(files.calls) == 1  # type: ignore[attr-defined]


def test_the_model_and_its_module_are_there_without_a_tool(files: Files) -> None:
    for name in (FP32, MODULE):
        source = files.source(name)
        assert source.path == files.job.model
        assert source.module() == "the module"
    assert files.calls == ["module"]  # type: ignore[attr-defined]


def test_pixels_are_put_in_front_of_a_file(files: Files, demo_onnx: Path) -> None:
    files.job.model = demo_onnx  # type: ignore[misc]
    path = files.path("pixels")
    assert input_spec_of(onnx.load(str(path)), path).takes_pixels
