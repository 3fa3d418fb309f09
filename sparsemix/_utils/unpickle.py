"""Reading pickled data files of published benchmarks without running what they might contain."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any

__all__ = ["load_plain_pickle"]

_PLAIN = {
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}: only plain containers and numpy arrays are")
        return super().find_class(module, name)


def load_plain_pickle(file: IO[bytes], path: Path) -> Any:
    """Load a pickle of containers, numbers, strings and numpy arrays; anything else is refused.

    Raises:
        ValueError: names the file and what was wrong with it.
    """
    try:
        return _PlainUnpickler(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
        raise ValueError(f"{path}: {error or 'not a complete pickle'}") from error
