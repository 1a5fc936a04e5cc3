"""The page of the demo, made with gradio: its tabs, and the function that each button calls."""

from __future__ import annotations

import functools
import html
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, get_args

import gradio as gr
import pandas as pd
from views import Alarm, DetectorViews, ImageViews, TextViews

from latent_ebm_text.errors import LatentEBMError
from latent_ebm_text.latents.interpolation import PathKind

log = logging.getLogger("demo")
#: Number of sentences that the page shows when it is opened.
NUM_SENTENCES = 8
#: Frames in which a chain appears, and the seconds between them.
FRAMES, FRAME_SECONDS = 12, 0.1
#: Makes a gallery as high as its images; gradio would leave it partly empty or cut it off.
CSS = ".grid-wrap { min-height: 0 !important; max-height: none !important; }"
SYSTEM_FONTS = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def with_messages(function: Callable[..., Any]) -> Callable[..., Any]:
    """Shows every error as a message on the page; unexpected errors are also logged."""

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except LatentEBMError as error:
            raise gr.Error(str(error), print_exception=False) from error
        except Exception as error:
            log.exception("%s failed", function.__name__)
            raise gr.Error("Something went wrong; see the log of the demo.", print_exception=False) from error

    return run


def build(text: TextViews, images: ImageViews | None, detector: DetectorViews) -> gr.Blocks:
    """The page with one tab per task; every tab opens with a worked example."""
    samples = text.sample(NUM_SENTENCES, text.num_steps, 1.0, 1.0, 0)
    sentences = [" ".join(sentence.split()) or "." for sentence in samples["sentence"]]
    with gr.Blocks(title="Latent energy-based models", analytics_enabled=False) as page:
        gr.Markdown("# A latent space with a learned energy\nLow energy means high probability; energies are in nats.")
        with gr.Tab("Sample"):
            _sample_tab(text, samples)
        with gr.Tab("Chain") as tab:
            _chain_tab(text, tab)
        with gr.Tab("Interpolate") as tab:
            _path_tab(text, tab, sentences)
        with gr.Tab("Map") as tab:
            _map_tab(text, tab, sentences)
        with gr.Tab("Edit") as tab:
            if text.values:
                _edit_tab(text, tab, sentences)
            else:
                gr.Markdown("This model knows no attributes: fit them with `model.fit_attributes` and save it again.")
        with gr.Tab("Anomaly") as tab:
            _anomaly_tab(text, tab, sentences)
        with gr.Tab("Alarms") as tab:
            _alarms_tab(detector, tab)
        with gr.Tab("Images") as tab:
            if images is None:
                gr.Markdown("Start the demo with `--image_model runs/quickstart-images/model` to see an image model.")
            else:
                _image_tab(images, tab)
    return page


def _connect(tab: gr.Tab, button: gr.Button, function: Callable[..., Any], inputs: Any, outputs: Any) -> None:
    """Calls the function when the button is clicked, and once when a visitor first opens the tab."""
    opened = gr.State(False)
    tab.select(lambda: True, outputs=opened, show_progress="hidden")
    gr.on([button.click, opened.change], function, inputs, outputs)


def _steps(default: int) -> gr.Slider:
    return gr.Slider(1, max(200, 2 * default), default, step=1, label="chain steps")


def _seed() -> gr.Slider:
    return gr.Slider(0, 1000, 0, step=1, label="seed")


def _table(*headers: str, value: Any = None) -> gr.Dataframe:
    """A table whose last column holds sentences."""
    widths = ["14%"] * (len(headers) - 1)
    widths.append(f"{100 - 14 * len(widths)}%")
    return gr.Dataframe(
        value, headers=list(headers), column_widths=widths, interactive=False, wrap=True, label="sentences"
    )


def _two_decimals(table: pd.DataFrame) -> Any:
    return table.style.format(precision=2)


def _energy_curve(x: str) -> gr.LinePlot:
    return gr.LinePlot(x=x, y="energy", y_title="energy in nats", height=260, label="energy")


def _sample_tab(text: TextViews, samples: Any) -> None:
    gr.Markdown(
        "Sentences sampled from the model. A chain draws the latent of each sentence from the prior, and the decoder "
        "samples the tokens with the given temperature and top-p."
    )
    with gr.Row():
        number = gr.Slider(1, 64, NUM_SENTENCES, step=1, label="sentences")
        steps, seed = _steps(text.num_steps), _seed()
    with gr.Row():
        temperature = gr.Slider(0.1, 2.0, 1.0, step=0.05, label="temperature")
        top_p = gr.Slider(0.05, 1.0, 1.0, step=0.05, label="top-p")
    button = gr.Button("Sample", variant="primary")
    table = _table("energy", "sentence", value=_two_decimals(samples))

    def show(*arguments: Any) -> Any:
        return _two_decimals(text.sample(*arguments))

    button.click(with_messages(show), [number, steps, temperature, top_p, seed], table)


def _chain_tab(text: TextViews, tab: gr.Tab) -> None:
    gr.Markdown(
        "A chain that starts at a draw from N(0, I) and samples the prior or, given a sentence, the posterior of its "
        "latent. Every step is decoded greedily. The energy is the negative log-density of that distribution, up to a "
        "constant."
    )
    sentence = gr.Textbox(label="sentence (leave empty for the prior)")
    with gr.Row():
        steps, seed = _steps(text.num_steps), _seed()
    button = gr.Button("Run the chain", variant="primary")
    curve, table = _energy_curve("step"), _table("step", "energy", "sentence")
    whole_chain = with_messages(text.chain)

    def frames(*arguments: Any) -> Iterator[tuple[Any, Any]]:
        chain = whole_chain(*arguments)
        for frame in range(1, FRAMES + 1):
            seen = chain.iloc[: max(2, round(len(chain) * frame / FRAMES))]
            yield seen, _two_decimals(seen.iloc[::-1])
            time.sleep(FRAME_SECONDS)

    _connect(tab, button, frames, [sentence, steps, seed], [curve, table])


def _path_tab(text: TextViews, tab: gr.Tab, sentences: list[str]) -> None:
    gr.Markdown(
        "A path between latents of two sentences, one draw from each posterior. Beam search decodes every point on it."
    )
    with gr.Row():
        start, end = gr.Textbox(sentences[0], label="from"), gr.Textbox(sentences[-1], label="to")
    kinds = [(kind.replace("_", " "), kind) for kind in get_args(PathKind)]
    kind = gr.Radio(kinds, value="spherical", label="path")
    with gr.Row():
        points, seed = gr.Slider(2, 24, 8, step=1, label="sentences"), _seed()
    button = gr.Button("Interpolate", variant="primary")
    table, curve = _table("position", "energy", "sentence"), _energy_curve("position")

    def show(*arguments: Any) -> tuple[Any, Any]:
        path = text.path(*arguments)
        return _two_decimals(path), path

    _connect(tab, button, with_messages(show), [start, end, points, kind, seed], [table, curve])


def _map_tab(text: TextViews, tab: gr.Tab, sentences: list[str]) -> None:
    gr.Markdown(
        "Latents drawn from the prior and the latents of your sentences, on the first two principal components of the "
        "prior draws. Hover over a point to read its sentence."
    )
    typed = gr.Textbox("\n".join(sentences[::2]), label="your sentences, one per line (optional)", lines=4)
    with gr.Row():
        number, seed = gr.Slider(10, 1000, 200, step=10, label="prior draws"), _seed()
    button = gr.Button("Draw the map", variant="primary")
    plot = gr.ScatterPlot(
        x="x", y="y", color="kind", tooltip=["sentence", "energy"], height=460, show_label=False,
        x_title="first principal component", y_title="second principal component", color_title="",
        color_map={"prior draw": "#0969da", "your sentence": "#bc4c00"},
    )  # fmt: skip
    _connect(tab, button, with_messages(text.map), [number, typed, seed], plot)


def _edit_tab(text: TextViews, tab: gr.Tab, sentences: list[str]) -> None:
    gr.Markdown(
        "Edits of sentences towards a value of an attribute: chains lead from a sentence's posterior to where the "
        "value is probable, and the best of four decoded candidates is shown."
    )
    typed = gr.Textbox("\n".join(sentences[:4]), label="sentences, one per line", lines=4)
    wanted = gr.Radio(text.values, value=text.values[0], label="what is wanted")
    with gr.Row():
        strength = gr.Slider(1, 64, 16, step=1, label="strength")
        content = gr.Slider(0.05, 2.0, 1.0, step=0.05, label="content")
        seed = _seed()
    button = gr.Button("Edit", variant="primary")
    table = gr.Dataframe(headers=["sentence", "edit"], interactive=False, wrap=True, label="edits")
    _connect(tab, button, with_messages(text.edit), [typed, wanted, strength, content, seed], table)


def _anomaly_tab(text: TextViews, tab: gr.Tab, sentences: list[str]) -> None:
    gr.Markdown(
        "Anomaly scores of a sentence, beside those of sentences sampled from the model. The example is a sample with "
        "its words in reverse order."
    )
    reversed_words = " ".join(reversed(sentences[0].split()))
    sentence, seed = gr.Textbox(reversed_words, label="sentence"), _seed()
    button = gr.Button("Score", variant="primary")
    verdict = gr.Textbox(label="verdict", interactive=False)
    table = gr.Dataframe(interactive=False, label="scores in nats (higher is more anomalous)")

    def show(*arguments: Any) -> tuple[str, Any]:
        words, scores = text.anomaly(*arguments)
        return words, _two_decimals(scores)

    _connect(tab, button, with_messages(show), [sentence, seed], [verdict, table])


def _alarms_tab(detector: DetectorViews, tab: gr.Tab) -> None:
    gr.Markdown(
        "Which of your new texts are unlike ordinary ones, and why. A detector is fitted on the ordinary texts, 30 or "
        "more of them. Words are coloured by their surprise, `-log p` of a word given those before it; hover over one "
        "to read its nats."
    )
    ordinary_texts, new_texts = detector.example()
    label = "ordinary texts, one per line"
    if detector.loaded is not None:
        label += " (leave empty for the loaded detector)"
    with gr.Row():
        ordinary = gr.Textbox(ordinary_texts, label=label, lines=8, max_lines=8)
        new = gr.Textbox(new_texts, label="new texts, one per line", lines=8, max_lines=8)
    button = gr.Button("Find anomalies", variant="primary")
    summary = gr.Textbox(label="summary", interactive=False)
    table = gr.HTML()

    def show(*arguments: Any) -> tuple[str, str]:
        words, alarms = detector.alarms(*arguments)
        return words, _alarm_table(alarms)

    _connect(tab, button, with_messages(show), [ordinary, new], [summary, table])


def _alarm_table(alarms: list[Alarm]) -> str:
    rows = [
        f"<tr><td>{alarm.p_value:.3f}</td><td>{html.escape(alarm.raised_by)}</td><td>{alarm.coloured()}</td></tr>"
        for alarm in alarms
    ]
    head = "<tr><th>p-value</th><th>raised by</th><th>text</th></tr>"
    return f'<table style="width: 100%">{head}{"".join(rows)}</table>'


def _image_tab(images: ImageViews, tab: gr.Tab) -> None:
    gr.Markdown("Images sampled from the model, and images along one chain that samples the prior, with its energy.")
    with gr.Row():
        number = gr.Slider(1, 60, 12, step=1, label="images")
        steps, seed = _steps(images.num_steps), _seed()
    draw = gr.Button("Sample images", variant="primary")
    samples = gr.Gallery(show_label=False, columns=6, height="auto", object_fit="contain")
    run = gr.Button("Run a chain", variant="primary")
    chain = gr.Gallery(show_label=False, columns=6, height="auto", object_fit="contain")
    curve = _energy_curve("step")
    _connect(tab, draw, with_messages(images.sample), [number, steps, seed], samples)
    _connect(tab, run, with_messages(images.chain), [steps, seed], [chain, curve])
