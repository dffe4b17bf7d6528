"""The recipes on real models that nobody here trained: published accuracy, INT8 beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy_tools.pipeline import run_recipe
from deploy_tools.recipe import load_recipe

RECIPES = Path(__file__).resolve().parent.parent / "recipes"

# recipe, data, checkpoint, correct in FP32, images, least logit SQNR of static INT8 in dB
# (onnxruntime's own min-max reaches 29.9 on ResNet-20; see docs/measurements.md).
MODELS = [
    ("cifar10-resnet20", "cifar10", "resnet20-12fca82f.th", 9173, 10000, 29.9),
    ("cifar10-resnet32", "cifar10", "resnet32-d509ac18.th", 9263, 10000, 28.0),
    ("flowers-resnet18", "flowers", "resnet18-flowers.safetensors", 629, 736, 30.0),
]

# JPEG decoders differ in the last bit; two of the flower photos are that close to a tie.
DECODER_SLACK = 2


# Learnt rounding takes minutes here; once is enough.
_SHORTER = ["data.calibration.images=64", "variant.2.rounding=nearest", "variant.2.equalize=false"]


@pytest.mark.parametrize(("name", "data", "weights", "correct", "images", "sqnr"), MODELS)
def test_published_accuracy_and_int8(
    shared_data: Path, tmp_path: Path, name: str, data: str, weights: str, correct: int,
    images: int, sqnr: float,
) -> None:  # fmt: skip
    changes = [
        f"model.checkpoint='{shared_data / 'weights' / weights}'",
        f"data.root='{shared_data / data}'",
        "speed.scenarios=[]",
        *(_SHORTER if data == "flowers" else []),
    ]
    recipe = load_recipe(RECIPES / f"{name}.toml", changes)
    report = run_recipe(recipe, tmp_path / "out", name).report
    by_id = {v["id"]: v for v in report["variants"]}
    for variant in ("fp32-ort", "fp32-torch"):
        found = round(by_id[variant]["accuracy"]["top1"] * images)
        assert abs(found - correct) <= (0 if data == "cifar10" else DECODER_SLACK)
        assert by_id[variant]["accuracy"]["images"] == images
    for variant in ("int8-static-ort", "int8-static-openvino"):
        if by_id[variant]["accuracy"]["status"] == "skipped":
            pytest.skip(by_id[variant]["accuracy"]["reason"])
        accuracy = by_id[variant]["accuracy"]
        low, high = accuracy["drop_ci95_pp"]
        assert low <= 0 <= high or abs(accuracy["drop_pp"]) < 0.3
        assert accuracy["logit_sqnr_db"] > sqnr
        assert accuracy["agreement"] > 0.985
