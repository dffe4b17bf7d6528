"""From --size, --mean and the like to the recipe's [input] table."""

from __future__ import annotations

from collections.abc import Mapping

from deploy_tools.cli.common import numbers, size_of
from deploy_tools.recipe import InputTable


def input_table(given: Mapping[str, str | int | None]) -> InputTable:
    """Return what the input options say; what they leave out stays open."""
    resize, crop = given.get("resize"), given.get("crop")
    return InputTable(
        size=size_of(_text(given.get("size"))),
        mean=numbers(_text(given.get("mean")), "--mean"),
        std=numbers(_text(given.get("std")), "--std"),
        resize=int(resize) if resize is not None else None,
        crop=_text(crop),
    )


def _text(value: str | int | None) -> str | None:
    return None if value is None else str(value)
