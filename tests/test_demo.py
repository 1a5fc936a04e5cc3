"""The demo: what it computes, and every tab in a browser."""

import html
import importlib.util
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latent_ebm_text.anomaly.text_scores import FUSED_SCORES
from latent_ebm_text.errors import DataError, UsageError
from latent_ebm_text.latents.rng import derived_generator
from tests.helpers import tiny_model

DEMO = Path(__file__).parents[1] / "examples/demo"
SENTENCE = "the bank recovers in london"


def load_views() -> Any:
    specification = importlib.util.spec_from_file_location("views", DEMO / "views.py")
    assert specification is not None
    assert specification.loader is not None
    views = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(views)
    return views


@pytest.fixture(scope="module")
def text(quickstart_folder: Path) -> Any:
    return load_views().TextViews(str(quickstart_folder / "runs/quickstart/model"))


@pytest.fixture(scope="module")
def images(quickstart_folder: Path) -> Any:
    return load_views().ImageViews(str(quickstart_folder / "runs/quickstart-images/model"))


# -------- what is computed


def test_samples_follow_their_settings(text: Any) -> None:
    table = text.sample(6, 5, 1.0, 1.0, 0)
    assert len(table) == 6
    assert table["energy"].is_monotonic_increasing
    assert table.equals(text.sample(6, 5, 1.0, 1.0, 0))
    for other in (text.sample(6, 5, 1.0, 1.0, 1), text.sample(6, 5, 0.1, 1.0, 0), text.sample(6, 5, 1.0, 0.05, 0)):
        assert list(other["sentence"]) != list(table["sentence"])
    assert list(text.sample(6, 30, 1.0, 1.0, 0)["energy"]) != list(table["energy"])


def test_a_chain_starts_and_ends_where_the_samplers_own_chain_does(text: Any) -> None:
    chain = text.chain("", text.num_steps, 3)
    assert list(chain["step"]) == list(range(text.num_steps + 1))
    generator = derived_generator(3, "demo: chain")
    start = text.model.sample_reference(1, generator)
    end = text.model.sample_prior(1, initial_latents=start, generator=generator).latents
    assert chain["energy"].iloc[0] == pytest.approx(text.model.prior.energy(start).item())
    assert chain["energy"].iloc[-1] == pytest.approx(text.model.prior.energy(end).item())


def test_the_chain_of_a_sentence_is_that_of_its_posterior(text: Any) -> None:
    num_steps = text.model.posterior_sampler.num_steps
    energies = text.chain(SENTENCE, num_steps, 3)["energy"]
    inputs = dict(text.tokenizer([SENTENCE], return_tensors="pt"))
    posterior = text.model.posterior({name: inputs[name] for name in ("input_ids", "attention_mask")})
    generator = derived_generator(3, "demo: chain")
    start = text.model.sample_reference(1, generator)
    end = text.model.posterior_sampler.sample(start, posterior, generator=generator).latents
    assert energies.iloc[0] == pytest.approx(-posterior(start).item(), rel=1e-4)
    assert energies.iloc[-1] == pytest.approx(-posterior(end).item(), rel=1e-4)
    assert not text.chain("the storm hit paris", num_steps, 3)["energy"].equals(energies)


def test_a_path_has_its_ends_and_its_number_of_points(text: Any) -> None:
    path = text.path(SENTENCE, "rain will fall", 5, "linear", 0)
    assert list(path["position"]) == [0, 0.25, 0.5, 0.75, 1]
    back = text.path(SENTENCE, SENTENCE, 5, "linear", 0)
    assert len(back) == 5


def test_the_map_is_centred_and_holds_what_was_typed(text: Any) -> None:
    table = text.map(50, f"{SENTENCE}\n\nrain will fall", 0)
    drawn = table[table["kind"] == "prior draw"]
    assert len(drawn) == 50
    assert list(table["sentence"][table["kind"] == "your sentence"]) == [SENTENCE, "rain will fall"]
    assert drawn["x"].mean() == pytest.approx(0, abs=1e-4)
    assert drawn["x"].std() >= drawn["y"].std()  # the first direction is that of the largest variance


def test_a_map_of_a_whole_file_is_refused_before_anything_is_inferred(text: Any) -> None:
    started = time.monotonic()
    with pytest.raises(UsageError, match="at most 100 sentences here, these are 20000: leave some out"):
        text.map(50, "\n".join([SENTENCE] * 20_000), 0)
    assert time.monotonic() - started < 5
    assert len(text.map(10, "\n".join([SENTENCE] * 100), 0)) == 110


def test_anomaly_scores_agree_with_the_model(text: Any) -> None:
    verdict, table = text.anomaly(SENTENCE, 0)
    generator = derived_generator(0, "demo: score")
    expected = text.model.score(
        [SENTENCE], tokenizer=text.tokenizer, log_partition=text._own_scores.log_partition, generator=generator
    )
    shown = dict(zip(table["score"], table["this sentence"], strict=True))
    assert shown["nll"] == pytest.approx(expected.nll.item(), abs=0.01)
    assert f"{expected.nll.item():.2f} ±" in verdict
    assert "of 50 sentences" in verdict


def test_images(images: Any) -> None:
    pictures = images.sample(3, 5, 0)
    assert [picture.size for picture in pictures] == [(128, 128)] * 3
    strip, energies = images.chain(20, 0, num_images=5)
    assert [caption for _, caption in strip] == [f"step {step}" for step in (0, 5, 10, 15, 20)]
    assert len(energies) == 21


def test_edits_of_typed_sentences(text: Any) -> None:
    assert text.values == []
    labels = {"tone": ["good", "bad"] * 20, "rank": [float(row) for row in range(40)]}
    text.model.fit_attributes([SENTENCE, "the exporter sank"] * 20, labels, tokenizer=text.tokenizer, num_draws=1)
    assert text.values == ["tone=bad", "tone=good"]
    table = text.edit(f"{SENTENCE}\nthe exporter sank", "tone=good", 4, 1.0, 0)
    assert list(table["sentence"]) == [SENTENCE, "the exporter sank"]
    assert len(table["edit"]) == 2
    text.model.attributes.clear()


FEW_TEXTS = "ignore:.* of the words do not occur in the texts of fit:UserWarning"
BY_WORDS = "ignore:texts are not embedded by a sentence encoder:UserWarning"  # the demo's environment has none


@pytest.mark.slow
@pytest.mark.filterwarnings(FEW_TEXTS)
@pytest.mark.filterwarnings(BY_WORDS)
def test_alarms_name_what_is_unlike_the_typed_texts_and_its_words(tmp_path: Path) -> None:
    demo = load_views()
    views = demo.DetectorViews()
    ordinary, new = views.example()
    summary, alarms = views.alarms(ordinary, f"{new}\nthe bank <b>WON</b> 7")
    unusual = {"WIN 500 EURO now!!! call 0800-1234", "the bank <b>WON</b> 7"}
    assert unusual <= {alarm.text for alarm in alarms[:3]}
    p_values = [alarm.p_value for alarm in alarms]
    assert p_values == sorted(p_values)
    assert f"{sum(p_value <= 0.05 for p_value in p_values)} of 7 texts" in summary
    assert "no p-value is below 0.024" in summary  # 40 of 200 texts are held out: 1 / 41
    alarm = next(alarm for alarm in alarms if "<b>" in alarm.text)
    assert alarm.raised_by in FUSED_SCORES
    coloured = alarm.coloured()
    assert "<b>" not in coloured
    assert re.search(r'<mark style="[^"]+" title="[0-9.]+ nats">WON</mark>', coloured)
    assert html.unescape(re.sub("<[^>]+>", "", coloured)) == alarm.text

    views._fitted(tuple(ordinary.splitlines())).save_pretrained(tmp_path)
    loaded = demo.DetectorViews(str(tmp_path))
    assert loaded.example() == ("", new)
    assert [alarm.p_value for alarm in loaded.alarms("", new)[1]] == [
        alarm.p_value for alarm in views.alarms(ordinary, new)[1]
    ]


def test_alarms_say_what_is_missing(tmp_path: Path) -> None:
    views = load_views().DetectorViews()
    with pytest.raises(UsageError, match="type new texts first"):
        views.alarms("", " \n")
    with pytest.raises(UsageError, match="type ordinary texts first, one per line, or start the demo with --detector"):
        views.alarms("", SENTENCE)
    with pytest.raises(UsageError, match="training takes 30 different texts or more"):
        views.alarms(SENTENCE, SENTENCE)
    with pytest.raises(UsageError, match="at most 100 texts can be read here, these are 101"):
        views.alarms("", "\n".join([SENTENCE] * 101))
    with pytest.raises(UsageError, match="at most 2000 characters here, one has 2001"):
        views.alarms("a" * 2001, SENTENCE)
    with pytest.raises(DataError, match="holds no detector"):
        load_views().DetectorViews(str(tmp_path))


def test_what_cannot_be_is_said(text: Any, quickstart_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="type a sentence first"):
        text.path(" ", SENTENCE, 5, "linear", 0)
    with pytest.raises(UsageError, match="at most 200 words here, this one has 201"):
        text.anomaly("the " * 201, 0)
    with pytest.raises(UsageError, match="at most 2000 characters here, this one has 2001"):
        text.chain("a" * 2001, 3, 0)
    with pytest.raises(UsageError, match="there is no folder"):
        load_views().TextViews(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="is not an image model"):
        load_views().ImageViews(str(quickstart_folder / "runs/quickstart"))
    vocab_size = len(text.tokenizer)
    tiny_model(latent_dim=0, prior_type="gaussian", vocab_size=vocab_size).save_pretrained(tmp_path)
    text.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="without a latent"):
        load_views().TextViews(str(tmp_path))


@pytest.mark.parametrize(("arguments", "missing", "message"), [
    (["--model", "./nowhere"], "gradio", "the demo needs gradio: pip install 'latent-ebm-text[demo]'"),
    (["--model", "./nowhere"], None, "there is no folder ./nowhere"),
])  # fmt: skip
def test_the_command_says_what_is_missing(
    arguments: list[str], missing: str | None, message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(DEMO)
    monkeypatch.setattr(sys, "argv", ["app.py", *arguments])
    monkeypatch.delitem(sys.modules, "page", raising=False)
    if missing is None:
        monkeypatch.setitem(sys.modules, "page", object())
    else:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(DEMO / "app.py"), run_name="__main__")
    assert left.value.code == 2
    assert message in capsys.readouterr().err


# -------- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_a_browser = pytest.mark.skipif(
    CHROMIUM is None or any(importlib.util.find_spec(name) is None for name in ("gradio", "playwright")),
    reason="needs Chromium, and the packages gradio and playwright",
)


@pytest.fixture(scope="module")
def address(quickstart_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the demo, which runs as a separate process on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("demo") / "log.txt"
    runs = quickstart_folder / "runs"
    command = [
        sys.executable, str(DEMO / "app.py"), "--port", str(port), "--model", str(runs / "quickstart/model"),
        "--image_model", str(runs / "quickstart-images/model"),
    ]  # fmt: skip
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 120
        while "Running on local URL" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def page(address: str, tmp_path: Path) -> Iterator[Any]:
    """The demo's page in a fresh browser, which may send requests to the demo only; a screenshot is kept."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"), executable_path=CHROMIUM, headless=True,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            viewport={"width": 1280, "height": 1100},
        )  # fmt: skip
        page = context.new_page()
        page.set_default_timeout(20_000)
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(address)
        page.get_by_role("tab", name="Sample").wait_for()
        yield page
        page.screenshot(path=str(tmp_path / "page.png"))
        assert "Traceback" not in page.content()
        context.close()
    assert requested
    assert {url for url in requested if not url.startswith((address, "data:", "blob:"))} == set()


def open_tab(page: Any, name: str) -> Any:
    page.get_by_role("tab", name=name, exact=True).click()
    return page.locator('div[role="tabpanel"]:visible')


def rows(panel: Any, at_least: int) -> list[str]:
    """The visible rows of the panel's table, once there are `at_least` of them."""
    body = panel.get_by_role("row").filter(has=panel.page.get_by_role("gridcell"))
    body.nth(at_least - 1).wait_for()
    return [row for row in body.all_inner_texts() if row.strip()]


def curve(panel: Any) -> Any:
    return panel.locator("canvas, svg.marks").first


def verdict(page: Any, beginning: str = "") -> str:
    """The verdict on a sentence, once there is one that does not begin as given."""
    script = """old => [...document.querySelectorAll('textarea')].map(e => e.value)
        .find(value => value.includes('more surprising') && !(old && value.startsWith(old)))"""
    return page.wait_for_function(script, arg=beginning).json_value()


@pytest.mark.slow
@needs_a_browser
class TestInABrowser:
    def test_the_page_opens_with_samples(self, page: Any, text: Any) -> None:
        shown = rows(page.locator('div[role="tabpanel"]:visible'), 8)
        for row, sentence in zip(shown, text.sample(8, text.num_steps, 1.0, 1.0, 0)["sentence"], strict=True):
            assert sentence in row

    def test_every_other_tab_opens_with_an_example(self, page: Any) -> None:
        for name, at_least in (("Chain", 5), ("Interpolate", 8)):
            panel = open_tab(page, name)
            assert len(rows(panel, at_least)) >= at_least
            curve(panel).wait_for()
        curve(open_tab(page, "Map")).wait_for()
        panel = open_tab(page, "Anomaly")
        assert verdict(page)
        assert any("nll_per_token" in row for row in rows(panel, 5))
        alarms = open_tab(page, "Alarms").locator("tr")
        alarms.nth(6).wait_for()
        assert "WIN 500 EURO" in alarms.nth(1).inner_text()
        panel = open_tab(page, "Images")
        panel.locator("img").nth(11).wait_for()
        panel.get_by_text("step 0", exact=True).first.wait_for()
        curve(panel).wait_for()

    def test_a_tab_keeps_its_results(self, page: Any) -> None:
        """Its example is computed when the tab is first opened, and not again."""
        panel = open_tab(page, "Anomaly")
        example = verdict(page)
        panel.get_by_label("sentence", exact=True).fill(SENTENCE)
        panel.get_by_role("button", name="Score").click()
        own = verdict(page, beginning=example)
        open_tab(page, "Sample")
        open_tab(page, "Anomaly")
        page.wait_for_timeout(1000)
        assert verdict(page) == own

    def test_sample(self, page: Any) -> None:
        panel = open_tab(page, "Sample")
        first = rows(panel, 8)
        panel.get_by_label("number input for seed").fill("7")
        panel.get_by_label("number input for seed").press("Enter")
        panel.get_by_role("button", name="Sample").click()
        page.wait_for_timeout(3000)
        assert rows(panel, 8) != first

    def test_chain(self, page: Any) -> None:
        panel = open_tab(page, "Chain")
        panel.get_by_label("sentence (leave empty for the prior)").fill(SENTENCE)
        panel.get_by_role("button", name="Run the chain").click()
        assert len(rows(panel, 5)) >= 5
        curve(panel).wait_for()

    def test_interpolate(self, page: Any) -> None:
        panel = open_tab(page, "Interpolate")
        rows(panel, 8)
        panel.get_by_label("from", exact=True).fill(SENTENCE)
        panel.get_by_label("to", exact=True).fill("rain will fall in paris")
        panel.get_by_label("low energy").check()
        panel.get_by_label("number input for sentences").fill("5")
        panel.get_by_label("number input for sentences").press("Enter")
        panel.get_by_role("button", name="Interpolate").click()
        page.wait_for_timeout(3000)
        assert len(rows(panel, 5)) == 5
        curve(panel).wait_for()

    def test_map_with_hover(self, page: Any) -> None:
        panel = open_tab(page, "Map")
        panel.get_by_label("your sentences, one per line (optional)").fill(SENTENCE)
        panel.get_by_role("button", name="Draw the map").click()
        plot = curve(panel)
        plot.wait_for()
        page.wait_for_timeout(1000)
        box, tip = plot.bounding_box(), page.locator("#vg-tooltip-element.visible")
        for step in range(400):  # across the middle, until the mouse is over a point
            page.mouse.move(box["x"] + box["width"] * (0.3 + 0.001 * step), box["y"] + box["height"] * 0.5)
            if tip.count():
                break
        assert "sentence" in tip.inner_text()
        assert "energy" in tip.inner_text()

    def test_anomaly(self, page: Any) -> None:
        panel = open_tab(page, "Anomaly")
        example = verdict(page)
        panel.get_by_label("sentence", exact=True).fill(SENTENCE)
        panel.get_by_role("button", name="Score").click()
        assert verdict(page, beginning=example)
        assert any("nll_per_token" in row for row in rows(panel, 5))

    def test_alarms(self, page: Any) -> None:
        panel = open_tab(page, "Alarms")
        panel.locator("tr").nth(6).wait_for()
        panel.get_by_label("new texts, one per line").fill(f"{SENTENCE}\nthe bank <b>WON</b> 7")
        panel.get_by_role("button", name="Find anomalies").click()
        row = panel.locator("tr", has_text="the bank <b>WON</b> 7")
        row.wait_for()
        assert row.locator("mark").first.get_attribute("title").endswith("nats")
        assert row.inner_text() == panel.locator("tr").nth(1).inner_text()  # the first below the head
        assert panel.locator("tr").count() == 3

    def test_images(self, page: Any) -> None:
        panel = open_tab(page, "Images")
        panel.locator("img").nth(11).wait_for()
        panel.get_by_label("number input for chain steps").fill("3")
        panel.get_by_label("number input for chain steps").press("Enter")
        panel.get_by_role("button", name="Sample images").click()
        panel.get_by_role("button", name="Run a chain").click()
        panel.get_by_text("step 3", exact=True).first.wait_for()
        curve(panel).wait_for()

    def test_an_error_is_a_message(self, page: Any) -> None:
        panel = open_tab(page, "Interpolate")
        panel.get_by_label("from", exact=True).fill("")
        panel.get_by_role("button", name="Interpolate").click()
        message = page.locator(".toast-body")
        message.wait_for()
        assert "type a sentence first" in message.inner_text()
