"""Models by name: the zoo, other libraries' models, and the user's own.

This module and its registry import without torch; the models themselves need it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy_tools.errors import UserError, nearest, require

if TYPE_CHECKING:
    from torch import nn

    from deploy_tools.data.spec import InputSpec

RESNET_DEPTHS = (18, 34, 50, 101, 152)
CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)
_RESNET = "deploy_tools.models.resnet"


@dataclass(frozen=True)
class Architecture:
    """How to make one model of the zoo: `module.factory(**keywords, num_classes, in_channels)`.

    classes: the number of classes where the user names none.
    """

    module: str
    factory: str
    keywords: dict[str, Any]
    classes: int


def _zoo() -> dict[str, Architecture]:
    zoo = {
        f"resnet{depth}": Architecture(_RESNET, "ResNet", {"depth": depth}, 1000)
        for depth in RESNET_DEPTHS
    }
    for suffix, shortcut in (("cifar", "projection"), ("cifar-a", "parameter-free")):
        for depth in CIFAR_DEPTHS:
            keywords = {"depth": depth, "shortcut": shortcut}
            zoo[f"resnet{depth}-{suffix}"] = Architecture(
                "deploy_tools.models.cifar", "CifarResNet", keywords, 10
            )
    return zoo


ARCHITECTURES = _zoo()
"""The zoo. A new family is one file in this folder and its line here."""

OTHER_ARCHITECTURES = "torchvision:NAME, timm:NAME or package.module:callable"


@dataclass(frozen=True)
class BuiltModel:
    """A module in eval mode and what is known about its input and output.

    num_classes: length of the logits; None where the user's own callable decides it.
    spec, labels: from the metadata of published weights; None and empty without them.
    """

    module: nn.Module
    arch: str
    num_classes: int | None
    spec: InputSpec | None = None
    labels: tuple[str, ...] = ()


def build_model(
    arch: str,
    num_classes: int | None = None,
    in_channels: int = 3,
    weights: str | None = None,
) -> BuiltModel:
    """Build the module that `arch` names, with random weights or with published ones.

    arch: a name in ARCHITECTURES, "torchvision:NAME", "timm:NAME" or "package.module:callable".
    weights: the name of published weights ("IMAGENET1K_V2", "DEFAULT"; for timm a tag such as
        "a1_in1k"), which are downloaded or taken from torch's or the hub's cache.
    Raises UserError for an unknown name, for a number of classes or channels that the
    published weights do not have, and for a download that fails.
    """
    for name, value in (("--num-classes", num_classes), ("in_channels", in_channels)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}.")
    if arch not in ARCHITECTURES and ":" not in arch:
        raise UserError(
            f'architecture "{arch}" is not known.',
            f"{nearest(arch, ARCHITECTURES)} Also: {OTHER_ARCHITECTURES}.",
        )
    require("torch", "torch", f"--arch {arch}")
    if arch in ARCHITECTURES:
        return _from_zoo(arch, num_classes, in_channels, weights)
    library, _, name = arch.partition(":")
    external = importlib.import_module("deploy_tools.models.external")
    build = {"torchvision": external.torchvision_model, "timm": external.timm_model}.get(library)
    if build is not None:
        require(library, "torch", f"--arch {arch}")
        built: BuiltModel = build(name, num_classes, in_channels, weights)
        return built
    if weights is not None:
        raise _no_published_weights(arch, weights)
    custom: BuiltModel = external.custom_model(arch, num_classes, in_channels)
    return custom


def find_source(module: str) -> Path | None:
    """Return the file of a user's module, found as `build_model` finds it; None where it is not."""
    search_here()
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    origin = Path(found.origin) if found is not None and found.origin else None
    return origin if origin is not None and origin.is_file() else None


def search_here() -> None:
    """Let imports find files in the current folder, after everything that is installed."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def new_module(arch: str, num_classes: int, in_channels: int = 3) -> nn.Module:
    """Return a fresh module of the zoo with random weights, in training mode."""
    entry = ARCHITECTURES[arch]
    factory = getattr(importlib.import_module(entry.module), entry.factory)
    module: nn.Module = factory(**entry.keywords, num_classes=num_classes, in_channels=in_channels)
    return module


def _from_zoo(
    arch: str, num_classes: int | None, in_channels: int, weights: str | None
) -> BuiltModel:
    if weights is None:
        classes = num_classes or ARCHITECTURES[arch].classes
        return BuiltModel(new_module(arch, classes, in_channels).eval(), arch, classes)
    if ARCHITECTURES[arch].module != _RESNET:
        raise _no_published_weights(arch, weights)
    require("torchvision", "torch", f"--weights {weights}")
    published = importlib.import_module("deploy_tools.models.published")
    loading = importlib.import_module("deploy_tools.models.checkpoint")
    entry = published.torchvision_weights(arch, weights)
    spec: InputSpec = published.torchvision_spec(entry)
    published.check_fit(f"{arch} {weights}", spec, num_classes, in_channels)
    module = new_module(arch, len(spec.labels), in_channels)
    loading.load_into(module, published.torchvision_state(entry), arch, f"{arch} {weights}")
    return BuiltModel(module.eval(), arch, len(spec.labels), spec, spec.labels)


def _no_published_weights(arch: str, weights: str) -> UserError:
    return UserError(
        f"--weights {weights}: there are no published weights for {arch}.",
        "Use --checkpoint FILE. --weights works with resnet18 to resnet152, "
        "torchvision:NAME and timm:NAME.",
    )
