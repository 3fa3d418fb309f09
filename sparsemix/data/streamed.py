"""Images that are read from disk batch by batch, cropped and augmented by timm's transforms."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .datasets import Folder, read_rgb
from .resident import Batch

__all__ = ["FolderSubset", "image_loader", "moved"]


class FolderSubset(torch.utils.data.Dataset):
    """Some files of an image folder, each through a transform.

    Args:
        folder: files and labels.
        indices: which of them.
    """

    transform: Callable[[Any], Tensor]

    def __init__(self, folder: Folder, indices: Tensor) -> None:
        self.files = [folder.files[i] for i in indices.tolist()]
        self.labels = folder.labels[indices].tolist()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(read_rgb(self.files[index])), self.labels[index]


def image_loader(
    images: FolderSubset,
    size: int,
    batch_size: int,
    workers: int,
    *,
    training: bool = False,
    persistent: bool = False,
    **augmentation: Any,
) -> Any:
    """A loader of batches ``(B, 3, size, size)``: shuffled and augmented for training, else resized and cropped.

    An incomplete last batch is kept, unless it is a single image, for which a batch norm may have no statistics.

    Args:
        images: the images to load; this sets their transform.
        size: height and width.
        batch_size: images per batch.
        workers: decoding processes.
        training: random crops and flips, in an order drawn by ``loader.sampler.generator``.
        persistent: keep the workers from one epoch to the next.
        augmentation: further arguments of ``timm.data.create_transform``.
    """
    from timm.data import create_transform

    images.transform = create_transform(
        (3, size, size), is_training=training, interpolation="bilinear", crop_pct=0.875, **augmentation
    )
    return torch.utils.data.DataLoader(
        images,
        batch_size,
        shuffle=training,
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
        worker_init_fn=_obey_only_the_run,
        drop_last=training and len(images) % batch_size == 1,
    )


def _obey_only_the_run(worker: int) -> None:
    """Ignore stop signals in a worker, unless they come from the run itself.

    A terminal or a cluster's scheduler sends them to all processes of a run, which needs its workers until the running
    step has ended. Where the sender of a signal is unknown (macOS, Windows), signals are not ignored.
    """
    if not hasattr(signal, "sigwaitinfo") or (run := multiprocessing.parent_process()) is None:
        return
    stop_signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)

    def wait() -> None:
        while signal.sigwaitinfo(stop_signals).si_pid != run.pid:
            pass
        os._exit(0)  # only this ends the whole process from a thread

    threading.Thread(target=wait, daemon=True).start()


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device, channels last in memory."""
    x, y = batch
    return x.to(device, memory_format=torch.channels_last), y.to(device)
