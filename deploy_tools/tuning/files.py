"""What tuning found, beside the model: `model.onnx` and `model.onnx.tune.json`.

Not in the file itself: that would change its hash, by which manifests, range tables and engines
know it, for something that only holds on one machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from deploy_tools.artifacts import MANIFEST, ArtifactDirectory, sha256_of_file, write_json
from deploy_tools.errors import ArtifactError, UserError
from deploy_tools.tables import from_table
from deploy_tools.tuning.settings import Settings

SCHEMA = 1
_AGAIN = "Run deploy-tools tune again, remove the file, or give --no-tuned."


@dataclass(frozen=True)
class Tuning:
    """What was found for one file on one machine.

    machine: the CPU, its limits, and the versions of the runtimes. latency_limit_ms: of p99, None
    where it was tuned for throughput. is_default: whether nothing was found to be faster than what
    commands do without a tuning. compared_with: that, or in another precision the runtime that has
    it. measured: the replay of both, as `bench speed --json` has it.
    """

    model_sha256: str
    machine: dict[str, Any]
    latency_limit_ms: float | None
    settings: Settings
    is_default: bool
    compared_with: Settings
    measured: dict[str, Any]
    schema: int = SCHEMA

    @property
    def goal(self) -> str:
        """For what it was tuned, in words."""
        if self.latency_limit_ms is None:
            return "throughput"
        return f"throughput with p99 within {self.latency_limit_ms:g} ms"

    def differences(self, machine: Mapping[str, Any]) -> list[str]:
        """Return what is not as it was: the CPU, its limits, the versions of the runtime used.

        Packages of a runtime that the settings do not use may differ. What only one of the two
        knows differs.
        """
        then, here = _flat(self.machine), _flat(machine)
        packages = {f"packages.{name}" for name in _packages_of(self.settings.runtime)}
        return [
            f"{key.rpartition('.')[2]} was {then.get(key)} and is {here.get(key)}"
            for key in then | here
            if then.get(key) != here.get(key)
            and (not key.startswith("packages.") or key in packages)
        ]


def tuning_path(model: Path) -> Path:
    """Return where the tuning of a file lies: model.onnx -> model.onnx.tune.json."""
    return model.with_name(f"{model.name}.tune.json")


def write_tuning(model: Path, tuning: Tuning, directory: ArtifactDirectory | None) -> Path:
    """Write the tuning beside its file, and into the manifest of the folder where it has one."""
    path = tuning_path(model)
    write_json(path, asdict(tuning))
    if directory is not None:
        parent = {a.name for a in directory.artifacts.values() if a.file == model.name}
        directory.add(
            path.name,
            path.name,
            "tune",
            {"machine": tuning.machine, "latency_limit_ms": tuning.latency_limit_ms},
            {min(parent, default=model.name): tuning.model_sha256},
            {"settings": tuning.settings.to_dict(), "is_default": tuning.is_default},
        )
    return path


def has_manifest(model: Path) -> bool:
    """Whether the folder of a file is an artifact directory."""
    return (model.parent / MANIFEST).is_file()


def read_tuning(model: Path) -> Tuning | None:
    """Read the tuning of a file; None where it has none.

    Raises ArtifactError where it is damaged or was made for other contents of the file.
    """
    path = tuning_path(model)
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text("utf-8"))
        # Neither NaN nor half a character, which Python's reader lets through.
        json.dumps(values, allow_nan=False, ensure_ascii=False).encode()
        tuning = _tuning(values)
    except (OSError, ValueError, RecursionError, UserError) as error:
        raise ArtifactError(f"{path} is damaged: {str(error).rstrip('.')}.", _AGAIN) from error
    if not model.is_file():
        raise UserError(f"{model} does not exist.")
    if sha256_of_file(model) != tuning.model_sha256:
        raise ArtifactError(f"{path} was made for another file than this {model.name}.", _AGAIN)
    return tuning


def _packages_of(runtime: str) -> tuple[str, ...]:
    if runtime == "openvino":
        return ("onnxruntime", "onnxruntime-ep-openvino")
    return ("onnxruntime",)


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = value
    return flat


# Reading: everything is checked, since a file may come from anywhere.


def _tuning(values: object) -> Tuning:
    known = {field.name for field in fields(Tuning)}
    if not isinstance(values, dict) or set(values) != known:
        raise ValueError(f"it is not a table of {', '.join(sorted(known))}")
    table: dict[str, Any] = values
    if table["schema"] != SCHEMA:
        raise ValueError(f"schema is {table['schema']!r}, this version reads {SCHEMA}")
    for name, kind in (
        ("model_sha256", str), ("machine", dict), ("is_default", bool), ("measured", dict)
    ):  # fmt: skip
        if not isinstance(table[name], kind):
            raise ValueError(f"{name} is not of type {kind.__name__}")
    limit = table["latency_limit_ms"]
    if limit is not None and not (_is_number(limit) and 0 < limit < math.inf):
        raise ValueError("latency_limit_ms is no number above 0")
    both = {key: from_table(Settings, table[key], key) for key in ("settings", "compared_with")}
    return Tuning(**(table | both))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
