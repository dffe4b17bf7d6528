"""Run a stage, or skip it where the artifact directory holds its result already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy_tools.artifacts import Artifact, ArtifactDirectory, stage_key
from deploy_tools.errors import UserError, nearest

Progress = Callable[[str, int, int], None]
Notes = Mapping[str, Any]

STAGES = (
    "fuse", "export", "select", "equalize", "round", "calibrate", "bias", "qat", "quantize", "cast",
    "rewrite", "build", "predict", "speed", "memory",
)  # fmt: skip
UNKNOWN = "to be made"
"""In a dry run, the hash of what is not there yet: nothing made from it can be there either."""


@dataclass
class StageRunner:
    """Makes artifacts in one directory.

    force: stages whose results are made again whatever is there. dry: makes nothing.
    made, kept: names of artifacts, for what the command says at the end.
    """

    directory: ArtifactDirectory
    force: Sequence[str] = ()
    dry: bool = False
    progress: Progress | None = None
    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.force:
            if name not in STAGES:
                raise UserError(f'stage "{name}" is not known.', nearest(name, STAGES))

    def run(
        self,
        stage: str,
        name: str,
        file: str,
        settings: Notes,
        parents: Mapping[str, str],
        make: Callable[[Path], Notes | None],
    ) -> Artifact:
        """Return the artifact `name`, made by `make(path)` where it is missing or out of date.

        settings and parents (label -> sha256) are all that the result depends on; what `make`
        returns is kept in the manifest beside it.
        """

        def make_one() -> Mapping[str, Notes | None]:
            return {name: make(self.directory.path(file))}

        return self.run_together(stage, {name: file}, settings, parents, make_one)[name]

    def run_together(
        self,
        stage: str,
        files: Mapping[str, str],
        settings: Notes,
        parents: Mapping[str, str],
        make: Callable[[], Mapping[str, Notes | None]],
    ) -> dict[str, Artifact]:
        """Return artifacts that one call of `make` writes together, by name.

        files: name -> file. `make` returns the notes of each that it could write; all are
        made again where one is missing or out of date.
        """
        key = stage_key(stage, settings, parents)
        if stage not in self.force:
            found = {name: self.directory.find(name, key) for name in files}
            kept = {name: artifact for name, artifact in found.items() if artifact is not None}
            if len(kept) == len(files):
                self.kept += files
                return kept
        if self.dry:
            self.made += files
            return {
                name: Artifact(name, file, UNKNOWN, 0, stage, UNKNOWN, {}, {}, {}, {})
                for name, file in files.items()
            }
        self.say(f"{stage} {next(iter(files)) if len(files) == 1 else ''}".rstrip())
        notes = make()
        made = {
            name: self.directory.add(name, file, stage, settings, parents, notes[name])
            for name, file in files.items()
            if name in notes
        }
        self.made += made
        return made

    def say(self, what: str, done: int = 0, total: int = 0) -> None:
        """Report progress; total 0 means that the end is not known."""
        if self.progress is not None:
            self.progress(what, done, total)
