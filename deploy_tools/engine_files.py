"""A TensorRT engine and its sidecar: `model.engine` and `model.engine.json`.

An engine is opaque, bound to a TensorRT version and often to a GPU. The sidecar says what it is
and what it was made from; it is read and checked before the engine is loaded.

Rules of compatibility: NVIDIA TensorRT documentation, "Engine Compatibility", and the support
matrix of 11.4.1, read 2026-11.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from deploy_tools.artifacts import atomic_path, sha256_of_file
from deploy_tools.errors import ArtifactError, OutputError, UserError

FLAVOURS = ("tensorrt", "tensorrt-rtx")
"""The flavours of TensorRT that an engine can be of."""
NO_GPU = "built without a GPU"
"""What a sidecar says instead of a GPU's name."""
SCHEMA = 1
PRECISIONS = ("fp32", "fp16", "int8+fp16", "int8+fp32")

_LARGEST = 2**63
_SHA256 = re.compile(r"[0-9a-f]{64}")
# TensorRT's engines of other majors that a runtime of this major reads, where they were built
# version-compatible.
_OLDER_MAJORS = {11: (10,), 10: (8,)}


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine.

    name, kind: as TensorRT prints them, such as "CaskConvolution" or "gemm".
    precision: what its arithmetic takes in: "int8", "fp16", "fp32", another type's name, or
        "unknown" where TensorRT does not say.
    inputs, outputs: (tensor, dtype) in order; constants are not among them.
    onnx_nodes: names of the ONNX nodes that it executes, wholly or in part.
    """

    name: str
    kind: str
    precision: str
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]
    onnx_nodes: tuple[str, ...]


@dataclass(frozen=True)
class Sidecar:
    """What an engine is, where it may run, and what it was made from.

    gpu: the name of the GPU it was built on, or `NO_GPU`; compute_capability: "" without one.
    profile: the shapes it takes, batch first: {"min": [...], "opt": [...], "max": [...]}.
    workspace_bytes: the limit that was asked for, None where TensorRT decided.
    input_spec: `InputSpec.to_dict()` of the ONNX file, None where it has none.
    build_seconds: reading the ONNX file and building, wall clock.
    """

    flavour: str
    tensorrt_version: str
    gpu: str
    compute_capability: str
    onnx_sha256: str
    engine_sha256: str
    precision: str
    input_name: str
    output_names: tuple[str, ...]
    profile: dict[str, list[int]]
    tf32: bool
    hardware_compatible: bool
    version_compatible: bool
    workspace_bytes: int | None
    input_spec: dict[str, Any] | None
    layers: tuple[EngineLayer, ...]
    build_seconds: float
    versions: dict[str, str]
    schema: int = SCHEMA


def sidecar_path(engine: Path) -> Path:
    """Return where the sidecar of an engine lies: model.engine -> model.engine.json."""
    return engine.with_name(f"{engine.name}.json")


def require_writable(*paths: Path) -> None:
    """Refuse places where no file can be written, before work is done whose result goes there.

    Makes nothing, not even the folder. Raises OutputError that names the path.
    """
    for path in paths:
        if path.is_dir():
            raise OutputError(f"{path} cannot be written: it is a folder.", "Choose another name.")
        there = next(folder for folder in path.absolute().parents if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            reason = "cannot be written to" if there.is_dir() else "is not a folder"
            raise OutputError(
                f"{path} cannot be written: {there} {reason}.", "Choose another folder."
            )


def write_engine(engine: Path, data: bytes, sidecar: Sidecar) -> None:
    """Write an engine and its sidecar; where one cannot be written both are as they were.

    Raises OutputError where they cannot be written.
    """
    require_writable(engine, sidecar_path(engine))
    with atomic_path(engine) as part, atomic_path(sidecar_path(engine)) as sidecar_part:
        part.write_bytes(data)
        sidecar_part.write_text(_text_of(sidecar), "utf-8")


def read_sidecar(engine: Path) -> Sidecar:
    """Read the sidecar of an engine and check that it is the sidecar of this very file.

    Raises UserError where the engine does not exist; ArtifactError, naming the field, where the
    sidecar is missing, damaged or of another engine.
    """
    if not engine.is_file():
        raise UserError(f"{engine} does not exist.")
    path = sidecar_path(engine)
    if not path.is_file():
        raise ArtifactError(
            f"{engine} has no sidecar: {path.name} is not beside it.",
            "Copy both files, or build it again: deploy-tools build makes both.",
        )
    try:
        values = json.loads(path.read_text("utf-8"))
        # Neither NaN nor half a character, which Python's reader lets through.
        json.dumps(values, allow_nan=False, ensure_ascii=False).encode()
        sidecar = _sidecar(values)
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is damaged: {error}.", "Build the engine again: deploy-tools build."
        ) from error
    found = sha256_of_file(engine)
    if found != sidecar.engine_sha256:
        raise ArtifactError(
            f"{engine} is not the engine that its sidecar describes: engine_sha256 is "
            f"{sidecar.engine_sha256[:12]}... there, and the file's is {found[:12]}....",
            "One of the two was replaced or cut short; build it again: deploy-tools build.",
        )
    return sidecar


def require_match(
    engine: Path,
    sidecar: Sidecar,
    *,
    flavour: str,
    tensorrt_version: str,
    gpu_name: str = "",
    compute_capability: str = "",
) -> None:
    """Refuse an engine that was built for another TensorRT or another GPU than those here.

    gpu_name, compute_capability: "" where they are not known; they are not compared then.
    Raises ArtifactError that names the field, both values and what to do.
    """
    if sidecar.flavour != flavour:
        _refuse(engine, "flavour", sidecar.flavour, flavour)
    if not _reads(tensorrt_version, sidecar):
        _refuse(engine, "tensorrt_version", sidecar.tensorrt_version, tensorrt_version)
    # An engine of TensorRT for RTX is portable between the GPUs that flavour supports.
    if sidecar.gpu == NO_GPU or flavour == "tensorrt-rtx":
        return
    if sidecar.hardware_compatible:
        # AMPERE_PLUS: "compatible with Ampere and newer GPUs", whichever it was built on.
        if compute_capability and _numbers(compute_capability) < (8, 0):
            _refuse(engine, "compute_capability", "8.0 or newer", compute_capability)
        return
    if compute_capability and compute_capability != sidecar.compute_capability:
        _refuse(engine, "compute_capability", sidecar.compute_capability, compute_capability)
    if gpu_name and gpu_name != sidecar.gpu:
        _refuse(engine, "gpu", sidecar.gpu, gpu_name)


def _reads(version: str, sidecar: Sidecar) -> bool:
    """Whether a runtime of this version reads the engine."""
    built, here = _numbers(sidecar.tensorrt_version), _numbers(version)
    if not sidecar.version_compatible or not built or not here:
        return sidecar.tensorrt_version == version
    return (built[0] == here[0] and here >= built) or built[0] in _OLDER_MAJORS.get(here[0], ())


def _refuse(engine: Path, field: str, built: str, here: str) -> None:
    raise ArtifactError(
        f"{engine} does not fit this machine: {field} is {built} in its sidecar and {here} here.",
        "Build it again here from its ONNX file: deploy-tools build MODEL.onnx -o DIR",
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _text_of(sidecar: Sidecar) -> str:
    return json.dumps(asdict(sidecar), indent=1, sort_keys=True, allow_nan=False) + "\n"


# Reading: everything is checked, since a sidecar may come from anywhere.


def _sidecar(values: object) -> Sidecar:
    """Build a sidecar from parsed JSON; ValueError says which field is wrong."""
    table = _table(values, "it")
    if table.get("schema") != SCHEMA:
        raise ValueError(f"schema is {table.get('schema')!r}, this version reads {SCHEMA}")
    _require_fields(table, Sidecar, "it")
    checked = dict(table)
    for name in ("flavour", "tensorrt_version", "gpu", "compute_capability", "input_name"):
        checked[name] = _text(table[name], name)
    for name in ("onnx_sha256", "engine_sha256"):
        if not _SHA256.fullmatch(_text(table[name], name)):
            raise ValueError(f"{name} is not a sha256")
    if table["flavour"] not in FLAVOURS:
        raise ValueError(f"flavour is {table['flavour']!r}, not one of {', '.join(FLAVOURS)}")
    if table["precision"] not in PRECISIONS:
        raise ValueError(f"precision is {table['precision']!r}")
    for name in ("tf32", "hardware_compatible", "version_compatible"):
        if not isinstance(table[name], bool):
            raise ValueError(f"{name} is not true or false")
    if table["workspace_bytes"] is not None:
        _count(table["workspace_bytes"], "workspace_bytes")
    if table["input_spec"] is not None:
        _table(table["input_spec"], "input_spec")
    seconds = table["build_seconds"]
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ValueError("build_seconds is not a number")
    if not 0 <= seconds < _LARGEST:
        raise ValueError("build_seconds is not a time")
    versions = _table(table["versions"], "versions")
    checked["versions"] = {k: _text(v, f"versions {k}") for k, v in versions.items()}
    if table["flavour"] not in versions:
        raise ValueError(f"flavour is {table['flavour']}, which its versions do not list")
    checked["output_names"] = _texts(table["output_names"], "output_names")
    checked["profile"] = _profile(table["profile"])
    checked["layers"] = tuple(
        _layer(value, f"layers[{place}]") for place, value in enumerate(_list(table["layers"], "layers"))
    )  # fmt: skip
    return Sidecar(**checked)


def _profile(value: object) -> dict[str, list[int]]:
    table = _table(value, "profile")
    if set(table) != {"min", "opt", "max"}:
        raise ValueError("profile does not have min, opt and max")
    shapes = {
        k: [_count(n, f"profile {k}") for n in _list(table[k], f"profile {k}")] for k in table
    }
    for low, opt, high in zip(shapes["min"], shapes["opt"], shapes["max"], strict=False):
        if not low <= opt <= high:
            raise ValueError("profile is not in the order min, opt, max")
    if not shapes["min"] or len({len(shape) for shape in shapes.values()}) != 1:
        raise ValueError("profile has shapes of different lengths")
    return shapes


def _layer(value: object, where: str) -> EngineLayer:
    table = _table(value, where)
    _require_fields(table, EngineLayer, where)
    return EngineLayer(
        name=_text(table["name"], f"{where} name"),
        kind=_text(table["kind"], f"{where} kind"),
        precision=_text(table["precision"], f"{where} precision"),
        inputs=_pairs(table["inputs"], f"{where} inputs"),
        outputs=_pairs(table["outputs"], f"{where} outputs"),
        onnx_nodes=_texts(table["onnx_nodes"], f"{where} onnx_nodes"),
    )


def _require_fields(table: Mapping[str, Any], cls: type, where: str) -> None:
    known = {field.name for field in fields(cls)}
    if missing := sorted(known - set(table)):
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(set(table) - known):
        raise ValueError(f"{where} has the unknown field {unknown[0]}")


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is not a table")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is not a list")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} is not text")
    return value


def _count(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{where} is not a whole number above 0")
    if value >= _LARGEST:
        raise ValueError(f"{where} is larger than any that TensorRT writes")
    return value


def _texts(value: object, where: str) -> tuple[str, ...]:
    return tuple(_text(item, where) for item in _list(value, where))


def _pairs(value: object, where: str) -> tuple[tuple[str, str], ...]:
    pairs = [_texts(item, where) for item in _list(value, where)]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{where} is not a list of (tensor, dtype)")
    return tuple((pair[0], pair[1]) for pair in pairs)
