"""deploy-tools train: a checkpoint from a training recipe."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from deploy_tools.artifacts import package_versions, write_json, write_text
from deploy_tools.cli.common import PathType, out_option, output_options, print_json, progress_bar
from deploy_tools.data import fashion_mnist, open_source
from deploy_tools.data.check import check_classes
from deploy_tools.data.source import ImageSource
from deploy_tools.data.spec import InputSpec
from deploy_tools.errors import UserError, require
from deploy_tools.recipe import TrainRecipe, load_train_recipe, lock_text


@click.command("train")
@click.argument("recipe", type=PathType)
@out_option()
@click.option("--data", type=PathType, metavar="DIR", help="Where the images are (data.root).")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace a value of the recipe, such as train.epochs=10.",
)
@click.option("--overwrite", is_flag=True, help="Replace a finished training in the folder.")
@output_options
def command(
    recipe: Path,
    out: Path,
    data: Path | None,
    changes: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Train from scratch as RECIPE says; keep the epoch that is best on held-out images.

    Writes checkpoint.safetensors, train-log.jsonl and, at the end, train.json. The test split
    is not read.

    \b
    Example:
      deploy-tools train train-resnet20-fashion-mnist.toml -o trained
    """  # fmt: skip
    torch = require("torch", "torch", "Training")
    from deploy_tools.models import build_model
    from deploy_tools.training.train import train_model

    finished = out / "train.json"
    if finished.exists() and not overwrite:
        raise UserError(
            f"{out} holds a finished training.", "Choose another folder, or give --overwrite."
        )
    paths = [f"data.root={data.absolute()}"] if data else []
    loaded = load_train_recipe(recipe, [*paths, *changes])
    table = loaded.data
    source = open_source(table.source, Path(table.root) if table.root else None, table.split)
    count = _class_count(loaded, source)
    spec = _spec(loaded, source.classes, count)
    torch.manual_seed(loaded.train.seed)
    module = build_model(loaded.model.arch, count, spec.channels).module
    metadata = {
        "arch": loaded.model.arch, "num_classes": str(count), "input_spec": spec.to_json(),
    }  # fmt: skip
    if finished.exists():
        finished.unlink()  # it must never stand beside the weights of another training
    with progress_bar(quiet) as progress:
        trained = train_model(module, source, spec, loaded.train, out, metadata, progress)
    write_text(out / "recipe.lock.toml", lock_text(loaded))
    record = {
        "best": asdict(trained.best), "train": asdict(loaded.train),
        "epochs_run": len(trained.epochs), "versions": package_versions(),
    }  # fmt: skip
    write_json(finished, record)
    if as_json:
        print_json(record)
        return
    if verbose:
        for epoch in trained.epochs:
            click.echo(epoch)
    best = trained.best
    click.echo(
        f"{trained.checkpoint}: epoch {best.epoch}, {best.validation_top1:.2%} of "
        f"{loaded.train.validation_images} held-out training images"
    )


def _class_count(loaded: TrainRecipe, source: ImageSource) -> int:
    count = len(source.classes) if loaded.model.num_classes is None else loaded.model.num_classes
    if not count:
        raise UserError(
            "nothing says how many classes there are.", "Set [model] num_classes in the recipe."
        )
    try:
        check_classes(source, count)
    except UserError as error:
        raise UserError(error.message, "Correct [model] num_classes, or [data].") from error
    return count


def _spec(loaded: TrainRecipe, classes: tuple[str, ...], count: int) -> InputSpec:
    known = fashion_mnist.SPEC.to_dict() if loaded.data.source == "fashion-mnist" else {}
    values = known | loaded.input.given()
    if not {"size", "mean", "std"} <= set(values):
        raise UserError(
            "nothing says how the model's input is made.",
            "Give an [input] table with size, mean and std in the recipe.",
        )
    labels = loaded.input.labels
    if labels is not None and len(labels) != count:
        raise UserError(
            f"[input] labels names {len(labels)} classes and the model has {count}.",
            "Name every class, in the order of the data's labels, or leave labels out.",
        )
    return InputSpec.from_dict(values).with_labels(classes if labels is None else labels)
