"""Folding BatchNorm: what is folded, what is left and why, and a proof that can say no."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from work import work_of

from deploy_tools import fuse
from deploy_tools.data import open_source
from deploy_tools.data.source import batches
from deploy_tools.errors import UserError
from deploy_tools.fuse import FoldError, FoldReport, FuseConfig, fold_batchnorm, prove_fold
from deploy_tools.models import ARCHITECTURES, build_model
from deploy_tools.models.checkpoint import load_into, load_state

CONFIG = FuseConfig()


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm statistics as training would, so that a wrong fold shows."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            layer.running_mean.copy_(0.2 * torch.randn(layer.num_features, generator=generator))
            layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=generator))
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
                nn.init.uniform_(layer.bias, -0.3, 0.3, generator=generator)
    return module.eval()


def fold(module: nn.Module, *shape: int) -> tuple[nn.Module, FoldReport]:
    return fold_batchnorm(trained(module), CONFIG, torch.zeros(shape))


def batchnorms(module: nn.Module) -> list[str]:
    return [n for n, m in module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


class Custom(nn.Module):
    """Functional relu, names of its own, a grouped convolution, Linear + BatchNorm1d."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.stem_norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 16, 3, groups=4, bias=False)
        self.grouped_norm = nn.BatchNorm2d(16, eps=1e-2)
        self.head = nn.Linear(16, 5)
        self.head_norm = nn.BatchNorm1d(5, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem_norm(self.stem(x)))
        x = functional.relu(self.grouped_norm(self.grouped(x))).mean((2, 3))
        return self.head_norm(self.head(x))


class Chain(nn.Module):
    """Layers called in the order of their names; a name given twice is called twice."""

    def __init__(self, order: tuple[str, ...], **layers: nn.Module) -> None:
        super().__init__()
        self.order = order
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = getattr(self, name)(x)
        return x


@pytest.mark.parametrize("arch", [name for name in ARCHITECTURES if "1202" not in name])
def test_every_architecture_of_the_zoo_is_folded_whole(arch: str) -> None:
    size = 32 if "cifar" not in arch else 8
    module = trained(build_model(arch, 4).module)
    folded, report = fold_batchnorm(
        module, FuseConfig(random_inputs=1), torch.zeros(1, 3, size, size)
    )
    assert batchnorms(folded) == []
    assert len(report.folded) == len(batchnorms(module))
    assert report.left == ()
    assert report.max_rel_float64 < 1e-9
    assert report.max_rel_float32 < 1e-3


def test_custom_module_keeps_its_names_and_the_input_is_untouched() -> None:
    module = trained(Custom())
    before = copy.deepcopy(module.state_dict())
    folded, report = fold_batchnorm(module, CONFIG, torch.zeros(2, 3, 9, 9))
    assert report.folded == (
        ("stem", "stem_norm"), ("grouped", "grouped_norm"), ("head", "head_norm"),
    )  # fmt: skip
    assert isinstance(folded, Custom)
    assert isinstance(folded.stem_norm, nn.Identity)
    assert folded.grouped.bias is not None
    assert folded.stem.weight.dtype == torch.float32
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    assert batchnorms(module) == ["stem_norm", "grouped_norm", "head_norm"]


def test_the_folded_weights_are_those_of_the_formula() -> None:
    module = trained(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    folded, _ = fold_batchnorm(module, CONFIG, torch.zeros(2, 3))
    linear, norm = module
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = linear.weight.double() * scale[:, None]
    bias = (linear.bias.double() - norm.running_mean.double()) * scale + norm.bias.double()
    assert torch.equal(folded[0].weight, weight.float())
    assert torch.allclose(folded[0].bias, bias.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (2, 4, 9)),
        (nn.Conv3d(2, 4, 2, bias=False), nn.BatchNorm3d(4), (2, 2, 4, 4, 4)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4), (2, 3, 6, 6)),
        (nn.ConvTranspose1d(4, 6, 3, bias=False), nn.BatchNorm1d(6), (2, 4, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
        (nn.ConvTranspose3d(2, 3, 2), nn.BatchNorm3d(3), (1, 2, 3, 3, 3)),
        (nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4), (2, 3, 5, 5)),
    ],
)
def test_each_kind_of_layer(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    folded, report = fold(nn.Sequential(layer, norm), *shape)
    assert report.folded == (("0", "1"),)
    assert batchnorms(folded) == []


def test_a_dropout_between_does_not_matter() -> None:
    layers = (nn.Conv2d(3, 4, 1), nn.Dropout2d(), nn.Identity(), nn.BatchNorm2d(4))
    _, report = fold(nn.Sequential(*layers), 2, 3, 4, 4)
    assert report.folded == (("0", "3"),)


def test_zero_variance_is_folded_with_eps_and_refused_without() -> None:
    module = trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    module[1].running_var.zero_()
    _, report = fold_batchnorm(module, CONFIG, torch.zeros(2, 3, 4, 4))
    assert report.folded == (("0", "1"),)
    module[1].eps = 0.0
    with pytest.raises(UserError, match="NaN or infinity"):
        fold_batchnorm(module, CONFIG, torch.zeros(2, 3, 4, 4))


def reason_left(module: nn.Module, *shape: int, name: str = "norm") -> str:
    folded, report = fold(module, *shape)
    reasons = dict(report.left)
    assert name in reasons
    assert name in batchnorms(folded)
    assert reasons[name] in str(report)
    return reasons[name]


def test_preactivation_is_left() -> None:
    first = Chain(
        ("norm", "relu", "conv"), norm=nn.BatchNorm2d(3), relu=nn.ReLU(), conv=nn.Conv2d(3, 4, 1)
    )
    assert "comes first" in reason_left(first, 2, 3, 5, 5)
    after_relu = Chain(
        ("conv", "relu", "norm"), conv=nn.Conv2d(3, 4, 1), relu=nn.ReLU(), norm=nn.BatchNorm2d(4)
    )
    assert "comes from relu (ReLU), not from a conv" in reason_left(after_relu, 2, 3, 5, 5)


def test_after_an_addition_is_left() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x) + x)

    assert "comes from add" in reason_left(Residual(), 2, 3, 5, 5)


def test_a_layer_whose_output_is_used_elsewhere_is_left() -> None:
    class Tap(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.conv(x)
            return self.norm(x), x

    assert reason_left(Tap(), 2, 3, 5, 5) == "the output of conv before it is used 2 times"


def test_a_layer_shared_by_two_batchnorms_is_left() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.other = (
                nn.Conv2d(3, 4, 1),
                nn.BatchNorm2d(4),
                nn.BatchNorm2d(4),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.norm(x) + self.other(x)

    assert "used 2 times" in reason_left(Fork(), 2, 3, 5, 5)
    assert "used 2 times" in reason_left(Fork(), 2, 3, 5, 5, name="other")


def test_shared_modules_are_left() -> None:
    twice = Chain(("conv", "norm", "conv"), conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3))
    assert "conv before it is called 2 times" in reason_left(twice, 2, 3, 5, 5)
    norms = Chain(("conv", "norm", "norm"), conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3))
    assert reason_left(norms, 2, 3, 5, 5) == "it is called 2 times"


def test_one_module_under_two_names_is_folded_everywhere() -> None:
    norm = nn.BatchNorm2d(4)
    module = Chain(("conv", "alias"), conv=nn.Conv2d(3, 4, 1), norm=norm, alias=norm)
    folded, report = fold(module, 2, 3, 5, 5)
    assert len(report.folded) == 1
    assert isinstance(folded.alias, nn.Identity)
    assert isinstance(folded.norm, nn.Identity)


def test_tied_weights_stay_right() -> None:
    module = Chain(
        ("a", "norm", "b"), a=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3), b=nn.Conv2d(3, 3, 1)
    )
    module.b.weight = module.a.weight
    _, report = fold(module, 2, 3, 5, 5)
    assert report.folded == (("a", "norm"),)


def test_batch_statistics_are_left() -> None:
    batch = Chain(
        ("conv", "norm"), conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4, track_running_stats=False)
    )
    assert "statistics of the batch" in reason_left(batch, 2, 3, 5, 5)
    module = trained(Chain(("conv", "norm"), conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4)))
    module.norm.train()
    mean = module.norm.running_mean.clone()
    _, report = fold_batchnorm(module, CONFIG, torch.zeros(2, 3, 5, 5))
    assert dict(report.left) == {"norm": "it is in training mode"}
    assert torch.equal(module.norm.running_mean, mean)


def test_an_unused_batchnorm_and_a_function_are_named() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            norm = self.norm
            return functional.batch_norm(self.conv(x), norm.running_mean, norm.running_var)

    _, report = fold(Functional(), 2, 3, 5, 5)
    assert report.left == (
        ("norm", "the forward pass does not use it"),
        ("batch_norm", "it is a function call in forward, not a module"),
    )


def test_linear_on_sequences_is_left() -> None:
    # BatchNorm1d on (N, L, C) normalizes L: a fold into the Linear would be wrong.
    module = Chain(("linear", "norm"), linear=nn.Linear(6, 4), norm=nn.BatchNorm1d(4))
    assert "not in dimension 1" in reason_left(module, 2, 4, 6)


class Standardized(nn.Conv2d):
    """A convolution that computes its weights, as weight standardization does."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight - self.weight.mean(), self.bias)


@pytest.mark.parametrize("conv", [Standardized(3, 4, 1), weight_norm(nn.Conv2d(3, 4, 1))])
def test_layers_that_compute_their_weights_are_left(conv: nn.Module) -> None:
    module = Chain(("conv", "norm"), conv=conv, norm=nn.BatchNorm2d(4))
    assert "does not use its weights as they are" in reason_left(module, 2, 3, 5, 5)


def test_a_hooked_layer_is_left() -> None:
    module = Chain(("conv", "norm"), conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4))
    module.conv.register_forward_hook(lambda _m, _i, output: output * 2)
    assert "does not use its weights as they are" in reason_left(module, 2, 3, 5, 5)


def test_a_batchnorm_with_its_own_forward_is_left() -> None:
    class Doubled(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    module = Chain(("conv", "norm"), conv=nn.Conv2d(3, 4, 1), norm=Doubled(4))
    assert reason_left(module, 2, 3, 5, 5) == "Doubled has a forward of its own"


class Branching(Custom):
    """Control flow on a shape, which torch.fx cannot follow and torch.export can."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1:
            x = x * 0.5
        return super().forward(x)


def test_export_is_the_fallback_and_finds_the_same() -> None:
    _, by_fx = fold(Custom(), 2, 3, 9, 9)
    _, by_export = fold(Branching(), 2, 3, 9, 9)
    assert (by_fx.traced_by, by_export.traced_by) == ("torch.fx", "torch.export")
    assert by_export.folded == by_fx.folded


def test_what_cannot_be_traced_is_refused() -> None:
    class Opaque(Custom):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if float(x.sum()) > 0 else super().forward(-x)

    with pytest.raises(UserError, match=r"cannot be traced. torch.fx: .* torch.export: "):
        fold(Opaque(), 2, 3, 9, 9)


def test_timm_batchnorm_with_activation_is_folded() -> None:
    module = build_model("timm:mobilenetv3_small_050", 4).module
    folded, report = fold(module, 1, 3, 32, 32)
    assert batchnorms(folded) == []
    assert report.left == ()


def test_a_torchvision_model_with_depthwise_convolutions() -> None:
    module = build_model("torchvision:shufflenet_v2_x0_5", 4).module
    folded, report = fold(module, 1, 3, 32, 32)
    assert batchnorms(folded) == []
    assert len(report.folded) == 56


@pytest.mark.parametrize("factor", [1.001, 1 + 1e-7, float("nan")])
def test_a_broken_fold_is_refused(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    right = fuse.channel_affine
    monkeypatch.setattr(
        fuse, "channel_affine", lambda norm: (right(norm)[0] * factor, right(norm)[1])
    )
    with pytest.raises(FoldError, match="changed the outputs"):
        fold(Custom(), 2, 3, 9, 9)


def test_the_proof_sees_the_largest_difference() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.load_state_dict({"weight": a.weight, "bias": a.bias + torch.tensor([0.0, 0.5])})
    found = prove_fold(a, b, [torch.zeros(1, 2), torch.ones(1, 2)])
    assert found.max_abs == pytest.approx(0.5, rel=1e-6)
    assert found.max_rel > 0


def test_half_precision_keeps_its_dtype() -> None:
    folded, report = fold_batchnorm(
        trained(Custom()).bfloat16(), CONFIG, torch.zeros(2, 3, 9, 9, dtype=torch.bfloat16)
    )
    assert {p.dtype for p in folded.parameters()} == {torch.bfloat16}
    assert report.max_rel_float64 < 1e-9


def test_wrong_use_is_refused() -> None:
    with pytest.raises(UserError, match="training mode"):
        fold_batchnorm(Custom().train(), CONFIG, torch.zeros(2, 3, 9, 9))
    with pytest.raises(UserError, match=r"does not run on an input of \(2, 4, 9, 9\)"):
        fold(Custom(), 2, 4, 9, 9)


def test_the_report_reads_well() -> None:
    _, report = fold(Custom(), 2, 3, 9, 9)
    text = str(report)
    assert "folded 3 of 3 BatchNorm layers" in text
    assert "2 random and 0 real batches" in text
    assert "float64" in text


def test_public_checkpoint_on_real_images(shared_data: Path) -> None:
    from deploy_tools.data.cifar10 import SPEC

    state, _ = load_state(shared_data / "weights" / "resnet20-12fca82f.th")
    module = build_model("resnet20-cifar-a").module
    load_into(module, state, "resnet20-cifar-a", "resnet20")
    source = open_source("cifar10", shared_data / "cifar10", "test")
    images, _labels = next(batches(source, SPEC, 64))
    real = torch.from_numpy(np.ascontiguousarray(images))
    folded, report = fold_batchnorm(module, CONFIG, real[:2], [real])
    assert len(report.folded) == 19
    assert report.real_inputs == 1
    assert report.max_rel_float64 < 1e-9
    with torch.no_grad():
        assert torch.equal(folded(real).argmax(1), module(real).argmax(1))


def test_folding_takes_work_by_the_depth_and_not_by_its_square() -> None:
    def work(depth: int) -> int:
        layers = [x for _ in range(depth) for x in (nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))]
        module = trained(nn.Sequential(*layers)).double()
        pairs = [(str(2 * at), str(2 * at + 1)) for at in range(depth)]
        return work_of(lambda: fuse.fold_pairs(module, pairs))

    few, some, many = (work(depth) for depth in (5, 20, 80))
    assert many - some < 1.1 * (80 - 20) / (20 - 5) * (some - few)
