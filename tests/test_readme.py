"""The code in README.md and in pages that stand alone, run as it is written there."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sparsemix import ArchParameterGroup
from sparsemix.data import DATASETS
from sparsemix.measure import accuracy
from sparsemix.methods import SearchStep
from sparsemix.supernet.tables import AlphaTables

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


BLOCKS = blocks(README)
OTHERS = [
    *BLOCKS[1:],
    *(block for page in ("index", "darts", "timm", "accelerate", "runs") for block in blocks(ROOT / f"docs/{page}.md")),
]
DROP_IN = blocks(ROOT / "docs" / "drop_in.md")


def run(block):
    namespace = {"__name__": "readme"}
    exec(compile(block, str(README), "exec"), namespace)
    return namespace


def test_the_first_example(capsys):
    names = run(BLOCKS[0])
    arch, pairs, final = names["arch"], names["pairs"], names["final"]
    choices = arch.genotype()
    assert [*choices] == [f"blocks.{i}.0" for i in range(6)]
    shown = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"before: accuracy \d+\.\d%, entropy 5\.\d\d", shown[0])
    assert shown[10].startswith("epoch 10: p 1.00, loss 0.")
    assert re.search(r"entropy 0\.0\d$", shown[10])
    assert shown[11].endswith(str(choices))
    assert accuracy(final, pairs.validation()) > 0.9
    assert abs(accuracy(names["model"], pairs.validation()) - accuracy(final, pairs.validation())) < 0.01
    kinds = {"skip": torch.nn.Identity, "conv3": torch.nn.Conv2d, "conv5": torch.nn.Conv2d}
    assert [type(block[0]) for block in final.blocks] == [kinds[name] for name in choices.values()]

    saved = json.loads(json.dumps(choices))  # the way back
    again = ArchParameterGroup(names["Supernet"]()).discretize(saved)
    again.load_state_dict(final.state_dict())
    x = next(pairs.validation())[0]
    assert torch.equal(again.eval()(x), final.eval()(x))


@pytest.mark.parametrize("block", OTHERS)
def test_the_others(block):
    assert run(block)


@pytest.mark.parametrize("page", ["adoption", "compare", "extend", "methods", "sparse_execution"])
def test_pages_whose_blocks_continue_one_another(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # two of them search
    monkeypatch.setitem(DATASETS, "checkerboards", None)  # one adds it; it is gone afterwards
    assert run("\n".join(blocks(ROOT / f"docs/{page}.md")))


def test_no_other_page_has_code():
    tested = {
        "index",
        "darts",
        "timm",
        "accelerate",
        "runs",
        "drop_in",
        "adoption",
        "compare",
        "extend",
        "methods",
        "sparse_execution",
    }
    assert {page.stem for page in (ROOT / "docs").glob("*.md") if blocks(page)} == tested


class LightningModule(torch.nn.Module):
    """As much of Lightning's as the page needs."""

    current_epoch = 0

    def optimizers(self):
        self.chosen = getattr(self, "chosen", None) or self.configure_optimizers()
        return self.chosen

    def manual_backward(self, loss):
        loss.backward()


@pytest.fixture
def lightning(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", SimpleNamespace(LightningModule=LightningModule))


def block_with(text):
    [block] = [block for block in DROP_IN if text in block]
    return block


@pytest.mark.parametrize("block", DROP_IN)
@pytest.mark.usefixtures("lightning")
def test_drop_in(block):
    assert run(block)


@pytest.mark.parametrize("text", ["class Network(", "class SearchNetwork("])
def test_repositories_that_own_their_alphas_can_search(text):
    """Both updates, on both temperatures: weights and alphas move, weak operations rest."""
    names = run(block_with(text))
    model, arch = names["model"], names["arch"]
    x, y = torch.randn(4, 3, 8, 8), torch.randint(10, (4,))
    weights = AlphaTables(arch.tables, model=model).weight_parameters()
    assert not {*weights} & {*arch.parameters()}
    step = SearchStep(
        arch,
        lambda batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1]),
        torch.optim.SGD(weights, lr=0.05),
        torch.optim.Adam(arch.parameters(), lr=3e-4),
    )
    before = [p.detach().clone() for p in (*arch.parameters(), *weights)]
    for arch.phi in (False, True):
        step((x, y), (x, y))
    assert not any(torch.equal(a, b) for a, b in zip(before, (*arch.parameters(), *weights), strict=True))


def test_a_relaxation_that_is_a_method():
    names = run(block_with("configure_softmax"))
    model, phi = names["model"], names["phi"]
    seen = set()
    for step in range(50):
        phi.step_update(step)
        seen.add((model.moment.phi, tuple(model.configure_softmax(model.alphas).tolist())))
    assert {phi for phi, _ in seen} == {False, True}
    assert len(seen) == 2


@pytest.mark.usefixtures("lightning")
def test_a_lightning_module_can_search():
    model = run(block_with("LightningModule"))["model"]
    batch = torch.randn(4, 3, 8, 8), torch.randint(10, (4,))
    alpha = model.arch.parameters()[0].detach().clone()
    for i in range(2):
        model.training_step({"train": batch, "val": batch}, i)
    assert not torch.equal(alpha, model.arch.parameters()[0])


@pytest.mark.usefixtures("lightning")
def test_a_lightning_module_resumes_where_it_was():
    """A fresh module that fit(ckpt_path=...) has brought to its last epoch, whose batches are all sparse."""
    model = run(block_with("LightningModule"))["model"]
    model.current_epoch = 9
    batch = torch.randn(4, 3, 8, 8), torch.randint(10, (4,))
    model.training_step({"train": batch, "val": batch}, 0)
    assert model.phi.p == 1
    assert model.arch.phi


def test_the_unrolled_model_of_a_darts_repository_runs_under_the_same_phi():
    model = run(block_with("class Network("))["model"]
    for model.arch.phi in (False, True):
        unrolled = model.new()
        unrolled.load_state_dict(model.state_dict())
        x = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(unrolled(x), model(x))
        torch.autograd.grad(unrolled(x).sum(), [unrolled.alphas_normal, *unrolled.parameters()])  # none is unused


def test_the_pages_it_links_to_are_there():
    for page in re.findall(r"\]\((docs/[^)#]+)", README.read_text()):
        assert (README.parent / page).is_file(), page
