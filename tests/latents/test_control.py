"""Classifiers of latents and the densities they control: scores, calibration, samples, files."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.latents import (
    Control,
    ControlledDensity,
    LatentClassifier,
    LatentRegressor,
    fit_classifier,
    fit_regressor,
)
from latent_ebm_text.latents.classifier import calibration_error, wilson_interval
from latent_ebm_text.latents.density import autograd_value_and_score
from latent_ebm_text.latents.prior import EnergyPrior, GaussianPrior
from latent_ebm_text.latents.samplers import HMCSampler
from tests.helpers import seeded


def random_classifier() -> LatentClassifier:
    classifier = LatentClassifier("topic", ["a", "b", "c"], 4, 8)
    with torch.no_grad():
        for value in [*classifier.parameters(), classifier.mean]:
            value.normal_(generator=seeded(5))
        classifier.std.uniform_(0.5, 2, generator=seeded(6))
        classifier.temperature.fill_(1.7)
    return classifier


def two_clusters(n: int = 1500) -> tuple[Tensor, list[str]]:
    """Latents whose first coordinate decides: p(right | z) = sigmoid(3 z_1)."""
    latents = torch.randn(n, 2, generator=seeded(0))
    right = torch.rand(n, generator=seeded(1)) < (3 * latents[:, 0]).sigmoid()
    return latents, ["right" if r else "left" for r in right]


@pytest.mark.parametrize("negated", [False, True])
def test_the_score_of_a_classifier_is_that_of_autograd(negated: bool) -> None:
    classifier, latents = random_classifier(), torch.randn(9, 4, generator=seeded(2))

    def log_prob(z: Tensor) -> Tensor:
        probs = classifier(z).softmax(dim=-1)[:, 1]
        return (1 - probs).log() if negated else probs.log()

    value, score = classifier.value_and_score(latents, "b", negated=negated)
    expected_value, expected_score = autograd_value_and_score(log_prob, latents)
    torch.testing.assert_close(value, expected_value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(score, expected_score, rtol=1e-4, atol=1e-5)


def test_a_product_of_experts_adds_weighted_scores() -> None:
    classifier, prior = random_classifier(), EnergyPrior(4, 8)
    latents = torch.randn(5, 4, generator=seeded(3))
    density = ControlledDensity(
        prior, [Control(classifier, "a", 2.0), Control(classifier, "c", weight=0.5, negated=True)]
    )
    probs = classifier.probs(latents)
    expected = prior(latents) + 2 * probs[:, 0].log() + 0.5 * (1 - probs[:, 2]).log()
    torch.testing.assert_close(density(latents), expected)
    torch.testing.assert_close(density.frozen().score(latents), density.score(latents))


def test_a_negation_of_what_is_all_but_certain_stays_finite() -> None:
    classifier = random_classifier()
    with torch.no_grad():
        classifier.out.bias[0] = 1000.0
    value, score = classifier.value_and_score(torch.zeros(1, 4), "a", negated=True)
    assert -1000 < float(value) < -400
    assert bool(torch.isfinite(score).all())


def test_a_classifier_finds_the_probabilities_that_made_its_labels() -> None:
    latents, labels = two_clusters(4000)
    classifier = fit_classifier("side", latents, labels)
    grid = torch.tensor([[-1.0, 0.0], [-0.3, 0.5], [0.0, 0.0], [0.3, -0.5], [1.0, 0.0]])
    right = classifier.probs(grid)[:, classifier.index_of("right")]
    torch.testing.assert_close(right, (3 * grid[:, 0]).sigmoid(), atol=0.08, rtol=0)
    report = classifier.report
    assert report["n"] == 600
    assert report["accuracy_interval_95"][0] < report["accuracy"] < report["accuracy_interval_95"][1]
    assert report["accuracy"] > 0.75 > report["commonest_class_accuracy"]
    assert report["calibration_error"] < 0.08


def test_controlled_samples_have_the_density_asked_for() -> None:
    """Under N(0, 1) times sigmoid(a z)^w the mean is known by quadrature; several w, and the opposite."""
    latents, labels = two_clusters(4000)
    classifier = fit_classifier("side", latents, labels)
    sampler, init = HMCSampler(60, 0.5, num_leapfrog_steps=3), torch.randn(2000, 2, generator=seeded(4))
    axis = torch.linspace(-5, 5, 201)
    grid = torch.cartesian_prod(axis, axis)
    for weight, negated in ((1.0, False), (4.0, False), (2.0, True)):
        density = ControlledDensity(GaussianPrior(2), [Control(classifier, "right", weight, negated)])
        probs = density(grid).softmax(dim=0)
        expected = (probs[:, None] * grid).sum(dim=0)
        draws = sampler.sample(init, density, generator=seeded(7)).latents
        torch.testing.assert_close(draws.mean(dim=0), expected, atol=0.08, rtol=0)
        assert (float(draws[:, 0].mean()) > 0.3) is not negated


def test_draws_of_a_datum_stay_on_one_side_of_the_split() -> None:
    """Random labels: with draws of one example in two parts, accuracy would be far above chance."""
    latents = torch.randn(400, 8, generator=seeded(0))
    labels = ["heads" if coin else "tails" for coin in torch.rand(400, generator=seeded(1)) < 0.5]
    draws = latents + 0.01 * torch.randn(6, 400, 8, generator=seeded(2))
    report = fit_classifier("coin", draws, labels).report
    assert report["n"] == 60
    assert report["accuracy"] < 0.7


def test_a_classifier_comes_back_from_disk(tmp_path: Path) -> None:
    latents, labels = two_clusters(300)
    classifier = fit_classifier("side", latents, labels, num_epochs=3)
    classifier.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classifier.json", "classifier.safetensors"]
    again = LatentClassifier.from_pretrained(tmp_path)
    assert torch.equal(again(latents), classifier(latents))
    assert (again.attribute, again.classes, again.report) == ("side", ("left", "right"), classifier.report)
    settings = json.loads((tmp_path / "classifier.json").read_text())
    (tmp_path / "classifier.json").write_text(json.dumps({**settings, "latent_dim": 3}))
    with pytest.raises(DataError, match="cannot be read as a classifier of latents"):
        LatentClassifier.from_pretrained(tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps({**settings, "format": "other"}))
    with pytest.raises(DataError, match=r"holds no classifier of latents \(format 'other'\)"):
        LatentClassifier.from_pretrained(tmp_path)
    with pytest.raises(DataError, match="cannot be read as a classifier of latents"):
        LatentClassifier.from_pretrained(tmp_path / "missing")


def test_fitting_does_not_touch_the_global_stream_and_repeats_itself() -> None:
    latents, labels = two_clusters(200)
    torch.manual_seed(0)
    first, after = fit_classifier("side", latents, labels, num_epochs=2), torch.rand(1)
    second = fit_classifier("side", latents, labels, num_epochs=2)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(first(latents), second(latents))


def test_figures_of_proportions_and_calibration() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    with pytest.raises(UsageError, match="a proportion needs"):
        wilson_interval(3, 2)
    logits = torch.tensor([[0.8, 0.2]] * 10).log()
    assert calibration_error(logits, torch.tensor([0] * 8 + [1] * 2)) == pytest.approx(0.0, abs=1e-6)
    assert calibration_error(logits, torch.tensor([0] * 3 + [1] * 7)) == pytest.approx(0.5, abs=1e-6)


def test_what_cannot_be_wished_for() -> None:
    classifier = random_classifier()
    with pytest.raises(UsageError, match="topic has no value 'd'; its values are a, b, c"):
        Control(classifier, "d")
    with pytest.raises(UsageError, match="weight of topic=a must be positive and finite, got -1"):
        Control(classifier, "a", weight=-1)
    with pytest.raises(UsageError, match="at least one control"):
        ControlledDensity(GaussianPrior(4), [])
    with pytest.raises(UsageError, match="reads latents of 4 dimensions, but the prior's have 3"):
        ControlledDensity(GaussianPrior(3), [Control(classifier, "a")])
    with pytest.raises(UsageError, match="two or more different classes"):
        LatentClassifier("topic", ["a", "a"], 4)
    with pytest.raises(UsageError, match="must be positive, got 0 and 64"):
        LatentClassifier("topic", ["a", "b"], 0)
    with pytest.raises(UsageError, match=r"must have shape \(num_draws, 2, latent_dim\) for 2 labels, got \(3, 2\)"):
        fit_classifier("topic", torch.zeros(3, 2), ["a", "b"])
    with pytest.raises(UsageError, match="not finite"):
        fit_classifier("topic", torch.full((20, 2), float("nan")), ["a", "b"] * 10)
    with pytest.raises(DataError, match="two or more classes of at least 10 examples each"):
        fit_classifier("topic", torch.zeros(12, 2), ["a"] * 10 + ["b"] * 2)


def test_a_number_is_recovered_with_its_uncertainty() -> None:
    """y = 10 + 4 z_1 with noise of standard deviation 2: the regression finds both, and R² is 16 / 20."""
    latents = torch.randn(4000, 2, generator=seeded(0))
    values = 10 + 4 * latents[:, 0] + 2 * torch.randn(4000, generator=seeded(1))
    head = fit_regressor("length", latents, values.tolist())
    grid = torch.tensor([[-1.0, 0.0], [0.0, 0.5], [1.0, -0.5]])
    torch.testing.assert_close(head(grid).squeeze(-1), torch.tensor([6.0, 10.0, 14.0]), atol=0.4, rtol=0)
    assert float(head.noise) == pytest.approx(2.0, rel=0.1)
    assert head.report["r2"] == pytest.approx(0.8, abs=0.05)
    assert head.report["coverage_95"] == pytest.approx(0.95, abs=0.03)

    def log_prob(z: Tensor) -> Tensor:
        return torch.distributions.Normal(head(z).squeeze(-1), head.noise).log_prob(torch.tensor(13.0))

    value, score = head.value_and_score(grid, 13.0)
    expected_value, expected_score = autograd_value_and_score(log_prob, grid)
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(score, expected_score)
    # Conjugate Gaussians: N(0, 1) times N(14; 10 + 4 z, 2^2) has the mean 16 / 20.
    density = ControlledDensity(GaussianPrior(2), [Control(head, 14.0)])
    draws = (
        HMCSampler(60, 0.4, num_leapfrog_steps=3).sample(torch.randn(2000, 2), density, generator=seeded(7)).latents
    )
    assert float(draws[:, 0].mean()) == pytest.approx(0.8, abs=0.08)


def test_numbers_that_cannot_be_asked_for() -> None:
    head = LatentRegressor("length", 4)
    with pytest.raises(UsageError, match="length is a number, got 'long'"):
        Control(head, "long")
    with pytest.raises(UsageError, match="length is a number, which cannot be negated"):
        Control(head, 3.0, negated=True)
    with pytest.raises(DataError, match="20 or more numbers, 5 or more of them different, got 30 with 2"):
        fit_regressor("label", torch.zeros(30, 2), [0, 1] * 15)
    with pytest.raises(UsageError, match="numbers of length must be finite"):
        fit_regressor("length", torch.zeros(2, 2), [0, float("nan")])
