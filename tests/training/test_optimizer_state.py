"""The state of an optimizer through a checkpoint and back: the resumed run takes the same steps, bit for bit."""

import json

import pytest
import torch

from latent_ebm_text.errors import CheckpointError
from latent_ebm_text.training.checkpointing import (
    flatten_optimizer_state,
    load_checkpoint,
    restore_optimizer_state,
    save_checkpoint,
)

IDENTITY = {"latent_dim": 32}


def make_optimizer(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = torch.nn.ModuleDict({"prior": torch.nn.Linear(4, 3), "decoder": torch.nn.Linear(3, 2)})
    model.register_parameter("unused", torch.nn.Parameter(torch.zeros(2)))
    groups = [
        {"params": [*model["prior"].parameters(), model.unused], "lr": 1e-2, "betas": (0.5, 0.9), "name": "prior"},
        {"params": list(model["decoder"].parameters()), "lr": 3e-3, "weight_decay": 0.1, "amsgrad": True},
    ]
    return model, torch.optim.AdamW(groups)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        batch = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model["decoder"](model["prior"](batch).tanh()).square().mean().backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.9


def test_adamw_resumes_bit_exactly(tmp_path):
    model, optimizer = make_optimizer(seed=0)
    train(model, optimizer, range(5))
    tensors, rest = flatten_optimizer_state(optimizer)
    assert "state.0.exp_avg" in tensors
    named = {"model": model.state_dict(), "optimizer": tensors}
    path = save_checkpoint(tmp_path, 5, named, {"optimizer": rest}, identity=IDENTITY)
    train(model, optimizer, range(5, 12))

    checkpoint = load_checkpoint(path, identity=IDENTITY)
    for restores_optimizer in (True, True, False):  # twice from one checkpoint: a resumed run must not change it
        resumed, resumed_optimizer = make_optimizer(seed=1)
        resumed.load_state_dict(checkpoint.tensors["model"])
        if restores_optimizer:
            restore_optimizer_state(resumed_optimizer, checkpoint.tensors["optimizer"], checkpoint.state["optimizer"])
            assert resumed_optimizer.param_groups[0]["betas"] == (0.5, 0.9)
            assert resumed_optimizer.param_groups[0]["name"] == "prior"
        train(resumed, resumed_optimizer, range(5, 12))
        is_same = all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))
        assert is_same == restores_optimizer
        if restores_optimizer:
            assert resumed_optimizer.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_a_tensor_learning_rate_survives(tmp_path):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=torch.tensor(0.25))
    tensors, rest = flatten_optimizer_state(optimizer)
    other = torch.optim.AdamW([weight], lr=torch.tensor(0.5))
    restore_optimizer_state(other, tensors, json.loads(json.dumps(rest)))
    assert torch.equal(other.param_groups[0]["lr"], torch.tensor(0.25))


def test_the_state_of_another_optimizer_is_refused():
    _, optimizer = make_optimizer(seed=0)
    tensors, rest = flatten_optimizer_state(optimizer)
    other = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(CheckpointError, match="belongs to another optimizer: .*different number of parameter groups"):
        restore_optimizer_state(other, tensors, rest)
