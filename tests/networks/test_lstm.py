"""The LSTM decoder: its hand-written passes against autograd and a naive reference, and invariances."""

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latent_ebm_text.latents.density import ScoredLogDensity
from latent_ebm_text.networks import placement, softmax
from latent_ebm_text.networks.lstm import FusedLSTMLikelihood, LSTMDecoder, LSTMLikelihood
from latent_ebm_text.networks.lstm_encoder import LSTMEncoder

VOCAB, LATENT, EMBEDDING, HIDDEN = 11, 3, 5, 7
OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "low_rank": {"output_rank": 4},
    "tied": {"tie_word_embeddings": True},
    "tied_equal_sizes": {"tie_word_embeddings": True, "embedding_size": HIDDEN},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)

# `log_prob` values are computed in float32 whatever the dtype of the weights; gradients are not.
VALUE_TOLERANCE = 2e-5


def make_decoder(dtype: torch.dtype = torch.float64, vocab_size: int = VOCAB, **options: Any) -> LSTMDecoder:
    """A decoder with weights large enough for every path to matter, in eval mode."""
    decoder = LSTMDecoder(vocab_size, LATENT, **{"embedding_size": EMBEDDING, "hidden_size": HIDDEN, **options})
    generator = torch.Generator().manual_seed(0)
    for weight in decoder.parameters():
        torch.nn.init.normal_(weight, std=0.5, generator=generator)
    return decoder.to(dtype).eval()


def make_batch(lengths: tuple[int, ...] = (6, 2, 4, 5), extra: int = 0, pad: int = 0) -> dict[str, Tensor]:
    """Random sentences of the given lengths, with the first and the last token, padded on the right."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.full((len(lengths), max(lengths) + extra), pad)
    for row, length in enumerate(lengths):
        input_ids[row, :length] = torch.randint(VOCAB, (length,), generator=generator)
    places = torch.arange(input_ids.shape[1])
    return {"input_ids": input_ids, "attention_mask": (places < torch.tensor(lengths)[:, None]).long()}


def make_latents(batch: int = 4, seed: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, LATENT, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive_log_prob(decoder: LSTMDecoder, sentence: Tensor, latent: Tensor) -> Tensor:
    """Runs one sentence, one token at a time, by the textbook equations of the LSTM."""
    lstm, total = decoder.lstm, 0.0
    hidden, cell = decoder.initial_hidden(latent), decoder.initial_cell(latent)
    for word, target in itertools.pairwise(sentence):
        features = torch.cat([decoder.embedding.weight[word], latent])
        gates = lstm.weight_ih_l0 @ features + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ hidden + lstm.bias_hh_l0
        i, f, g, o = gates.chunk(4)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        total = total + F.log_softmax(decoder.logits(hidden), dim=-1)[target]
    return total


def assert_same(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance, check_dtype=False)


# --- log p(x | z) and its score ---


@every_option
def test_log_prob_equals_a_naive_reference(options: dict[str, Any]) -> None:
    decoder, batch, latents = make_decoder(**options), make_batch(), make_latents()
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    sentences = [row[:length] for row, length in zip(batch["input_ids"], lengths, strict=True)]
    with torch.no_grad():
        expected = torch.stack([naive_log_prob(decoder, *row) for row in zip(sentences, latents, strict=True)])
        assert_same(decoder.log_prob(batch, latents), expected, VALUE_TOLERANCE)
        assert_same(decoder.likelihood(batch)(latents), expected, VALUE_TOLERANCE)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("chunk_rows", [1, 3, 256])
@every_option
def test_score_equals_autograd(
    options: dict[str, Any], chunk_rows: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "CHUNK_ROWS", chunk_rows)
    decoder, batch = make_decoder(dtype, **options), make_batch()
    latents = make_latents(dtype=dtype).requires_grad_()
    log_prob = decoder.log_prob(batch, latents)
    (expected,) = torch.autograd.grad(log_prob.sum(), latents)
    assert expected.abs().min() > 1e-3

    likelihood = decoder.likelihood(batch)
    assert isinstance(likelihood, ScoredLogDensity)
    value, score = likelihood.value_and_score(latents)
    assert_same(value, log_prob.detach(), VALUE_TOLERANCE)
    for each in (score, likelihood.score(latents), decoder.score(batch, latents)):
        assert_same(each, expected, tolerance)
        assert not each.requires_grad


def test_a_likelihood_forgets_the_latents_it_saw_before() -> None:
    likelihood, other = make_decoder().likelihood(make_batch()), make_latents(seed=3)
    value, score = likelihood.value_and_score(make_latents())
    kept = value.clone(), score.clone()
    assert not torch.equal(likelihood.value_and_score(other)[1], score)
    assert torch.equal(value, kept[0]), "results are not overwritten by the next call"
    assert torch.equal(score, kept[1])
    again = likelihood.value_and_score(make_latents())
    assert torch.equal(again[0], kept[0])
    assert torch.equal(again[1], kept[1])


@every_option
@pytest.mark.parametrize("chunk_rows", [1, 4, 256])
def test_weight_gradients_equal_those_of_cross_entropy(
    options: dict[str, Any], chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "CHUNK_ROWS", chunk_rows)
    decoder, batch, latents = make_decoder(**options), make_batch(), make_latents().requires_grad_()
    row_weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    leaves = [latents, *decoder.parameters()]
    actual = torch.autograd.grad((row_weights * decoder.log_prob(batch, latents)).sum(), leaves)

    hidden, _ = decoder.hidden_states(batch["input_ids"][:, :-1], latents)
    targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:].t()
    losses = F.cross_entropy(decoder.logits(hidden).flatten(0, 1), targets.flatten(), reduction="none")
    expected = torch.autograd.grad(-(row_weights * losses.view_as(targets).sum(dim=0)).sum(), leaves)
    for name, ours, theirs in zip(["latents", *dict(decoder.named_parameters())], actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


# --- it is a distribution over sentences ---


@every_option
def test_probabilities_of_all_sentences_sum_to_one(options: dict[str, Any]) -> None:
    vocab_size, length, end = 4, 4, 2
    decoder, bos = make_decoder(vocab_size=vocab_size, **options), 1

    def mass(tails: list[tuple[int, ...]]) -> float:
        input_ids = torch.tensor([(bos, *tail) for tail in tails])
        latents = make_latents(1).expand(len(tails), -1)
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        return decoder.log_prob(inputs, latents).exp().sum().item()

    words = [word for word in range(vocab_size) if word != end]
    ended = [mass([(*tail, end) for tail in itertools.product(words, repeat=n)]) for n in range(length)]
    unfinished = mass(list(itertools.product(words, repeat=length)))
    assert all(part > 0 for part in ended)
    assert sum(ended) + unfinished == pytest.approx(1.0, abs=1e-5)
    assert mass(list(itertools.product(range(vocab_size), repeat=3))) == pytest.approx(1.0, abs=1e-5)


@every_option
@pytest.mark.parametrize("max_logits", [1, 2**26])
def test_averaging_over_latents_averages_probabilities_of_tokens(
    options: dict[str, Any], max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latent_ebm_text.networks.base._MAX_LOGITS", max_logits)  # one sentence at a time, and all
    decoder, batch = make_decoder(**options).eval(), make_batch(extra=2)
    first, second = make_latents(), make_latents(seed=5)
    assert_same(decoder.averaged_log_prob(batch, first[None]), decoder.log_prob(batch, first).detach(), 1e-6)
    ids, mask = batch["input_ids"], batch["attention_mask"][:, 1:]
    probs = sum(decoder.next_token_logits(ids[:, :-1], z).softmax(-1) for z in (first, second)) / 2
    expected = (probs.gather(2, ids[:, 1:, None])[..., 0].log() * mask).sum(dim=1).detach()
    assert_same(decoder.averaged_log_prob(batch, torch.stack([first, second])), expected, 1e-6)


# --- padding ---


@every_option
def test_padding_never_changes_a_number(options: dict[str, Any]) -> None:
    decoder, latents = make_decoder(**options), make_latents()
    plain = make_batch()
    value, score = decoder.likelihood(plain).value_and_score(latents)
    for batch in (make_batch(extra=3), make_batch(pad=9), make_batch(extra=2, pad=VOCAB - 1)):
        assert_same(decoder.log_prob(batch, latents).detach(), value, 1e-6)
        assert_same(decoder.score(batch, latents), score, 1e-12)
    for row, length in enumerate(plain["attention_mask"].sum(dim=1).tolist()):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in plain.items()}
        assert_same(decoder.log_prob(alone, latents[row : row + 1]).detach(), value[row : row + 1], 1e-6)
        assert_same(decoder.score(alone, latents[row : row + 1]), score[row : row + 1], 1e-12)


def test_padding_gives_no_gradient_to_any_weight() -> None:
    decoder, latents = make_decoder(), make_latents()
    gradients = [
        torch.autograd.grad(decoder.log_prob(batch, latents).sum(), list(decoder.parameters()))
        for batch in (make_batch(), make_batch(extra=3, pad=9))
    ]
    for plain, padded in zip(*gradients, strict=True):
        assert_same(padded, plain, 1e-12)


def test_without_a_mask_every_token_counts() -> None:
    decoder, latents = make_decoder(), make_latents()
    batch = make_batch((5, 5, 5, 5))
    assert torch.equal(decoder.log_prob({"input_ids": batch["input_ids"]}, latents), decoder.log_prob(batch, latents))


@pytest.mark.parametrize("with_state", [False, True])
def test_left_padded_prompts_equal_the_unpadded_run(with_state: bool) -> None:
    decoder, latents = make_decoder(), make_latents()
    lengths, batch = (5, 2, 4, 1), make_batch((5, 2, 4, 1))
    input_ids, mask = torch.full((4, 5), 9), torch.zeros(4, 5, dtype=torch.long)
    for row, length in enumerate(lengths):
        input_ids[row, 5 - length :], mask[row, 5 - length :] = batch["input_ids"][row, :length], 1
    start = decoder.initial_state(make_latents(seed=8)) if with_state else None
    hidden, (last_hidden, last_cell) = decoder.hidden_states(input_ids, latents, start, attention_mask=mask)
    assert hidden.shape == (5, 4, HIDDEN)
    assert last_hidden.shape == last_cell.shape == (1, 4, HIDDEN)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        row_start = None if start is None else (start[0][:, one].contiguous(), start[1][:, one].contiguous())
        expected, (row_hidden, row_cell) = decoder.hidden_states(
            batch["input_ids"][one, :length], latents[one], row_start
        )
        assert_same(hidden[5 - length :, one], expected, 1e-12)
        assert_same(last_hidden[:, one], row_hidden, 1e-12)
        assert_same(last_cell[:, one], row_cell, 1e-12)


def test_hidden_states_go_on_from_a_state() -> None:
    decoder, latents, input_ids = make_decoder(), make_latents(), make_batch((6, 6, 6, 6))["input_ids"]
    whole, _ = decoder.hidden_states(input_ids, latents)
    first, state = decoder.hidden_states(input_ids[:, :2], latents)
    second, _ = decoder.hidden_states(input_ids[:, 2:], latents, state)
    assert_same(torch.cat([first, second]), whole, 1e-12)


# --- dropout ---


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"embedding_dropout": 0.5}, {"token_dropout": 0.5}])
def test_dropout_is_on_in_training_and_off_in_evaluation_and_in_the_likelihood(options: dict[str, float]) -> None:
    decoder, batch, latents = make_decoder(**options), make_batch(), make_latents()
    exact = make_decoder().log_prob(batch, latents)
    assert torch.equal(decoder.log_prob(batch, latents), exact)
    score = decoder.score(batch, latents)
    decoder.train()
    torch.manual_seed(0)
    noisy = [decoder.log_prob(batch, latents) for _ in range(2)]
    assert not torch.equal(noisy[0], noisy[1])
    assert_same(decoder.likelihood(batch)(latents), exact.detach(), VALUE_TOLERANCE)
    assert torch.equal(decoder.score(batch, latents), score)
    assert decoder.training, "asking for a likelihood leaves the mode alone"


def test_word_dropout_hides_a_word_wherever_it_stands_but_neither_the_first_place_nor_the_targets() -> None:
    decoder, batch, latents = make_decoder(token_dropout=0.5), make_batch(), make_latents()
    ids = batch["input_ids"][:, :-1]
    torch.manual_seed(0)
    scale = torch.empty(len(decoder.embedding.weight), 1).bernoulli_(0.5) * 2
    words = decoder.embedding(ids.t())
    expected = words * scale[ids.t()]
    expected[0] = words[0]
    repeated = latents.expand(len(words), *latents.shape)
    hidden, _ = decoder.lstm(torch.cat([expected, repeated], dim=-1), decoder.initial_state(latents))
    log_probs = F.log_softmax(decoder.logits(hidden), dim=-1)
    targets = batch["input_ids"][:, 1:].t()
    values = log_probs.gather(2, targets[..., None]).squeeze(2) * batch["attention_mask"][:, 1:].t()
    torch.manual_seed(0)
    assert_same(decoder.train().log_prob(batch, latents), values.sum(dim=0), VALUE_TOLERANCE)


def test_dropout_leaves_out_the_same_features_in_all_of_a_sentence_and_others_in_the_next() -> None:
    input_ids, latents = make_batch()["input_ids"], make_latents()
    decoder = make_decoder(dropout=0.5, embedding_dropout=0.0).train()
    torch.manual_seed(0)
    hidden, (last, _) = decoder.hidden_states(input_ids, latents)
    absent = hidden == 0  # (length, batch, hidden_size)
    assert 0.3 < absent.double().mean() < 0.7
    assert torch.equal(absent, absent[:1].expand_as(absent))
    assert not torch.equal(absent[0, 0], absent[0, 1])
    exact, (exact_last, _) = decoder.eval().hidden_states(input_ids, latents)
    assert_same(hidden, exact * 2 * ~absent, VALUE_TOLERANCE)
    assert torch.equal(last, exact_last), "the state does not carry the dropout of the output"


def test_embedding_dropout_is_like_dropout_unless_it_is_given() -> None:
    assert make_decoder(dropout=0.3).embedding_dropout == 0.3
    decoder, input_ids, latents = make_decoder(embedding_dropout=0.5), make_batch()["input_ids"], make_latents()
    exact, _ = decoder.hidden_states(input_ids, latents)
    noisy, _ = decoder.train().hidden_states(input_ids, latents)
    assert not torch.allclose(noisy, exact)
    assert not (noisy == 0).any()


# --- where the latent enters, and what each option costs ---


@pytest.mark.parametrize("path", ["initial_hidden", "initial_cell", "inputs"])
def test_each_path_of_the_latent_matters_on_its_own(path: str) -> None:
    decoder, batch = make_decoder(), make_batch()
    with torch.no_grad():
        for name in {"initial_hidden", "initial_cell"} - {path}:
            getattr(decoder, name).weight.zero_()
        if path != "inputs":
            decoder.lstm.weight_ih_l0[:, EMBEDDING:].zero_()
    first, second = (decoder.log_prob(batch, make_latents(seed=seed)) for seed in (2, 3))
    assert ((first - second).abs() > 1e-3).all()


def test_the_latent_joins_the_input_of_every_step() -> None:
    decoder, input_ids = make_decoder(), make_batch((6, 6, 6, 6))["input_ids"]
    state = decoder.initial_state(make_latents())
    for step in range(6):
        first, second = (
            decoder.hidden_states(input_ids[:, step : step + 1], make_latents(seed=seed), state)[0] for seed in (2, 3)
        )
        assert ((first - second).abs().amax(dim=-1) > 1e-3).all()


@pytest.mark.parametrize(
    ("options", "output_parameters"),
    [
        ({}, VOCAB * HIDDEN + VOCAB),
        ({"output_rank": 4}, HIDDEN * 4 + VOCAB * 4 + VOCAB),
        ({"output_rank": HIDDEN}, VOCAB * HIDDEN + VOCAB),
        ({"tie_word_embeddings": True}, HIDDEN * EMBEDDING + VOCAB),
        ({"tie_word_embeddings": True, "embedding_size": HIDDEN}, VOCAB),
    ],
)
def test_parameters_of_the_output_layer(options: dict[str, Any], output_parameters: int) -> None:
    decoder = make_decoder(**options)
    width = decoder.embedding_size
    others = VOCAB * width + 2 * (LATENT * HIDDEN + HIDDEN) + 4 * HIDDEN * (width + LATENT + HIDDEN + 2)
    assert sum(weight.numel() for weight in decoder.parameters()) == others + output_parameters


@pytest.fixture
def empty_memory_is_nan() -> Iterator[None]:
    """Fills what `torch.empty` returns with NaN, so that memory used before it is written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("empty_memory_is_nan")
def test_a_new_decoder_has_initialised_weights() -> None:
    decoder = LSTMDecoder(VOCAB, LATENT, embedding_size=EMBEDDING, hidden_size=HIDDEN)
    assert all(weight.isfinite().all() for weight in decoder.parameters())


@every_option
@pytest.mark.usefixtures("empty_memory_is_nan")
def test_no_pass_reads_memory_before_writing_it(options: dict[str, Any]) -> None:
    decoder, batch, latents = make_decoder(**options), make_batch(extra=2), make_latents().requires_grad_()
    log_prob = decoder.log_prob(batch, latents)
    gradients = torch.autograd.grad(log_prob.sum(), [latents, *decoder.parameters()])
    assert all(part.isfinite().all() for part in (*gradients, *decoder.likelihood(batch).value_and_score(latents)))


def test_a_tied_output_layer_moves_with_the_embedding() -> None:
    decoder = make_decoder(tie_word_embeddings=True, embedding_size=HIDDEN)
    hidden = torch.ones(HIDDEN, dtype=torch.float64)
    with torch.no_grad():
        decoder.embedding.weight[3] += 1.0
        expected = decoder.embedding.weight @ hidden + decoder.output.bias
    assert_same(decoder.logits(hidden).detach(), expected, 1e-12)


# --- the kernels of a GPU, which give the same on a CPU ---


@pytest.mark.parametrize("training", [False, True])
@every_option
def test_the_fused_likelihood_equals_the_one_written_by_hand(options: dict[str, Any], training: bool) -> None:
    settings = {**options, "dropout": 0.3, **({"frequent_tokens": 3, "drawn_tokens": 2} if training else {})}
    decoder, batch, latents = make_decoder(torch.float64, **settings).train(training), make_batch(), make_latents()
    latents = latents.double()
    found = []
    for kind in (LSTMLikelihood, FusedLSTMLikelihood):
        torch.manual_seed(0)  # of the candidates
        likelihood = kind(decoder, batch)
        found.append([likelihood(latents), *likelihood.value_and_score(latents), likelihood.score(latents)])
    for one, other in zip(*found, strict=True):
        assert_same(one, other, 1e-10)
        assert not other.requires_grad
    assert all(weight.grad is None and weight.requires_grad for weight in decoder.parameters())


def test_the_fused_likelihood_has_a_score_in_inference_mode() -> None:
    decoder, expected = make_decoder(), LSTMLikelihood(make_decoder(), make_batch()).score(make_latents())
    with torch.inference_mode():
        assert_same(FusedLSTMLikelihood(decoder, make_batch()).score(make_latents()), expected, 1e-5)


@pytest.mark.parametrize("at_host", [True, False])
@pytest.mark.parametrize("candidates", [{}, {"frequent_tokens": 3, "drawn_tokens": VOCAB}], ids=["all", "candidates"])
@every_option
def test_the_mean_has_the_gradient_of_the_mean_of_all(
    options: dict[str, Any], candidates: dict[str, int], at_host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, batch, latents = make_decoder(**options), make_batch(extra=2), make_latents().requires_grad_()
    leaves = [latents, *decoder.parameters()]
    mean = decoder.log_prob(batch, latents).mean()
    expected = torch.autograd.grad(mean, leaves)
    assert all(bool(each.abs().sum() > 0) for each in expected)

    monkeypatch.setattr(placement, "is_at_host", lambda tensor: at_host)
    decoder = make_decoder(**options, **candidates).train()  # every token is a candidate, so the draw changes nothing
    leaves = [latents, *decoder.parameters()]
    for found in (decoder.mean_log_prob(batch, latents), decoder.log_prob(batch, latents).mean()):
        assert_same(found, mean, VALUE_TOLERANCE)
        for name, ours, theirs in zip(
            ["latents", *dict(decoder.named_parameters())], torch.autograd.grad(found, leaves), expected, strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@every_option
def test_positions_that_do_not_count_change_no_score(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, batch, latents = make_decoder(**options), make_batch(extra=2), make_latents()
    value, score = LSTMLikelihood(decoder, batch).value_and_score(latents)
    monkeypatch.setattr(placement, "is_at_host", lambda tensor: False)
    likelihood = decoder.likelihood(batch)
    assert isinstance(likelihood, FusedLSTMLikelihood)
    for one, other in zip(
        [value, score, value], [*likelihood.value_and_score(latents), likelihood(latents)], strict=True
    ):
        assert_same(other, one, VALUE_TOLERANCE)


def test_an_encoder_finds_the_last_state_with_and_without_packing() -> None:
    torch.manual_seed(0)
    encoder, batch = LSTMEncoder(20, 3, embedding_size=5, hidden_size=6).double(), make_batch()
    embedded, lengths = encoder.embedding(batch["input_ids"].t()), batch["attention_mask"].sum(dim=1)
    packed, padded = encoder._last_packed(embedded, lengths), encoder._last_padded(embedded, lengths)
    assert_same(padded, packed, 1e-12)
    weights = list(encoder.lstm.parameters())
    for one, other in zip(*(torch.autograd.grad(each.sum(), weights) for each in (packed, padded)), strict=True):
        assert_same(one, other, 1e-12)


def test_a_gpu_takes_as_many_rows_of_logits_as_its_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert softmax.chunk_rows(torch.device("cpu"), 10_000) == 256
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2**34))
    assert softmax.chunk_rows(torch.device("cuda"), 10_000) == 13_376  # half a GiB of the 16
    assert softmax.chunk_rows(torch.device("cuda"), 10**9) == 64
