"""From images and an FP32 ONNX file to one range per tensor and grid.

Select images, stream every wanted tensor through an observer once, choose ranges with
a method, keep them in a table that knows what it was made from.
"""

from calibration.collect import (
    CalibrateConfig,
    expected_identity,
    ranges_from_images,
    ranges_from_statistics,
    statistics_from_images,
)
from calibration.identity import RangeIdentity, StatisticsIdentity
from calibration.select import SelectConfig, Selection, select_images
from calibration.statistics import Statistics
from calibration.table import RangeTable, TensorRange, require_fresh

__all__ = [
    "CalibrateConfig",
    "RangeIdentity",
    "RangeTable",
    "SelectConfig",
    "Selection",
    "Statistics",
    "StatisticsIdentity",
    "TensorRange",
    "expected_identity",
    "ranges_from_images",
    "ranges_from_statistics",
    "require_fresh",
    "select_images",
    "statistics_from_images",
]
