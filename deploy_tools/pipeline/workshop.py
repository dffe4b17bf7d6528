"""INT8 files of one float file in a folder of their own: for studies and single commands."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calibration.table import RangeTable
from deploy_tools.artifacts import ArtifactDirectory, atomic_path, sha256_of_file
from deploy_tools.pipeline.correct import FOLDER
from deploy_tools.pipeline.images import CalibrationImages
from deploy_tools.pipeline.int8_settings import Int8Settings
from deploy_tools.pipeline.qat import fine_tuned
from deploy_tools.pipeline.quantize import static_parts
from deploy_tools.pipeline.stages import Progress, StageRunner
from deploy_tools.quantization.static import Ranges, qdq_from_onnx
from deploy_tools.recipe import QatTable


@dataclass(frozen=True)
class Workshop:
    """A float file, the calibration images, and the folder where what settings share is kept."""

    runner: StageRunner
    model: Path
    images: CalibrationImages

    def make(self, settings: Int8Settings, path: Path, qat: QatTable | None = None) -> Path:
        """Write the Q/DQ file to `path`; returns the float file that it was written from.

        qat: fine-tune first. Raises what the stages raise.
        """
        runner, directory = self.runner, self.runner.directory

        def copy(target: Path) -> None:
            with atomic_path(target) as part:
                shutil.copyfile(self.model, part)

        # A copy: the stages know files of their own folder only, and may not be given another
        # one's name.
        sha256 = sha256_of_file(self.model)
        name = f"given-{sha256[:8]}"
        fp32 = runner.run("copy", name, f"{FOLDER}/{name}.onnx", {}, {"given": sha256}, copy)
        model, ranges = static_parts(runner, fp32, settings, self.images)
        table: Ranges | None = RangeTable.load(directory.path(ranges.file))
        if qat is not None:
            model, ranges, table = fine_tuned(
                runner, path.stem, qat, fp32, model, ranges, self.images, settings
            )
        if table is None:
            raise RuntimeError("a workshop does not run dry")
        qdq_from_onnx(directory.path(model.file), table, path, settings.static)
        return directory.path(model.file)


@contextmanager
def open_workshop(
    folder: Path, model: Path, images: CalibrationImages, progress: Progress | None = None
) -> Iterator[Workshop]:
    """Hold the artifact directory `folder` while INT8 files of `model` are made."""
    with ArtifactDirectory(folder) as directory:
        yield Workshop(StageRunner(directory, progress=progress), model, images)
