"""The methods by name: those listed in ``METHODS`` of this folder's files, and their compositions ``a+b``."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from .method import Method

__all__ = ["find_method", "methods"]


@cache
def methods() -> dict[str, Method]:
    """Every method by its name."""
    package = __name__.rpartition(".")[0]
    modules = (import_module(f"{package}.{module.name}") for module in iter_modules(import_module(package).__path__))
    return {method.name: method for module in modules for method in getattr(module, "METHODS", ())}


def find_method(name: str) -> Method:
    """The method of that name; ``a+b`` is both at once.

    Raises:
        ValueError: there is none of that name, or two of them cannot be combined.

    Example:
        >>> find_method("sp-darts").parts[0].sparse
        0.0011
    """
    if name in methods():  # a composition may be a method of its own
        return methods()[name]
    first, *others = (_one(part) for part in name.split("+"))
    for other in others:
        first = first + other
    return first


def _one(name: str) -> Method:
    known = methods()
    if name not in known:
        close = get_close_matches(name, known, 1)
        meant = f"; did you mean {close[0]}?" if close else "."
        raise ValueError(f"there is no method {name!r}{meant} The methods are {', '.join(known)}; a+b combines two")
    return known[name]
