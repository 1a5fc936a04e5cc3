"""A small training in a process of its own, which tests kill, signal and starve.

Processes are forked from a server that has imported everything already, so that each starts in milliseconds.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from latent_ebm_text import LatentEBMForImageGeneration, LatentEBMForTextGeneration, LatentEBMImageConfig
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.data.batching import BucketedBatches, TextCollator
from latent_ebm_text.data.images import ImageCollator
from latent_ebm_text.latents.samplers import LangevinSampler
from latent_ebm_text.training import checkpointing, state
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.step import TrainingData
from latent_ebm_text.training.trainer import train
from tests.helpers import tiny_config

NUM_EXAMPLES, BATCH_SIZE = 47, 9  # 6 batches an epoch, the last one of 2
CHAIN = {"name": "langevin", "num_steps": 3, "step_size": 0.3}
LONG_CHAIN = LangevinSampler(num_steps=10_000, step_size=0.1)
TRAINING = {
    "train_batch_size": BATCH_SIZE, "num_epochs": 10.0, "warmup": 0.04, "log_every": 1, "eval_every": 7,
    "save_every": 2, "initial_likelihood_weight": 2.0, "likelihood_weight_fall": 0.15,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What a process is to do.

    Attributes:
        folder: Of the run; the process prints to `log.txt` beside it.
        modality: `text` or `images`.
        model: Changes to the model's settings.
        training: Changes to the training's settings.
        linger: A phase of the fourth step that does not end by itself: `data`, `posterior`, `prior`, `evaluation` or
            `save`. A file of this name beside the folder says when it has begun.
        diverge: Whether the posterior chains of the last process diverge, `once`, at its fourth step, or `always` from
            then on.
        pause: Seconds that every read takes: whoever is to kill the process on a busy machine gets a turn.
        stop_after: The process sends itself SIGTERM after so many steps.
        kill_at: The process kills itself at this file operation of the checkpoint of step 4.
        rank: Of `world` processes.
        world: Number of processes that train together.
        port: Where they meet.
        lm_dtype: Precision of the decoder's language model.
        fsdp: Whether they shard the model by FSDP2, as `accelerate launch --use_fsdp --fsdp_version 2` asks for it.
    """

    folder: Path
    modality: str = "text"
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    linger: str | None = None
    diverge: str | None = None
    pause: float = 0.0
    stop_after: int | None = None
    kill_at: int | None = None
    rank: int = 0
    world: int = 1
    port: int = 0
    lm_dtype: str = "float32"
    fsdp: bool = False


def main(run: Run) -> None:
    """Trains as the recipes do; leaves with their exit codes."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr = (run.folder.parent / "log.txt").open("a", buffering=1, encoding="utf-8")
    for descriptor in (1, 2):  # for what does not go through Python
        os.dup2(sys.stdout.fileno(), descriptor)
    if run.world > 1:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
        values = (run.rank, run.rank, run.world, run.world, run.port)
        os.environ.update({name: str(value) for name, value in zip(names, values, strict=True)})
        os.environ.update(MASTER_ADDR="127.0.0.1", ACCELERATE_USE_CPU="true")
    if run.fsdp:
        os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    torch.set_num_threads(1)
    run_command(partial(_train, run))


def _train(run: Run) -> int:
    args = TrainingArguments(**{"output_dir": str(run.folder), **TRAINING, **run.training})
    model, data = _text(run, args) if run.modality == "text" else _images(run, args)
    if run.kill_at is not None:
        _kill_in_save(run.kill_at)
    result = train(
        model,
        _disturbed(run, model, data),
        args,
        identity={"model": run.modality, "inference": args.inference},
        evaluate=partial(_evaluate, run),
        accelerator=Accelerator(cpu=True),
    )
    return 0 if result.signal is None else args.exit_code(result.signal)


class Rows:
    """Examples by index list, a dict of columns, as a `datasets.Dataset` gives them."""

    def __init__(self, name: str, rows: list[Any]) -> None:
        self.name, self.rows = name, rows

    def __getitem__(self, indices: np.ndarray) -> dict[str, list[Any]]:
        return {self.name: [self.rows[index] for index in indices]}


def _text(run: Run, args: TrainingArguments) -> tuple[LatentEBMForTextGeneration, TrainingData]:
    torch.manual_seed(0)
    settings = {"prior_sampler": CHAIN, "posterior_sampler": CHAIN, "dropout": 0.2, "token_dropout": 0.1}
    model = LatentEBMForTextGeneration(tiny_config(**settings | run.model))
    if run.lm_dtype != "float32":
        model.decoder.lm.to(getattr(torch, run.lm_dtype))
    words = np.random.default_rng(0)
    rows = [[1, *words.integers(4, 60, size=words.integers(1, 9)).tolist(), 2] for _ in range(NUM_EXAMPLES)]
    batches = BucketedBatches([len(row) - 1 for row in rows], args.train_batch_size, args.seed)
    return model, TrainingData(Rows("input_ids", rows), batches, TextCollator(0))


def _images(run: Run, args: TrainingArguments) -> tuple[LatentEBMForImageGeneration, TrainingData]:
    torch.manual_seed(0)
    settings = {
        "image_size": 8, "num_channels": 1, "latent_dim": 4, "decoder_channels": [8], "decoder_first_size": 4,
        "prior_hidden_size": 8, "prior_sampler": CHAIN, "posterior_sampler": CHAIN,
    }  # fmt: skip
    model = LatentEBMForImageGeneration(LatentEBMImageConfig(**settings | run.model))
    pixels = np.random.default_rng(0).integers(0, 256, size=(NUM_EXAMPLES, 64), dtype=np.uint8)
    batches = BucketedBatches(np.ones(NUM_EXAMPLES), args.train_batch_size, args.seed)
    return model, TrainingData(Rows("pixels", [row.tobytes() for row in pixels]), batches, ImageCollator(8, 1))


def _evaluate(run: Run, model: Any, step: int) -> dict[str, float]:
    """Figures that depend on the weights, and on nothing that the training draws from."""
    if run.linger == "evaluation":
        _linger(run, model)
    nll = float(sum(weight.detach().abs().sum() for weight in model.parameters()))
    return {"reconstruction_nll": nll, "latent_gain": 0.5, "energy_gap": 0.0, "std_mismatch": 0.3}


def _disturbed(run: Run, model: Any, data: TrainingData) -> TrainingData:
    """Lets happen what the test asks for: a phase that does not end by itself, a signal, a step far too large."""
    calls = {"data": 0, "posterior": 0, "prior": 0, "save": 0}
    is_time = {None: lambda call: False, "once": lambda call: call == 4, "always": lambda call: call >= 4}

    def counted(phase: str, work: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[phase] += 1
            if run.linger == phase and calls[phase] == 4:
                _linger(run, model)
            if phase == "data":
                time.sleep(run.pause)
            if phase == "data" and calls[phase] - 1 == run.stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            if phase == "posterior" and run.rank == run.world - 1 and is_time[run.diverge](calls[phase]):
                kwargs["sampler"] = LangevinSampler(num_steps=3, step_size=1e18)
            return work(*args, **kwargs)

        return call

    model.sample_posterior = counted("posterior", model.sample_posterior)
    model.sample_prior = counted("prior", model.sample_prior)
    checkpointing.save_file = counted("save", checkpointing.save_file)
    return TrainingData(data.examples, data.batches, counted("data", data.collate))


def _linger(run: Run, model: Any) -> None:
    """Says that the phase has begun, and stays in it: in a chain, a read or a write that takes long."""
    (run.folder.parent / str(run.linger)).touch()
    if run.linger in ("posterior", "prior", "evaluation"):
        while True:
            LONG_CHAIN.sample(model.sample_reference(8), model.prior)
    deadline = time.monotonic() + (1.0 if run.linger == "save" else 1000.0)
    while time.monotonic() < deadline:
        time.sleep(0.01)


def _kill_in_save(countdown: int) -> None:
    """Python announces each file operation to audit hooks; one of those of step 4's checkpoint ends the process."""
    active = False

    def hook(event: str, _: object) -> None:
        nonlocal countdown
        if active and (event == "open" or event.startswith(("os.", "shutil."))):
            countdown -= 1
            if countdown == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def save(folder: Path, step: int, *args: Any, **kwargs: Any) -> Path:
        nonlocal active
        active = step == 4
        path = checkpointing.save_checkpoint(folder, step, *args, **kwargs)
        active = False
        return path

    sys.addaudithook(hook)
    state.save_checkpoint = save
