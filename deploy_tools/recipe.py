"""What the user asks for: TOML -> frozen dataclasses. Unknown keys are errors."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from deploy_tools.data.spec import DTYPES
from deploy_tools.errors import UserError
from deploy_tools.recipe_variant import (
    ENGINE_TARGETS,
    METHODS,
    PRECISIONS,
    RANGES,
    ROUNDINGS,
    BatchTable,
    QatTable,
    VariantTable,
    one_of,
)
from deploy_tools.tables import from_table, read_toml, to_toml
from deploy_tools.training.config import TrainConfig

__all__ = [
    "ENGINE_TARGETS",
    "METHODS",
    "PRECISIONS",
    "RANGES",
    "ROUNDINGS",
    "BatchTable",
    "QatTable",
    "Recipe",
    "TrainRecipe",
    "VariantTable",
    "load_recipe",
    "load_train_recipe",
    "lock_text",
]

SCENARIOS = ("single-stream", "multi-stream", "server", "offline")
LENGTHS = ("quick", "full")
CHOICES = ("stratified", "random", "list")


@dataclass(frozen=True)
class ModelTable:
    """[model]: which architecture, and where its weights are."""

    arch: str
    checkpoint: str = ""
    weights: str = ""
    num_classes: int | None = None
    random_weights: bool = False

    def __post_init__(self) -> None:
        given = [bool(self.checkpoint), bool(self.weights), self.random_weights]
        if sum(given) > 1:
            raise UserError("[model] takes one of checkpoint, weights and random_weights.")
        if not any(given):
            raise UserError(
                "no weights are named.",
                "Give --checkpoint FILE or --weights NAME (checkpoint or weights in a recipe's "
                "[model]; random_weights = true there measures speed alone).",
            )
        if self.num_classes is not None and self.num_classes < 1:
            raise UserError(f"[model] num_classes must be at least 1, got {self.num_classes}.")


@dataclass(frozen=True)
class InputTable:
    """[input]: left out where the checkpoint's metadata says it; given keys win.

    dtype: "uint8" gives every variant a graph that takes pixels (layout "NHWC") and normalizes
    them itself; what they are made from and compared with keeps its float input.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | tuple[int, int] | None = None
    crop: str | None = None
    interpolation: str | None = None
    layout: str | None = None
    dtype: str | None = None
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        dtype = self.dtype or "float32"
        one_of("[input] dtype", dtype, tuple(DTYPES))
        if self.layout not in (None, DTYPES[dtype]):
            raise UserError(
                f'[input] layout "{self.layout}" does not go with dtype "{dtype}".',
                f'Leave layout out, or use "{DTYPES[dtype]}".',
            )

    @property
    def takes_pixels(self) -> bool:
        """Whether the variants take uint8 pixels."""
        return self.dtype == "uint8"

    def given(self) -> dict[str, Any]:
        """Return the keys that the user set of the float model's input."""
        of_pixels = ("dtype", "layout") if self.takes_pixels else ("dtype",)
        return {k: v for k, v in vars(self).items() if v is not None and k not in of_pixels}


@dataclass(frozen=True)
class CalibrationTable:
    """[data] calibration: which images set the ranges."""

    split: str = "train"
    images: int = 512
    choose: str = "stratified"
    seed: int = 0
    list: str = ""

    def __post_init__(self) -> None:
        where = "[data] calibration"
        one_of(f"{where} choose", self.choose, CHOICES)
        if self.images < 1 or self.seed < 0:
            raise UserError(f"{where} needs images >= 1 and seed >= 0.")
        if (self.choose == "list") != bool(self.list):
            raise UserError(f'{where} choose = "list" and a list of image ids belong together.')


@dataclass(frozen=True)
class EvaluationTable:
    """[data] evaluation: which images are the judge."""

    split: str = "test"
    images: int | str = "all"

    def __post_init__(self) -> None:
        if isinstance(self.images, str) and self.images != "all":
            raise UserError('[data] evaluation images must be a whole number or "all".')
        if isinstance(self.images, int) and self.images < 1:
            raise UserError(f"[data] evaluation images must be at least 1, got {self.images}.")


@dataclass(frozen=True)
class DataTable:
    """[data]: the labelled images."""

    source: str
    root: str = ""
    calibration: CalibrationTable = field(default_factory=CalibrationTable)
    evaluation: EvaluationTable = field(default_factory=EvaluationTable)


@dataclass(frozen=True)
class SpeedTable:
    """[speed]: how throughput and latency are measured; an empty list of scenarios skips it.

    length: "quick", or "full" as MLPerf's; rounds, seconds: in place of the length's own.
    batch: images a call in the offline scenario; samples_per_query: in the multi-stream one.
    latency_limit_ms: of the server scenario, on p99; target_rate: measure at this many images per
    second there instead of searching for the largest rate that keeps the limit.
    """

    scenarios: tuple[str, ...] = ("single-stream", "offline")
    length: str = "quick"
    batch: int = 8
    samples_per_query: int = 8
    latency_limit_ms: float = 15.0
    target_rate: float | None = None
    threads: int = 0
    rounds: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for scenario in self.scenarios:
            one_of("[speed] scenarios", scenario, SCENARIOS)
        one_of("[speed] length", self.length, LENGTHS)
        if len(set(self.scenarios)) != len(self.scenarios):
            raise UserError("[speed] scenarios names one twice.")
        if self.seconds is not None and not 0 < self.seconds <= 3600:
            raise UserError("[speed] seconds is the length of one slot: above 0, at most 3600.")
        if self.rounds is not None and self.rounds < 3:
            raise UserError("[speed] needs rounds >= 3.")
        if self.batch < 1 or self.samples_per_query < 1 or self.threads < 0:
            raise UserError("[speed] needs batch >= 1, samples_per_query >= 1 and threads >= 0.")
        if not 0 < self.latency_limit_ms <= 3_600_000:
            raise UserError("[speed] latency_limit_ms must lie above 0, and at most 3600000.")
        if self.target_rate is not None and not 0 < self.target_rate <= 1e6:
            raise UserError("[speed] target_rate must lie above 0, and at most 1000000.")

    @property
    def batches(self) -> dict[str, int]:
        """How many images a call takes, by scenario."""
        sizes = {"offline": self.batch, "multi-stream": self.samples_per_query}
        return {scenario: sizes.get(scenario, 1) for scenario in self.scenarios}


@dataclass(frozen=True)
class BudgetTable:
    """[budget]: the accuracy drop, in percentage points, above which `run` ends with exit 4."""

    max_drop_pp: float | None = None

    def __post_init__(self) -> None:
        if self.max_drop_pp is not None and self.max_drop_pp < 0:
            raise UserError("[budget] max_drop_pp must not be negative.")


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. Paths in it are relative to the folder of the recipe file."""

    model: ModelTable
    data: DataTable
    input: InputTable = field(default_factory=InputTable)
    variant: tuple[VariantTable, ...] = ()
    speed: SpeedTable = field(default_factory=SpeedTable)
    budget: BudgetTable = field(default_factory=BudgetTable)


@dataclass(frozen=True)
class TrainDataTable:
    """[data] of a training recipe."""

    source: str
    root: str = ""
    split: str = "train"


@dataclass(frozen=True)
class TrainModelTable:
    """[model] of a training recipe."""

    arch: str
    num_classes: int | None = None


@dataclass(frozen=True)
class TrainRecipe:
    """What `deploy-tools train` reads."""

    model: TrainModelTable
    data: TrainDataTable
    train: TrainConfig
    input: InputTable = field(default_factory=InputTable)


def load_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe; `changes` are `table.key=value` texts that replace what the file says."""
    table = _changed(read_toml(path), changes)
    recipe = from_table(Recipe, table, str(path))
    folder = path.parent
    model = replace(recipe.model, checkpoint=_beside(folder, recipe.model.checkpoint))
    calibration = replace(
        recipe.data.calibration, list=_beside(folder, recipe.data.calibration.list)
    )
    data = replace(recipe.data, root=_beside(folder, recipe.data.root), calibration=calibration)
    return replace(recipe, model=model, data=data)


def load_train_recipe(path: Path, changes: Sequence[str] = ()) -> TrainRecipe:
    """Read a training recipe."""
    recipe = from_table(TrainRecipe, _changed(read_toml(path), changes), str(path))
    if recipe.input.takes_pixels:
        raise UserError(
            f'{path}: [input] dtype = "uint8" means nothing for training.',
            "Set it in the recipe of deploy-tools run, or use --input uint8 of export and quantize.",
        )
    return replace(recipe, data=replace(recipe.data, root=_beside(path.parent, recipe.data.root)))


def lock_text(recipe: Recipe | TrainRecipe) -> str:
    """Return the recipe as it was run, every value spelled out and every path absolute, as TOML."""
    values = asdict(recipe)
    for table, key in (("model", "checkpoint"), ("data", "root")):
        if values[table].get(key):
            values[table][key] = str(Path(values[table][key]).absolute())
    calibration = values["data"].get("calibration")
    if calibration and calibration["list"]:
        calibration["list"] = str(Path(calibration["list"]).absolute())
    return to_toml(values)


def _beside(folder: Path, name: str) -> str:
    if not name:
        return ""
    try:
        return str(folder / Path(name).expanduser())
    except RuntimeError as error:
        raise UserError(f'the path "{name}" names no user of this machine.') from error


def _changed(table: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Apply `a.b.c=value` texts; a value is read as TOML where it is TOML, else as text."""
    for change in changes:
        place, equals, text = change.partition("=")
        keys = [key.strip() for key in place.split(".")]
        if not equals or not all(keys):
            raise UserError(f'--set "{change}" is not of the form table.key=value.')
        holder: Any = table
        for key in keys[:-1]:
            holder = _step(holder, key, change)
        if isinstance(holder, list):
            raise UserError(
                f'--set "{change}" names a list.', "Give an index: variant.0.key=value."
            )
        if not isinstance(holder, dict):
            raise UserError(f'--set "{change}": "{keys[-1]}" is not in a table.')
        holder[keys[-1]] = _value(text.strip())
    return table


def _step(holder: Any, key: str, change: str) -> Any:
    if isinstance(holder, list):
        if not key.isdecimal() or int(key) >= len(holder):
            raise UserError(f'--set "{change}": "{key}" is not an index below {len(holder)}.')
        return holder[int(key)]
    if not isinstance(holder, dict):
        raise UserError(f'--set "{change}": "{key}" is not in a table.')
    return holder.setdefault(key, {})


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
