import os
import signal
from contextlib import contextmanager

os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors: threads that wait for one another on a busy machine take minutes

import pytest
import torch
from torch import nn

from sparsemix import MixedOp


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request):
    """Every device that is here."""
    return request.param


@pytest.fixture
def interrupted(monkeypatch):
    """``with interrupted(owner, name, at):`` Ctrl-C comes when that method is called for the at-th time."""

    @contextmanager
    def interrupting(owner, name, at):
        calls, method = [], getattr(owner, name)

        def struck(*args, **keywords):
            calls.append(1)
            if len(calls) == at:
                os.kill(os.getpid(), signal.SIGINT)
            return method(*args, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, struck)
            yield

    return interrupting


@pytest.fixture
def plain_supernet():
    """A user's supernet: no knowledge of the spaces, candidates that differ in number, a label shared by two edges."""

    def build(channels=4, classes=3):
        def conv(size):
            return nn.Conv2d(channels, channels, size, padding=size // 2)

        return nn.Sequential(
            nn.Conv2d(2, channels, 3, padding=1),
            MixedOp({"skip": nn.Identity(), "conv": conv(3)}, label="shared"),
            nn.Tanh(),
            MixedOp({"skip": nn.Identity(), "conv": conv(3)}, label="shared"),
            MixedOp({"skip": nn.Identity(), "conv1": conv(1), "conv3": conv(3), "pool": nn.AvgPool2d(3, 1, 1)}),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, classes),
        )

    return build
