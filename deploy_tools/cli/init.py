"""deploy-tools init: write a commented recipe."""

from __future__ import annotations

from pathlib import Path

import click

from deploy_tools.artifacts import write_text
from deploy_tools.cli.common import PathType
from deploy_tools.errors import UserError

TEMPLATE = """\
# A deploy-tools recipe. Run it with: deploy-tools run {name}

[model]
arch = "resnet18"                  # or resnet20-cifar, torchvision:NAME, timm:NAME, package.module:callable
checkpoint = "weights.safetensors" # or weights = "IMAGENET1K_V1" for published weights
# num_classes = 10                 # where the checkpoint's head has another size than the architecture's

[input]                            # leave it out where the weights' metadata says it
size = [224, 224]
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
resize = 256                       # short side, then a centre crop of size
crop = "center"

[data]
source = "imagefolder"             # imagefolder | imagenet | jsonl | npz | cifar10 | fashion-mnist
root = "data"                      # holds <split>/<class>/<image>
calibration = {{ split = "train", images = 512, choose = "stratified", seed = 0 }}
evaluation = {{ split = "val", images = "all" }}

[[variant]]
precision = "int8"
method = "static"                  # dynamic | qat
target = "ort-cpu"                 # openvino | arm | x86-no-vnni | tensorrt | tensorrt-rtx
ranges = "auto"                    # minmax | entropy | percentile | mse | auto

[[variant]]
precision = "int8"
method = "static"
target = "openvino"

# [[variant]]                      # an engine; the extra tensorrt-rtx builds it without a GPU
# precision = "fp16"
# target = "tensorrt-rtx"
# batch = {{ min = 1, opt = 8, max = 32 }}

[speed]
scenarios = ["single-stream", "offline"]   # also "multi-stream", "server"
batch = 8                          # of the offline scenario

[budget]
max_drop_pp = 0.5                  # run ends with exit code 4 beyond it
"""


@click.command("init")
@click.argument("recipe", type=PathType, default="recipe.toml")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
def command(recipe: Path, overwrite: bool) -> None:
    """Write a commented recipe to RECIPE (default: recipe.toml).

    \b
    Example:
      deploy-tools init my-model.toml
    """
    if recipe.exists() and not overwrite:
        raise UserError(f"{recipe} exists.", "Choose another name, or give --overwrite.")
    write_text(recipe, TEMPLATE.format(name=recipe))
    click.echo(f"{recipe} written. Edit it, then: deploy-tools run {recipe}")
