"""Numbers of a classification report, against scikit-learn and definitions written out."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_modules.report.numbers import (
    average_precision,
    calibration,
    confusion,
    interval,
    most_confused,
    per_class,
)


@pytest.fixture(params=[(300, 7), (60, 40), (1, 3)], ids=["many samples", "classes without samples", "one sample"])
def predictions(request):
    """Random scores that know a little, (N, K), and the true classes."""
    samples, classes = request.param
    rng = np.random.default_rng(samples)
    truth = rng.integers(0, classes, samples)
    logits = rng.normal(size=(samples, classes)) + 1.5 * np.eye(classes)[truth]
    return torch.from_numpy(logits).float().softmax(dim=1), torch.from_numpy(truth)


def test_precision_recall_and_f1_are_scikit_learns(predictions):
    scores, truth = predictions
    answer, classes = scores.argmax(dim=1), scores.shape[1]
    found = per_class(answer, truth, classes)
    expected = metrics.precision_recall_fscore_support(
        truth, answer, labels=range(classes), average=None, zero_division=np.nan
    )
    for name, values in zip(("precision", "recall", "f1", "count"), expected, strict=True):
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-12, err_msg=name)


def test_the_confusion_matrix_is_scikit_learns(predictions):
    scores, truth = predictions
    expected = metrics.confusion_matrix(truth, scores.argmax(dim=1), labels=range(scores.shape[1]))
    np.testing.assert_array_equal(confusion(scores.argmax(dim=1), truth, scores.shape[1]), expected)


def test_average_precision_is_scikit_learns(predictions):
    scores, truth = predictions
    found = average_precision(scores, truth)
    for k, value in enumerate(found.tolist()):
        if (truth == k).any():
            assert value == pytest.approx(metrics.average_precision_score(truth == k, scores[:, k]), abs=1e-6)
        else:
            assert math.isnan(value)


def test_equal_scores_make_one_threshold():
    scores = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1], [0.5, 0.5]])
    truth = torch.tensor([0, 1, 0, 0])
    assert average_precision(scores, truth)[0] == pytest.approx(
        metrics.average_precision_score(truth == 0, scores[:, 0])
    )


def test_a_class_that_the_model_does_not_have_is_a_mistake_of_its_answer():
    answer, truth = torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1])
    found = per_class(answer, truth, 2)
    assert found.count.tolist() == [1, 1] and found.precision.tolist() == [0.5, 1.0]
    assert found.recall.tolist() == [1.0, 1.0] and confusion(answer, truth, 2).tolist() == [[1, 0], [0, 1]]
    scores = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]])
    assert average_precision(scores, truth)[0] == pytest.approx(0.5)  # another one stands before it


def test_the_calibration_error_is_that_of_its_definition(predictions):
    """Guo et al., arXiv 1706.04599, equation 3."""
    scores, truth = predictions
    confidence, answer = (values.numpy() for values in scores.max(dim=1))
    right = answer == truth.numpy()
    found, error = calibration(torch.from_numpy(confidence), torch.from_numpy(right)), 0.0
    for m in range(15):
        inside = (confidence >= m / 15) & (confidence < (m + 1) / 15)
        assert found.count[m] == inside.sum()
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].astype(float).mean())
            assert float(found.accuracy[m]) == pytest.approx(right[inside].mean())
        else:
            assert math.isnan(found.confidence[m])
    assert found.error == pytest.approx(error, abs=1e-7)
    other = multiclass_calibration_error(scores, truth, scores.shape[1], n_bins=15)
    assert found.error == pytest.approx(float(other), abs=1e-6)


def test_a_probability_of_one_is_in_the_last_bin():
    found = calibration(torch.tensor([1.0, 0.0]), torch.tensor([True, True]), bins=4)
    assert found.count.tolist() == [1, 0, 0, 1] and found.error == 0.5


def test_the_interval_is_that_of_drawing_samples_again():
    """Against resamplings of the very list of right and wrong answers."""
    right = np.arange(200) < 150
    rng = np.random.default_rng(1)
    means = right[rng.integers(0, 200, (4000, 200))].mean(axis=1)
    np.testing.assert_allclose(interval(0.75, 200), np.quantile(means, (0.025, 0.975)), atol=0.01)
    assert interval(1.0, 50) == (1.0, 1.0) and all(map(math.isnan, interval(0.5, 0)))


def test_the_most_confused_classes():
    matrix = torch.diag(torch.tensor([9, 9, 9, 9, 9]))
    matrix[1, 4] = 5
    matrix[3, 0] = 2
    matrix[0, 3] = 1
    assert most_confused(matrix, 5).tolist() == [0, 1, 2, 3, 4]
    assert most_confused(matrix, 2).tolist() == [1, 4] and most_confused(matrix, 4).tolist() == [0, 1, 3, 4]
