"""Published architectures in the notation of DARTS, as data: name -> genotype, source, published size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from .genotypes import DartsGenotype

__all__ = ["PUBLISHED", "Published", "read_genotype"]


class Published(NamedTuple):
    """A published architecture.

    Attributes:
        notation: its cells; :func:`read_genotype` gives the object.
        source: where it was published.
        parameters: in millions, for CIFAR-10 with 20 cells and C 36, as published; None where another network was.
        remark: what to know when comparing that with the network built here.
    """

    notation: str
    source: str
    parameters: float | None
    remark: str = ""


PUBLISHED: dict[str, Published] = {
    "NASNet": Published(
        "Genotype(normal=[('sep_conv_5x5', 1), ('sep_conv_3x3', 0), ('sep_conv_5x5', 0), ('sep_conv_3x3', 0), "
        "('avg_pool_3x3', 1), ('skip_connect', 0), ('avg_pool_3x3', 0), ('avg_pool_3x3', 0), ('sep_conv_3x3', 1), "
        "('skip_connect', 1)], normal_concat=[2, 3, 4, 5, 6], reduce=[('sep_conv_5x5', 1), ('sep_conv_7x7', 0), "
        "('max_pool_3x3', 1), ('sep_conv_7x7', 0), ('avg_pool_3x3', 1), ('sep_conv_5x5', 0), ('skip_connect', 3), "
        "('avg_pool_3x3', 2), ('sep_conv_3x3', 2), ('max_pool_3x3', 1)], reduce_concat=[4, 5, 6])",
        "Zoph et al., Learning Transferable Architectures for Scalable Image Recognition",
        3.3,
        "NASNet-A (6 @ 768): another skeleton",
    ),
    "AmoebaNet": Published(
        "Genotype(normal=[('avg_pool_3x3', 0), ('max_pool_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_5x5', 2), "
        "('sep_conv_3x3', 0), ('avg_pool_3x3', 3), ('sep_conv_3x3', 1), ('skip_connect', 1), ('skip_connect', 0), "
        "('avg_pool_3x3', 1)], normal_concat=[4, 5, 6], reduce=[('avg_pool_3x3', 0), ('sep_conv_3x3', 1), "
        "('max_pool_3x3', 0), ('sep_conv_7x7', 2), ('sep_conv_7x7', 0), ('avg_pool_3x3', 1), ('max_pool_3x3', 0), "
        "('max_pool_3x3', 1), ('conv_7x1_1x7', 0), ('sep_conv_3x3', 5)], reduce_concat=[3, 4, 6])",
        "Real et al., Regularized Evolution for Image Classifier Architecture Search",
        3.2,
        "AmoebaNet-A (6, 36): another skeleton",
    ),
    "AmoebaNet_B": Published(
        "Genotype(normal=[('conv_1x1', 0), ('max_pool_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1), "
        "('conv_1x1', 0), ('sep_conv_3x3', 1), ('conv_1x1', 2), ('skip_connect', 2), ('avg_pool_3x3', 0), "
        "('conv_1x1', 5)], normal_concat=[3, 4, 6], reduce=[('max_pool_2x2', 1), ('max_pool_3x3', 1), "
        "('skip_connect', 2), ('conv_3x3', 0), ('dil_sep_conv_5x5', 2), ('max_pool_3x3', 2), ('skip_connect', 3), "
        "('sep_conv_3x3', 0), ('avg_pool_3x3', 4), ('conv_1x1', 3)], reduce_concat=[5, 6])",
        "Real et al., Regularized Evolution for Image Classifier Architecture Search",
        2.8,
        "another skeleton; the published normal cell also concatenates its input",
    ),
    "PNAS": Published(
        "Genotype(normal=[('sep_conv_5x5', 0), ('max_pool_3x3', 0), ('sep_conv_7x7', 1), ('max_pool_3x3', 1), "
        "('sep_conv_5x5', 1), ('sep_conv_3x3', 1), ('sep_conv_3x3', 4), ('max_pool_3x3', 1), ('sep_conv_3x3', 0), "
        "('skip_connect', 1)], normal_concat=[2, 3, 4, 5, 6], reduce=[('sep_conv_5x5', 0), ('max_pool_3x3', 0), "
        "('sep_conv_7x7', 1), ('max_pool_3x3', 1), ('sep_conv_5x5', 1), ('sep_conv_3x3', 1), ('sep_conv_3x3', 4), "
        "('max_pool_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 1)], reduce_concat=[2, 3, 4, 5, 6])",
        "Liu et al., Progressive Neural Architecture Search",
        3.2,
        "PNASNet-5 (N 3, F 48): another skeleton",
    ),
    "ENAS": Published(
        "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 1), ('sep_conv_5x5', 1), ('skip_connect', 0), "
        "('avg_pool_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('avg_pool_3x3', 1), ('sep_conv_5x5', 1), "
        "('avg_pool_3x3', 0)], normal_concat=[2, 3, 4, 5, 6], reduce=[('sep_conv_5x5', 0), ('sep_conv_3x3', 1), "
        "('sep_conv_3x3', 1), ('avg_pool_3x3', 1), ('sep_conv_3x3', 1), ('avg_pool_3x3', 1), ('avg_pool_3x3', 1), "
        "('sep_conv_5x5', 4), ('sep_conv_3x3', 5), ('sep_conv_5x5', 0)], reduce_concat=[2, 3, 4, 5, 6])",
        "Pham et al., Efficient Neural Architecture Search via Parameter Sharing",
        4.6,
        "another skeleton",
    ),
    "DARTS_V1": Published(
        "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 0), ('sep_conv_3x3', 1), "
        "('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], "
        "normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
        "('max_pool_3x3', 0), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], "
        "reduce_concat=[2, 3, 4, 5])",
        "Liu et al., DARTS: Differentiable Architecture Search (first order)",
        3.3,
        "the paper's table has 3.3 for both orders; its code counts 3.169",
    ),
    "DARTS_V2": Published(
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
        "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], "
        "normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
        "('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], "
        "reduce_concat=[2, 3, 4, 5])",
        "Liu et al., DARTS: Differentiable Architecture Search (second order)",
        3.3,
    ),
    "PC_DARTS_cifar": Published(
        "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), ('dil_conv_3x3', 1), "
        "('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_3x3', 1)], "
        "normal_concat=[2, 3, 4, 5], reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('sep_conv_5x5', 1), "
        "('sep_conv_5x5', 2), ('sep_conv_3x3', 0), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2)], "
        "reduce_concat=[2, 3, 4, 5])",
        "Xu et al., PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search (CIFAR-10)",
        3.6,
    ),
    "PC_DARTS_image": Published(
        "Genotype(normal=[('skip_connect', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 0), ('skip_connect', 1), "
        "('sep_conv_3x3', 1), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('dil_conv_5x5', 4)], "
        "normal_concat=[2, 3, 4, 5], reduce=[('sep_conv_3x3', 0), ('skip_connect', 1), ('dil_conv_5x5', 2), "
        "('max_pool_3x3', 1), ('sep_conv_3x3', 2), ('sep_conv_3x3', 1), ('sep_conv_5x5', 0), ('sep_conv_3x3', 3)], "
        "reduce_concat=[2, 3, 4, 5])",
        "Xu et al., PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search (ImageNet)",
        None,
        "published for ImageNet",
    ),
    "DrNAS_cifar10": Published(
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2), "
        "('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2), ('dil_conv_5x5', 3)], "
        "normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), ('sep_conv_5x5', 1), ('dil_conv_5x5', 2), "
        "('sep_conv_5x5', 1), ('sep_conv_5x5', 1), ('dil_conv_5x5', 3), ('skip_connect', 4), ('sep_conv_5x5', 1)], "
        "reduce_concat=[2, 3, 4, 5])",
        "Chen et al., DrNAS: Dirichlet Neural Architecture Search (CIFAR-10)",
        4.0,
    ),
    "DrNAS_imagenet": Published(
        "Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
        "('sep_conv_3x3', 0), ('dil_conv_3x3', 3), ('skip_connect', 0), ('sep_conv_3x3', 1)], "
        "normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
        "('skip_connect', 2), ('sep_conv_3x3', 0), ('sep_conv_3x3', 2), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1)], "
        "reduce_concat=[2, 3, 4, 5])",
        "Chen et al., DrNAS: Dirichlet Neural Architecture Search (ImageNet)",
        None,
        "published for ImageNet",
    ),
    "SP_DARTS": Published(
        "Genotype(normal=[('skip_connect', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 2), ('skip_connect', 1), "
        "('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_5x5', 4), ('sep_conv_5x5', 3)], "
        "normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 1), ('max_pool_3x3', 0), ('sep_conv_5x5', 2), "
        "('dil_conv_5x5', 1), ('skip_connect', 3), ('dil_conv_5x5', 2), ('dil_conv_5x5', 4), ('sep_conv_5x5', 3)], "
        "reduce_concat=[2, 3, 4, 5])",
        "Zhang and Ding, Robustifying DARTS by Eliminating Information Bypass Leakage via Explicit Sparse "
        "Regularization",
        3.4,
    ),
    "GDAS": Published(
        "Genotype(normal=[('skip_connect', 0), ('skip_connect', 1), ('skip_connect', 0), ('sep_conv_5x5', 2), "
        "('sep_conv_3x3', 3), ('skip_connect', 0), ('sep_conv_5x5', 4), ('sep_conv_3x3', 3)], "
        "normal_concat=[2, 3, 4, 5], reduce=[('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('sep_conv_5x5', 2), "
        "('sep_conv_5x5', 1), ('dil_conv_5x5', 2), ('sep_conv_3x3', 1), ('sep_conv_5x5', 0), ('sep_conv_5x5', 1)], "
        "reduce_concat=[2, 3, 4, 5])",
        "Dong and Yang, Searching for a Robust Neural Architecture in Four GPU Hours",
        3.4,
    ),
}


def read_genotype(source: DartsGenotype | str | Path) -> DartsGenotype:
    """A genotype from what describes it: the object itself, its notation, a JSON file, or a published name.

    A JSON file holds a genotype's fields, or what a search leaves behind (``genotype.json``).

    Raises:
        ValueError: nothing of that kind, or a genotype of another space.
        FileNotFoundError: no such file.

    Example:
        >>> read_genotype("DARTS_V2").normal[0]
        ('sep_conv_3x3', 0)
    """
    if isinstance(source, DartsGenotype):
        return source
    text = str(source).strip()
    if text in PUBLISHED:
        return DartsGenotype.parse(PUBLISHED[text].notation)
    if isinstance(source, Path) or text.endswith(".json"):
        return _from_json(Path(text))
    if "(" not in text and "|" not in text:
        raise ValueError(
            f"unknown genotype {text!r}: give the notation Genotype(normal=...), a .json file, or one of "
            + ", ".join(PUBLISHED)
        )
    return DartsGenotype.parse(text)


def _from_json(path: Path) -> DartsGenotype:
    if not path.is_file():
        raise FileNotFoundError(f"no genotype file {path}")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no genotype but a {type(content).__name__}")
    if isinstance(content.get("genotype"), str):  # what a search leaves behind
        if content["genotype"].lstrip().startswith("|"):
            raise ValueError(f"{path} holds a cell of NAS-Bench-201, not a genotype of the DARTS space")
        return DartsGenotype.parse(content["genotype"])
    return DartsGenotype.from_dict(content)
