"""Evaluation of a text model, against computations by hand."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig
from latent_ebm_text.data import TextCollator
from latent_ebm_text.data.tokenizers import train_word_tokenizer
from latent_ebm_text.evaluation.text import draw_latents, generate_texts
from latent_ebm_text.evaluation.text_metrics import evaluate_likelihoods, sample_statistics
from latent_ebm_text.latents.rng import derived_generator

SENTENCES = [[1, 5, 6, 2], [1, 7, 2], [1, 9, 8, 7, 6, 5, 2], [1, 4, 4, 4, 2], [1, 5, 2]]
COLLATE = TextCollator(pad_token_id=0)


@pytest.fixture
def dataset():
    return Dataset.from_dict({"input_ids": SENTENCES, "length": [len(ids) - 1 for ids in SENTENCES]})


@pytest.fixture
def model():
    torch.manual_seed(0)
    short = {"name": "langevin", "num_steps": 3, "step_size": 0.3, "temperature": 1.0}
    config = LatentEBMTextConfig(
        vocab_size=10, latent_dim=3, hidden_size=12, embedding_size=6, prior_hidden_size=8, dropout=0.5,
        token_dropout=0.5, max_sequence_length=8, prior_sampler=short, posterior_sampler=short,
    )  # fmt: skip
    return LatentEBMForTextGeneration(config)


def ignore_latent(model):
    """Makes p(x | z) the same for every z."""
    decoder = model.decoder
    with torch.no_grad():
        for weight in (decoder.initial_hidden.weight, decoder.initial_cell.weight):
            weight.zero_()
        decoder.lstm.weight_ih_l0[:, decoder.embedding_size :] = 0
    return model.eval()


def nll(model, sentence, latent):
    """`-log p(x | z)` of one sentence, from the scores of the next words."""
    logits = model(torch.tensor([sentence[:-1]]), latents=latent[None]).logits[0]
    return -float(logits.log_softmax(-1)[range(len(sentence) - 1), sentence[1:]].sum())


@torch.no_grad()
def test_metrics_by_hand(model, dataset):
    metrics = evaluate_likelihoods(model, dataset, COLLATE, batch_size=2, seed=7)

    model.eval()
    reconstruction, prior = [], []
    for number, indices in enumerate([[1, 4], [0, 3], [2]]):  # by length
        inputs = COLLATE([{"input_ids": SENTENCES[index]} for index in indices])
        generator = derived_generator(7, "evaluation", number)
        one, two = (model.sample_posterior(inputs, generator=generator).latents for _ in range(2))
        other = model.sample_prior(len(indices), generator=generator).latents
        for row, index in enumerate(indices):
            reconstruction.append(
                (nll(model, SENTENCES[index], one[row]) + nll(model, SENTENCES[index], two[row])) / 2
            )
            prior.append(nll(model, SENTENCES[index], other[row]))
    for name, values in (("reconstruction_nll", reconstruction), ("prior_nll", prior)):
        assert metrics[name]["value"] == pytest.approx(np.mean(values), rel=1e-5)
        assert metrics[name]["standard_error"] == pytest.approx(np.std(values, ddof=1) / 5**0.5, rel=1e-4)
        assert metrics[name]["n"] == 5
    assert metrics["tokens_per_sentence"] == pytest.approx((3 + 2 + 6 + 4 + 2) / 5)
    assert metrics["latents"]["n"] == 5


@torch.no_grad()
def test_the_gain_of_the_latent_by_hand(model, dataset):
    metrics = evaluate_likelihoods(model, dataset, COLLATE, batch_size=2, seed=7)
    draws = draw_latents(model, dataset, COLLATE, batch_size=2, seed=7)

    model.eval()
    averaged, exchanged = [], []
    for row, index in enumerate([1, 4, 0, 3, 2]):
        ids = torch.tensor([SENTENCES[index]])
        others = torch.cat([draws.first[:row], draws.first[row + 1 :]])
        # one of the others, the next in the order of their length
        exchanged.append(nll(model, SENTENCES[index], draws.first[(row + 1) % 5]))
        probs = model(ids[:, :-1].expand(4, -1), latents=others).logits.softmax(-1).mean(dim=0)
        averaged.append(-float(probs[range(ids.shape[1] - 1), ids[0, 1:]].log().sum()))
    assert metrics["averaged_nll"]["value"] == pytest.approx(np.mean(averaged), rel=1e-5)
    assert metrics["other_nll"]["value"] == pytest.approx(np.mean(exchanged), rel=1e-5)
    gain = np.mean(averaged) - metrics["reconstruction_nll"]["value"]
    assert metrics["latent_gain"]["value"] == pytest.approx(gain, abs=1e-5)


@torch.no_grad()
def test_a_latent_that_is_ignored_gains_nothing(model, dataset):
    ignore_latent(model)
    gain = evaluate_likelihoods(model, dataset, COLLATE)["latent_gain"]
    assert gain["value"] == pytest.approx(0, abs=1e-5)
    assert gain["interval_95"] == pytest.approx([0, 0], abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 64])
def test_every_sentence_counts_once(model, dataset, batch_size):
    ignore_latent(model)
    expected = np.mean([nll(model, sentence, torch.zeros(3)) for sentence in SENTENCES])

    metrics = evaluate_likelihoods(model, dataset, COLLATE, batch_size=batch_size)

    assert metrics["reconstruction_nll"]["value"] == pytest.approx(expected, rel=1e-5)
    assert metrics["prior_nll"]["value"] == pytest.approx(expected, rel=1e-5)
    assert metrics["latents"]["n"] == 5


@torch.no_grad()
def test_max_sentences_takes_the_first_ones(model, dataset):
    ignore_latent(model)
    metrics = evaluate_likelihoods(model, dataset, COLLATE, batch_size=2, max_sentences=3)
    expected = np.mean([nll(model, sentence, torch.zeros(3)) for sentence in SENTENCES[:3]])
    assert metrics["reconstruction_nll"]["value"] == pytest.approx(expected, rel=1e-5)
    assert metrics["reconstruction_nll"]["n"] == 3
    assert metrics["tokens_per_sentence"] == pytest.approx((3 + 2 + 6) / 3)


def test_the_seed_alone_decides(model, dataset):
    def value(seed):
        return evaluate_likelihoods(model, dataset, COLLATE, seed=seed)["reconstruction_nll"]["value"]

    assert value(0) == value(0)
    assert value(0) != value(1)


@pytest.fixture
def tokenizer():
    return train_word_tokenizer(["a b c d e f"])


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_model_and_the_global_generator_as_they_were(model, dataset, tokenizer, training):
    model.train(training)
    before = torch.get_rng_state()

    evaluate_likelihoods(model, dataset, COLLATE)
    generate_texts(model, tokenizer, 3)

    assert all(module.training is training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_an_evaluation_that_fails_leaves_dropout_on(model, dataset):
    model.train()

    def interrupt(batches):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_likelihoods(model, dataset, COLLATE, progress=interrupt)
    assert model.training


def test_generates_as_many_texts_as_asked_for(model, tokenizer):
    texts = generate_texts(model, tokenizer, 7, batch_size=3, seed=1)
    assert len(texts) == 7
    assert set(" ".join(texts).split()) <= {*"abcdef", "<unk>"}
    assert generate_texts(model, tokenizer, 7, batch_size=3, seed=1) == texts
    assert generate_texts(model, tokenizer, 7, batch_size=3, seed=2) != texts
    assert texts[:3] != texts[3:6]


def test_sample_statistics_by_hand():
    assert sample_statistics(["a b", "c", "a b", "d e f"], reference_lengths=[4, 6]) == {
        "n": 4,
        "unique_rate": 0.75,
        "mean_length": 3.0,  # 3, 2, 3 and 4 with the end
        "real_mean_length": 5.0,
    }
