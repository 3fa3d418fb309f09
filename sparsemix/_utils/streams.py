"""Random generators seeded by a key that names their purpose."""

from __future__ import annotations

import hashlib
import operator

import torch

__all__ = ["seeded_generator"]


def seeded_generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose stream is a pure function of ``key``, such as ``("phi", seed, epoch, step)``.

    Every draw of a search uses such a generator: all processes draw the same numbers, resuming needs no saved generator
    state, and the global generator is never touched.

    Example:
        >>> a = torch.rand(1, generator=seeded_generator("phi", 0, 3, 7))
        >>> bool(a == torch.rand(1, generator=seeded_generator("phi", 0, 3, 7)))
        True
    """
    # NumPy's integers become Python's, whose repr is without a type.
    key = tuple(part if isinstance(part, str) else operator.index(part) for part in key)
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
