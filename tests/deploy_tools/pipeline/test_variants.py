from __future__ import annotations

from typing import Any

import pytest

from deploy_tools.errors import MissingDependencyError, UserError
from deploy_tools.pipeline import variants
from deploy_tools.pipeline.variants import planned_variants
from deploy_tools.recipe import BatchTable, DataTable, ModelTable, Recipe, VariantTable
from deploy_tools.runtimes.gpu import Gpu


def plan(*tables: VariantTable) -> list[str]:
    recipe = Recipe(ModelTable("resnet18", random_weights=True), DataTable("npz"), variant=tables)
    return [variant.id for variant in planned_variants(recipe)]


def test_ids_follow_precision_method_and_target() -> None:
    tables = [
        VariantTable("int8", "dynamic"),
        VariantTable("int8", "dynamic", include_conv=True),
        VariantTable("int8", "static"),
        VariantTable("int8", "static", "openvino"),
        VariantTable("int8", "static", "x86-no-vnni"),
        VariantTable("bf16"),
        VariantTable("fp32", target="openvino"),
        VariantTable("fp16", target="tensorrt"),
        VariantTable("int8", "static", "tensorrt"),
        VariantTable("fp16", target="tensorrt-rtx"),
        VariantTable("int8", "static", "tensorrt-rtx"),
    ]
    assert plan(*tables) == [
        "fp32-torch", "fp32-ort", "int8-dynamic-ort", "int8-dynamic-conv-ort", "int8-static-ort",
        "int8-static-openvino", "int8-static-x86-no-vnni", "bf16-openvino", "fp32-openvino",
        "fp16-tensorrt", "int8-tensorrt", "fp16-tensorrt-rtx", "int8-tensorrt-rtx",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"precision": "int8", "method": "static", "id": "fp32"}, "cannot name files"),
        ({"precision": "int8", "method": "static", "id": "../x"}, "cannot name files"),
        ({"precision": "int8", "method": "static", "id": ".hidden"}, "cannot name files"),
        ({"precision": "int8", "method": "static", "id": "fp32-ort"}, "two variants are named"),
        ({"precision": "int8", "method": "static", "id": "FP32-ORT"}, "two variants are named"),
        ({"precision": "int8"}, "method"),
        ({"precision": "int8", "method": "dynamic", "ranges": "mse"}, "means nothing"),
        ({"precision": "int8", "method": "dynamic", "target": "openvino"}, "ort-cpu only"),
        ({"precision": "int8", "method": "static", "include_conv": True}, "means nothing"),
        ({"precision": "int8", "method": "static", "percentile": 99.0}, "needs ranges"),
        ({"precision": "int8", "method": "static", "target": "opnvino"}, 'Did you mean "openvino"'),
        ({"precision": "bf16", "exclude": ("fc",)}, "means nothing"),
        ({"precision": "bf16", "method": "static"}, "no method"),
        ({"precision": "bf16", "target": "ort-cpu"}, "does not run bf16"),
        ({"precision": "bf16", "target": "arm"}, "cannot have the target"),
        ({"precision": "bf16", "target": "tensorrt"}, "TensorRT variants are fp16 and int8"),
        ({"precision": "fp16"}, "fp16 variant is for TensorRT"),
        ({"precision": "fp16", "target": "openvino"}, "fp16 variant is for TensorRT"),
        ({"precision": "int8", "method": "dynamic", "target": "tensorrt"}, "ort-cpu only"),
        (
            {"precision": "fp16", "target": "tensorrt", "batch": BatchTable(max=4, opt=4)},
            "takes batches 1 to 4, and a run gives it 1 and 8",
        ),
        (
            {"precision": "fp16", "target": "tensorrt", "batch": BatchTable(min=2)},
            "takes batches 2 to 32",
        ),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan(VariantTable(**values))


def test_the_same_variant_twice_needs_an_id() -> None:
    with pytest.raises(UserError, match="int8-static-ort"):
        plan(VariantTable("int8", "static"), VariantTable("int8", "static", ranges="minmax"))
    ids = plan(
        VariantTable("int8", "static"), VariantTable("int8", "static", ranges="minmax", id="mm")
    )
    assert ids[-1] == "mm"


def test_an_engine_is_simulated_where_no_gpu_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(
        ModelTable("resnet18", random_weights=True),
        DataTable("npz"),
        variant=(VariantTable("fp16", target="tensorrt-rtx"),),
    )
    monkeypatch.setattr(variants, "find_gpu", lambda: None)
    monkeypatch.setattr(variants, "why_no_gpu", lambda: "no driver")
    assert planned_variants(recipe)[-1].simulated == (
        "tensorrt-rtx engines need a GPU to run: no driver"
    )
    # A GPU that TensorRT for RTX refuses (H100), and one that it takes.
    pytest.importorskip("tensorrt_rtx")
    for capability, words in (("9.0", "does not run on"), ("8.9", "")):
        gpu = Gpu("some GPU", capability, "13.0", "13.0", 0)
        monkeypatch.setattr(variants, "find_gpu", lambda gpu=gpu: gpu)
        found = planned_variants(recipe)[-1].simulated
        assert words in found
        assert bool(found) == bool(words)


def test_an_engine_is_simulated_where_its_flavour_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise MissingDependencyError(f"{name} is not installed.")

    gpu = Gpu("some GPU", "8.9", "13.0", "13.0", 0)
    monkeypatch.setattr(variants, "find_gpu", lambda: gpu)
    monkeypatch.setattr(variants, "find_flavour", missing)
    assert variants.why_simulated("tensorrt") == "tensorrt is not installed."
