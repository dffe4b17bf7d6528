"""What a range table was made from: the answer to "may it be used again?"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from deploy_tools.artifacts import sha256_of_value
from deploy_tools.data.spec import InputSpec

_PREPROCESSING = ("size", "mean", "std", "resize", "crop", "interpolation", "layout", "dtype")


def preprocessing_of(spec: InputSpec) -> dict[str, object]:
    """Return the part of the input spec that shapes the values; labels and names do not."""
    values = spec.to_dict()
    return {key: values[key] for key in _PREPROCESSING}


@dataclass(frozen=True)
class StatisticsIdentity:
    """Everything that shapes the statistics.

    model_sha256: of the FP32 ONNX file. data_sha256: `Selection.content_hash`.
    preprocessing_sha256: of `preprocessing_of(spec)`. tensors: sorted names.
    """

    model_sha256: str
    data_sha256: str
    preprocessing_sha256: str
    tensors: tuple[str, ...]

    @classmethod
    def of(
        cls, model_sha256: str, data_sha256: str, spec: InputSpec, tensors: Iterable[str]
    ) -> StatisticsIdentity:
        """Build it from the input spec and the tensors in any order."""
        preprocessing = sha256_of_value(preprocessing_of(spec))
        return cls(model_sha256, data_sha256, preprocessing, tuple(sorted(set(tensors))))

    def key(self) -> str:
        """One sha256 over all of it."""
        return sha256_of_value({**vars(self), "tensors": list(self.tensors)})

    def differences(self, other: StatisticsIdentity) -> list[str]:
        """Return which of model, data, preprocessing and tensors differ, in words."""
        pairs = {
            "model": (self.model_sha256, other.model_sha256),
            "data": (self.data_sha256, other.data_sha256),
            "preprocessing": (self.preprocessing_sha256, other.preprocessing_sha256),
            "tensors": (self.tensors, other.tensors),
        }
        return [name for name, (mine, theirs) in pairs.items() if mine != theirs]


@dataclass(frozen=True)
class RangeIdentity:
    """Everything that shapes a range table: its statistics and the method with its settings."""

    statistics: StatisticsIdentity
    method: str
    settings: Mapping[str, float] = field(default_factory=dict)

    def key(self) -> str:
        """One sha256 over (model, data, preprocessing, tensors, method, settings)."""
        return sha256_of_value(
            {
                "statistics": self.statistics.key(),
                "method": self.method,
                "settings": dict(self.settings),
            }
        )

    def differences(self, other: RangeIdentity) -> list[str]:
        """Return which of model, data, preprocessing, tensors and method differ."""
        found = self.statistics.differences(other.statistics)
        if (self.method, dict(self.settings)) != (other.method, dict(other.settings)):
            found.append("method")
        return found
