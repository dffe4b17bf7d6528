"""Published weights: what their metadata says about the input, and their download.

The metadata comes with the installed library, so the input spec needs no network.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError, nearest


def published_spec(arch: str, weights: str) -> InputSpec:
    """Return the input spec, class names included, of published weights without fetching them.

    arch: "resnet18" to "resnet152", "torchvision:NAME" or "timm:NAME".
    Raises UserError for an unknown name and for preprocessing that a spec cannot express.
    """
    library, _, name = arch.rpartition(":")
    if library == "timm":
        return timm_spec(timm_cfg(name, weights))
    return torchvision_spec(torchvision_weights(name, weights))


def check_fit(name: str, spec: InputSpec, num_classes: int | None, in_channels: int) -> None:
    """Raise UserError where the user's classes or channels are not those of the weights."""
    classes = len(spec.labels)
    if num_classes is not None and classes and num_classes != classes:
        raise UserError(
            f"the published weights {name} have {classes} classes, "
            f"--num-classes says {num_classes}.",
            "Leave --num-classes out, or use --checkpoint with your own trained weights.",
        )
    if in_channels != spec.channels:
        raise UserError(
            f"the published weights {name} take {spec.channels} channels, "
            f"{in_channels} were asked for.",
            "Leave the number of channels out, or use --checkpoint.",
        )


def torchvision_weights(name: str, weights: str) -> Any:
    """Return the entry of torchvision's weights enum, such as ResNet50_Weights.IMAGENET1K_V2."""
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UserError(
            f'torchvision has no classifier "{name}".',
            nearest(name, models.list_models(module=models)),
        )
    enum = models.get_model_weights(name)
    chosen = weights.removeprefix(f"{enum.__name__}.")
    if chosen not in enum.__members__:
        raise UserError(
            f'torchvision has no weights "{weights}" for {name}.', nearest(chosen, enum.__members__)
        )
    return enum[chosen]


def torchvision_spec(entry: Any) -> InputSpec:
    """Read the evaluation preprocessing and the class names off an entry of the enum."""
    preset = entry.transforms()
    crop, resize = list(preset.crop_size), list(preset.resize_size)
    return InputSpec(
        size=(crop[0], crop[-1]),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        resize=resize[0] if len(resize) == 1 else (resize[0], resize[1]),
        crop="center",
        interpolation=preset.interpolation.value,
        labels=tuple(entry.meta.get("categories") or ()),
    )


def torchvision_state(entry: Any) -> dict[str, Tensor]:
    """Download (or take from torch's cache) the weights; their hash is checked.

    Raises UserError where the download fails.
    """
    try:
        state: dict[str, Tensor] = entry.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except Exception as error:
        raise download_failed(str(entry), entry.url, error) from error
    return state


def download_failed(name: str, url: str, error: Exception) -> UserError:
    """Return the error that says what could not be fetched, and the way without a network."""
    reason = str(error).strip().splitlines()
    return UserError(
        f"the published weights {name} could not be downloaded from {url}: "
        f"{reason[0] if reason else type(error).__name__}.",
        "Fetch the file on a machine with network access and name it with --checkpoint.",
    )


def timm_cfg(name: str, weights: str) -> Any:
    """Return timm's PretrainedCfg of `name` with the tag `weights`; "DEFAULT" is timm's choice."""
    import timm
    from timm.models import get_arch_pretrained_cfgs

    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise UserError(f'timm has no model "{base}".', nearest(base, timm.list_models()))
    published = {
        key.partition(".")[2]: cfg
        for key, cfg in get_arch_pretrained_cfgs(base).items()
        if cfg.has_weights
    }
    if not published:
        raise UserError(f"timm has no published weights for {base}.", "Use --checkpoint FILE.")
    wanted = tag or next(iter(published)) if weights == "DEFAULT" else weights
    if wanted not in published or (tag and tag != wanted):
        raise UserError(f'timm has no weights "{weights}" for {name}.', nearest(weights, published))
    return published[wanted]


def timm_spec(cfg: Any) -> InputSpec:
    """Read timm's evaluation preprocessing: the image's short side is size / crop_pct."""
    from timm.data import resolve_data_config

    found = resolve_data_config(pretrained_cfg=cfg.to_dict(), verbose=False)
    _, height, width = found["input_size"]
    scaled = (math.floor(height / found["crop_pct"]), math.floor(width / found["crop_pct"]))
    if found["crop_mode"] == "squash":
        resize: int | tuple[int, int] = scaled
    elif found["crop_mode"] == "center" and height == width:
        resize = scaled[0]
    else:
        raise UserError(
            f"timm prepares images for {cfg.architecture}.{cfg.tag} with crop mode "
            f'"{found["crop_mode"]}" at {height}x{width}, which an input spec cannot express.',
            "Leave --weights out, name the file with --checkpoint, and write the recipe's [input].",
        )
    return InputSpec(
        size=(height, width),
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
        resize=resize,
        crop="center",
        interpolation=found["interpolation"],
        labels=timm_labels(cfg),
    )


def timm_labels(cfg: Any) -> tuple[str, ...]:
    """Return the class names in the order of the logits; empty where timm does not know them."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    if cfg.label_names and len(cfg.label_names) == cfg.num_classes:
        return tuple(str(label) for label in cfg.label_names)
    subset = infer_imagenet_subset(cfg.to_dict())
    if not subset:
        return ()
    info = ImageNetInfo(subset)
    if info.num_classes() != cfg.num_classes:
        return ()
    return tuple(info.index_to_description(index) for index in range(cfg.num_classes))
