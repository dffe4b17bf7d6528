from __future__ import annotations

from typing import Any

import pytest

from deploy_tools.errors import UserError
from deploy_tools.pipeline.variants import planned_variants
from deploy_tools.recipe import DataTable, ModelTable, Recipe, VariantTable


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
    ]
    assert plan(*tables) == [
        "fp32-torch", "fp32-ort", "int8-dynamic-ort", "int8-dynamic-conv-ort", "int8-static-ort",
        "int8-static-openvino", "int8-static-x86-no-vnni", "bf16-openvino", "fp32-openvino",
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
