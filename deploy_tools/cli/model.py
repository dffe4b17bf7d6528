"""What commands are given as a model: --size, --mean and the like, or a file to run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from deploy_tools.cli.common import numbers, size_of
from deploy_tools.data.spec import InputSpec
from deploy_tools.engine_files import read_sidecar, sidecar_path
from deploy_tools.errors import ArtifactError, UserError
from deploy_tools.onnx_files import known_input_spec, load_onnx, require_dynamic_batch
from deploy_tools.recipe import InputTable
from deploy_tools.runtimes import RuntimeConfig, Session, open_session
from deploy_tools.runtimes.device_memory import MEMORIES

F = TypeVar("F", bound=Callable[..., Any])


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


@dataclass(frozen=True)
class OpenedModel:
    """A file that is ready to run.

    known_spec: how its input is made, None where the file does not say. smallest_batch,
    largest_batch: of an engine's profile; an ONNX file takes any and has None for the largest.
    """

    path: Path
    session: Session
    known_spec: InputSpec | None
    smallest_batch: int = 1
    largest_batch: int | None = None

    @property
    def is_engine(self) -> bool:
        """Whether it is a TensorRT engine, which can time itself with CUDA events."""
        return self.largest_batch is not None

    @property
    def spec(self) -> InputSpec:
        """How its input is made; UserError where the file does not say."""
        if self.known_spec is None:
            where = "sidecar" if self.is_engine else "metadata"
            raise UserError(
                f"{self.path} does not say how its input is made (no input spec in its {where}).",
                "Export it from its checkpoint: deploy-tools export writes one.",
            )
        return self.known_spec

    def batch(self, wanted: int) -> int:
        """Return the batch size to use where any up to `wanted` does."""
        return min(wanted, self.largest_batch or wanted)

    def require_batch(self, batch: int) -> None:
        """Refuse a batch size that cannot be timed, before anything is: UserError."""
        low, high = self.smallest_batch, self.largest_batch
        if high is None or low <= batch <= high:
            return
        profile = f"{min(low, batch)}:{high}:{max(high, batch)}"
        raise UserError(
            f"{self.path} takes batches of {low} to {high} (its optimization profile), so none of "
            f"{batch} can be timed.",
            f"Build it for that: deploy-tools build MODEL.onnx --batch {profile}.",
        )


def engine_options(function: F) -> F:
    """--memory and --cuda-graph: how engines use the GPU."""
    for option in (
        click.option("--cuda-graph", is_flag=True, help="Engines: launch each call as a CUDA graph."),
        click.option(
            "--memory", type=click.Choice(list(MEMORIES)), default="cuda-python", show_default=True,
            help="Engines: what their device memory goes through.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


@contextlib.contextmanager
def opened_model(path: Path, config: RuntimeConfig) -> Iterator[OpenedModel]:
    """Open an ONNX file in the runtime of `config`, or an engine in its own; close it at the end.

    An engine's runtime and precision are those of its sidecar, and its input spec is the one of
    the ONNX file it was built from. Raises what `load_onnx` and `open_session` raise.
    """
    opened = _opened_engine(path, config) if is_engine(path) else _opened_onnx(path, config)
    try:
        yield opened
    finally:
        opened.session.close()


def refuse_idle_options(files: Iterable[Path]) -> None:
    """Refuse an option that none of the files uses: its user expects an effect."""
    context = click.get_current_context()
    kinds = {is_engine(path) for path in files}
    for name, for_engines in (
        ("provider", False), ("precision", False), ("threads", False),
        ("memory", True), ("cuda_graph", True),
    ):  # fmt: skip
        given = context.get_parameter_source(name) == ParameterSource.COMMANDLINE
        if given and for_engines not in kinds:
            option = name.replace("_", "-")
            of, none = ("engines", "engine") if for_engines else ("ONNX files", "ONNX file")
            raise click.UsageError(
                f"--{option} has no effect here: it is for {of}, and no {none} is given."
            )


def is_engine(path: Path) -> bool:
    """Whether a file is meant as an engine: by its name, or by the sidecar beside it."""
    return path.suffix == ".engine" or (path.suffix != ".onnx" and sidecar_path(path).is_file())


def _opened_engine(path: Path, config: RuntimeConfig) -> OpenedModel:
    sidecar = read_sidecar(path)
    try:
        spec = InputSpec.from_dict(sidecar.input_spec) if sidecar.input_spec is not None else None
    except UserError as error:
        raise ArtifactError(
            f"the input spec in {sidecar_path(path)} is damaged: {error}"
        ) from error
    session = open_session(path, replace(config, runtime=sidecar.flavour, threads=0, precision=""))
    smallest, largest = (sidecar.profile[end][0] for end in ("min", "max"))
    return OpenedModel(path, session, spec, smallest, largest)


def _opened_onnx(path: Path, config: RuntimeConfig) -> OpenedModel:
    proto = load_onnx(path)
    require_dynamic_batch(proto, path)
    spec = known_input_spec(proto, path)
    plain = replace(config, memory="", cuda_graph=False)
    return OpenedModel(path, open_session(path, plain), spec)


def _text(value: str | int | None) -> str | None:
    return None if value is None else str(value)
