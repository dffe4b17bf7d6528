"""From JPEG to label: each way gives FP32's labels on real photos, and the claims are honest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.samples import SampleSet, Slot
from benchmarks.speed import SpeedConfig
from benchmarks.speed_run import SpeedRun
from benchmarks.studies import speed_jpeg
from benchmarks.studies.base import Results
from benchmarks.studies.speed_jpeg import OPENVINO, REFERENCE, US, Way, claim_jpeg
from benchmarks.studies.speed_rows import product
from deploy_tools.data.decode import load_input
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError

SPEC = InputSpec((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 232, "center")
ROUNDS = 12


def run(name: str, milliseconds: float) -> SpeedRun:
    slots = tuple(
        Slot(i, 0, np.array([0], np.int64), np.array([round(milliseconds * 1e6)], np.int64))
        for i in range(ROUNDS)
    )
    samples = SampleSet(name, "offline", 8, 1, 1, slots, end_to_end=True)
    return SpeedRun(samples, samples)


def claims_of(*runs: SpeedRun):
    """The search found what the runs found."""
    results = Results(False, lambda line: None)
    rates = {each.variant: each.images_per_s.estimate for each in runs}
    claim_jpeg(results, "here", {each.variant: each for each in runs}, rates)
    return results.claims


def test_our_fastest_way_is_held_against_each_of_the_others() -> None:
    runs = (run(REFERENCE, 30.0), run(OPENVINO, 12.0), run(f"{US}, onnxruntime", 20.0), run(f"{US}, OpenVINO", 8.0))  # fmt: skip
    first, second = claims_of(*runs)
    assert f"{US}, OpenVINO over {REFERENCE}" in first.name
    assert (first.value, first.target, first.met) == (pytest.approx(3.75), ">= 3", True)
    assert (second.value, second.target, second.met) == (pytest.approx(1.5), ">= 1.6", False)


def test_ours_is_ours_even_where_another_is_faster() -> None:
    first, second = claims_of(
        run(REFERENCE, 30.0), run(OPENVINO, 5.0), run(f"{US}, OpenVINO", 10.0)
    )
    assert (first.value, first.met) == (pytest.approx(3.0), True)
    assert (second.value, second.met) == (pytest.approx(0.5), False)
    assert f"{US}, OpenVINO over {OPENVINO}" in second.name


def test_the_low_end_decides_and_the_search_chooses() -> None:
    shaky = run(f"{US}, OpenVINO", 8.0)
    for index, slot in enumerate(shaky.samples.slots):
        slot.durations_ns[:] = slot.durations_ns * (1.3 if index % 2 else 0.8)
    first, _ = claims_of(run(REFERENCE, 30.0), shaky)
    assert (first.value, first.met) == (pytest.approx(30 / 8 / 1.3, rel=0.01), False)
    results = Results(False, lambda line: None)
    ours = {f"{US}, OpenVINO": run(f"{US}, OpenVINO", 8.0), f"{US}, slow": run(f"{US}, slow", 4.0)}
    rates = {f"{US}, OpenVINO": 2.0, f"{US}, slow": 1.0}
    claim_jpeg(results, "here", {REFERENCE: run(REFERENCE, 30.0), **ours}, rates)
    assert results.claims[0].value == pytest.approx(3.75)


@pytest.mark.parametrize("cores", [1, 2, 6, 16, 100])
def test_shapes_fit_the_cores_and_the_call(cores: int) -> None:
    for layout in (speed_jpeg.ONE_CORE, speed_jpeg.ALL_CORES):
        for scenario in ("single-stream", "offline"):
            found = speed_jpeg.shapes(layout, scenario, cores)
            assert found
            assert len(set(found)) == len(found)
            call = speed_jpeg.BATCH if layout == speed_jpeg.ONE_CORE else speed_jpeg.OFFLINE
            for shape in found:
                setting = shape.setting
                most = 1 if layout == speed_jpeg.ONE_CORE else cores
                assert setting.threads * setting.streams <= most
                assert call % setting.chunk == 0  # OpenVINO's requests have one size
                assert bool(shape.decoders) == (
                    (layout, scenario) == (speed_jpeg.ALL_CORES, "offline")
                )


def test_a_way_that_did_not_run_is_not_met() -> None:
    first, second = claims_of(run(REFERENCE, 30.0), run(f"{US}, OpenVINO", 8.0))
    assert first.met
    assert (second.value, second.met) == (None, False)
    assert [claim.met for claim in claims_of(run(REFERENCE, 30.0))] == [False, False]


@pytest.fixture
def photo(shared_data: Path) -> Path:
    return sorted((shared_data / "flowers" / "val" / "daisy").glob("*.jpg"))[0]


def test_torchvision_is_the_reference_preprocessing(photo: Path) -> None:
    pytest.importorskip("torchvision")
    made = speed_jpeg.torchvision_transforms(SPEC)(photo)
    wanted = load_input(photo, SPEC, "reference")
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, wanted, atol=1e-5)
    with pytest.raises(UserError, match="bilinear"):
        speed_jpeg.torchvision_transforms(InputSpec((8, 8), (0.5,), (0.5,)))


def test_ours_makes_no_float_image(photo: Path) -> None:
    way = next(way for way in speed_jpeg.WAYS if way.pixels)
    made = way.decode(SPEC)(photo)
    assert (made.dtype, made.shape) == (np.uint8, (224, 224, 3))


@pytest.fixture(scope="module")
def small(tmp_path_factory, shared_data: Path):
    """The flower ResNet-18 for small photos: its FP32 file takes 56 pixels."""
    from dataclasses import replace

    from deploy_tools.export import onnx_from_module
    from deploy_tools.pipeline.model import fold_model, load_model
    from deploy_tools.recipe import InputTable, ModelTable
    from deploy_tools.rewrite.uint8_input import uint8_input_from_onnx

    folder = tmp_path_factory.mktemp("jpeg")
    table = InputTable((56, 56), SPEC.mean, SPEC.std, 58, "center")
    checkpoint = str(shared_data / "weights" / "resnet18-flowers.safetensors")
    loaded = load_model(ModelTable("resnet18", checkpoint, num_classes=5), table)
    path, pixels = folder / "fp32.onnx", folder / "fp32-uint8.onnx"
    onnx_from_module(fold_model(loaded)[0], loaded.spec, path)
    uint8_input_from_onnx(path, pixels, "first")
    paths = {"fp32": path, "fp32-uint8": pixels}

    def source(name):
        if name not in paths:
            raise UserError("no such file.")
        return SimpleNamespace(path=paths[name], module=None)

    spec = replace(loaded.spec, size=(56, 56))
    return SimpleNamespace(
        job=SimpleNamespace(spec=spec), path=lambda name: paths[name], source=source, folder=folder
    )


def test_all_ways_on_real_photos(small, shared_data: Path, monkeypatch) -> None:
    pytest.importorskip("torchvision")
    ways = (
        Way(REFERENCE, "fp32", product("onnxruntime")),
        Way(OPENVINO, "missing", product("onnxruntime")),
        Way(f"{US}, onnxruntime", "fp32-uint8", product("onnxruntime"), pixels=True),
    )
    monkeypatch.setattr(speed_jpeg, "WAYS", ways)
    monkeypatch.setattr(speed_jpeg, "OFFLINE", 16)
    photos = speed_jpeg.find_photos(shared_data / "flowers", small, small.folder, 16, 232)
    assert len(photos.source) == len(photos.wanted) == 16
    assert len(set(photos.wanted.tolist())) > 1
    results = Results(True, lambda line: None)

    config = SpeedConfig(warmup=1, settle=0, rounds=3, seconds_per_round=0, min_calls=1)
    speed_jpeg.compare_jpeg(results, small, photos, config, config)
    ran = [row for row in results.rows if "status" not in row]
    assert len(ran) == 2 * 2 * 2
    assert len(results.rows) == len(ran) + 4
    for row in ran:
        # torchvision's way is the reference; ours decodes what it needs, and resizes that.
        assert row["agreement"] >= (1.0 if row["way"] == REFERENCE else 0.8)
        batch = {"single-stream": 1}.get(row["scenario"], 8 if row["layout"] == "one core" else 16)
        assert (row["query"], row["short_side"], row["photos"]) == (batch, 232, 16)
        assert bool(row["decoders"]) == (batch == 16)
        assert row["speedup"] > 0
    names = [claim.name for claim in results.claims]
    assert sum("FP32's labels" in name for name in names) == 4
    assert sum(f"over {REFERENCE}" in name for name in names) == 4
    missing = [claim for claim in results.claims if OPENVINO in claim.name]
    assert len(missing) == 4
    assert not any(claim.met for claim in missing)


def test_without_the_reference_no_other_way_takes_its_place(
    small, shared_data, monkeypatch
) -> None:
    ways = (
        Way(REFERENCE, "missing", product("onnxruntime")),
        Way(f"{US}, onnxruntime", "fp32-uint8", product("onnxruntime"), pixels=True),
    )
    monkeypatch.setattr(speed_jpeg, "WAYS", ways)
    photos = speed_jpeg.find_photos(shared_data / "flowers", small, small.folder, 8, 232)
    results = Results(True, lambda line: None)
    place = speed_jpeg.Place(small, photos, speed_jpeg.ONE_CORE, "offline")
    config = SpeedConfig(("offline",), 8, 1, 0, 3, 0.0, 1)
    runs, rates = speed_jpeg._timed(results, place, config, config)
    assert list(runs) == list(rates) == [ways[1].name]
    failed, ran = results.rows
    assert (failed["way"], failed["reason"]) == (REFERENCE, "no such file.")
    assert ran["images_per_s"] > 0
    assert (ran["speedup"], ran["speedup_ci95"]) == (None, None)
