"""How a search goes on: when a batch is sparse, at which temperature, and the two updates of a step."""

from .bilevel import Losses, SearchStep
from .schedule import BatchMixedScheduler, sparse_probability
from .temperature import EntropySchedule, suggest, temperature_of_entropy

__all__ = [
    "BatchMixedScheduler",
    "EntropySchedule",
    "Losses",
    "SearchStep",
    "sparse_probability",
    "suggest",
    "temperature_of_entropy",
]
