"""Runs a recipe's stages in order; skips what is already made."""

from deploy_tools.pipeline.run import RunResult, run_recipe

__all__ = ["RunResult", "run_recipe"]
