"""Search methods, one file per method, built from parts that can be combined; and the two updates of a search step."""

from .bilevel import Losses, SearchStep
from .method import Method, Part, Phase
from .registry import find_method, methods
from .schedule import BatchMixedScheduler, sparse_probability
from .temperature import EntropySchedule, suggest, temperature_of_entropy

__all__ = [
    "BatchMixedScheduler",
    "EntropySchedule",
    "Losses",
    "Method",
    "Part",
    "Phase",
    "SearchStep",
    "find_method",
    "methods",
    "sparse_probability",
    "suggest",
    "temperature_of_entropy",
]
