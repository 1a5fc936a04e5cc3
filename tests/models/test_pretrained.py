"""Pretrained language models and tokenisers on disk: what is refused, and what is made fit."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.errors import UsageError
from latent_ebm_text.models.pretrained import check_language_model, load_decoder_tokenizer
from tests.helpers import BOS, EOS, PAD, VOCAB_SIZE
from tests.language_models import tiny_language_model

Model = LatentEBMForTextGeneration
SMALL = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_tokenizer(folder: Path, num_words: int = 20, **special: str) -> None:
    words = {f"w{index:02d}": index for index in range(num_words - len(set(special.values())))}
    words |= {token: len(words) + index for index, token in enumerate(dict.fromkeys(special.values()))}
    backend = Tokenizer(models.WordLevel(vocab=words, unk_token="w00"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)


def test_a_path_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'no/such' is neither a folder on disk nor a model on the Hugging Face Hub"):
        Model.from_decoder_pretrained("no/such")
    with pytest.raises(UsageError, match="holds no language model that transformers can load"):
        Model.from_decoder_pretrained(tmp_path)


def test_models_that_are_no_decoders_are_refused(tmp_path: Path) -> None:
    bert = AutoConfig.for_model("bert", **SMALL, intermediate_size=16)
    AutoModelForMaskedLM.from_config(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(UsageError, match=r"BertLMHeadModel \(bert\) is not causal, its tokens see those after them"):
        Model.from_decoder_pretrained(tmp_path / "bert")
    t5 = AutoConfig.for_model("t5", vocab_size=VOCAB_SIZE, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    AutoModelForSeq2SeqLM.from_config(t5).save_pretrained(tmp_path / "t5")
    with pytest.raises(UsageError, match=r"t5\) is an encoder-decoder model; a decoder here is a causal language"):
        Model.from_decoder_pretrained(tmp_path / "t5")
    AutoConfig.for_model("vit", hidden_size=16).save_pretrained(tmp_path / "vit")
    with pytest.raises(UsageError, match=r"vit\) is no causal language model"):
        Model.from_decoder_pretrained(tmp_path / "vit")
    mamba = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mamba", vocab_size=VOCAB_SIZE, hidden_size=16, state_size=4, num_hidden_layers=1)
    )
    with pytest.raises(UsageError, match=r"MambaForCausalLM \(mamba\) keeps a recurrent state"):
        check_language_model(mamba)


def test_a_model_without_input_embeddings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_language_model("gpt2")
    monkeypatch.setattr(type(lm), "get_input_embeddings", lambda self: None)
    with pytest.raises(UsageError, match=r"GPT2LMHeadModel \(gpt2\) takes no input embeddings"):
        check_language_model(lm)


def test_without_a_tokenizer_the_models_own_ids_end_sentences(tmp_path: Path) -> None:
    tiny_language_model("llama").save_pretrained(tmp_path / "lm")
    config = Model.from_decoder_pretrained(tmp_path / "lm", latent_dim=2).config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (BOS, EOS, PAD)
    assert (config.vocab_size, config.hidden_size) == (VOCAB_SIZE, 32)
    with pytest.raises(UsageError, match="there is no tokenizer beside the decoder"):
        load_decoder_tokenizer(tmp_path / "lm")
    tiny_language_model("llama", eos_token_id=None).save_pretrained(tmp_path / "endless")
    with pytest.raises(UsageError, match="has no end token and no tokenizer was given"):
        Model.from_decoder_pretrained(tmp_path / "endless")


@pytest.mark.parametrize(
    ("special", "bos", "eos", "pad", "said"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<p>"}, "<s>", "</s>", "<p>", []),
        ({"eos_token": "</s>"}, "</s>", "</s>", "<pad>", ["no pad_token: added", "</s> also begins sentences"]),
        ({"bos_token": "<s>"}, "<s>", "<eos>", "<pad>", ["had no eos_token and no pad_token: added"]),
        ({}, "<eos>", "<eos>", "<pad>", ["had no eos_token and no pad_token", "<eos> also begins sentences"]),
    ],
)
def test_tokenizers_are_made_fit(
    special: dict[str, str],
    bos: str,
    eos: str,
    pad: str,
    said: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save_tokenizer(tmp_path / "lm", **special)
    with caplog.at_level(logging.WARNING):
        tokenizer = load_decoder_tokenizer(tmp_path / "lm")
    assert len(caplog.messages) == len(said)
    assert all(part in message for part, message in zip(said, caplog.messages, strict=True))
    tokenizer.save_pretrained(tmp_path / "again")
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "again")):
        assert (each.bos_token, each.eos_token, each.pad_token) == (bos, eos, pad)
        batch = each(["w01 w02", "w03"], padding=True)
        ends = each.convert_tokens_to_ids([bos, eos, pad])
        assert batch["input_ids"] == [[ends[0], 1, 2, ends[1]], [ends[0], 3, ends[1], ends[2]]]
        assert batch["attention_mask"] == [[1, 1, 1, 1], [1, 1, 1, 0]]
        assert each.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["w01 w02", "w03"]


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])  # without and with an output layer that is the embedding
def test_the_embedding_grows_with_the_tokenizer(kind: str, tmp_path: Path) -> None:
    lm = tiny_language_model(kind)
    lm.save_pretrained(tmp_path / "lm")
    save_tokenizer(tmp_path / "lm", num_words=VOCAB_SIZE, eos_token="</s>")
    model = Model.from_decoder_pretrained(tmp_path / "lm", latent_dim=2, max_sequence_length=9)
    assert model.config.vocab_size == VOCAB_SIZE + 1  # the padding token
    assert model.config.pad_token_id == VOCAB_SIZE
    kept = model.get_input_embeddings().weight[:VOCAB_SIZE]
    assert torch.equal(kept, lm.get_input_embeddings().weight)
    model.save_pretrained(tmp_path / "saved")
    loaded: Any = Model.from_pretrained(tmp_path / "saved")
    latents = torch.ones(2, 2)
    assert torch.equal(
        loaded.generate(latents=latents, do_sample=False), model.generate(latents=latents, do_sample=False)
    )
