"""The artifact directory: files with their sha256 and parents, written atomically, under a lock."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from deploy_tools.errors import ArtifactError, OutputError
from deploy_tools.version import __version__

MANIFEST = "manifest.json"
_SCHEMA = 1
_PART = re.compile(r"\..+\.(?P<pid>\d+)\.part")
_PACKAGES = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-ep-openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "numpy",
)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder and rename it to `path` on success.

    On any error, Ctrl-C included, the temporary file is removed and `path` is as it was.
    Raises OutputError where the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        yield part
        part.replace(path)
    except OSError as error:
        # A full disk names no file; an error about another file is the caller's.
        if error.filename is None or str(error.filename) == str(part):
            raise _not_written(path, error) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written: {error.strerror or error}.", "Choose another folder with -o."
    )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as part:
        part.write_text(text, "utf-8")


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically, with sorted keys and no NaN."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def sha256_of_file(path: Path) -> str:
    """Return the hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_value(value: object) -> str:
    """Return the hex sha256 of a JSON value, the same for equal values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Return the versions of the installed packages that shape an artifact."""
    found = {"deploy-tools": __version__}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@dataclass(frozen=True)
class Artifact:
    """One file that a stage made.

    key: sha256 over the stage's name, its settings and its parents; the same key means that
        making it again would give the same thing.
    parents: names of the artifacts (or labelled hashes of inputs) it was made from.
    """

    name: str
    file: str
    sha256: str
    size_bytes: int
    stage: str
    key: str
    settings: dict[str, Any]
    parents: dict[str, str]
    versions: dict[str, str]
    notes: dict[str, Any]


class ArtifactDirectory:
    """A folder with a manifest. Use it as a context manager: it holds the folder's lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: int | None = None
        self._artifacts: dict[str, Artifact] = {}

    def __enter__(self) -> ArtifactDirectory:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.root / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise OutputError(
                f"{self.root} cannot be written: {error.strerror}.",
                "Choose another folder with -o.",
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            self._lock = None
            held = isinstance(error, BlockingIOError)
            reason = "is held by another run" if held else f"cannot be locked ({error.strerror})"
            raise OutputError(
                f"{self.root} {reason}.", "Wait for it, or choose another folder with -o."
            ) from error
        try:
            self._artifacts = read_manifest(self.root)
            self._remove_leftovers()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def artifacts(self) -> Mapping[str, Artifact]:
        """What the manifest lists, by name."""
        return self._artifacts

    def path(self, file: str) -> Path:
        """Return the path of a file in this directory."""
        return self.root / file

    def find(self, name: str, key: str) -> Artifact | None:
        """Return the artifact where it was made with this key and its file is unchanged."""
        found = self._artifacts.get(name)
        if found is None or found.key != key:
            return None
        path = self.root / found.file
        if not path.is_file() or sha256_of_file(path) != found.sha256:
            return None
        return found

    def add(
        self,
        name: str,
        file: str,
        stage: str,
        settings: Mapping[str, Any],
        parents: Mapping[str, str],
        notes: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Record a file that a stage has just written, and save the manifest."""
        path = self.root / file
        artifact = Artifact(
            name=name,
            file=file,
            sha256=sha256_of_file(path),
            size_bytes=path.stat().st_size,
            stage=stage,
            key=stage_key(stage, settings, parents),
            settings=dict(settings),
            parents=dict(parents),
            versions=package_versions(),
            notes=dict(notes or {}),
        )
        self._artifacts[name] = artifact
        self.save()
        return artifact

    def keep_only(self, names: Sequence[str]) -> None:
        """Forget artifacts that the recipe no longer makes; their files stay."""
        self._artifacts = {k: v for k, v in self._artifacts.items() if k in set(names)}
        self.save()

    def save(self) -> None:
        """Write manifest.json."""
        write_json(
            self.root / MANIFEST,
            {"schema": _SCHEMA, "artifacts": {k: asdict(v) for k, v in self._artifacts.items()}},
        )

    def _remove_leftovers(self) -> None:
        """Remove what a killed run left half-written; the lock says that nobody is writing."""
        for folder in ("", "calibration", "corrections", "qat", "predictions", "samples", "memory"):
            for path in (self.root / folder).glob(".*.part"):
                found = _PART.fullmatch(path.name)
                if found and path.is_file() and not _is_running(int(found["pid"])):
                    with contextlib.suppress(OSError):
                        path.unlink()


def _is_running(pid: int) -> bool:
    """Whether another live process has this number: then the file may be its own."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def stage_key(stage: str, settings: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """Return the sha256 that says when a stage's result may be used again."""
    return sha256_of_value(
        {"stage": stage, "settings": dict(settings), "parents": dict(parents), "tool": __version__}
    )


def read_manifest(root: Path) -> dict[str, Artifact]:
    """Read manifest.json; an empty dict where there is none, ArtifactError where it is damaged."""
    path = root / MANIFEST
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
        if values["schema"] != _SCHEMA:
            raise ArtifactError(
                f"{path} has schema {values['schema']}, this version reads {_SCHEMA}.",
                "Use the version that wrote it, or another folder.",
            )
        return {name: _artifact(name, entry) for name, entry in values["artifacts"].items()}
    except KeyError as error:
        reason = f"it lacks {error}"
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error)
    raise ArtifactError(f"{path} is damaged: {reason}.", "Remove it to make everything again.")


def _artifact(name: str, entry: Mapping[str, Any]) -> Artifact:
    """Check one entry of a manifest, which may come from anywhere: its file must lie inside."""
    artifact = Artifact(**entry)
    for key in ("name", "file", "sha256", "stage", "key"):
        if not isinstance(getattr(artifact, key), str):
            raise ValueError(f"{key} of {name} is not text")
    for key in ("settings", "parents", "versions", "notes"):
        if not isinstance(getattr(artifact, key), dict):
            raise ValueError(f"{key} of {name} is not a table")
    if artifact.name != name:
        raise ValueError(f'{name} is named "{artifact.name}" inside')
    file = PurePosixPath(artifact.file)
    if file.is_absolute() or ".." in file.parts or not file.parts or "\0" in artifact.file:
        raise ValueError(f'the file "{artifact.file}" of {name} lies outside the folder')
    return artifact
