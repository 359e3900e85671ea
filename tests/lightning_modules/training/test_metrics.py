"""SampleAccuracy, SampleError and SampleMean against counting by hand and against torchmetrics."""

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError

from lightning_modules.training.metrics import SampleAccuracy, SampleError, SampleMean, distinct


def test_repeated_samples_count_once_and_placeholders_not_at_all():
    metric = SampleAccuracy(num_classes=3)
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.7, 0.2, 0.1], [0.0, 1.0, 0.0]])
    metric.update(scores, torch.tensor([0, 1, 0, 2]), torch.tensor([4, 9, 4, -1]), torch.tensor([1.0, 3.0, 1.0, 100.0]))
    result = metric.compute()
    assert result["top1"] == 0.5  # of samples 4 (right) and 9 (wrong)
    assert result["loss"] == 2.0
    assert result["samples"] == 2


def test_equals_torchmetrics_over_batches():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(60, 11, generator=generator)
    label = torch.randint(11, (60,), generator=generator)
    ours = SampleAccuracy(11)
    theirs = {k: MulticlassAccuracy(11, top_k=k, average="micro") for k in (1, 5)}
    for batch in torch.arange(60).split(17):
        ours.update(scores[batch], label[batch], batch, scores[batch, 0])
        for metric in theirs.values():
            metric.update(scores[batch], label[batch])
    result = ours.compute()
    torch.testing.assert_close(result["top1"], theirs[1].compute())
    torch.testing.assert_close(result["top5"], theirs[5].compute())
    torch.testing.assert_close(result["loss"], scores[:, 0].mean())
    assert 0 < result["top1"] < result["top5"] < 1


def test_nothing_counted_is_nan_not_zero():
    metric = SampleAccuracy(3)
    metric.update(torch.rand(1, 3), torch.tensor([0]), torch.tensor([-1]), torch.tensor([1.0]))
    assert metric.compute()["top1"].isnan()


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("num_classes", [1, 5, 6])
def test_no_top5_of_five_classes_or_fewer(num_classes, counted):
    metric = SampleAccuracy(num_classes)
    index = torch.arange(4) if counted else torch.full((4,), -1)
    metric.update(torch.rand(4, num_classes), torch.zeros(4, dtype=torch.int64), index, torch.ones(4))
    names = {"top1", "loss", "samples"} | ({"top5"} if num_classes > 5 else set())
    assert set(metric.compute()) == names


def test_distinct_is_the_first_of_each_index():
    index = torch.tensor([7, -1, 3, 7, 0, -1, 3])
    assert distinct(index).tolist() == [4, 2, 0]
    assert distinct(torch.tensor([-1, -1])).tolist() == distinct(torch.tensor([], dtype=torch.int64)).tolist() == []


def test_errors_of_distinct_samples():
    generator = torch.Generator().manual_seed(0)
    predicted, value = torch.rand(2, 40, generator=generator)
    ours, theirs = SampleError(), {"mse": MeanSquaredError(), "mae": MeanAbsoluteError()}
    for batch in torch.arange(40).split(17):
        ours.update(predicted[batch], value[batch], batch)
    ours.update(torch.tensor([100.0, -100.0]), torch.zeros(2), torch.tensor([3, -1]))  # again, and a placeholder
    result = ours.compute()
    for name, metric in theirs.items():
        torch.testing.assert_close(result[name], metric(predicted, value))
    assert result["samples"] == 40
    ours.reset()
    ours.update(predicted[:1], value[:1], torch.tensor([-1]))
    assert ours.compute()["mse"].isnan()


def test_mean_of_distinct_samples():
    mean = SampleMean()
    mean.update(torch.tensor([2.0, 4.0]), torch.tensor([1, 5]))
    mean.update(torch.tensor([2.0, 50.0, 9.0]), torch.tensor([1, -1, 0]))
    assert mean.compute() == 5.0  # of samples 0, 1 and 5
    mean.reset()
    mean.update(torch.tensor([1.0]), torch.tensor([-1]))
    assert mean.compute().isnan()
