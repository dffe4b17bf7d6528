"""The report: one dict (report.json, schema 1), and what people read of it."""

from benchmarks.report.build import build_report, failed, ok, skipped, variant_entry
from benchmarks.report.files import load_report, write_report
from benchmarks.report.schema import validate_report
from benchmarks.report.table import summary_rows

__all__ = [
    "build_report",
    "failed",
    "load_report",
    "ok",
    "skipped",
    "summary_rows",
    "validate_report",
    "variant_entry",
    "write_report",
]
