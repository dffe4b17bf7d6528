"""Whether what tuning found for a file holds on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import describe_environment
from deploy_tools.tuning.candidates import Machine
from deploy_tools.tuning.files import Tuning, read_tuning

_PACKAGES = ("onnxruntime", "onnxruntime-ep-openvino")


@dataclass(frozen=True)
class Tuned:
    """The tuning of a file. stale: why it does not hold here, "" where it does."""

    tuning: Tuning
    stale: str

    def __str__(self) -> str:
        tuning = self.tuning
        text = f"for {tuning.goal}: {tuning.settings}"
        if tuning.is_default:
            text += " (nothing was faster than the default)"
        elif tuning.settings == tuning.compared_with:
            text += " (nothing else in this precision was faster)"
        return f"{text}; not used here: {self.stale}" if self.stale else text


def tuned_of(model: Path) -> Tuned | None:
    """Return the tuning of a file and whether it holds here, None where it has none.

    Raises ArtifactError where it is damaged or was made for other contents of the file.
    """
    tuning = read_tuning(model)
    if tuning is None:
        return None
    found, _ = machine_facts()
    return Tuned(tuning, "; ".join(tuning.differences(found)))


def machine_facts() -> tuple[dict[str, Any], Machine]:
    """Return what a tuning depends on, as its file keeps it, and what limits the choice."""
    environment = describe_environment()
    cpu, limits = environment["cpu"], environment["limits"]
    versions = {name: environment["packages"].get(name) for name in _PACKAGES}
    known = [m for m in (environment["memory_bytes"], limits["memory_bytes"]) if m is not None]
    machine = Machine(
        cpu["cores_usable"], cpu["cores_physical"], limits["cpus"], min(known, default=None)
    )
    return {"cpu": cpu, "cpus_allowed": limits["cpus"], "packages": versions}, machine
