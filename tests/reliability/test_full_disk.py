"""A disk that is full: a real one, of two megabytes."""

import subprocess

import pytest

from tests.reliability.processes import assert_same_outcome, log, newest
from tests.reliability.worker import Run

TRAINING = {"inference": "persistent", "num_epochs": 1.0}  # 6 steps


@pytest.fixture
def disk(tmp_path):
    """The folder of a run, a file system of its own."""
    folder = tmp_path / "full" / "run"
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path, leave):
    """Takes all space but for `leave` bytes, as another program would."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        file.truncate(file.tell() - leave)


@pytest.mark.parametrize("free", [0, 8192, 16384])
def test_a_full_disk_ends_the_run_and_spoils_nothing(finish, tmp_path, disk, free):
    straight = Run(tmp_path / "straight" / "run", training=TRAINING)
    assert finish(straight) == 0, log(straight)
    first = Run(disk, training=TRAINING, stop_after=3)
    assert finish(first) == 143, log(first)
    before = {path.name: path.read_bytes() for path in newest(disk).iterdir()}
    ballast = disk / "ballast"
    fill(ballast, free)

    full = Run(disk, training=TRAINING)
    assert finish(full) == 1
    last = log(full).splitlines()[-1]
    assert last.startswith("error: ")
    assert "No space left on device" in last
    assert "Traceback" not in log(full)
    assert {path.name: path.read_bytes() for path in newest(disk).iterdir()} == before

    ballast.unlink()
    assert finish(full) == 0, log(full)
    assert_same_outcome(disk, straight.folder)
