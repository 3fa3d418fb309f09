"""What replaces a mixed operation when the choice is not one candidate: several candidates, or none."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .execution import nothing_of, shape_donor

__all__ = ["Chosen"]


class Chosen(nn.Module):
    """The unweighted sum of the chosen candidates; zeros if none was chosen.

    It takes the place of the mixed operation and can be called in the same way; weights are ignored.

    Args:
        candidates: of the mixed operation, name -> module.
        names: of those that were chosen. Their parameters keep their names (``candidates.conv.weight``), so that a
            supernet's state dict has them.

    If none was chosen, a candidate without parameters, or else a frozen copy of the first one, is kept to determine the
    shape of the zeros. A cell leaves such an edge out if another edge leads to the same node.

    Shapes:
        input and output as the candidates have them.

    Example:
        >>> both = Chosen({"skip": nn.Identity(), "tanh": nn.Tanh(), "relu": nn.ReLU()}, ("skip", "relu"))
        >>> both
        Chosen(
          sum of skip, relu
          (candidates): ModuleDict(
            (skip): Identity()
            (relu): ReLU()
          )
        )
        >>> import torch
        >>> both(torch.tensor([-1.0, 2.0]))
        tensor([-1.,  4.])
    """

    def __init__(self, candidates: Mapping[str, nn.Module], names: Sequence[str]) -> None:
        super().__init__()
        self.candidates = nn.ModuleDict({name: candidates[name] for name in names})
        self.shape_of_nothing = None if names else copy.deepcopy(shape_donor(candidates.values())).requires_grad_(False)

    @property
    def is_nothing(self) -> bool:
        return self.shape_of_nothing is not None

    def forward(self, x: Tensor, weights: Any = None, **keywords: Any) -> Tensor:
        if self.shape_of_nothing is not None:
            return nothing_of(self.shape_of_nothing, x, keywords)
        first, *others = (candidate(x, **keywords) for candidate in self.candidates.values())
        return sum(others, first)

    def extra_repr(self) -> str:
        return f"sum of {', '.join(self.candidates)}" if self.candidates else "nothing"
