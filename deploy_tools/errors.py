"""User errors: what is wrong, what to do about it, and which exit code it gives.

Anything else that escapes a command is a bug (exit 1, with a traceback).
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class DeployToolsError(Exception):
    """A mistake or a condition that the user can do something about.

    `message` says what is wrong and where, `hint` what to do. The exit codes are a
    contract with the programs that call this tool; see docs/exit-codes.md.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class UserError(DeployToolsError):
    """Bad usage or bad input (exit 2)."""


class UnsupportedGraphError(UserError):
    """A graph with something that a part of this tool does not run (exit 2)."""


class MissingDependencyError(DeployToolsError):
    """A runtime, device or library is missing (exit 3)."""

    exit_code = 3


class BudgetError(DeployToolsError):
    """An accuracy budget or gate was missed (exit 4)."""

    exit_code = 4


class ArtifactError(DeployToolsError):
    """An artifact does not match its manifest or this machine (exit 7)."""

    exit_code = 7


class OutputError(DeployToolsError):
    """Disk full, folder not writable, or held by another run (exit 8)."""

    exit_code = 8


class PartialError(DeployToolsError):
    """Some variants failed; the others are done and reported (exit 9)."""

    exit_code = 9


def nearest(word: str, candidates: Iterable[str]) -> str:
    """Return `Did you mean "x"?`, or the list of candidates where nothing is near."""
    known = sorted(candidates)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f'Did you mean "{close[0]}"?'
    return f"Known: {', '.join(known)}."


def require(module: str, extra: str, what: str) -> ModuleType:
    """Import `module`, or raise a `MissingDependencyError` that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{what} needs {module}, which cannot be imported ({error}).",
            f"Install it with: pip install 'deploy-tools{f'[{extra}]' if extra else ''}'",
        ) from error
