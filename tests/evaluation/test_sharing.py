"""Evaluation and scoring on several processes give the figures of one, each example counted once."""

import multiprocessing
import pickle
import socket

import numpy as np
import pytest
import torch

from latent_ebm_text.errors import UsageError
from latent_ebm_text.models.sharing import all_processes, share_out
from tests.evaluation import shared_work


@pytest.fixture(scope="module")
def alone():
    return shared_work.measure(None)


def is_equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple | np.ndarray):
        return all(np.array_equal(*pair) for pair in zip(one, other, strict=True))
    return one == other


@pytest.mark.parametrize("world", [2, 4])  # of four processes some have nothing to do at times
def test_processes_share_the_work_and_find_what_one_finds(alone, tmp_path, world):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([shared_work.__name__])
    processes = [context.Process(target=shared_work.main, args=(tmp_path, rank, world, port)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(900)
    assert [process.exitcode for process in processes] == [0] * world
    for rank in range(world):
        found = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())
        assert found.keys() == alone.keys()
        assert [name for name in alone if not is_equal(alone[name], found[name])] == []
    assert alone["likelihoods"]["reconstruction_nll"]["n"] == 23
    assert len(alone["texts"]) == 13
    assert alone["images"]["mse"]["n"] == 22


def test_one_process_does_everything():
    assert share_out(lambda number: number**2, 4) == [0, 1, 4, 9]
    assert share_out(str, 0) == []


def test_deepspeed_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UsageError, match="DeepSpeed is not supported"):
        all_processes()
