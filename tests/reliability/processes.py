"""Starting, waiting for and stopping processes that train; and what they leave behind."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from safetensors.torch import load_file

from latent_ebm_text.training.checkpointing import find_checkpoints
from tests.reliability.worker import Run

SECONDS = 900.0  # that anything may take; far more than it needs, for machines that have other work


def start_together(start, run: Run, world: int) -> list[BaseProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(replace(run, rank=rank, world=world, port=port)) for rank in range(world)]


def exit_code(process: BaseProcess) -> int:
    process.join(SECONDS)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def send(process: BaseProcess, number: int) -> int:
    """Sends a signal to a process that runs, and waits for its end; the exit code."""
    assert process.pid is not None
    assert process.is_alive(), "it ended before it was told to"
    os.kill(process.pid, number)  # a process that has ended since is a zombie until it is joined: no other has its id
    return exit_code(process)


def wait_for(condition: Callable[[], bool], process: BaseProcess | subprocess.Popen[str]) -> None:
    """Until something has happened, or the process that it is waited of has ended."""
    deadline = time.monotonic() + SECONDS
    is_running = process.is_alive if isinstance(process, BaseProcess) else lambda: process.poll() is None
    while not condition() and is_running():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def log(run: Run) -> str:
    """What the processes of a run have printed."""
    return (run.folder.parent / "log.txt").read_text(encoding="utf-8")


def steps_done(folder: Path) -> int:
    """The last step that metrics.jsonl tells of, also while a process writes to it."""
    records = metrics(folder)
    return records[-1]["step"] if records else 0


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl but for the time they were written at; one that is cut short is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines() if path.exists() else []
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def newest(folder: Path) -> Path:
    return find_checkpoints(folder / "checkpoints")[0]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint: weights, optimizer, averages, chains."""
    return {
        f"{path.stem}/{name}": tensor
        for path in sorted(newest(folder).glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_same_outcome(folder: Path, reference: Path) -> None:
    """Bit for bit: all tensors of the last checkpoint, the state beside them, every figure that was written."""
    assert newest(folder).name == newest(reference).name
    found, expected = tensors(folder), tensors(reference)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    states = [json.loads((newest(each) / "state.json").read_text()) for each in (folder, reference)]
    for state in states:
        assert state.pop("seconds") > 0
    assert states[0] == states[1]
    assert metrics(folder) == metrics(reference)
