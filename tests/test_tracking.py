import pytest
import torch
from accelerate import Accelerator

from sparsemix.runs.trackers import check_tracker, tracking

pytest.importorskip("tensorboard")


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [events] = (folder / "sparsemix").glob("events.out.tfevents.*")
    return EventAccumulator(str(events), size_guidance={"scalars": 0, "histograms": 0}).Reload()


def test_an_epoch_s_numbers_and_alphas(tmp_path):
    record = {"epoch": 3, "entropy": 1.5, "skips": 2, "genotype": "text", "alphas": {"a": [0.0]}}
    record |= {"output_leakage": {"1<-0": 0.5}, "true_accuracies": {"cifar10": {"test": 90.0}}, "audits": [{}]}
    config = {"epochs": 5, "output": None, "betas": (0.5, 0.999)}
    with tracking(Accelerator(cpu=True), "tensorboard", tmp_path, config) as log:
        log(record, {"alpha/a": torch.tensor([0.0, 1.0, 1.0])})
    events = read(tmp_path)
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == {
        "entropy": 1.5, "skips": 2, "output_leakage/1<-0": 0.5, "true_accuracies/cifar10/test": 90.0,
    }  # fmt: skip
    [histogram] = events.Histograms("alpha/a")
    assert (histogram.step, histogram.histogram_value.num, histogram.histogram_value.sum) == (3, 3, 2)


def test_nothing_is_logged_without_a_tracker(tmp_path):
    with tracking(Accelerator(cpu=True), None, tmp_path, {}) as log:
        log({"epoch": 0, "entropy": 1.0}, {})
    assert not [*tmp_path.iterdir()]


def test_a_tracker_that_cannot_be_used():
    check_tracker(None)
    with pytest.raises(ValueError, match=r"Accelerate knows no tracker 'tensorbord'; it knows .*tensorboard"):
        check_tracker("tensorbord")
    with pytest.raises(ValueError, match=r"comet_ml is not installed here; installed: .*tensorboard"):
        check_tracker("comet_ml")
