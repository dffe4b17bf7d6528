"""Our rows beside the other tools': the same job gives the file that the commands write."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from benchmarks.peers.base import Job
from benchmarks.studies import ours
from deploy_tools.errors import UserError
from deploy_tools.pipeline.int8_settings import Int8Settings, settings_of
from deploy_tools.pipeline.variants import Variant
from deploy_tools.quantization.static import StaticConfig
from deploy_tools.recipe import VariantTable


@pytest.fixture(scope="module")
def job(demo_onnx: Path, demo_checkpoint: Path, fashion_train: object) -> Job:
    from deploy_tools.models.checkpoint import load_state, spec_from_metadata

    spec = spec_from_metadata(load_state(demo_checkpoint)[1])
    assert spec is not None
    # Not in the source's order: the same images all the same.
    return Job(demo_onnx, spec, "fashion-mnist", None, "train", (30, 7, 12, *range(500, 513)))


def test_the_default_row_is_the_default_of_the_commands() -> None:
    table = VariantTable("int8", "static", "ort-cpu")
    variant = Variant("x", "int8", "static", "ort-cpu", "onnxruntime", "x.onnx", table=table)
    assert settings_of(variant) == Int8Settings(StaticConfig())
    assert ours.OURS[ours.DEFAULT] is ours.corrected


def test_every_row_and_target_differs(job: Job, tmp_path: Path) -> None:
    ours.load()
    made = {}
    for row in ours.OURS:
        for target in ("ort-cpu", "tensorrt"):
            path = tmp_path / f"{row}-{target}.onnx"
            ours.quantize(job, path, row, target)
            if (row, target) != ("branches in float", "tensorrt"):  # all are, on that target
                made[row, target] = path.read_bytes()
    ours.quantize(job, tmp_path / "tensor.onnx", ours.DEFAULT, per_channel=False)
    made["per-tensor", ""] = (tmp_path / "tensor.onnx").read_bytes()
    assert len(set(made.values())) == len(made)
    notes = onnx.load(tmp_path / f"{ours.DEFAULT}-tensorrt.onnx").metadata_props
    assert {note.key: note.value for note in notes}["deploy_tools.target"] == "tensorrt"


def test_the_images_of_the_job_are_used(job: Job, tmp_path: Path) -> None:
    from dataclasses import replace

    ours.quantize(job, tmp_path / "a.onnx", "plain minmax")
    ours.quantize(
        replace(job, indices=(7, 12, 30, *range(500, 513))), tmp_path / "b.onnx", "plain minmax"
    )
    ours.quantize(
        replace(job, indices=(7, 12, 31, *range(500, 513))), tmp_path / "c.onnx", "plain minmax"
    )
    a, b, c = ((tmp_path / f"{name}.onnx").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_an_unknown_row_is_named(job: Job, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='row "mce"'):
        ours.quantize(job, tmp_path / "q.onnx", "mce")
