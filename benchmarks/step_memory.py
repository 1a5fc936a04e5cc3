"""The memory of a training step of a decoder of SmolLM2-135M's shape, by batch, length and what is trained.

    python benchmarks/step_memory.py                    # a Markdown table; each row is a process of its own

Weights are random, since memory does not depend on their values. A row is the most memory that two steps of
variational training take: of the process, or on a GPU of torch.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence

import torch
from timing import row, table

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.models.configuration import LatentEBMTextConfig
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.step import build_optimizer

#: The architecture of SmolLM2-135M.
SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
#: Batch, length, what is trained, precision of the language model, gradient checkpointing.
SETTINGS = (
    (8, 32, "full", "float32", False),
    (32, 32, "full", "float32", False),
    (32, 32, "full", "float32", True),
    (8, 128, "full", "float32", False),
    (8, 128, "full", "float32", True),
    (8, 128, "lora", "bfloat16", False),
    (8, 128, "lora", "bfloat16", True),
)


def measure(batch: int, length: int, training: str, dtype: str, checkpointing: bool) -> float:
    """GiB that two steps of training take."""
    on_gpu = torch.cuda.is_available()
    before = _held(on_gpu)
    torch.manual_seed(0)
    config = LatentEBMTextConfig(
        decoder_type="causal_lm", decoder_config=SMOLLM2, decoder_training=training, vocab_size=49152, latent_dim=32,
        encoder_hidden_size=64, embedding_size=64, max_sequence_length=length, dropout=0.0,
    )  # fmt: skip
    model = LatentEBMForTextGeneration(config)
    model.decoder.lm.to(getattr(torch, dtype))
    model.to("cuda" if on_gpu else "cpu").train()
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    optimizer = build_optimizer(model, TrainingArguments())
    ids = torch.randint(3, 49152, (batch, length + 1), device=model.device)
    for _ in range(2):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (_held(on_gpu) - before) / 2**30


def _held(on_gpu: bool) -> float:
    """The most bytes held so far; Linux counts those of a process in KiB."""
    return torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", type=json.loads, help="measure one row here: a JSON list as in SETTINGS")
    options = parser.parse_args(argv)
    if options.row is not None:
        print(measure(*options.row))
        return 0
    print(*table(("batch", "length", "trained", "weights", "gradient checkpointing", "GiB")), sep="\n", flush=True)
    for setting in SETTINGS:
        command = [sys.executable, __file__, "--row", json.dumps(setting)]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        print(row([*map(str, setting), f"{float(found.stdout.split()[-1]):.2f}"]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
