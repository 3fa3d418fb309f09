import onnxruntime
import pytest
import timm
import timm.optim
import torch
from timm.optim import param_groups_weight_decay
from timm.utils.model import reparameterize_model
from torch import nn

import sparsemix.models  # noqa: F401
from sparsemix import ArchParameterGroup, MixedOp
from sparsemix.spaces import nb201
from sparsemix.spaces.nb201 import NB201Genotype

CONV3 = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
# name -> smallest sizes, image size, reductions of the features
MODELS = {
    "sparsemix_nb201_supernet": ({"cells": 1}, 16, (1, 2, 4)),
    "sparsemix_nb201": ({"cells": 1}, 16, (1, 2, 4)),
    "sparsemix_darts_supernet": ({"cells": 3}, 16, (1, 2, 4)),
    "sparsemix_darts_cifar": ({"cells": 3}, 16, (1, 2, 4)),
    "sparsemix_darts_imagenet": ({"cells": 3}, 64, (8, 16, 32)),
}
NAMES = list(MODELS)
CONV1 = "|nor_conv_1x1~0|+|none~0|none~1|+|none~0|none~1|avg_pool_3x3~2|"
SKIPS = CONV3.replace("nor_conv_3x3", "skip_connect")


def create(name, **options):
    return timm.create_model(name, **{"channels": 4, **MODELS[name][0], **options})


@pytest.mark.parametrize("name", NAMES)
def test_registered(name):
    assert name in timm.list_models("sparsemix_*")
    assert timm.get_pretrained_cfg(name).num_classes == (1000 if "imagenet" in name else 10)


@pytest.mark.parametrize("name", NAMES)
def test_timm_contract(name):
    model = create(name, num_classes=7, in_chans=1, drop_rate=0.1, drop_path_rate=0.2, global_pool="avg")
    _, size, reductions = MODELS[name]
    left = size // reductions[-1]
    x = torch.randn(2, 1, size, size)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, left, left)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model(x).shape == (2, 7)
    assert model.get_classifier().out_features == 7
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    model.reset_classifier(5, "catavgmax")
    assert model(x).shape == (2, 5)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, model.num_features, left, left)
    names = {n for n, _ in model.named_parameters()}
    assert model.no_weight_decay() <= names
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert sorted(n for group in groups.values() for n in group) == sorted(names)


@pytest.mark.parametrize("name", NAMES)
def test_features_only(name):
    model = create(name, features_only=True)
    reductions = MODELS[name][2]
    features = model(torch.randn(2, 3, 64, 64))
    assert [f.shape[1] for f in features] == model.feature_info.channels()
    assert [64 // f.shape[-1] for f in features] == model.feature_info.reduction() == list(reductions)
    if "nb201" in name:
        assert model.feature_info.channels() == [4, 8, 16]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_training_step(name, checkpointing):
    model = create(name, drop_path_rate=0.1)
    model.set_grad_checkpointing(checkpointing)
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=0.01, weight_decay=0.05)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    size = MODELS[name][1]
    nn.functional.cross_entropy(model(torch.randn(4, 3, size, size)), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters() if p.grad is not None)
    unused = {n for n, p in model.named_parameters() if p.grad is None}
    assert unused == set()


@pytest.mark.parametrize("between", ["nothing", "another phi", "an evaluation", "no model forward"])
def test_checkpointing_does_not_change_gradients(between):
    """Activations are computed again in the backward pass, under the relaxed weights of their own forward."""
    model = create("sparsemix_nb201_supernet").double()
    arch = ArchParameterGroup(model)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        arch.phi = False
        run = model.forward_features if between == "no model forward" else model
        value = run(x).square().sum()
        if between == "another phi":
            arch.phi = True
            model(x)
        elif between == "an evaluation":
            with torch.no_grad(), arch.discretized():
                model(x)
        gradients.append(torch.autograd.grad(value, [*arch.parameters(), model.stem[0].weight]))
    torch.testing.assert_close(*gradients)


def test_alphas_are_not_decayed_with_the_weights():
    model = create("sparsemix_nb201_supernet")
    arch = ArchParameterGroup(model)
    _, decayed = param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay())
    alphas = {id(p) for p in arch.parameters()}
    assert len(model.no_weight_decay()) == 6
    assert decayed["weight_decay"] == 0.1
    assert not alphas & {id(p) for p in decayed["params"]}


@pytest.mark.parametrize("options", [{"channels": 5}, {"cells": 2}, {"in_chans": 2}, {"num_classes": 3}])
@pytest.mark.parametrize("size", [4, 5, 7, 8, 18, 33])
def test_any_size(options, size):
    model = create("sparsemix_nb201_supernet", **options)
    x = torch.randn(2, options.get("in_chans", 3), size, size)
    assert model(x).shape == (2, options.get("num_classes", 10))
    assert sum(isinstance(m, MixedOp) for m in model.modules()) == 3 * 6 * options.get("cells", 1)


@pytest.mark.parametrize("bad", [{"channels": 0}, {"cells": 0}])
def test_sizes_that_make_no_network(bad):
    with pytest.raises(ValueError, match="channels and cells must be at least 1"):
        create("sparsemix_nb201_supernet", **bad)


@pytest.mark.parametrize(
    ("genotype", "parameters"),
    [
        # the benchmark lists the first two, in millions, as 1.531546 and 0.073306; the third is counted by hand
        (CONV3, 1_531_546),
        (SKIPS, 73_306),
        (CONV1, 73_306 + 5 * (16**2 + 32**2 + 64**2 + 2 * 112)),
    ],
)
def test_final_networks_have_the_benchmark_s_size(genotype, parameters):
    model = timm.create_model("sparsemix_nb201", genotype=genotype)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_a_malformed_genotype():
    with pytest.raises(ValueError, match="NB201Genotype: node 1"):
        create("sparsemix_nb201", genotype="resnet")


@pytest.mark.parametrize("seed", range(4))
def test_discretised_supernet_and_final_network_are_one(seed):
    """Same names, same weights, same outputs: the final network only adds the identity scale of its batch norms."""
    torch.manual_seed(seed)
    supernet = create("sparsemix_nb201_supernet", cells=2)
    arch = ArchParameterGroup(supernet)
    supernet(torch.randn(8, 3, 16, 16))  # give the running statistics something to say
    cut = arch.discretize().eval()
    final = create("sparsemix_nb201", cells=2, genotype=nb201.genotype(arch)).eval()
    missing, unexpected = final.load_state_dict(cut.state_dict(), strict=False)
    assert not unexpected
    assert all(name.endswith(("bn.weight", "bn.bias")) for name in missing)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(final(x), cut(x))
        torch.testing.assert_close(reparameterize_model(supernet.eval())(x), cut(x))


def test_a_cell_computes_its_graph():
    """Hand-wired: node 1 = pool(x), node 2 = x + node 1, node 3 = node 2 (none elsewhere)."""
    cell = nb201.cell(
        NB201Genotype.parse("|avg_pool_3x3~0|+|skip_connect~0|skip_connect~1|+|none~0|none~1|skip_connect~2|"),
        channels=2,
    )
    x = torch.randn(1, 2, 4, 4)
    pooled = nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(cell(x), x + pooled)


def test_drop_path_spares_identity_edges():
    model = create("sparsemix_nb201", drop_path_rate=1 - 1e-6, cells=2, genotype=SKIPS)
    x = torch.randn(2, 3, 16, 16)
    torch.manual_seed(0)
    first = model(x)
    torch.testing.assert_close(model(x), first)


def test_the_supernet_shares_its_rows_without_a_group():
    model = create("sparsemix_nb201_supernet", cells=2)
    assert len({id(m.alpha) for m in model.modules() if isinstance(m, MixedOp)}) == 6


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("supernet")])
def test_export(name, tmp_path):
    """torch.export and ONNX give the outputs of the model."""
    size = MODELS[name][1]
    model, x = create(name).eval(), torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
        torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    [output] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), expected, atol=1e-4, rtol=1e-4)


# DenseNet-BC


@pytest.mark.parametrize(("layers", "growth_rate", "millions"), [(31, 40, 25.6), (41, 24, 15.3), (16, 12, 0.8)])
def test_densenet_bc_has_the_published_parameters(layers, growth_rate, millions):
    """Huang et al., Table 2: L 190 and k 40, L 250 and k 24, L 100 and k 12."""
    model = timm.create_model("sparsemix_densenet_bc", layers=layers, growth_rate=growth_rate)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def test_densenet_bc_is_a_timm_model_for_small_images():
    options = {"layers": 2, "growth_rate": 4, "in_chans": 1}
    model = timm.create_model("sparsemix_densenet_bc", num_classes=7, **options)
    x = torch.randn(2, 1, 16, 16)
    assert model(x).shape == (2, 7)
    assert model.forward_features(x).shape == (2, model.num_features, 4, 4)
    features = timm.create_model("sparsemix_densenet_bc", features_only=True, **options)
    assert [f.shape[-1] for f in features(x)] == [16 // r for r in features.feature_info.reduction()] == [16, 16, 8, 4]
