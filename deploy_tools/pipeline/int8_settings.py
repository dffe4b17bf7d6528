"""What a static or QAT variant asks for, with every default filled in."""

from __future__ import annotations

from dataclasses import dataclass

from calibration.collect import CalibrateConfig
from deploy_tools.pipeline.variants import Variant
from deploy_tools.quantization.static import StaticConfig
from deploy_tools.recipe import VariantTable


@dataclass(frozen=True)
class Int8Settings:
    """static: target and placement. ranges: a method of `calibration.methods`, or "auto".

    bias_correction: None lets held-out calibration images decide. rest: what is not INT8 runs
    in, "fp16" or "fp32".
    """

    static: StaticConfig
    ranges: str = "auto"
    percentile: float = 99.999
    equalize: bool = True
    rounding: str = "gptq"
    bias_correction: bool | None = None
    rest: str = "fp32"

    @property
    def calibrate(self) -> CalibrateConfig:
        """The range method's configuration; "auto" tries its percentile too."""
        method = "mse" if self.ranges == "auto" else self.ranges
        return CalibrateConfig(method=method, percentile=self.percentile)


def settings_of(variant: Variant) -> Int8Settings:
    """Return the settings of a static or QAT variant."""
    table = variant.table or VariantTable("int8", "static")
    static = StaticConfig(
        target="tensorrt" if variant.engine else variant.target,
        per_channel=table.per_channel is not False,
        exclude=table.exclude,
        first_conv=table.first_conv is not False,
        last_gemm=table.last_gemm is not False,
        float_branches=table.float_branches,
    )
    return Int8Settings(
        static,
        ranges=table.ranges or "auto",
        percentile=table.percentile or 99.999,
        equalize=table.equalize is not False,
        rounding=table.rounding or "gptq",
        bias_correction=table.bias_correction,
        rest=(table.rest or "fp16") if variant.engine else "fp32",
    )
