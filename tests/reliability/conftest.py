"""Processes that train."""

import multiprocessing
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from tests.reliability import worker
from tests.reliability.processes import exit_code, start_together
from tests.reliability.worker import Run

settings.register_profile("reliable", deadline=None, derandomize=True, database=None)
settings.load_profile("reliable")


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[[Run], multiprocessing.Process]]:
    """Starts a training; what still runs at the end of the tests is killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([worker.__name__])
    started = []

    def start(run: Run) -> multiprocessing.Process:
        process = context.Process(target=worker.main, args=(run,))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture(scope="session")
def finish(start) -> Callable[[Run], int]:
    """Trains until the process ends by itself; its exit code."""

    def finish(run: Run) -> int:
        return exit_code(start(run))

    return finish


@pytest.fixture(scope="session")
def finish_together(start) -> Callable[[Run, int], list[int]]:
    """Trains on several processes until they end by themselves; their exit codes."""

    def finish_together(run: Run, world: int) -> list[int]:
        return [exit_code(process) for process in start_together(start, run, world)]

    return finish_together
