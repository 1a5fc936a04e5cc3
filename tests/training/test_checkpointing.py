"""Checkpoints: killed, damaged and foreign ones, and retention.

Run as a script, this file is the process that is killed: it loads torch once and forks one writer for each kill.
"""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from latent_ebm_text.errors import CheckpointError, UsageError
from latent_ebm_text.training import checkpointing
from latent_ebm_text.training.checkpointing import (
    IncompleteCheckpointError,
    find_checkpoints,
    load_checkpoint,
    load_latest_checkpoint,
    save_checkpoint,
)
from tests.helpers import edit_manifest

IDENTITY = {"latent_dim": 32, "decoder": "lstm", "sizes": (200, 200)}


def make_tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"weight": torch.full((200, 200), float(step))}, "chains": {"latents": torch.arange(64) + step}}


def save(folder: Path, step: int, **options) -> Path:
    return save_checkpoint(folder, step, make_tensors(step), {"epoch": step}, identity=IDENTITY, **options)


def assert_is_step(checkpoint: checkpointing.Checkpoint | None, step: int) -> None:
    assert checkpoint is not None
    assert checkpoint.step == step
    assert checkpoint.state == {"epoch": step}
    expected = make_tensors(step)
    assert checkpoint.tensors.keys() == expected.keys()
    for name, group in expected.items():
        assert checkpoint.tensors[name].keys() == group.keys()
        for key, tensor in group.items():
            assert torch.equal(checkpoint.tensors[name][key], tensor)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -------- round trip


def test_round_trip_of_every_layout_and_dtype(tmp_path):
    base = torch.randn(6, 4)
    group = {
        "transposed": base.T,
        "tied": base,
        "view": base[1:3],
        "scalar": torch.tensor(7.0),
        "empty": torch.empty(0, 3),
        "half": torch.randn(5).bfloat16(),
        "double": torch.randn(3, dtype=torch.float64),
        "mask": torch.tensor([True, False]),
        "generator": torch.Generator().manual_seed(3).get_state(),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    state = {"best": float("inf"), "position": [3, 0.1], "note": "naïve", "none": None}
    path = save_checkpoint(tmp_path / "new" / "run", 12, {"model.v1": group}, state, identity=IDENTITY)

    assert path == tmp_path / "new" / "run" / "step-00000012"
    assert names_in(path) == ["manifest.json", "model.v1.safetensors", "state.json"]
    loaded = load_checkpoint(path, identity=IDENTITY)
    assert (loaded.path, loaded.step, loaded.state) == (path, 12, state)
    assert loaded.tensors["model.v1"].keys() == group.keys()
    for key, tensor in group.items():
        assert loaded.tensors["model.v1"][key].dtype == tensor.dtype
        assert torch.equal(loaded.tensors["model.v1"][key], tensor)


def test_changing_loaded_tensors_changes_neither_file_nor_sibling(tmp_path):
    path = save(tmp_path, 1)
    load_checkpoint(path, identity=IDENTITY).tensors["model"]["weight"].zero_()
    assert_is_step(load_checkpoint(path, identity=IDENTITY), 1)


def test_manifest_holds_what_the_files_are(tmp_path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["format_version"] == checkpointing.FORMAT_VERSION
    assert manifest["library_version"] == checkpointing.__version__
    assert manifest["identity"] == IDENTITY | {"sizes": [200, 200]}
    assert manifest["files"].keys() == {"model.safetensors", "chains.safetensors", "state.json"}
    for name, entry in manifest["files"].items():
        content = (path / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_every_file_is_flushed_before_it_is_published_and_the_rename_after(tmp_path, monkeypatch):
    events = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real_fsync(descriptor)

    def rename(source, target):
        events.append("rename")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    save(tmp_path, 1)
    assert events[-2:] == ["rename", str(tmp_path)]
    *files, folder = events[:-2]
    assert Path(folder).name.startswith(".tmp-")
    assert sorted(Path(file).name for file in files) == names_in(tmp_path / "step-00000001")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": -1}, "step >= 0"),
        ({"keep_last": 0}, "keep_last=0"),
        ({"tensors": {"../model": {}}}, r"'\.\./model' cannot name a checkpoint file"),
        ({"state": {"path": Path("x")}}, "state of a checkpoint must be JSON-able: .*Path"),
        ({"identity": {"size": torch.ones(1)}}, "identity of a checkpoint must be JSON-able: .*Tensor"),
        (
            {"state": {"blob": "x" * (checkpointing.MAX_JSON_BYTES + 1)}},
            "the state .* store large arrays",
        ),
    ],
)
def test_arguments_that_cannot_be_right_are_refused_before_anything_is_written(tmp_path, arguments, message):
    options = {"step": 1, "tensors": make_tensors(1), "state": {}, "identity": IDENTITY} | arguments
    with pytest.raises(UsageError, match=message):
        save_checkpoint(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


# -------- publishing, retention, leftovers


def test_retention_keeps_the_newest_and_the_best(tmp_path):
    for step in range(1, 7):
        save(tmp_path, step, keep_last=2, best_step=2)
    assert names_in(tmp_path) == ["step-00000002", "step-00000005", "step-00000006"]
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000006", "step-00000005", "step-00000002"]
    save(tmp_path, 100_000_000, keep_last=1, best_step=6)
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-100000000", "step-00000006"]


def test_corrupt_newer_checkpoints_do_not_push_out_the_one_just_saved(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, keep_last=3)
    for step in (20, 30):
        (tmp_path / f"step-000000{step}" / "state.json").unlink()
    save(tmp_path, 15, keep_last=1)
    latest, skipped = load_latest_checkpoint(tmp_path, identity=IDENTITY)
    assert_is_step(latest, 15)
    assert len(skipped) == 2
    assert not (tmp_path / "step-00000010").exists()


def test_a_published_checkpoint_is_not_overwritten(tmp_path):
    path = save(tmp_path, 5)
    before = (path / "manifest.json").stat()
    assert save_checkpoint(tmp_path, 5, make_tensors(9), {"epoch": 9}, identity=IDENTITY) == path
    assert (path / "manifest.json").stat().st_ino == before.st_ino
    assert_is_step(load_checkpoint(path, identity=IDENTITY), 5)
    with pytest.raises(CheckpointError, match="belongs to another model: latent_dim is 32 there and 64 here"):
        save_checkpoint(tmp_path, 5, make_tensors(5), {}, identity=IDENTITY | {"latent_dim": 64})


def test_a_corrupt_checkpoint_of_the_same_step_is_replaced(tmp_path):
    path = save(tmp_path, 5)
    (path / "model.safetensors").write_bytes(b"")
    assert save(tmp_path, 5) == path
    assert_is_step(load_checkpoint(path, identity=IDENTITY), 5)
    assert names_in(tmp_path) == ["step-00000005"]


def test_leftovers_of_dead_processes_are_cleaned_and_those_of_the_living_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    living = os.getppid()
    kept = [f".tmp-{living}-x", ".tmp-notes"]
    for name in (f".tmp-{dead.pid}-step-00000001", f".trash-{dead.pid}-step-00000002", *kept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    assert find_checkpoints(tmp_path) == []
    save(tmp_path, 3)
    assert names_in(tmp_path) == sorted([*kept, "step-00000003"])


@pytest.mark.parametrize("limit", [10_000, 161_000])
def test_a_full_disk_leaves_the_earlier_checkpoints_and_no_temporary_folder(tmp_path, limit):
    save(tmp_path, 1)
    big_state = {"log": "x" * 200_000}  # with the higher limit the tensors fit, and state.json does not
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CheckpointError, match="cannot save the checkpoint of step 2 in .*File too large"):
            save_checkpoint(tmp_path, 2, make_tensors(2), big_state, identity=IDENTITY, keep_last=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(tmp_path) == ["step-00000001"]
    assert_is_step(load_latest_checkpoint(tmp_path, identity=IDENTITY)[0], 1)


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match="cannot save the checkpoint of step 1 in .*run.*File exists"):
        save(tmp_path / "run", 1)


# -------- damaged checkpoints are skipped


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip_first_byte(path: Path) -> None:
    flip_byte(path, 0)


def flip_last_byte(path: Path) -> None:
    flip_byte(path, -1)


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def replace_by_list(path: Path) -> None:
    path.write_text("[]")


def drop_files(path: Path) -> None:
    edit_manifest(path.parent, files=None)


def nest_deeply(path: Path) -> None:
    path.write_text("[" * 1_000_000)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", truncate, "half-written: model.safetensors has "),
        ("model.safetensors", Path.unlink, "half-written: model.safetensors is missing"),
        ("model.safetensors", flip_first_byte, "corrupt: the SHA-256 of model.safetensors is not the one"),
        ("model.safetensors", flip_last_byte, "corrupt: the SHA-256 of model.safetensors is not the one"),
        ("state.json", flip_last_byte, "corrupt: the SHA-256 of state.json"),
        ("state.json", Path.unlink, "half-written: state.json is missing"),
        ("manifest.json", Path.unlink, "half-written: manifest.json is missing"),
        ("manifest.json", truncate, "corrupt: manifest.json cannot be read"),
        ("manifest.json", flip_first_byte, "corrupt: manifest.json cannot be read"),
        ("manifest.json", nest_deeply, "corrupt: manifest.json cannot be read"),
        ("manifest.json", replace_by_list, "corrupt: manifest.json is not a JSON object"),
        ("manifest.json", drop_files, "corrupt: manifest.json lacks"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_its_reason(tmp_path, name, damage, message):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    damage(path / name)
    with pytest.raises(IncompleteCheckpointError, match=message):
        load_checkpoint(path, identity=IDENTITY)
    latest, skipped = load_latest_checkpoint(tmp_path, identity=IDENTITY)
    assert_is_step(latest, 1)
    assert len(skipped) == 1
    assert message in skipped[0]
    assert str(path) in skipped[0]


def test_without_a_complete_checkpoint_there_is_none(tmp_path):
    assert load_latest_checkpoint(tmp_path / "absent", identity=IDENTITY) == (None, [])
    (save(tmp_path, 1) / "manifest.json").unlink()
    latest, skipped = load_latest_checkpoint(tmp_path, identity=IDENTITY)
    assert latest is None
    assert len(skipped) == 1


# -------- foreign and hostile checkpoints stop the run


def test_a_checkpoint_of_another_model_is_an_error_and_not_skipped(tmp_path):
    save(tmp_path, 1)
    other = {"latent_dim": 64, "sizes": [200, 200], "vocabulary": "abc"}
    save_checkpoint(tmp_path, 2, make_tensors(2), {}, identity=other)
    message = (
        "step-00000002 belongs to another model: decoder is absent there and 'lstm' here; "
        "latent_dim is 64 there and 32 here; vocabulary is 'abc' there and absent here$"
    )
    with pytest.raises(CheckpointError, match=message) as caught:
        load_latest_checkpoint(tmp_path, identity=IDENTITY)
    assert not isinstance(caught.value, IncompleteCheckpointError)


def test_a_half_written_checkpoint_of_another_model_is_only_half_written(tmp_path):
    save(tmp_path, 1)
    path = save_checkpoint(tmp_path, 2, make_tensors(2), {}, identity={"latent_dim": 64})
    (path / "state.json").unlink()
    assert_is_step(load_latest_checkpoint(tmp_path, identity=IDENTITY)[0], 1)


def test_another_library_version_is_an_error_unless_only_the_patch_differs(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointing, "__version__", "1.4.0")
    path = save(tmp_path, 1)
    monkeypatch.setattr(checkpointing, "__version__", "1.4.7")
    assert_is_step(load_checkpoint(path, identity=IDENTITY), 1)
    monkeypatch.setattr(checkpointing, "__version__", "1.10.0")
    with pytest.raises(CheckpointError, match=r"written by latent_ebm_text 1\.4\.0, this is 1\.10\.0"):
        load_latest_checkpoint(tmp_path, identity=IDENTITY)


def test_another_format_version_is_an_error(tmp_path):
    edit_manifest(save(tmp_path, 1), format_version=2)
    with pytest.raises(CheckpointError, match="has format version 2, this library reads 1"):
        load_latest_checkpoint(tmp_path, identity=IDENTITY)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/file", "..", ".hidden", ""])
def test_a_manifest_whose_paths_leave_the_folder_is_refused(tmp_path, name):
    path = save(tmp_path / "run", 1)
    (tmp_path / "run" / "outside").write_text("secret")
    files = json.loads((path / "manifest.json").read_text())["files"]
    edit_manifest(path, files=files | {name: {"size": 6, "sha256": "0"}})
    with pytest.raises(CheckpointError, match="is refused: its manifest names .*not a plain file name"):
        load_latest_checkpoint(tmp_path / "run", identity=IDENTITY)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
def test_symbolic_links_are_refused(tmp_path, name):
    path = save(tmp_path, 1)
    shutil.move(path / name, tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"is refused: {name} is a symbolic link"):
        load_latest_checkpoint(tmp_path, identity=IDENTITY)


def test_a_pipe_is_refused_and_does_not_block(tmp_path):
    path = save(tmp_path, 1)
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")
    with pytest.raises(CheckpointError, match="is refused: manifest.json is a symbolic link or another special file"):
        load_latest_checkpoint(tmp_path, identity=IDENTITY)


def test_a_linked_checkpoint_folder_is_not_followed(tmp_path):
    save(tmp_path / "other", 9)
    save(tmp_path / "run", 1)
    (tmp_path / "run" / "step-00000009").symlink_to(tmp_path / "other" / "step-00000009")
    assert_is_step(load_latest_checkpoint(tmp_path / "run", identity=IDENTITY)[0], 1)


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_json_of_absurd_size_is_refused(tmp_path, name):
    path = save(tmp_path, 1)
    size = checkpointing.MAX_JSON_BYTES + 1
    os.truncate(path / name, size)  # a sparse file: no bytes on the disk
    if name == "state.json":
        files = json.loads((path / "manifest.json").read_text())["files"]
        digest = hashlib.sha256((path / name).read_bytes()).hexdigest()
        edit_manifest(path, files=files | {name: {"size": size, "sha256": digest}})
    with pytest.raises(CheckpointError, match=f"is refused: {name} has {size} bytes"):
        load_latest_checkpoint(tmp_path, identity=IDENTITY)


def test_a_file_that_is_no_safetensors_but_has_the_right_digest_is_an_error(tmp_path):
    path = save(tmp_path, 1)
    (path / "model.safetensors").write_bytes(b"")
    files = json.loads((path / "manifest.json").read_text())["files"]
    edit_manifest(path, files=files | {"model.safetensors": {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}})
    with pytest.raises(IncompleteCheckpointError, match="step-00000001 cannot be read: .*"):
        load_checkpoint(path, identity=IDENTITY)


# -------- kills


@pytest.mark.parametrize("mode", ["at_random", "at_every_file_operation"])
def test_a_kill_spoils_nothing(tmp_path, mode):
    root = Path(checkpointing.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}  # forked children: no thread pools
    result = subprocess.run(
        [sys.executable, __file__, mode, tmp_path], env=environment, capture_output=True, text=True, timeout=280
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("done\n")


def fork_and_wait(work, kill_after: float | None = None) -> bool:
    """Run `work` in a child, killed after some seconds if asked to; whether it ended by SIGKILL."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert status == 0, "the writer failed by itself"
        return False
    assert os.WTERMSIG(status) == signal.SIGKILL
    return True


def load_latest_of_complete_ones(folder: Path) -> checkpointing.Checkpoint | None:
    """The newest checkpoint; fails unless every published one, also one that was about to be removed, is complete."""
    for path in find_checkpoints(folder):
        checkpoint = load_checkpoint(path, identity=IDENTITY)
        assert_is_step(checkpoint, checkpoint.step)
    latest, skipped = load_latest_checkpoint(folder, identity=IDENTITY)
    assert skipped == []
    return latest


def kill_at_random(folder: Path) -> None:
    """One writer after another goes on where the last one was killed; what it confirmed must never be lost."""
    random.seed(0)
    confirmed_by = folder.parent / "confirmed"
    confirmed_by.write_text("0")
    kills = 0
    while kills < 20 or int(confirmed_by.read_text()) <= 20:  # on a busy machine many kills come before the first save
        kills += 1
        first = int(confirmed_by.read_text()) + 1

        def write_for_ever(first: int = first) -> None:
            for step in range(first, first + 100_000):
                save(folder, step)
                with confirmed_by.open("r+") as file:  # no truncation, which a kill could leave behind
                    file.write(str(step))

        assert fork_and_wait(write_for_ever, kill_after=random.uniform(0.02, 0.2))
        confirmed = int(confirmed_by.read_text())
        latest = load_latest_of_complete_ones(folder)
        assert (latest.step if latest else 0) in (confirmed, confirmed + 1)


def kill_at_every_file_operation(folder: Path) -> None:
    """Python announces each file operation to audit hooks; the n-th one of a save kills the process."""
    template = folder.parent / "template"
    save(template, 1)
    save(template, 2)
    steps_after_kill: list[int] = []
    is_killed = True
    while is_killed:
        countdown = len(steps_after_kill) + 1

        def save_until_kill(countdown: int = countdown) -> None:
            def hook(event: str, _: object) -> None:
                nonlocal countdown
                if event == "open" or event.startswith(("os.", "shutil.")):
                    countdown -= 1
                    if countdown == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            save(folder, 3, keep_last=1)

        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, folder)
        is_killed = fork_and_wait(save_until_kill)
        latest = load_latest_of_complete_ones(folder)
        assert latest is not None
        steps_after_kill.append(latest.step)
        save(folder, 5, keep_last=1)
        assert names_in(folder) == ["step-00000005"], "what the killed process left must be gone"
    assert steps_after_kill == sorted(steps_after_kill), "a later kill must not lose more"
    assert set(steps_after_kill) == {2, 3}
    assert len(steps_after_kill) > 20


if __name__ == "__main__":
    {"at_random": kill_at_random, "at_every_file_operation": kill_at_every_file_operation}[sys.argv[1]](
        Path(sys.argv[2]) / "run"
    )
    print("done")
