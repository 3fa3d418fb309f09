"""The code in README.md and in pages that stand alone, run as it is written there."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


BLOCKS = blocks(README)
OTHERS = [*BLOCKS[1:], *blocks(ROOT / "docs" / "darts.md"), *blocks(ROOT / "docs" / "timm.md")]


def run(block):
    namespace = {"__name__": "readme"}
    exec(compile(block, str(README), "exec"), namespace)
    return namespace


def test_the_first_example(capsys):
    names = run(BLOCKS[0])
    choices = names["arch"].genotype()
    assert [*choices] == [f"blocks.{i}" for i in range(6)]
    assert str(choices) in capsys.readouterr().out
    x = next(names["pairs"].validation())[0]
    assert names["final"](x).shape == (len(x), 10)
    kinds = {"skip": torch.nn.Identity, "conv3": torch.nn.Conv2d, "conv5": torch.nn.Conv2d}
    assert [type(block) for block in names["final"].blocks] == [kinds[name] for name in choices.values()]
    assert names["arch"].entropy(1e-3) < 6 * 1.0986  # the rows have begun to decide


@pytest.mark.parametrize("block", OTHERS)
def test_the_others(block):
    assert run(block)


def test_the_pages_it_links_to_are_there():
    for page in re.findall(r"\]\((docs/[^)#]+)", README.read_text()):
        assert (README.parent / page).is_file(), page
