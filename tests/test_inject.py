import copy
import json

import pytest
import timm
import torch
from timm.layers import Conv2dSame, LayerNorm2d, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from sparsemix import ArchParameterGroup, MixedOp
from sparsemix.inject import FAMILIES, Family, Site, choices, choose_, mix_
from sparsemix.measure import macs, measure_costs
from sparsemix.methods import SearchStep
from sparsemix.relaxations import Softmax
from sparsemix.speed.models import MODELS

X = torch.zeros(1, 3, 8, 8)


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, padding=1))


@pytest.mark.parametrize("name", MODELS)
def test_models_of_others(name, tmp_path):
    """Mix, search on both temperatures, discretise; the choice, saved and read again, builds the same network."""
    torch.manual_seed(0)
    build, family, where, share = MODELS[name]
    options = {"num_classes": 5, **({"img_size": 64} if name.startswith(("vit", "mixer")) else {})}
    model = build(**options)
    x, y = torch.randn(4, 3, 64, 64), torch.randint(5, (4,))
    before = model.eval()(x)
    originals = {path: layer for path, layer in model.named_modules()}
    mixed = mix_(model, family, where, share=share, example=x)
    assert all(originals[path] in op.candidates.children() for path, op in mixed.items())

    model.train()
    arch = ArchParameterGroup(model, threshold=1e-3)
    for op in arch.operations:  # the layers that were there, with their weights: the model as it was
        with torch.no_grad():
            own = [c in originals.values() for c in op.candidates.children()].index(True)
            op.alpha.zero_()[own] = 1e-3
    with torch.no_grad(), arch.discretized():
        torch.testing.assert_close(model.eval()(x), before)
    model.train()

    step = SearchStep(
        arch,
        lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        torch.optim.SGD(arch.weight_parameters(), lr=0.01),
        torch.optim.Adam(arch.parameters(), lr=1e-3),
    )
    alphas = copy.deepcopy(arch.parameters())
    for arch.phi in (False, True, False, True):
        assert all(loss.isfinite() for loss in step((x, y), (x, y)))
    assert all(not torch.equal(alpha, old) for alpha, old in zip(arch.parameters(), alphas, strict=True))

    model.eval()
    found = arch.discretize()
    with torch.no_grad(), arch.discretized():
        torch.testing.assert_close(found(x), model(x))
    assert not any(isinstance(module, MixedOp) for module in found.modules())
    torch.save(found.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "choice.json").write_text(json.dumps(choices(model)))

    again = build(**options)
    choose_(again, family, json.loads((tmp_path / "choice.json").read_text()), example=x)
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(again.eval()(x), found(x))


@pytest.mark.parametrize("family", ["kernel", "dilation"])
@pytest.mark.parametrize("own", [3, 5])
def test_kernels_and_dilations_start_from_the_layer(family, own):
    layer = nn.Conv2d(4, 6, own, stride=2, padding=own // 2, groups=2)
    model = nn.Sequential(layer)
    [op] = mix_(model, family, example=torch.zeros(1, 4, 9, 9)).values()
    for candidate in op.candidates.values():
        centre = abs(candidate.kernel_size[0] - own) // 2
        larger, smaller = sorted([candidate, layer], key=lambda conv: -conv.kernel_size[0])
        inner = larger.weight[..., centre : larger.kernel_size[0] - centre, centre : larger.kernel_size[0] - centre]
        assert torch.equal(inner, smaller.weight)
        assert torch.equal(candidate.bias, layer.bias)
        assert candidate.stride == (2, 2)
        assert candidate.groups == 2
    if family == "kernel":  # zeros around the layer's kernel: the same function
        x = torch.randn(2, 4, 9, 9)
        torch.testing.assert_close(op.candidates["conv7"](x), layer(x))


def test_layers_can_be_initialised_anew():
    model = small()
    old = model[2].weight.clone()
    op = mix_(model, "kernel", "2", keep_weights=False, example=X)["2"]
    assert not torch.equal(op.candidates["conv3"].weight, old)
    assert torch.equal(op.candidates["conv5"].weight[..., 1:4, 1:4], op.candidates["conv3"].weight)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("?", ["0", "2"]),
        (nn.Conv2d, ["0", "2"]),
        ((nn.Conv2d, nn.ReLU), ["0", "2"]),
        (["0", lambda path, layer: path == "2"], ["0", "2"]),
        (lambda path, layer: path == "2", ["2"]),
        (None, ["0", "2"]),
    ],
)
def test_layers_are_chosen_by_name_type_or_predicate(where, expected):
    assert [*mix_(small(), "kernel", where, example=X)] == expected


def test_own_factories_see_the_layer_they_replace():
    model, seen = small(), []

    def wide(site: Site) -> nn.Module:
        seen.append(site)
        return nn.Conv2d(site.layer.in_channels, site.layer.out_channels, (1, 9), padding=(0, 4))

    op = mix_(model, {"wide": wide}, "2", example=X)["2"]
    assert op.names == ("original", "wide")
    assert seen == [Site("2", op.candidates["original"], torch.Size([1, 8, 8, 8]), torch.Size([1, 8, 8, 8]))]


def test_activations_work_out_of_place():
    model = small()
    op = mix_(model, "activation", example=X)["1"]
    x = torch.randn(2, 8, 4, 4)
    expected = sum(f(x) for f in (nn.ReLU(), nn.SiLU(), nn.GELU(), nn.Hardswish())) / 4
    torch.testing.assert_close(op(x, torch.full((4,), 0.25)), expected)


def test_norm_keeps_what_follows_inside_the_layer():
    model = timm.create_model("mobilenetv3_small_100")
    op = mix_(model, "norm", "blocks.1.0.bn1")["blocks.1.0.bn1"]
    assert [type(part).__name__ for part in op.candidates["group"]][-1] == type(op.candidates["batch"].act).__name__


def test_norm_starts_from_the_layers_scale_and_shift():
    layer = nn.BatchNorm2d(20)
    nn.init.uniform_(layer.weight)
    group = mix_(nn.Sequential(layer), "norm", example=torch.zeros(1, 20, 4, 4))["0"].candidates["group"]
    assert torch.equal(group.weight, layer.weight)
    assert group.num_groups == 2  # of 10, the smallest divisor from 8 on
    [plain] = mix_(nn.Sequential(nn.BatchNorm2d(4, affine=False)), "norm", example=torch.zeros(1, 4, 4, 4)).values()
    assert not [*plain.candidates["group"].parameters()]


@pytest.mark.parametrize("family", ["separable", "groups"])
def test_new_convolutions_start_with_outputs_of_the_layers_spread(family):
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")
    with torch.no_grad():
        layer.weight.mul_(3)
    op = mix_(nn.Sequential(layer), family, example=torch.zeros(2, 16, 16, 16))["0"]
    x = torch.randn(8, 16, 16, 16)
    for candidate in op.candidates.values():
        assert candidate(x).std().item() == pytest.approx(layer(x).std().item(), rel=0.1)
        assert all(c.padding_mode == "circular" for c in candidate.modules() if getattr(c, "kernel_size", 0) == (3, 3))


def test_a_shared_row():
    model = timm.create_model("resnet18")
    mix_(model, "activation", "layer*", share=1)
    assert [*ArchParameterGroup(model).rows] == ["layer1", "layer2", "layer3", "layer4"]


def test_rows_of_several_calls():
    model = timm.create_model("resnet18", num_classes=5)
    x = torch.zeros(1, 3, 32, 32)
    mix_(model, "kernel", "layer1.0.*", share=1, example=x)
    mix_(model, "kernel", "layer1.1.*", share=1, example=x)  # joins
    mix_(model, "activation", "layer1.*", share=1, example=x)  # has candidates of its own
    arch = ArchParameterGroup(model)
    assert {label: len(ops) for label, ops in arch.rows.items()} == {
        "layer1": 4,
        "layer1 (relu, silu, gelu, hardswish)": 4,
    }
    again = timm.create_model("resnet18", num_classes=5)
    choose_(again, ["kernel", "activation"], choices(model), example=x)
    again.load_state_dict(arch.discretize().state_dict())
    with pytest.raises(
        ValueError, match=r"'layer1.\d.act\d', a ReLU, has no candidate '.*'; it has none. Give choices"
    ):
        choose_(timm.create_model("resnet18", num_classes=5), "kernel", choices(model), example=x)


def test_families_that_are_for_the_same_layers():
    def build():
        return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))

    model, x = build(), torch.randn(1, 4, 8, 8)
    mix_(model, "kernel", "0", example=x)
    mix_(model, "separable", "1", example=x)
    for families in (["kernel", "separable"], ["separable", "kernel"]):
        again = build()
        choose_(again, families, {"0": "conv5", "1": "separable"}, example=x)
        assert again[0].kernel_size == (5, 5)
        assert isinstance(again[1], nn.Sequential)
    with pytest.raises(TypeError, match="must be a mapping path -> name"):
        choose_(build(), "kernel", None, example=x)
    with pytest.raises(ValueError, match="the model is compiled"):
        choose_(torch.compile(build()), "kernel", {"0": "conv5"}, example=x)


def test_norm_and_the_activations_that_are_left():
    model = timm.create_model("mobilenetv3_small_100", num_classes=5)
    x = torch.zeros(1, 3, 32, 32)
    norms = mix_(model, "norm", "blocks.1.*", example=x)
    assert not any(path.startswith(tuple(norms)) for path in mix_(model, "activation", example=x))
    with pytest.raises(ValueError, match=r"lies inside the mixed operation 'blocks.1.0.bn1'"):
        mix_(model, "activation", "blocks.1.0.bn1.*", example=x)


def test_a_choice_may_be_given_to_a_frozen_model():
    model = frozen()
    choose_(model, "kernel", {"2": "conv5"}, example=X)
    assert model[2].kernel_size == (5, 5)


def test_what_follows_a_layer_works_out_of_place():
    """A ReLU keeps its output for the backward pass, which a hardswish before an in-place dropout does not."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Hardswish(inplace=True), nn.Dropout(inplace=True), nn.ReLU(True))
    choose_(model, "activation", {"1": "relu"}, example=X)
    model(X).sum().backward()
    assert not model[2].inplace


def test_hooks_stay_with_the_layer():
    model = small()
    model[2].register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="the hooks of '2' stay with the layer"):
        mix_(model, "kernel", "2", example=X)


def test_candidates_have_the_models_memory_format():
    model = small().to(memory_format=torch.channels_last)
    op = mix_(model, "kernel", "2", example=X)["2"]
    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in op.candidates.values())


@pytest.mark.parametrize("name", ["convnext_atto", "resnet18"])
def test_gradient_checkpointing_sees_the_weights_of_its_forward(name):
    gradients = {}
    model = timm.create_model(name, num_classes=5)
    x = torch.randn(2, 3, 64, 64)
    mix_(model, "kernel" if name.startswith("conv") else "activation", example=x)
    arch = ArchParameterGroup(model, threshold=1e-3)
    with torch.no_grad():
        for alpha in arch.parameters():
            alpha.copy_(5e-3 * torch.randn_like(alpha))
    for arch.phi in (False, True):
        for checkpointing in (False, True):
            model.set_grad_checkpointing(checkpointing)
            model.zero_grad()
            torch.manual_seed(0)
            loss = model(x).square().sum()
            with torch.no_grad(), arch.using(Softmax()):  # an evaluation between the two is not what is run again
                model(x)
            loss.backward()
            gradients[checkpointing] = [p.grad.clone() for p in model.parameters()]
        for plain, again in zip(gradients[False], gradients[True], strict=True):
            torch.testing.assert_close(plain, again)


def test_candidates_have_the_layers_type_and_mode():
    model = small().double().eval()
    op = mix_(model, "kernel", "2", example=X)["2"]
    assert op.candidates["conv5"].weight.dtype == torch.float64
    assert not op.candidates["conv5"].training


def test_keyword_arguments_reach_every_candidate():
    class Scale(nn.Module):
        def forward(self, x, factor=1):
            return factor * x

    op = MixedOp({"a": Scale(), "b": Scale()})
    torch.testing.assert_close(op(torch.ones(2), factor=3), torch.full((2,), 3.0))
    assert MixedOp({"a": Scale()})(torch.ones(1), factor=2) == 2


def test_timm_discretises_it_too():
    model = timm.create_model("resnet18", num_classes=5)
    mix_(model, "activation", "layer1*")
    arch = ArchParameterGroup(model)
    found = arch.discretize().eval()
    arch.release()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(reparameterize_model(model.eval())(x), found(x))


# Bad input


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = self.b = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.a(self.b(x))


class Lazy(nn.Sequential):
    def forward(self, x):
        return self[0](x)


class Functional(nn.Module):
    """Changes its input in place, without a module that says so."""

    def forward(self, x):
        return x.relu_() + 1


class ThenInPlace(nn.Sequential):
    """Changes the output of its layers in place, without a module that says so."""

    def forward(self, x):
        return super().forward(x).add_(1)


class OfTheTail(nn.Sequential):
    """As ResNets end their blocks: a function changes the output in place, then a module does."""

    def forward(self, x):
        y = self[0](x)
        y += x
        return self[1](y)


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, padding=1)
        self.layers = [self.a]

    def forward(self, x):
        return self.layers[0](x)


class Pair(nn.Module):
    def forward(self, xs):
        return xs


class OfAPair(nn.Sequential):
    def forward(self, x):
        return self[0]([x, x])[0]


def frozen():
    return small().requires_grad_(False)


def mixed():
    model = small()
    mix_(model, "kernel", "2", example=X)
    return model


def pruned():
    model = small()
    prune.random_unstructured(model[2], "weight", 0.5)
    return model


def held():
    model = mixed()
    model.group = ArchParameterGroup(model)  # alive as long as the model
    return model


def compiled_layer():
    model = small()
    model[2].compile()
    return model


def quantised():
    model = small()
    model[2] = torch.ao.nn.quantized.Conv2d(8, 8, 3, padding=1)
    return model


def unequal(site):
    return nn.Conv2d(8, 8, 3, stride=2, padding=1)


@pytest.mark.parametrize(
    ("build", "candidates", "options", "message"),
    [
        (
            small,
            "kernel",
            {"where": "layer1.*"},
            r"'layer1.\*' matches nothing in Sequential; its layers: 2 Conv2d \('0'",
        ),
        (
            small,
            "norm",
            {},
            "'norm' can replace none of the 3 layers chosen: 2 Conv2d, 1 ReLU. It needs two-dimensional",
        ),
        (small, "kernels", {}, "no family 'kernels'; there are kernel, dilation"),
        (small, "skip", {}, "'skip' needs where="),
        (small, {}, {"where": "2"}, "factories by name"),
        (small, {"half": unequal}, {"where": "2"}, r"'half' cannot stand at '2': .*\(1, 8, 8, 8\) and \(1, 8, 4, 4\)"),
        (small, {"other": lambda site: nn.Conv2d(4, 8, 1)}, {"where": "2"}, "'other' cannot stand at '2': .*channels"),
        (small, {"x": lambda site: nn.Identity()}, {"where": lambda path, _: True}, "'0' maps|cannot stand at '0'"),
        (small, "kernel", {"share": 0}, "share must be a number of path parts, at least 1"),
        (small, "token_mixer", {"where": "0"}, r"'token_mixer' is for layers \(B, tokens, channels\) or"),
        (lambda: nn.Sequential(small()), {"x": lambda site: nn.Identity()}, {"where": "0*"}, "'0.0' lies inside '0'"),
        (Shared, "kernel", {}, "one layer has several parents: a, b"),
        (
            lambda: OfTheTail(nn.SiLU(), nn.ReLU(inplace=True)),
            "activation",
            {"where": "0"},
            "'relu' cannot stand at '0': .*modified by an inplace operation",
        ),
        (
            lambda: OfTheTail(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)),
            "skip",
            {"where": "0"},
            "'skip' cannot stand at '0': what follows changes its output in place",
        ),
        (Listed, "kernel", {}, "'a' does not run when the model runs; .* keeps the layer in a place of its own"),
        (pruned, "kernel", {}, "'2' is pruned, or normalised by a hook"),
        (held, "activation", {}, "an ArchParameterGroup holds the mixed operations of this model"),
        (mixed, "kernel", {"where": "*"}, "'2.candidates.conv3' lies inside the mixed operation '2'"),
        (mixed, {"x": lambda site: nn.Identity()}, {"where": "2"}, "'2' is mixed already"),
        (lambda: Lazy(*small()), "kernel", {}, "'2' does not run when the model runs"),
        (frozen, "kernel", {}, "'0' is frozen"),
        (
            lambda: nn.Sequential(weight_norm(nn.Conv2d(3, 8, 3, padding=1))),
            {"x": unequal},
            {"where": "0"},
            "parametrised",
        ),
        (lambda: torch.compile(small()), "kernel", {}, r"compiled \(OptimizedModule\)"),
        (compiled_layer, "kernel", {}, "'2' is compiled"),
        (quantised, {"x": unequal}, {"where": "2"}, "'2' is quantised"),
        (lambda: torch.jit.script(small()), "kernel", {}, "compiled|scripted"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 3, 1), Functional()),
            {"skip": lambda site: nn.Identity()},
            {"where": "1"},
            "'original' cannot stand at '1': it changes its input in place",
        ),
        (
            lambda: ThenInPlace(nn.Conv2d(3, 3, 1), nn.Hardswish()),
            "activation",
            {},
            "'relu' cannot stand at '1': .*modified by an inplace operation",
        ),
        (
            lambda: ThenInPlace(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)),
            {"skip": lambda site: nn.Identity()},
            {"where": "1"},
            "'skip' cannot stand at '1': what follows changes its output in place",
        ),
        (
            lambda: OfAPair(Pair()),
            {"x": lambda site: nn.Identity()},
            {"where": "0"},
            r"'0' is given \(list\) and returns a list",
        ),
        (
            lambda: timm.create_model("convnext_atto"),
            {"x": lambda site: nn.Identity()},
            {"where": "stages.0.blocks.0", "keep_weights": False, "example": torch.zeros(1, 3, 32, 32)},
            r"'stages.0.blocks.0' \(ConvNeXtBlock\) has no reset_parameters\(\) for its gamma",
        ),
        (
            lambda: timm.create_model("vit_tiny_patch16_224", img_size=64),
            "token_mixer",
            {"where": "*.attn", "example": torch.zeros(1, 3, 80, 80)},
            r"does not run on an example \(1, 3, 80, 80\); give another \(Input height",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_bad_input_is_refused_and_the_model_left_as_it_was(build, candidates, options, message):
    model = build()
    before = [(path, id(module)) for path, module in model.named_modules()]
    with pytest.raises(ValueError, match=message):
        mix_(model, candidates, **{"example": X, **options})
    assert [(path, id(module)) for path, module in model.named_modules()] == before


@pytest.mark.parametrize(
    ("candidates", "options", "message"),
    [
        (["kernel"], {}, r"a mapping name -> factory; got \['kernel'\]"),
        ({"relu": nn.ReLU()}, {"where": "1"}, r"'relu' must be a factory, lambda site: module; got ReLU\(\)"),
        ({"relu": nn.ReLU}, {"where": "1"}, "'relu' must be a factory"),
        ({"relu": lambda site: torch.relu}, {"where": "1"}, "'relu' must be a module, its factory returned <built-in"),
        ("kernel", {"where": nn.ReLU()}, r"a function of path and layer, or a list; got ReLU\(\)"),
        ("kernel", {"where": 3}, "a pattern, a type, a function of path and layer, or a list; got 3"),
        ("kernel", {"share": "layer"}, "share must be a number of path parts or a function of the path; got 'layer'"),
        ("kernel", {"share": len}, r"share\('0'\) must be a string, the row's label; got 1"),
        ("kernel", {"example": (1, 3, 8, 8)}, "an example must be a tensor, an input of the model; got a tuple"),
    ],
)
def test_arguments_of_another_type(candidates, options, message):
    with pytest.raises(TypeError, match=message):
        mix_(small(), candidates, **{"example": X, **options})


def test_an_example_is_needed_and_must_fit():
    with pytest.raises(ValueError, match="does not say its input size; give example="):
        mix_(small(), "kernel")
    with pytest.raises(ValueError, match=r"does not run on an example \(1, 4, 8, 8\)"):
        mix_(small(), "kernel", example=torch.zeros(1, 4, 8, 8))


def test_rows_that_cannot_be_shared():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 9, padding=4))
    with pytest.raises(ValueError, match="'0' and '1' are to share the row 'all' but have different candidates"):
        mix_(model, "kernel", share=lambda path: "all", example=torch.zeros(1, 4, 8, 8))
    assert not any(isinstance(module, MixedOp) for module in model.modules())


def test_a_choice_that_does_not_fit():
    with pytest.raises(ValueError, match="Sequential has no 7; its layers: 2 Conv2d"):
        choose_(small(), "kernel", {"7": "conv3"}, example=X)
    with pytest.raises(ValueError, match="'2', a Conv2d, has no candidate 'conv9'; it has conv3, conv5, conv7"):
        choose_(small(), "kernel", {"2": "conv9"}, example=X)


def test_a_choice_that_does_not_fit_leaves_the_model_as_it_was():
    model = small()
    with pytest.raises(ValueError, match="'2', a Conv2d, has no candidate 'conv9'"):
        choose_(model, "kernel", {"0": "conv7", "2": "conv9"}, example=X)
    assert model[0].kernel_size == (3, 3)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("phi", [False, True])
def test_what_follows_may_work_in_place_when_candidates_rest(phi, fixed):
    model = small()
    mix_(model, "kernel", "0", example=X)
    arch = ArchParameterGroup(model, threshold=1e-3)
    arch.phi = phi
    with torch.no_grad():
        arch.parameters()[0].copy_(torch.tensor([0.0, 1e-2, 2e-1]))
    with arch.fixed_alphas() if fixed else arch.using(arch.relaxation):
        model(torch.randn(2, 3, 8, 8)).sum().backward()


def test_a_family_of_ones_own():
    family = Family(lambda site: {"none": nn.Identity(), "relu": site.layer}, lambda layer: isinstance(layer, nn.ReLU))
    assert mix_(small(), family, example=X)["1"].names == ("none", "relu")


@pytest.mark.parametrize("stride", [1, 2, 3, (2, 1)])
@pytest.mark.parametrize("size", [4, 5, 7, 8, 9])
@pytest.mark.parametrize("channels", [4, 6])
@pytest.mark.parametrize("down", [False, True])
def test_shortcuts_respect_the_stride_at_any_size(stride, size, channels, down):
    block = nn.Conv2d(4, channels, stride, stride) if down else nn.Conv2d(4, channels, 3, stride, 1)
    x = torch.randn(2, 4, size, size)
    site = Site("block", block, x.shape, block(x).shape)
    skip = FAMILIES["skip"].build(site)["skip"]
    for other in (size, 13, 16, 27):
        x = torch.randn(2, 4, other, other)
        assert skip(x).shape == block(x).shape


def test_a_block_without_a_shortcut():
    block = nn.Conv2d(4, 4, 3)
    with pytest.raises(ValueError, match=r"no shortcut for 'b', which maps \(1, 4, 9, 9\) to \(1, 4, 7, 7\)"):
        FAMILIES["skip"].build(Site("b", block, torch.Size([1, 4, 9, 9]), torch.Size([1, 4, 7, 7])))


# Blocks that timm re-parameterises


@pytest.mark.parametrize(
    ("name", "family", "part", "block"),
    [
        ("mobileone_s0", "kernel", "stem.conv_kxk.0.conv", "stem"),
        ("mobileone_s0", "norm", "stem.conv_kxk.0.bn", "stem"),
        ("fastvit_t8", "dilation", "stem.0.conv_kxk.0.conv", "stem.0"),
        ("repghostnet_050", "kernel", "blocks.0.0.ghost1.cheap_operation.0", "blocks.0.0.ghost1"),
        ("levit_128s", "norm", "stem.conv1.bn", "stem.conv1"),
    ],
)
def test_layers_that_a_block_folds_into_one_are_refused(name, family, part, block):
    model = timm.create_model(name, num_classes=5)
    with pytest.raises(ValueError, match=rf"'{part}' is part of '{block}', a \w+ whose layers are folded into one"):
        mix_(model, family, where=part)


def test_by_default_they_are_left_out():
    model = timm.create_model("repghostnet_050", num_classes=5)
    x = torch.randn(1, 3, 64, 64)
    mixed = mix_(model, "kernel", example=x)
    assert "conv_stem" in mixed
    assert not any("ghost" in path for path in mixed)
    found = ArchParameterGroup(model).discretize().eval()
    with torch.no_grad():
        torch.testing.assert_close(reparameterize_model(found)(x), found(x), rtol=1e-3, atol=1e-5)


def test_activations_inside_them_may_be_mixed():
    model = timm.create_model("mobileone_s0", num_classes=5)
    x = torch.randn(1, 3, 64, 64)
    mix_(model, "activation", example=x)
    found = ArchParameterGroup(model).discretize().eval()
    with torch.no_grad():
        torch.testing.assert_close(reparameterize_model(found)(x), found(x), rtol=1e-3, atol=1e-4)


# Other layers of timm's


@pytest.mark.parametrize("kind", [StdConv2d, ScaledStdConv2d, Conv2dSame, StdConv2dSame, ScaledStdConv2dSame])
@pytest.mark.parametrize("stride", [1, 2])
def test_timm_s_own_convolutions(kind, stride):
    """Of the layer's own kind; where the kernel is not standardised, zeros around it are the same function."""
    layer = kind(4, 6, 3, stride, bias=True, **({} if "Same" in kind.__name__ else {"padding": 1}))
    if hasattr(layer, "gain"):
        nn.init.uniform_(layer.gain)
    op = mix_(nn.Sequential(layer), "kernel", example=torch.zeros(1, 4, 9, 9))["0"]
    assert op.names == ("conv3", "conv5", "conv7")
    x = torch.randn(16, 4, 9, 9)
    for candidate in op:
        assert type(candidate) is kind
        assert candidate(x).shape == layer(x).shape
        assert torch.equal(candidate.bias, layer.bias)
    if kind is Conv2dSame:
        torch.testing.assert_close(op["conv7"](x), layer(x))
    elif hasattr(layer, "gain"):  # standardised: as much weight in all
        torch.testing.assert_close(op["conv5"].get_parameter("gain"), layer.gain)
        twin = kind(4, 6, 5, stride, **({} if "Same" in kind.__name__ else {"padding": 2}))
        assert op["conv5"].scale == pytest.approx(twin.scale)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.LayerNorm(6), torch.randn(2, 5, 6)),
        (LayerNorm2d(6), torch.randn(2, 6, 4, 4)),
        (nn.LayerNorm(6, elementwise_affine=False), torch.randn(2, 5, 6)),
    ],
)
def test_rms_norm_in_place_of_layer_norm(layer, x):
    if layer.elementwise_affine:
        nn.init.uniform_(layer.weight)
    op = mix_(nn.Sequential(layer), "norm", example=x)["0"]
    last = x.movedim(1, -1) if x.dim() == 4 else x
    expected = last / (last.square().mean(-1, keepdim=True) + layer.eps).sqrt()
    if layer.weight is not None:
        expected = expected * layer.weight
    torch.testing.assert_close(op["rms"](x), expected.movedim(-1, 1) if x.dim() == 4 else expected)


def test_an_activation_that_is_no_candidate_elsewhere():
    op = mix_(nn.Sequential(nn.ReLU6(inplace=True)), "activation", example=X)["0"]
    assert op.names == ("relu6", "relu", "silu", "gelu", "hardswish")


def test_token_mixers_of_maps():
    op = mix_(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)), "token_mixer", "0", example=X)["0"]
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(op["identity"](x), x)
    torch.testing.assert_close(op["pool"](x)[0, 0, 0, 0], x[0, 0, :2, :2].mean())
    torch.testing.assert_close(op["pool"](x)[0, 1, 1, 2], x[0, 1, :3, 1:].mean())


def test_a_shortcut_to_another_kind_of_shape():
    site = Site("b", nn.Flatten(2), torch.Size([1, 4, 9, 9]), torch.Size([1, 4, 81]))
    with pytest.raises(ValueError, match=r"'skip' knows shortcuts .*; 'b' maps \(1, 4, 9, 9\) to \(1, 4, 81\)"):
        FAMILIES["skip"].build(site)


@pytest.mark.parametrize("name", ["pit_ti_224", "efficientformer_l1"])
def test_costs_of_models_that_view_their_parameters(name):
    model = timm.create_model(name, num_classes=5)
    x = torch.zeros(1, 3, 224, 224)
    mix_(model, "activation", example=x)
    arch = ArchParameterGroup(model)
    plain = macs(timm.create_model(name, num_classes=5), x)
    table = measure_costs(arch, x)
    assert table.cheapest == table.most_expensive == plain > 1e8
    assert all(parameter.requires_grad for parameter in model.parameters())
    arch.discretize()


def test_a_choice_of_nothing():
    model = mixed()
    found = ArchParameterGroup(model).discretize()
    with pytest.raises(ValueError, match="Sequential has no mixed operations; ask the model that was searched"):
        choices(found)
    with pytest.raises(ValueError, match="the choice is empty"):
        choose_(small(), "kernel", {}, example=X)


def test_a_genotype_in_place_of_a_choice():
    model = timm.create_model("resnet18", num_classes=5)
    x = torch.zeros(1, 3, 32, 32)
    mix_(model, "kernel", "layer1.*", share=2, example=x)
    again = timm.create_model("resnet18", num_classes=5)
    with pytest.raises(
        ValueError, match=r"Give choices\(model\), whose keys are layers \(those of arch.genotype\(\) are"
    ):
        choose_(again, "kernel", ArchParameterGroup(model).genotype(), example=x)


def test_part_of_a_choice():
    model = timm.create_model("resnet18", num_classes=5)
    x = torch.zeros(1, 3, 32, 32)
    mix_(model, "activation", "layer[12].*", example=x)
    choice = choices(model)
    again = timm.create_model("resnet18", num_classes=5)
    choose_(again, "activation", choice, "layer1.*", example=x)
    kinds = {path: type(op.fuse()) for path, op in model.named_modules() if isinstance(op, MixedOp)}
    for path, kind in kinds.items():
        assert type(again.get_submodule(path)) is (kind if path.startswith("layer1") else nn.ReLU)
    with pytest.raises(ValueError, match=r"where='stem' matches none of layer1\.0\.act1"):
        choose_(again, "activation", choice, "stem", example=x)


def test_convolutions_padded_by_name():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding="valid"))
    x = torch.randn(1, 3, 8, 8)
    expected = model(x)
    layers = mix_(model, "kernel", example=x)
    assert [*layers] == ["0"]
    choose = ArchParameterGroup(model).discretize({"0": "conv3"})
    torch.testing.assert_close(choose(x), expected)


@pytest.mark.parametrize("family", ["activation", "norm"])
def test_layers_that_a_fused_kernel_would_not_call(family):
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, activation=nn.ReLU(), batch_first=True))
    tokens = torch.randn(2, 5, 16)
    with pytest.raises(ValueError, match=r"'0.* is part of a TransformerEncoderLayer.*set_fastpath_enabled\(False\)"):
        mix_(model, family, example=tokens)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        found = mix_(model, family, example=tokens)
        with torch.no_grad():
            for op in found.values():
                op.alpha.zero_()[1] = 100
            expected = model.train(False)(tokens)
            assert torch.equal(ArchParameterGroup(model).discretize()(tokens), expected)
            for op in found.values():
                op.alpha[1] = -100
            assert not torch.equal(model(tokens), expected)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
