"""Frechet distance against closed forms, and the feature spaces it is measured in."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import linalg
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

import ansn
from ansn.evaluation import ClassifierFeatures, PCAFeatures, everything, frechet_distance, frechet_floor

Array = NDArray[np.float64]

TOL = {
    "closed_form": 1e-10,  # of the trace: QR and singular values in float64
    "identical": 1e-12,
    "invariance": 1e-10,
}


def exact(mean: Array, covariance: Array, n: int, seed: int) -> Array:
    """Rows whose sample mean and unbiased sample covariance are the given ones, to rounding."""
    z = np.random.default_rng(seed).normal(size=(n, len(mean)))
    z -= z.mean(0)
    z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False).reshape(len(mean), -1))).T
    return z @ np.linalg.cholesky(covariance).T + mean


def positive(p: int, seed: int) -> Array:
    a = np.random.default_rng(seed).normal(size=(p, p + 2))
    return a @ a.T / p + 0.05 * np.eye(p)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(0, 10_000))
def test_gaussians_match_the_closed_form(p: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ma, mb, ca, cb = rng.normal(size=p), rng.normal(size=p), positive(p, seed), positive(p, seed + 1)
    root = np.real(linalg.sqrtm(ca @ cb))
    expected = float((ma - mb) @ (ma - mb) + np.trace(ca + cb - 2 * root))
    value = frechet_distance(exact(ma, ca, 40, seed + 2), exact(mb, cb, 57, seed + 3))
    assert value == pytest.approx(expected, abs=TOL["closed_form"] * (np.trace(ca) + np.trace(cb)) + 1e-9)


def test_commuting_covariances_by_hand() -> None:
    """Diagonal covariances: ``|m|^2 + sum (sqrt a - sqrt b)^2``."""
    a, b, shift = np.array([4.0, 1.0, 0.25]), np.array([1.0, 1.0, 9.0]), np.array([0.0, 3.0, -1.0])
    value = frechet_distance(exact(np.zeros(3), np.diag(a), 20, 0), exact(shift, np.diag(b), 30, 1))
    assert value == pytest.approx(10.0 + 1.0 + 0.0 + 2.5**2, abs=1e-9)


def test_one_feature_is_the_wasserstein_distance_of_normals() -> None:
    value = frechet_distance(exact(np.array([1.0]), np.eye(1), 10, 0), exact(np.array([-1.0]), 4 * np.eye(1), 10, 1))
    assert value == pytest.approx(5.0, abs=1e-10)


@pytest.mark.parametrize("n", [3, 200])
def test_zero_for_identical_sets_and_blind_to_order(n: int) -> None:
    """Also with fewer rows than features, where the covariances are singular."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(n, 12)) * np.logspace(0, -5, 12)
    assert frechet_distance(a, a) <= TOL["identical"]
    assert frechet_distance(a, rng.permutation(a)) <= TOL["identical"]


def test_singular_covariances_keep_their_precision() -> None:
    """Two lines in the plane at 60 degrees: covariances u u^T, v v^T, distance 2 - 2 |u.v|."""
    t = exact(np.zeros(1), np.eye(1), 50, 0)
    u, v = np.array([[1.0, 0.0]]), np.array([[0.5, math.sqrt(0.75)]])
    assert frechet_distance(t @ u, t @ v) == pytest.approx(1.0, abs=1e-12)
    # Roots of a covariance's rounded zeros would be 1e-8 here.
    tilt = np.array([[1.0, 1e-7]])
    assert frechet_distance(t @ u, t @ tilt) == pytest.approx(0.0, abs=1e-13)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 10.0))
def test_invariant_to_rotation_and_translation_and_quadratic_in_scale(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(30, 5)), 1.0 + rng.normal(size=(45, 5)) * np.arange(1, 6)
    q = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    shift, value = rng.normal(size=5), frechet_distance(a, b)
    assert frechet_distance(scale * a @ q + shift, scale * b @ q + shift) == pytest.approx(
        scale**2 * value, rel=TOL["invariance"], abs=1e-10
    )
    assert frechet_distance(b, a) == pytest.approx(value, rel=TOL["invariance"])


def test_shift_adds_its_square() -> None:
    a = np.random.default_rng(0).normal(size=(50, 3))
    assert frechet_distance(a, a + np.array([3.0, 0.0, 4.0])) == pytest.approx(25.0, rel=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), r"a: got shape \[1, 3\], expected \[n, p\] with at least two rows"),
        (np.zeros((5, 3)), np.zeros(5), r"b: got shape \[5\]"),
        (np.zeros((5, 3)), np.zeros((5, 0)), r"b: got shape \[5, 0\]"),
        (np.zeros((5, 3)), np.zeros((5, 4)), "b: got 4 features, expected a's 3"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "a: got values that are not finite"),
        (np.zeros((5, 3)), np.full((5, 3), np.inf), "b: got values that are not finite"),
    ],
)
def test_wrong_features_are_named(a: Array, b: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


@pytest.fixture(scope="module")
def digits() -> tuple[ansn.data.Dataset, ansn.data.Dataset]:
    return ansn.load_dataset("digits"), ansn.load_dataset("digits", split="test")


@pytest.fixture(scope="module")
def classifier(digits: tuple[ansn.data.Dataset, ansn.data.Dataset]) -> ClassifierFeatures:
    return ClassifierFeatures.of(*digits, hidden=(32, 16))


def test_classifier_says_what_it_is(classifier: ClassifierFeatures) -> None:
    assert classifier.name == "digits-mlp-32-16"
    assert classifier.n == 1347
    assert classifier.accuracy is not None
    assert classifier.accuracy > 0.9
    assert str(classifier) == f"digits-mlp-32-16 (test accuracy {classifier.accuracy:.3f}, trained on 1347 rows)"


def test_classifier_is_deterministic_and_depends_on_its_seed(
    digits: tuple[ansn.data.Dataset, ansn.data.Dataset], classifier: ClassifierFeatures
) -> None:
    x = everything(digits[1])
    same, other = (
        ClassifierFeatures.of(digits[0], hidden=(32, 16)),
        ClassifierFeatures.of(digits[0], None, (32, 16), seed=1),
    )
    assert np.array_equal(classifier(x), same(x))
    assert not np.allclose(classifier(x), other(x))
    assert same.accuracy is None
    assert str(same) == "digits-mlp-32-16 (trained on 1347 rows)"


def test_features_are_what_the_classifier_decides_by(
    digits: tuple[ansn.data.Dataset, ansn.data.Dataset], classifier: ClassifierFeatures
) -> None:
    """The features are scikit-learn's last hidden layer: its output layer on top of them gives its probabilities."""
    x = everything(digits[1])
    h = classifier(x)
    assert h.shape == (450, 16)
    assert h.dtype == np.float64
    assert (h >= 0).all()
    inner = MLPClassifier((32, 16), alpha=1e-2, max_iter=400, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        inner.fit(everything(digits[0]).flatten(1).double().numpy(), digits[0].labels)
    logits = h @ inner.coefs_[-1] + inner.intercepts_[-1]
    rows = x.flatten(1).double().numpy()
    expected = inner.predict_proba(rows)
    assert np.allclose(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), expected, atol=1e-6)
    assert np.array_equal(classifier.predict(x), inner.predict(rows))


@pytest.mark.parametrize("classes", [(3, 7), (0, 4, 9)])
def test_predictions_are_the_labels_own_names(classes: tuple[int, ...]) -> None:
    """Also of two classes, which scikit-learn tells apart by one output, and of labels that leave numbers out."""
    rng = torch.Generator().manual_seed(0)
    y = torch.tensor(classes).repeat(40)
    x = torch.nn.functional.one_hot(y, 10).double() + 0.1 * torch.randn(len(y), 10, generator=rng)
    made = ClassifierFeatures(x, y, (8,))
    assert made.score(x, y) == 1.0
    assert set(made.predict(x)) == set(classes)


def test_samples_with_noise_are_far_above_the_floor(
    digits: tuple[ansn.data.Dataset, ansn.data.Dataset], classifier: ClassifierFeatures
) -> None:
    train, test = (everything(d) for d in digits)
    noisy = (train[:300] + 0.5 * torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert classifier.name == "digits-mlp-32-16"
    floor = frechet_floor(classifier(train), classifier(test))
    assert floor > 0
    assert frechet_distance(classifier(noisy), classifier(train)) > 3 * floor


def test_all_components_measure_the_bare_coordinates() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(80, 2, 3, generator=rng).double(), 0.5 + torch.randn(60, 2, 3, generator=rng).double()
    features = PCAFeatures(x, 99, name="table")
    assert features.name == "table-pca-6"
    assert features.explained == pytest.approx(1.0)
    bare = frechet_distance(y.flatten(1).numpy(), x.flatten(1).numpy())
    assert frechet_distance(features(y), features(x)) == pytest.approx(bare, rel=1e-10)


def test_components_are_the_leading_ones() -> None:
    x = torch.from_numpy(exact(np.ones(3), np.diag([4.0, 9.0, 1.0]), 50, 0))
    features = PCAFeatures(x, 2)
    assert features.explained == pytest.approx(13 / 14)
    h = features(x)
    assert np.allclose(h.mean(0), 0, atol=1e-12)
    assert np.allclose(np.cov(h, rowvar=False), np.diag([9.0, 4.0]), atol=1e-10)


def test_wrong_data_is_named(classifier: ClassifierFeatures) -> None:
    with pytest.raises(ValueError, match=r"x: got shape \[4, 64\], expected \[n, 1, 8, 8\]"):
        classifier(torch.zeros(4, 64))
    broken = torch.zeros(4, 1, 8, 8)
    broken[1, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="x: got values that are not finite in 1 of 4 rows"):
        classifier(broken)
    with pytest.raises(ValueError, match="labels: got 3 of 2 classes for 4 rows"):
        ClassifierFeatures(torch.zeros(4, 2), torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="at least two classes"):
        ClassifierFeatures(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"hidden: got \(\), expected"):
        ClassifierFeatures(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), ())
    with pytest.raises(ValueError, match="components: got 0"):
        PCAFeatures(torch.zeros(4, 2), 0)
    unlabelled = ansn.data.Dataset(torch.zeros(4, 2), name="table")
    with pytest.raises(ValueError, match="dataset: got table without labels, expected a labelled data set"):
        ClassifierFeatures.of(unlabelled)


def test_everything_is_the_rows_in_order(digits: tuple[ansn.data.Dataset, ansn.data.Dataset]) -> None:
    x = everything(digits[1])
    assert x.shape == (450, 1, 8, 8)
    assert torch.equal(x[17:19], digits[1].batch(torch.tensor([17, 18]))[0])
