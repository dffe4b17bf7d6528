"""One program a claim that the documentation makes: python -m benchmarks.studies.NAME."""
