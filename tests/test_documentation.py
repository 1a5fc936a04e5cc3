"""What the documentation says is so: its code runs, its commands exist, its figures are drawn, its site is whole."""

import doctest
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.documentation import ALL_BLOCKS, PAGES, ROOT, blocks, check_command, shell_commands

COMMANDS = [pytest.param(command, id=f"{block}:{command[:50]}") for block, command in shell_commands()]
WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]
WITH_EXAMPLES = sorted(path for path in (ROOT / "latent_ebm_text").rglob("*.py") if ">>> " in path.read_text("utf-8"))


@pytest.fixture
def workplace(quickstart_folder: Path, tmp_path: Path) -> Path:
    """A folder of its own for what a page writes, with the models in it."""
    for path in quickstart_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:texts are not embedded by a sentence encoder")  # where the extra is not installed
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_of_a_page_runs(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From top to bottom, each block with the names of those before it; an error shows the line of the page."""
    monkeypatch.chdir(workplace)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists_with_its_options(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_command(command, monkeypatch)


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    assert {block.language for block in ALL_BLOCKS} <= {"python", "bash", "yaml", "text", "bibtex"}
    for block in ALL_BLOCKS:
        if block.language == "yaml":
            yaml.safe_load(block.text)


@pytest.mark.parametrize(
    "command",
    [
        "python recipes/no_such_recipe.py",
        "python recipes/chain_report.py --model x --no_such_option 1",
        "python examples/interpolate.py model",
        "accelerate launch recipes/train_ptb.py --config recipes/configs/no_such.yaml",
        "accelerate launch --no_such_option recipes/train_ptb.py",
        "pip install 'latent-ebm-text[nothing]'",
        "make no-such-chore",
        "no-such-program",
    ],
)
def test_a_wrong_command_is_found(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, SystemExit, pytest.fail.Exception)):
        check_command(command, monkeypatch)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0


def test_figures_are_drawn_by_the_code(quickstart_folder: Path, tmp_path: Path) -> None:
    """The whole script but for the size of its figures; those of the repository are named as it names them."""
    figures = load_figures()
    drawn = [
        figures.draw_learning(tmp_path, num_steps=2),
        figures.draw_discretisation(tmp_path, num_chains=50),
        figures.draw_likelihood_weight(tmp_path, num_chains=50),
        figures.draw_frontier(tmp_path),
        figures.draw_chain(tmp_path, str(quickstart_folder / "runs/quickstart/model")),
    ]
    first = [path.read_bytes() for path in drawn]
    assert all(content.startswith(b"<?xml") for content in first)
    figures.draw_discretisation(tmp_path, num_chains=50)
    assert drawn[1].read_bytes() == first[1]
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(f"/{path.name})" in pages for path in drawn)


def load_figures():  # type: ignore[no-untyped-def]
    specification = importlib.util.spec_from_file_location("figures", ROOT / "docs/figures.py")
    figures = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(figures)
    return figures


def test_site_is_built_without_warnings_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        html = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(https?:[^"]+)"', html)
        assert not [address for address in fetched if "canonical" not in address], page
    mathematics = (tmp_path / "mathematics.html").read_text(encoding="utf-8")
    assert mathematics.count("<math") > 20
    assert r"\frac" not in mathematics
    latents = (tmp_path / "api/latents.html").read_text(encoding="utf-8")
    assert 'id="latent_ebm_text.latents.samplers.langevin.LangevinSampler.sample"' in latents
    assert "[`SamplerOutput`]" not in latents  # crossrefs.py has made it a link
