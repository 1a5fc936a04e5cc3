"""The exit codes of a recipe, and its one line on stderr."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from latent_ebm_text.commands import running
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.errors import DataError, UsageError


def raise_(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("main", "exit_code", "line"),
    [
        (lambda: None, None, ""),
        (lambda: 3, 3, ""),
        (lambda: raise_(UsageError("bad option")), 2, "error: bad option\n"),
        (lambda: raise_(DataError("empty file")), 1, "error: empty file\n"),
        (
            lambda: raise_(PermissionError(13, "Permission denied", "x.txt")),
            1,
            "error: x.txt may not be read or written: Permission denied\n",
        ),
        (
            lambda: raise_(OSError(errno.EROFS, "Read-only file system", "run/results.json")),
            1,
            "error: run/results.json may not be read or written: Read-only file system\n",
        ),
        (
            lambda: raise_(FileNotFoundError(2, "No such file or directory", "run/metrics.jsonl")),
            1,
            "error: run/metrics.jsonl cannot be used: No such file or directory\n",
        ),
        (lambda: raise_(OSError("Stale\n file handle")), 1, "error: Stale file handle\n"),
        (
            lambda: raise_(MemoryError()),
            1,
            "error: the memory is too small: choose smaller sizes, of the model or of the batches\n",
        ),
        (
            lambda: raise_(SafetensorError("I/O error: Read-only file system (os error 30)")),
            1,
            "error: I/O error: Read-only file system (os error 30)\n",
        ),
        (
            lambda: raise_(SafetensorError("I/O error: No space left on device (os error 28)")),
            1,
            "error: I/O error: No space left on device (os error 28); make room and run again\n",
        ),
        (lambda: raise_(SystemExit(7)), 7, ""),
        (lambda: raise_(KeyboardInterrupt()), 130, "interrupted\n"),
    ],
)
def test_run_command_exits_with_one_line_and_the_code_of_the_error(main, exit_code, line, capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == exit_code
    assert capsys.readouterr() == ("", line)


def test_more_memory_than_there_is_is_one_line(capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: torch.empty(2**60))
    assert caught.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.endswith("the memory is too small: choose smaller sizes, of the model or of the batches\n")
    assert err.count("\n") == 1


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word():
    script = (
        "from latent_ebm_text.commands.running import run_command\n"
        "run_command(lambda: print('\\n'.join(map(str, range(100_000)))))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(running.__file__).parents[2])}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_run_command_lets_unexpected_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError, match="by zero"):
        run_command(lambda: 1 // 0)


def test_ctrl_c_on_a_real_process_is_one_line_and_130():
    script = (
        # A shell's background jobs ignore SIGINT, and so do their children: put back what a terminal would have.
        "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from latent_ebm_text.commands.running import run_command\n"
        "run_command(lambda: print('ready', flush=True) or time.sleep(60))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(running.__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "interrupted\n")
