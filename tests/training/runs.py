"""What tests of whole runs share: their sizes, the baselines, and what a run left behind."""

import os
import signal

import torch
from safetensors.torch import load_file

from latent_ebm_text.training.checkpointing import find_checkpoints
from latent_ebm_text.training.reporting import read_metrics

NUM_SENTENCES, BATCH_SIZE = 96, 16  # 6 batches an epoch
HEALTHY = {"reconstruction_nll": 20.0, "latent_gain": 10.0, "energy_gap": 0.0, "std_mismatch": 0.0}
BASELINES = {
    "language model": ({"latent_dim": 0, "prior_type": "gaussian"}, "short_run"),
    "Gaussian prior": ({"prior_type": "gaussian"}, "persistent"),
    "encoder, energy prior": ({"encoder_hidden_size": 16}, "variational"),
    "encoder and chains": ({"encoder_hidden_size": 16}, "amortized"),
    "VAE": ({"prior_type": "gaussian", "encoder_hidden_size": 16, "free_bits": 0.1}, "variational"),
}


def stop_at(stop_step):
    """An evaluation during which the process is told to stop."""

    def evaluate(model, step):
        if step == stop_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return HEALTHY

    return evaluate


def copy_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def final_tensors(folder):
    newest = find_checkpoints(folder / "checkpoints")[0]
    return {path.name: load_file(path) for path in newest.glob("*.safetensors")}


def metrics_without_seconds(folder):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_metrics(folder / "metrics.jsonl")]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
