"""The timing cache: how long each kernel took on this GPU, so that the next build is faster.

A cache belongs to one TensorRT version and one kind of GPU. One that cannot be used is refused:
the builder would ignore it with a warning, and what is saved afterwards would replace a file
that another machine may need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploy_tools.artifacts import atomic_path
from deploy_tools.engine_files import Sidecar
from deploy_tools.engines.log import BuildLog
from deploy_tools.errors import OutputError, UserError


class TimingCacheError(OutputError):
    """The engine is written and good, but its timing cache could not be written.

    sidecar: the engine's.
    """

    def __init__(self, message: str, hint: str, sidecar: Sidecar) -> None:
        super().__init__(message, hint)
        self.sidecar = sidecar


def load_timing_cache(config: Any, path: Path, log: BuildLog) -> None:
    """Give the builder's config the cache in `path`, or an empty one where there is no file.

    Raises UserError where the file is not a timing cache, or is of another TensorRT or GPU.
    """
    data = _read(path)
    before = len(log.lines)
    cache = config.create_timing_cache(data)
    accepted = cache is not None and config.set_timing_cache(cache, ignore_mismatch=False)
    # A cache that cannot be read comes back empty, with no more than a warning.
    refused = [
        text
        for severity, text in log.lines[before:]
        if severity not in ("VERBOSE", "INFO") and "timing cache" in text.lower()
    ]
    if data and (not accepted or refused):
        reason = " ".join(refused) or "it is of another TensorRT version or another GPU."
        raise UserError(
            f"the timing cache {path} cannot be used here: {reason}",
            "Remove it, or name another file.",
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UserError(f"the timing cache {path} cannot be read: {error.strerror}.") from error


def bytes_of_timing_cache(config: Any) -> bytes:
    """Return what the builder measured, as its file keeps it; b"" where there is nothing."""
    cache = config.get_timing_cache()
    return b"" if cache is None else bytes(cache.serialize())


def save_timing_cache(data: bytes, path: Path, engine: Path, sidecar: Sidecar) -> None:
    """Write a cache to `path`, atomically; `engine` is written already.

    Raises TimingCacheError where it cannot be written.
    """
    try:
        with atomic_path(path) as part:
            part.write_bytes(data)
    except OSError as error:
        raise _not_saved(str(error), engine, sidecar) from error
    except OutputError as error:
        raise _not_saved(error.message, engine, sidecar) from error


def _not_saved(reason: str, engine: Path, sidecar: Sidecar) -> TimingCacheError:
    return TimingCacheError(
        f"{engine} is built and complete, but the timing cache is not saved: {reason.rstrip('.')}.",
        "The next build takes as long as this one; name another file with --timing-cache.",
        sidecar,
    )
