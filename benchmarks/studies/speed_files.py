"""The files that `peers_speed` times, each made once, by its own tool and in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers.base import Job, PeerError
from benchmarks.peers.measure import measure
from benchmarks.peers.worker import short
from benchmarks.studies.speed_rows import FILES, FP32, MODULE, Made, Source
from deploy_tools.errors import DeployToolsError
from deploy_tools.rewrite.forms import default_form
from deploy_tools.rewrite.uint8_input import uint8_input_from_onnx

if TYPE_CHECKING:
    from torch import nn

PLAIN = "plain minmax"
"""Our row where corrections would be for nothing: they change weights and biases, not layers."""


@dataclass
class Files:
    """Makes files from one job's FP32 model on demand; what failed once is not tried again.

    folder: to write in. plain: make ours without corrections. known: the files that may be asked
    for.
    """

    job: Job
    folder: Path
    plain: bool = False
    known: Mapping[str, Made] = field(default_factory=lambda: FILES)
    _made: dict[str, Path] = field(default_factory=dict)
    _failed: dict[str, str] = field(default_factory=dict)
    _module: nn.Module | None = None

    def source(self, name: str) -> Source:
        """Return what a row opens; raises PeerError with the reason where a tool made no file."""
        path = self.job.model if name in (FP32, MODULE) else self.path(name)
        return Source(path, self.module)

    def path(self, name: str) -> Path:
        """Return a file by its name; see `source`."""
        if name == FP32:
            return self.job.model
        if name in self._failed:
            raise PeerError(self._failed[name])
        if name not in self._made:
            try:
                self._made[name] = self._make(self.known[name])
            except DeployToolsError as error:
                self._failed[name] = short(str(error))
                raise
        return self._made[name]

    def module(self) -> nn.Module:
        """Return the torch module behind the FP32 file, loaded once."""
        if self._module is None:
            self._module = self.job.module()
        return self._module

    def _make(self, made: Made) -> Path:
        path = self.folder / f"{made.name}{made.suffix}"
        if made.target:
            base = self.path(made.of)
            uint8_input_from_onnx(base, path, default_form(made.target, base))
            return path
        options = dict(made.options)
        if self.plain and "row" in options:
            options["row"] = PLAIN
        return measure(made.adapter, self.job, path, options).path
