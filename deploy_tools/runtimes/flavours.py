"""The two flavours of TensorRT: the full library and TensorRT for RTX.

Both have the same Python API under another module name. What differs is asked here, once,
so that nothing else compares versions.

Sources, read 2026-11. Compute capabilities: TensorRT-RTX documentation, "CPU-Only AOT" (an
engine runs on 8.0, 8.6, 8.9 and 12.x unless it was built for Turing alone; 9.0 and 10.0 refuse
it) and the TensorRT support matrix (10.12 and later need 7.5). Opsets: docs/operators.md of
onnx-tensorrt (10.0: 20; 10.15 and 11.2: 24), the notes of release 11.5 (25), and the operators
that the parser of RTX 1.7 knows (all that 23 and 24 added). The parsers themselves read a newer
opset without a word, with the meaning that the operators had before.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from types import ModuleType

from deploy_tools.engine_files import FLAVOURS
from deploy_tools.errors import MissingDependencyError, UserError, nearest, require

NAMES = FLAVOURS
"""What `--flavour` takes; where both are installed and none is named, the first is taken."""

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
_OLDEST = {"tensorrt": (10, 12), "tensorrt-rtx": (1, 7)}
# From which release on which opset is read; see the sources above.
_OPSETS = {
    "tensorrt": (((11, 5), 25), ((10, 15), 24), ((0, 0), 20)),
    "tensorrt-rtx": (((0, 0), 24),),
}
_RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")


@dataclass(frozen=True)
class Flavour:
    """An installed TensorRT: its name in `NAMES`, its module and that module's version."""

    name: str
    module: ModuleType
    version: str

    @property
    def title(self) -> str:
        """Its name and version for people, such as "TensorRT for RTX 1.7.1.116"."""
        return f"{_TITLES[self.name]} {self.version}"

    @property
    def max_opset(self) -> int:
        """The newest ONNX opset that its parser is documented to read."""
        release = _release(self.version)
        return next(opset for since, opset in _OPSETS[self.name] if release >= since)

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT for RTX.

        That one builds without a GPU, its engines are portable between the GPUs it supports,
        and it has no timing cache, no hardware compatibility level and no lean runtime, so no
        version-compatible engines either (all three tried on 1.7.1).
        """
        return self.name == "tensorrt-rtx"

    def runs_on(self, compute_capability: str) -> bool:
        """Whether its engines run on a GPU of this compute capability, such as "8.9"."""
        if self.is_rtx:
            return compute_capability in _RTX_CAPABILITIES
        return _release(compute_capability) >= (7, 5)


def installed_flavours() -> tuple[str, ...]:
    """Return the flavours that are installed, without importing them."""
    return tuple(name for name in NAMES if _is_installed(_MODULES[name]))


def find_flavour(name: str = "") -> Flavour:
    """Import a flavour; "" takes what is installed, TensorRT before TensorRT for RTX.

    Raises UserError for a name that is not in `NAMES`, and MissingDependencyError, naming the
    extra, where it is not installed, cannot be loaded or is too old.
    """
    if name and name not in NAMES:
        raise UserError(f'no flavour of TensorRT is named "{name}".', nearest(name, NAMES))
    installed = installed_flavours()
    if not name and not installed:
        raise MissingDependencyError(
            "neither TensorRT nor TensorRT for RTX is installed.",
            "Install one with: pip install 'deploy-tools[tensorrt-rtx]' (builds without a GPU) "
            "or pip install 'deploy-tools[tensorrt]'",
        )
    chosen = name or installed[0]
    module = _load(chosen)
    version = str(getattr(module, "__version__", ""))
    oldest = _OLDEST[chosen]
    if _release(version) < oldest:
        raise MissingDependencyError(
            f"{_TITLES[chosen]} {version or 'of unknown version'} is too old: "
            f"{oldest[0]}.{oldest[1]} or newer is needed.",
            f"Install it with: pip install --upgrade 'deploy-tools[{chosen}]'",
        )
    return Flavour(chosen, module, version)


def _load(name: str) -> ModuleType:
    try:
        return require(_MODULES[name], name, _TITLES[name])
    except OSError as error:  # a library beside the bindings is missing or damaged
        raise MissingDependencyError(
            f"{_TITLES[name]} is installed but cannot be loaded: {error}.",
            f"Install it again with: pip install --force-reinstall 'deploy-tools[{name}]'",
        ) from error


def _is_installed(module: str) -> bool:
    try:
        found = importlib.util.find_spec(module)
    except ImportError:  # an import hook hides it
        return False
    except ValueError:  # loaded by hand, without a spec
        return True
    # A folder that merely has the name has no loader of its own file.
    return found is not None and found.origin is not None


def _release(version: str) -> tuple[int, int]:
    """Return (major, minor) of "10.16.1.11" or "8.9"; (0, 0) where there is none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)
