"""Published weights: their metadata needs no network, and a failing download says what to do."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torchvision import models as torchvision_models

from deploy_tools.errors import UserError
from deploy_tools.models import build_model
from deploy_tools.models.published import published_spec, timm_cfg, timm_spec


def test_torchvision_metadata() -> None:
    spec = published_spec("resnet50", "IMAGENET1K_V2")
    assert (spec.size, spec.resize, spec.crop) == ((224, 224), 232, "center")
    assert spec.mean == (0.485, 0.456, 0.406)
    assert spec.std == (0.229, 0.224, 0.225)
    assert spec.interpolation == "bilinear"
    assert len(spec.labels) == 1000
    assert spec.labels[0] == "tench"
    assert published_spec("resnet18", "DEFAULT").resize == 256
    assert published_spec("torchvision:resnet50", "ResNet50_Weights.IMAGENET1K_V1").resize == 256


def test_every_torchvision_classifier_has_a_spec() -> None:
    for name in torchvision_models.list_models(module=torchvision_models):
        for entry in torchvision_models.get_model_weights(name):
            spec = published_spec(f"torchvision:{name}", entry.name)
            assert spec.size[0] in entry.transforms().crop_size
    assert published_spec("torchvision:efficientnet_b4", "DEFAULT").interpolation == "bicubic"


def test_timm_metadata() -> None:
    spec = published_spec("timm:resnet50", "a1_in1k")
    assert (spec.size, spec.resize, spec.crop) == ((224, 224), 235, "center")
    assert spec.interpolation == "bicubic"
    assert len(spec.labels) == 1000
    assert "tench" in spec.labels[0]
    assert published_spec("timm:resnet50.a1_in1k", "DEFAULT") == spec
    assert published_spec("timm:resnet18", "DEFAULT").labels == spec.labels


def test_timm_squash_and_border() -> None:
    cfg = timm_cfg("resnet50", "a1_in1k")
    changed: dict[str, Any] = cfg.to_dict() | {"crop_mode": "squash", "crop_pct": 1.0}
    changed.pop("architecture")
    squash = type(cfg)(**changed, architecture="resnet50")
    assert timm_spec(squash).resize == (224, 224)
    border = type(cfg)(**(changed | {"crop_mode": "border"}), architecture="resnet50")
    with pytest.raises(UserError, match=r'crop mode "border" at 224x224'):
        timm_spec(border)


@pytest.mark.parametrize(
    ("arch", "weights", "message"),
    [
        ("resnet50", "IMAGENET1K_V3", 'Did you mean "IMAGENET1K_V2"'),
        ("torchvision:resnet51", "DEFAULT", "torchvision has no classifier"),
        ("torchvision:resnet50", "a1_in1k", 'torchvision has no weights "a1_in1k"'),
        ("timm:resnet51", "DEFAULT", "timm has no model"),
        ("timm:resnet50", "a1_in2k", 'Did you mean "a1_in1k"'),
        ("timm:resnet50.a1_in1k", "a2_in1k", "timm has no weights"),
        ("resnet20-cifar", "DEFAULT", "no published weights for resnet20-cifar"),
        ("json:dumps", "DEFAULT", "no published weights for json:dumps"),
    ],
)
def test_unknown_weights_are_refused(arch: str, weights: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(arch, weights=weights)


@pytest.mark.parametrize("arch", ["resnet50", "torchvision:resnet50", "timm:resnet50"])
def test_classes_and_channels_are_those_of_the_weights(arch: str) -> None:
    with pytest.raises(UserError, match="have 1000 classes, --num-classes says 10"):
        build_model(arch, 10, weights="DEFAULT")
    with pytest.raises(UserError, match=r"3 channels, 1 were asked for"):
        build_model(arch, in_channels=1, weights="DEFAULT")


@pytest.mark.parametrize("arch", ["resnet18", "torchvision:resnet18"])
def test_a_failing_download(arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_args: object, **_options: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    with pytest.raises(UserError, match=r"could not be downloaded from https:.*no route") as caught:
        build_model(arch, weights="IMAGENET1K_V1")
    assert "--checkpoint" in caught.value.hint
    assert not list(tmp_path.rglob("*.pth"))


def test_a_failing_download_from_timms_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_args: object, **_options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(UserError, match=r"resnet18.a1_in1k could not be downloaded .*no route"):
        build_model("timm:resnet18", weights="a1_in1k")


def test_fetched_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = torchvision_models.resnet18().state_dict()
    asked: dict[str, object] = {}

    def fetched(_self: object, **options: object) -> object:
        asked.update(options)
        return theirs

    enum = torchvision_models.ResNet18_Weights
    monkeypatch.setattr(enum, "get_state_dict", fetched)
    built = build_model("resnet18", weights="IMAGENET1K_V1")
    assert torch.equal(built.module.state_dict()["fc.weight"], theirs["fc.weight"])
    assert asked == {"progress": False, "check_hash": True, "weights_only": True}
    assert built.labels[0] == "tench"
    assert built.spec is not None
    assert built.spec.labels == built.labels
