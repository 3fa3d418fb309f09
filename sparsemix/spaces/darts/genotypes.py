"""A pair of cells of the DARTS space as a frozen value, with the notation of DARTS code."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..skips import skip_count

__all__ = ["DartsGenotype"]

Entries = tuple[tuple[str, int], ...] | tuple[tuple[str, int, int], ...]
Edge = tuple[str, int, int]  # operation, node, predecessor


@dataclass(frozen=True)
class DartsGenotype:
    """A pair of cells of the DARTS space and its relatives: operations, and what they read.

    Nodes 0 and 1 are a cell's inputs. Where every node has two operations, the pairs (operation, predecessor) belong to
    nodes 2, 2, 3, 3, 4, 4, ... Other cells, as Fair DARTS finds them, have triples (operation, node, predecessor).

    Args:
        normal, reduce: the pairs or the triples of the two cells. Triples that can be written as pairs are stored as
            pairs. ``()`` is a cell of which nothing was kept.
        normal_concat, reduce_concat: the nodes whose concatenation is a cell's output.

    Raises:
        ValueError: an unknown operation or ``none``, an odd number of pairs, pairs mixed with triples, an edge from a
            later node or from a node without incoming edges, or an output that is not a node of the cell. The message
            names the cell.

    Example:
        >>> cell = "[('sep_conv_3x3', 0), ('skip_connect', 1)]"
        >>> text = f"Genotype(normal={cell}, normal_concat=[2], reduce={cell}, reduce_concat=[2])"
        >>> DartsGenotype.parse(text).normal
        (('sep_conv_3x3', 0), ('skip_connect', 1))
        >>> str(DartsGenotype.parse(text)) == text
        True
        >>> both = (("skip_connect", 2, 0), ("sep_conv_3x3", 2, 0), ("dil_conv_3x3", 2, 1))
        >>> DartsGenotype(both, (2,), both, (2,)).edges("normal")
        {'2<-0': 'skip_connect', "2<-0'": 'sep_conv_3x3', '2<-1': 'dil_conv_3x3'}

    Source: Liu et al., "DARTS", and, of the triples, Chu et al., "Fair DARTS"; their codes print these notations.
    """

    normal: Entries
    normal_concat: tuple[int, ...]
    reduce: Entries
    reduce_concat: tuple[int, ...]

    OPERATIONS: ClassVar[tuple[str, ...]] = (
        "none",
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
        "sep_conv_7x7",
        "conv_7x1_1x7",
        "noise",
        "conv_1x1",
        "conv_3x3",
        "max_pool_2x2",
        "dil_sep_conv_5x5",
    )
    CELLS: ClassVar[tuple[str, ...]] = ("normal", "reduce")
    FIELDS: ClassVar[tuple[str, ...]] = ("normal", "normal_concat", "reduce", "reduce_concat")

    def __post_init__(self) -> None:
        for cell in self.CELLS:
            edges, concat = _triples(cell, getattr(self, cell)), tuple(getattr(self, f"{cell}_concat"))
            self._check(cell, edges, concat)
            nodes = [node for _, node, _ in edges]
            regular = nodes == [2 + i // 2 for i in range(len(edges))] and len(edges) % 2 == 0
            entries = tuple((operation, source) for operation, _, source in edges) if regular else tuple(edges)
            object.__setattr__(self, cell, entries)
            object.__setattr__(self, f"{cell}_concat", concat)

    def _check(self, cell: str, edges: list[Edge], concat: tuple[int, ...]) -> None:
        for operation, node, source in edges:
            if operation == "none" or operation not in self.OPERATIONS:
                known = ", ".join(name for name in self.OPERATIONS if name != "none")
                problem = "'none' cannot be chosen" if operation == "none" else f"unknown operation {operation!r}"
                raise ValueError(f"DartsGenotype: {problem} at node {node} of the {cell} cell; choose among {known}")
            if type(source) is not int or not 0 <= source < node:
                raise ValueError(
                    f"DartsGenotype: node {node} of the {cell} cell reads node {source!r}; it may read 0 to {node - 1}"
                )
        nodes = {node for _, node, _ in edges}
        for _, node, source in edges:
            if source >= 2 and source not in nodes:
                raise ValueError(
                    f"DartsGenotype: node {node} of the {cell} cell reads node {source}, to which nothing leads"
                )
        if (
            bool(concat) != bool(nodes)
            or len(set(concat)) < len(concat)
            or any(type(n) is not int or n not in nodes for n in concat)
        ):
            there = f"it has the nodes {', '.join(map(str, sorted(nodes)))}, each once" if nodes else "it has no edges"
            raise ValueError(f"DartsGenotype: the {cell} cell concatenates {list(concat)}; {there}")

    @classmethod
    def parse(cls, text: str) -> DartsGenotype:
        """Read ``Genotype(normal=[...], normal_concat=..., reduce=[...], reduce_concat=...)``. Nothing is evaluated.

        Raises:
            ValueError: the text has another form, or arguments that are not literals.
        """
        expected = (
            "Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=[2, ...], reduce=[...], reduce_concat=[...])"
        )
        shown = text if len(text) <= 80 else text[:77] + "..."
        refused = ValueError(f"DartsGenotype: expected {expected}, got {shown!r}")
        if len(text) > _LONGEST:
            raise refused
        try:
            call = ast.parse(text.strip(), mode="eval").body
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "Genotype":
                raise refused
            named = [*zip(cls.FIELDS, call.args, strict=False), *((str(k.arg), k.value) for k in call.keywords)]
            fields = {name: _literal(node) for name, node in named}
            if len(fields) < len(call.args) + len(call.keywords):  # too many, or one given twice
                raise refused
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
            raise refused from error
        return cls.from_dict(fields)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DartsGenotype:
        """From what :meth:`as_dict` gives, as a JSON file holds it.

        Raises:
            ValueError: other fields, or fields of another form.
        """
        names = ("normal", "normal_concat", "reduce", "reduce_concat")
        if set(fields) != set(names):
            raise ValueError(
                f"DartsGenotype: expected the fields {', '.join(names)}, got {', '.join(map(str, fields))}"
            )
        try:
            cells = {name: [(operation, *nodes) for operation, *nodes in fields[name]] for name in cls.CELLS}
            outputs = {name: tuple(fields[f"{name}_concat"]) for name in cls.CELLS}
        except (TypeError, ValueError) as error:
            raise ValueError(f"DartsGenotype: the fields are no lists of pairs and of nodes: {dict(fields)}") from error
        return cls(cells["normal"], outputs["normal"], cells["reduce"], outputs["reduce"])  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, Any]:
        """Field -> lists, for JSON."""
        return {
            name: [list(item) if isinstance(item, tuple) else item for item in getattr(self, name)]
            for name in self.FIELDS
        }

    @property
    def skips(self) -> int:
        """How many edges of the normal cell are skip connections."""
        return skip_count(self.edges("normal"))

    def edges(self, cell: str) -> dict[str, str]:
        """Edge name -> operation of one cell; further edges between the same two nodes are marked, ``"2<-0'"``."""
        named: dict[str, str] = {}
        for operation, node, source in _triples(cell, getattr(self, cell)):
            name = f"{node}<-{source}"
            while name in named:
                name += "'"
            named[name] = operation
        return named

    def __str__(self) -> str:
        fields = (f"{name}={[*getattr(self, name)]}" for name in self.FIELDS)
        return f"Genotype({', '.join(fields)})"


def _triples(cell: str, entries: Iterable[tuple[Any, ...]]) -> list[Edge]:
    """Pairs or triples as triples, node by node."""
    entries = [tuple(entry) for entry in entries]
    lengths = {len(entry) for entry in entries}
    if lengths <= {3}:
        if bad := [node for _, node, _ in entries if type(node) is not int or node < 2]:
            raise ValueError(f"DartsGenotype: an edge of the {cell} cell leads to node {bad[0]!r}; nodes count from 2")
        return sorted(entries, key=lambda edge: edge[1])
    if lengths != {2}:
        raise ValueError(
            f"DartsGenotype: the {cell} cell must be pairs (operation, predecessor) or triples (operation, node, "
            f"predecessor), got {entries}"
        )
    if len(entries) % 2:
        raise ValueError(
            f"DartsGenotype: the {cell} cell must have two edges a node, got {len(entries)} edges in all; other cells "
            f"are written as triples (operation, node, predecessor)"
        )
    return [(operation, 2 + i // 2, source) for i, (operation, source) in enumerate(entries)]


_LONGEST = 10_000  # characters; longer text is rejected without parsing it


def _literal(node: ast.expr) -> Any:
    """The value of a literal, or of ``range(a, b)`` as DARTS code prints the output nodes."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("range", "list"):
        arguments = [_literal(argument) for argument in node.args]
        if node.func.id == "list" and len(arguments) == 1:
            return list(arguments[0])
        if arguments and all(type(n) is int and 0 <= n <= 100 for n in arguments):
            return list(range(*arguments))
    return ast.literal_eval(node)
