"""Recipes: what ships loads, what is mistaken is named, and `--set` changes what it says."""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy_tools import recipe as module
from deploy_tools.errors import UserError
from deploy_tools.recipe import load_recipe, load_train_recipe, lock_text

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [*ROOT.glob("recipes/*.toml"), *ROOT.glob("deploy_tools/assets/*.toml")]

SMALL = """
[model]
arch = "resnet20-cifar"
checkpoint = "weights.safetensors"
[data]
source = "fashion-mnist"
[[variant]]
precision = "int8"
method = "static"
[[variant]]
precision = "bf16"
"""

# The recipe of the design document, without what is refused below.
FULL = """
[model]
arch = "resnet20-cifar"
checkpoint = "weights.safetensors"
num_classes = 10

[input]
size = [32, 32]
mean = [0.2860]
std = [0.3530]
resize = 36
crop = "center"
interpolation = "bilinear"
layout = "NCHW"

[data]
source = "fashion-mnist"
root = "images"
calibration = { split = "train", images = 512, choose = "stratified", seed = 0 }
evaluation = { split = "test", images = "all" }

[[variant]]
precision = "int8"
method = "static"
target = "ort-cpu"
ranges = "percentile"

[speed]
scenarios = ["single-stream", "offline"]

[budget]
max_drop_pp = 0.5
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def problem(folder: Path, text: str, *changes: str) -> str:
    (folder / "bad.toml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(folder / "bad.toml", changes)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_recipes_load(path: Path) -> None:
    if "train" in tomllib.loads(path.read_text("utf-8")):
        assert load_train_recipe(path).train.epochs > 0
    else:
        assert load_recipe(path).model.arch


def test_the_shipped_recipes_are_found() -> None:
    assert {"demo.toml", "train-resnet20-fashion-mnist.toml"} <= {path.name for path in SHIPPED}


def test_the_full_recipe(tmp_path: Path) -> None:
    (tmp_path / "full.toml").write_text(FULL)
    recipe = load_recipe(tmp_path / "full.toml")
    assert recipe.model.num_classes == 10
    assert recipe.input.given() == {
        "size": (32, 32), "mean": (0.286,), "std": (0.353,), "resize": 36,
        "crop": "center", "interpolation": "bilinear", "layout": "NCHW",
    }  # fmt: skip
    assert recipe.data.calibration.images == 512
    assert recipe.data.evaluation.images == "all"
    assert recipe.variant[0].target == "ort-cpu"
    assert recipe.speed.scenarios == ("single-stream", "offline")
    assert recipe.budget.max_drop_pp == 0.5


def test_what_does_not_exist_says_so(tmp_path: Path) -> None:
    weights = FULL.replace('"static"', '"weights"')
    assert 'method "weights" is not known. Known: dynamic, qat, static.' in problem(
        tmp_path, weights
    )
    fp8 = FULL.replace('"int8"', '"fp8"').replace('method = "static"', "")
    assert 'precision "fp8" is not known.' in problem(tmp_path, fp8)


ENGINE = """
[[variant]]
precision = "int8"
method = "static"
target = "tensorrt-rtx"
rest = "fp32"
first_conv = false
last_gemm = false
batch = { min = 1, opt = 4, max = 16 }
"""


def test_engine_variants(tmp_path: Path) -> None:
    (tmp_path / "full.toml").write_text(FULL + ENGINE)
    variant = load_recipe(tmp_path / "full.toml").variant[-1]
    assert str(variant.batch) == "1:4:16"
    assert (variant.rest, variant.first_conv, variant.last_gemm) == ("fp32", False, False)
    lock = lock_text(load_recipe(tmp_path / "full.toml"))
    (tmp_path / "lock.toml").write_text(lock)
    assert load_recipe(tmp_path / "lock.toml").variant[-1] == variant


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('rest = "fp32"', 'rest = "int4"', 'rest "int4" is not known'),
        ("min = 1, opt = 4", "min = 1, opt = 32", "1:32:16 is out of order"),
        ("min = 1", "min = 0", "1 <= min <= opt <= max"),
        ('target = "tensorrt-rtx"', 'target = "ort-cpu"', "rest means nothing for a static"),
        ('rest = "fp32"\n', "", None),
        ("opt = 4", 'opt = "4"', "opt must be a whole number"),
        ("max = 16", "most = 16", 'unknown key "most"'),
    ],
)
def test_mistaken_engine_variants(tmp_path: Path, old: str, new: str, words: str | None) -> None:
    assert old in ENGINE
    text = FULL + ENGINE.replace(old, new)
    if words is None:
        (tmp_path / "full.toml").write_text(text)
        assert load_recipe(tmp_path / "full.toml").variant[-1].rest is None
    else:
        assert words in problem(tmp_path, text)


def test_an_fp16_variant_takes_a_batch_and_no_rest(tmp_path: Path) -> None:
    fp16 = FULL + '[[variant]]\nprecision = "fp16"\ntarget = "tensorrt"\n'
    (tmp_path / "full.toml").write_text(fp16 + "batch = { max = 64 }\n")
    assert str(load_recipe(tmp_path / "full.toml").variant[-1].batch) == "1:8:64"
    assert "rest means nothing for a float variant of target tensorrt" in problem(
        tmp_path, fp16 + 'rest = "fp16"\n'
    )
    bf16 = FULL + '[[variant]]\nprecision = "bf16"\nbatch = { max = 32 }\n'
    assert "batch means nothing for a float variant" in problem(tmp_path, bf16)


def test_paths_are_relative_to_the_recipe(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    recipe = load_recipe(
        small,
        ["data.root=images", "data.calibration.list=a/ids.txt", "data.calibration.choose=list"],
    )
    assert recipe.model.checkpoint == str(tmp_path / "weights.safetensors")
    assert recipe.data.root == str(tmp_path / "images")
    assert recipe.data.calibration.list == str(tmp_path / "a" / "ids.txt")
    assert load_recipe(small).data.root == ""
    changes = ["model.checkpoint=/abs/w.pt", "data.root=~/images"]
    recipe = load_recipe(small, changes)
    assert (recipe.model.checkpoint, recipe.data.root) == ("/abs/w.pt", "/home/somebody/images")
    with pytest.raises(UserError, match="names no user"):
        load_recipe(small, ["data.root=~nobody-of-that-name/x"])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[model]", "[modle]", ['unknown key "modle"', 'Did you mean "model"?']),
        ("arch =", "arhc =", ['unknown key "arhc"', '"arch"']),
        ('source = "fashion-mnist"', 'sauce = "x"', ['unknown key "sauce"', '"source"']),
        ("method =", "methd =", ["variant[0]", '"methd"', '"method"']),
        ("[data]", "[budget]\nmax_drop = 1\n[data]", ['"max_drop"', '"max_drop_pp"']),
        ('"int8"', '"int4"', ['precision "int4"', '"int8"']),
        ('method = "static"', 'method = "statik"', ['"statik"', '"static"']),
        ('method = "static"', 'method = "static"\nranges = "mean"', ['ranges "mean" is not known']),
        ('"resnet20-cifar"', "20", ["model arch must be text, got a whole number"]),
        ('checkpoint = "weights.safetensors"', "", ["no weights are named"]),
        ("checkpoint =", 'weights = "DEFAULT"\ncheckpoint =', ["takes one of"]),
        ('arch = "resnet20-cifar"', "", ["lacks arch"]),
        ('source = "fashion-mnist"', "", ["lacks source"]),
        ("[[variant]]\nprecision = \"bf16\"", "", []),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    assert old in SMALL
    if not words:
        (tmp_path / "ok.toml").write_text(SMALL.replace(old, new))
        assert len(load_recipe(tmp_path / "ok.toml").variant) == 1
        return
    text = problem(tmp_path, SMALL.replace(old, new))
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.evaluation.images=some", '"all"'),
        ("data.evaluation.images=0", "at least 1"),
        ("speed.scenarios=['serve']", 'scenarios "serve"'),
        ("speed.length=long", 'length "long"'),
        ("speed.latency_limit_ms=0", "latency_limit_ms"),
        ("speed.target_rate=-1", "target_rate"),
        ("speed.samples_per_query=0", "samples_per_query >= 1"),
        ("speed.seconds=0", "above 0"),
        ("speed.rounds=2", "rounds >= 3"),
        ("speed.seconds=nan", "finite"),
        ("speed.threads=-1", "threads >= 0"),
        ("budget.max_drop_pp=nan", "finite"),
        ("variant=int8", "must be a list"),
    ],
)
def test_values_out_of_range(small: Path, change: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_recipe(small, [change])


def test_set_replaces_and_adds(small: Path) -> None:
    changes = [
        "variant.0.per_channel=false", "variant.1.id=mine", "speed.batch = 4",
        "model.checkpoint=some=thing.pt", "variant.0.exclude=['conv1']", "budget.max_drop_pp=1",
        "data.evaluation.images=100", 'variant.0.target="arm"', "input.size=[8, 9]",
    ]  # fmt: skip
    recipe = load_recipe(small, changes)
    assert recipe.variant[0].per_channel is False
    assert recipe.variant[0].exclude == ("conv1",)
    assert recipe.variant[0].target == "arm"
    assert recipe.variant[1].id == "mine"
    assert recipe.speed.batch == 4
    assert recipe.model.checkpoint.endswith("some=thing.pt")
    assert recipe.budget.max_drop_pp == 1.0
    assert recipe.data.evaluation.images == 100
    assert recipe.input.size == (8, 9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("speed.batch", "not of the form table.key=value"),
        ("=3", "not of the form"),
        ("speed.=3", "not of the form"),
        ("variant.2.id=x", '"2" is not an index below 2'),
        ("variant.first.id=x", '"first" is not an index below 2'),
        ("variant.-1.id=x", '"-1" is not an index'),
        ("variant.².id=x", "is not an index"),
        ("variant.0=x", "names a list"),
        ("model.arch.name=x", '"name" is not in a table'),
        ("model.arch.name.more=x", '"name" is not in a table'),
        ("speed.bacth=3", 'Did you mean "batch"?'),
        ("sped.batch=3", 'Did you mean "speed"?'),
        ("speed.batch=many", "batch must be a whole number, got text"),
        ("speed.batch=true", "batch must be a whole number, got a boolean"),
        ("speed.batch=" + "9" * 5000, "batch must be a whole number"),
    ],
)
def test_set_mistakes(small: Path, change: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(small, [change])
    assert words in str(caught.value)


def test_the_lock_text_reads_back_as_the_same_recipe(small: Path, tmp_path: Path) -> None:
    recipe = load_recipe(small, ["speed.batch=4", "data.root=images"])
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "lock.toml").write_text(lock_text(recipe))
    assert load_recipe(folder / "lock.toml") == recipe


def test_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_recipe(tmp_path / "none.toml")


TRAIN = '[model]\narch = "resnet20-cifar"\n[data]\nsource = "fashion-mnist"\n[train]\nepochs = 3\n'


def test_train_recipe(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(TRAIN)
    recipe = load_train_recipe(tmp_path / "t.toml", ["train.lr=0.2", "data.root=x"])
    assert (recipe.train.epochs, recipe.train.lr) == (3, 0.2)
    assert recipe.data.root == str(tmp_path / "x")
    with pytest.raises(UserError, match='Did you mean "momentum"'):
        load_train_recipe(tmp_path / "t.toml", ["train.momentun=0.2"])
    with pytest.raises(UserError, match="lacks epochs"):
        load_train_recipe(tmp_path / "t.toml", ["train={}"])


KEYS = st.sampled_from(
    ["model", "input", "data", "variant", "speed", "budget", "arch", "checkpoint", "weights",
     "size", "mean", "source", "root", "calibration", "evaluation", "images", "seed", "list",
     "precision", "method", "exclude", "percentile", "scenarios", "rounds", "max_drop_pp", "x"]
)  # fmt: skip
SCALARS = (
    st.booleans() | st.integers() | st.floats() | st.text("ab~.", max_size=3) | st.dates()
    | st.sampled_from(["int8", "static", "all", "~x/y", "resnet20-cifar", "\0"])
)  # fmt: skip
TABLES = st.dictionaries(
    KEYS,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
        max_leaves=12,
    ),
    max_size=6,
)


@settings(
    max_examples=100, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(table=TABLES, change=st.text("abvariant.0123=~\"'[]{}", max_size=20), base=st.booleans())
def test_any_recipe_gives_a_recipe_or_a_user_error(
    table: dict[str, Any], change: str, base: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {**tomllib.loads(SMALL), **table} if base else table
    monkeypatch.setattr(module, "read_toml", lambda path: whole)
    for changes in ([], [change]):
        with contextlib.suppress(UserError):
            load_recipe(Path("x.toml"), changes)


QAT = """
[[variant]]
precision = "int8"
method = "qat"
target = "ort-cpu"
equalize = false
rounding = "nearest"
float_branches = ["all"]
[variant.qat]
epochs = 3
images = 100
"""


def test_a_qat_variant_reads_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "q.toml").write_text(FULL + QAT)
    recipe = load_recipe(tmp_path / "q.toml")
    found = recipe.variant[-1]
    assert (found.equalize, found.rounding, found.bias_correction) == (False, "nearest", None)
    assert found.float_branches == ("all",)
    assert found.qat is not None
    assert (found.qat.epochs, found.qat.images, found.qat.ranges) == (3, 100, "learnable")
    (tmp_path / "lock.toml").write_text(lock_text(recipe))
    assert load_recipe(tmp_path / "lock.toml").variant == recipe.variant


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('rounding = "nearest"', 'rounding = "gtpq"'), 'Did you mean "gptq"?'),
        (("images = 100", "images = -1"), "must not be negative"),
        (("epochs = 3", "epoch = 3"), "epoch"),
        (("epochs = 3", "weight_bits = 9"), "weight_bits must lie between 2 and 8"),
        (('method = "qat"', 'method = "static"'), "qat means nothing for a static variant"),
        (('float_branches = ["all"]', "include_conv = true"), "means nothing for a qat variant"),
    ],
)
def test_wrong_corrections_and_qat_settings_are_refused(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    assert message in problem(tmp_path, FULL + QAT.replace(*change))


def test_every_scenario_can_be_asked_for(small: Path) -> None:
    speed = load_recipe(
        small,
        [
            "speed.scenarios=['single-stream', 'multi-stream', 'server', 'offline']",
            "speed.samples_per_query=4", "speed.batch=16", "speed.latency_limit_ms=40",
            "speed.length=full",
        ],
    ).speed  # fmt: skip
    assert speed.batches == {"single-stream": 1, "multi-stream": 4, "server": 1, "offline": 16}
    assert (speed.length, speed.latency_limit_ms, speed.rounds) == ("full", 40.0, None)
