"""What a [train] table may say."""

from __future__ import annotations

from typing import Any

import pytest

from deploy_tools.errors import UserError
from deploy_tools.training.config import TrainConfig


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 0), ("batch", 0), ("validation_images", 0), ("precision", "fp16"), ("ema", 1.0),
        ("ema", -0.1), ("lr", 0.0), ("lr", -1.0), ("momentum", 1.0), ("weight_decay", -1e-4),
        ("warmup_epochs", -1.0), ("label_smoothing", 1.0), ("crop_padding", -1), ("threads", -1),
        ("seed", -1),
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=key):
        TrainConfig(**{"epochs": 1, key: value})


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(UserError, match="nesterov"):
        TrainConfig(1, momentum=0.0)
    TrainConfig(1, momentum=0.0, nesterov=False)
