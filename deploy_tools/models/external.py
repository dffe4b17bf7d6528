"""Models of other libraries and of the user: torchvision:NAME, timm:NAME, module:callable."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from deploy_tools.errors import UserError, nearest
from deploy_tools.models import BuiltModel, search_here
from deploy_tools.models.published import (
    check_fit,
    download_failed,
    timm_cfg,
    timm_spec,
    torchvision_spec,
    torchvision_state,
    torchvision_weights,
)


def torchvision_model(
    name: str, num_classes: int | None, in_channels: int, weights: str | None
) -> BuiltModel:
    """Build a classifier of torchvision.models; `weights` names an entry of its weights enum."""
    from torchvision import models

    arch = f"torchvision:{name}"
    if in_channels != 3:
        raise UserError(f"{arch} takes 3 channels, {in_channels} were asked for.")
    if weights is None:
        known = models.list_models(module=models)
        if name not in known:
            raise UserError(f'torchvision has no classifier "{name}".', nearest(name, known))
        classes = num_classes or 1000
        return BuiltModel(models.get_model(name, num_classes=classes).eval(), arch, classes)
    entry = torchvision_weights(name, weights)
    spec = torchvision_spec(entry)
    check_fit(f"{name} {weights}", spec, num_classes, in_channels)
    # First with weights_only=True; torchvision's own builder, which knows each model's
    # renamed keys and options, then finds the file in the cache.
    torchvision_state(entry)
    module = models.get_model(name, weights=entry, progress=False)
    return BuiltModel(module.eval(), arch, len(spec.labels) or None, spec, spec.labels)


def timm_model(
    name: str, num_classes: int | None, in_channels: int, weights: str | None
) -> BuiltModel:
    """Build a model of timm; `weights` is a tag such as "a1_in1k", or "DEFAULT"."""
    import timm

    arch = f"timm:{name}"
    if weights is None:
        if not timm.is_model(name):
            raise UserError(f'timm has no model "{name}".', nearest(name, timm.list_models()))
        chosen = {} if num_classes is None else {"num_classes": num_classes}
        module = timm.create_model(name, pretrained=False, in_chans=in_channels, **chosen)
        return BuiltModel(module.eval(), arch, getattr(module, "num_classes", num_classes))
    cfg = timm_cfg(name, weights)
    spec = timm_spec(cfg)
    full_name = f"{cfg.architecture}.{cfg.tag}"
    check_fit(full_name, spec, num_classes, in_channels)
    try:
        module = timm.create_model(full_name, pretrained=True)
    except Exception as error:
        raise download_failed(full_name, cfg.hf_hub_id or cfg.url, error) from error
    return BuiltModel(module.eval(), arch, cfg.num_classes, spec, spec.labels)


def custom_model(arch: str, num_classes: int | None, in_channels: int) -> BuiltModel:
    """Call the user's `package.module:callable`, found on the path or in the current folder.

    `num_classes` and `in_channels` are handed over only where the signature takes them.
    Raises UserError where the module, the callable or its result is not what it should be.
    """
    build = _imported(arch)
    try:
        module = build(**_keywords(build, num_classes, in_channels))
    except Exception as error:
        raise UserError(f"{arch} failed with {type(error).__name__}: {error}.") from error
    if not isinstance(module, nn.Module):
        raise UserError(f"{arch} returned {type(module).__name__}, not a torch.nn.Module.")
    return BuiltModel(module.eval(), arch, num_classes)


def _imported(arch: str) -> Callable[..., Any]:
    path, _, attribute = arch.partition(":")
    search_here()
    try:
        found: Any = importlib.import_module(path)
    except Exception as error:
        raise UserError(
            f"{arch}: {path} cannot be imported: {type(error).__name__}: {error}.",
            "Name a module on the Python path or in the current folder.",
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UserError(f'{path} has no "{attribute}".', nearest(attribute, _public(found)))
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{arch} is {type(found).__name__}, not a callable.")
    return found  # type: ignore[no-any-return]


def _public(module: object) -> list[str]:
    return [n for n in dir(module) if not n.startswith("_") and callable(getattr(module, n))]


def _keywords(
    build: Callable[..., Any], num_classes: int | None, in_channels: int
) -> dict[str, int]:
    """Return the keywords that `build` takes; `**kwargs` gets only what the user chose."""
    try:
        parameters = inspect.signature(build).parameters
    except (TypeError, ValueError):
        return {}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    keywords = {}
    if num_classes is not None and ("num_classes" in parameters or open_ended):
        keywords["num_classes"] = num_classes
    if "in_channels" in parameters or (open_ended and in_channels != 3):
        keywords["in_channels"] = in_channels
    return keywords
