"""Models by name: the zoo, other libraries, the user's own, and the ways to get them wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision import models as torchvision_models

from deploy_tools.errors import UserError
from deploy_tools.models import ARCHITECTURES, build_model


def test_the_registry_imports_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from deploy_tools.models import ARCHITECTURES, build_model\n"
        "from deploy_tools.errors import MissingDependencyError\n"
        "try:\n    build_model('resnet18')\n"
        "except MissingDependencyError as error:\n    print(error.exit_code, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("3 --arch resnet18 needs torch")
    assert "deploy-tools[torch]" in done.stdout


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_torchvision_state_dicts_load_strictly(depth: int) -> None:
    with torch.device("meta"):
        theirs = torchvision_models.get_model(f"resnet{depth}", num_classes=7).state_dict()
        ours = build_model(f"resnet{depth}", 7).module.state_dict()
    assert [(n, v.shape) for n, v in theirs.items()] == [(n, v.shape) for n, v in ours.items()]


def test_the_same_weights_give_torchvisions_logits() -> None:
    theirs = torchvision_models.resnet50(num_classes=5).eval()
    built = build_model("resnet50", 5)
    built.module.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(built.module(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", [a for a in ARCHITECTURES if "cifar" in a and "1202" not in a])
def test_cifar_resnets_have_the_papers_depth(arch: str) -> None:
    depth = int(arch.removeprefix("resnet").partition("-")[0])
    built = build_model(arch, 7, in_channels=1)
    weights = [
        name for name, value in built.module.state_dict().items()
        if value.ndim > 1 and "shortcut" not in name
    ]  # fmt: skip
    assert len(weights) == depth
    assert ("layer2.0.shortcut.0.weight" in built.module.state_dict()) == (not arch.endswith("-a"))
    assert not built.module.training
    with torch.no_grad():
        assert built.module(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_resnet_1202_is_there() -> None:
    with torch.device("meta"):
        module = build_model("resnet1202-cifar-a").module
    assert sum(p.numel() for p in module.parameters()) == pytest.approx(19.4e6, rel=0.01)


def test_the_parameter_free_shortcut_is_the_papers() -> None:
    block = build_model("resnet20-cifar-a").module.layer2[0].shortcut
    x = torch.randn(1, 16, 4, 4)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_defaults() -> None:
    with torch.device("meta"):
        assert build_model("resnet18").num_classes == 1000
        assert build_model("resnet20-cifar").num_classes == 10
        assert build_model("torchvision:alexnet").num_classes == 1000
    assert build_model("resnet20-cifar").spec is None


def test_other_libraries() -> None:
    built = build_model("torchvision:shufflenet_v2_x0_5", 4)
    assert built.module(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    assert not built.module.training
    built = build_model("timm:mobilenetv3_small_050", 4, in_channels=1)
    assert built.module(torch.zeros(1, 1, 32, 32)).shape == (1, 4)
    assert (built.arch, built.num_classes) == ("timm:mobilenetv3_small_050", 4)


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "their_nets.py").write_text(
        "from torch import nn\n"
        "def plain():\n    return nn.Linear(3, 2)\n"
        "def full(num_classes, in_channels=3):\n    return nn.Linear(in_channels, num_classes)\n"
        "def kwargs(**options):\n    return nn.Linear(3, options.get('num_classes', 99))\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, num_classes=2):\n        super().__init__(3, num_classes)\n"
        "def wrong():\n    return 'net'\n"
        "def broken():\n    raise RuntimeError('no luck')\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "their_nets", raising=False)
    return "their_nets"


@pytest.mark.parametrize(
    ("name", "shape"),
    [("plain", (2, 3)), ("full", (7, 1)), ("Net", (7, 3)), ("kwargs", (7, 3))],
)
def test_the_users_callable_gets_what_its_signature_takes(
    user_module: str, name: str, shape: tuple[int, int]
) -> None:
    in_channels = 1 if name == "full" else 3
    built = build_model(f"{user_module}:{name}", 7, in_channels)
    assert tuple(built.module.weight.shape) == shape
    assert not built.module.training


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", "returned str, not a torch.nn.Module"),
        ("broken", "failed with RuntimeError: no luck"),
        ("number", "is int, not a callable"),
        ("plian", 'Did you mean "plain"'),
    ],
)
def test_a_wrong_callable_is_refused(user_module: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(f"{user_module}:{name}")


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet51", 'Did you mean "resnet5?0'),
        ("resnet20-cifr", 'Did you mean "resnet20-cifar"'),
        ("torchvision:resnet51", "torchvision has no classifier"),
        ("timm:resnet51", "timm has no model"),
        ("no_such_package.nets:build", "no_such_package.nets cannot be imported"),
    ],
)
def test_an_unknown_name_is_refused(arch: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(arch)


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="--num-classes must be at least 1, got 0"):
        build_model("resnet18", 0)
    with pytest.raises(UserError, match="in_channels must be at least 1"):
        build_model("resnet18", 5, in_channels=0)
    with pytest.raises(UserError, match="takes 3 channels, 1 were asked for"):
        build_model("torchvision:resnet18", in_channels=1)
