"""Read and write a report's files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report.html import html_from_report
from benchmarks.report.markdown import markdown_from_report
from benchmarks.report.schema import validate_report
from deploy_tools.artifacts import write_text
from deploy_tools.errors import ArtifactError

REPORT = "report.json"


def load_report(path: Path) -> dict[str, Any]:
    """Read report.json (or the folder that holds it) and check it.

    Raises ArtifactError where it is missing, not JSON or not a report of schema 1.
    """
    file = path / REPORT if path.is_dir() else path
    try:
        report = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{file} does not exist.") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} is not readable JSON: {error}.") from error
    try:
        validate_report(report)
    except ArtifactError as error:
        raise ArtifactError(f"{file}: {error.message}", error.hint) from error
    return dict(report)


def write_report(report: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Write report.json, report.md and report.html, each atomically; returns their paths.

    The plots read `predictions/<variant>.npz` and `samples/<variant>.jsonl` in the folder,
    where the report names them; what is missing there is left out of the plots.
    Raises ArtifactError where the report is not valid, before anything is written.
    """
    validate_report(report)
    texts = {
        REPORT: json.dumps(report, indent=1, allow_nan=False) + "\n",
        "report.md": markdown_from_report(report),
        "report.html": html_from_report(report, folder),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return {name: folder / name for name in texts}
