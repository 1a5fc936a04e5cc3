"""The page of the demo, made with gradio: its tabs, and the function that each button calls."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, get_args

import gradio as gr
from views import ImageViews, TextViews

from latent_ebm_text.errors import LatentEBMError
from latent_ebm_text.latents.interpolation import PathKind

log = logging.getLogger("demo")
#: Number of sentences that the page shows when it is opened.
NUM_SENTENCES = 8
#: Frames in which a chain appears, and the seconds between them.
FRAMES, FRAME_SECONDS = 12, 0.1
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


def build(text: TextViews, images: ImageViews | None) -> gr.Blocks:
    """The page with one tab per task; every tab opens with a worked example."""
    samples = text.sample(NUM_SENTENCES, text.num_steps, 1.0, 1.0, 0)
    sentences = [sentence or "." for sentence in samples["sentence"]]
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
        with gr.Tab("Anomaly") as tab:
            _anomaly_tab(text, tab, sentences)
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
    return gr.Slider(1, max(200, 2 * default), default, step=1, label="steps of the chain")


def _seed() -> gr.Slider:
    return gr.Slider(0, 1000, 0, step=1, label="seed")


def _table(*headers: str, value: Any = None) -> gr.Dataframe:
    """A table whose last column holds sentences."""
    widths = ["10%"] * (len(headers) - 1)
    widths.append(f"{100 - 10 * len(widths)}%")
    return gr.Dataframe(
        value, headers=list(headers), column_widths=widths, interactive=False, wrap=True, label="sentences"
    )


def _energy_curve(x: str) -> gr.LinePlot:
    return gr.LinePlot(x=x, y="energy", y_title="energy in nats", height=260, label="energy")


def _sample_tab(text: TextViews, samples: Any) -> None:
    gr.Markdown("Sentences sampled from the model: a chain draws a latent from the prior, and the decoder samples from it.")
    with gr.Row():
        number = gr.Slider(1, 64, NUM_SENTENCES, step=1, label="number of sentences")
        steps, seed = _steps(text.num_steps), _seed()
        temperature = gr.Slider(0.1, 2.0, 1.0, step=0.05, label="temperature of the decoder")
        top_p = gr.Slider(0.05, 1.0, 1.0, step=0.05, label="top-p of the decoder")
    button = gr.Button("Sample", variant="primary")
    table = _table("energy", "sentence", value=samples.round(2))

    def show(*arguments: Any) -> Any:
        return text.sample(*arguments).round(2)

    button.click(with_messages(show), [number, steps, temperature, top_p, seed], table)


def _chain_tab(text: TextViews, tab: gr.Tab) -> None:
    gr.Markdown(
        "A chain that starts at a draw from N(0, I) and samples the prior or, given a sentence, the posterior of its "
        "latent. Every step is decoded greedily. The energy is that of the distribution that the chain samples."
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
            yield seen, seen.iloc[::-1].round(2)
            time.sleep(FRAME_SECONDS)

    _connect(tab, button, frames, [sentence, steps, seed], [curve, table])


def _path_tab(text: TextViews, tab: gr.Tab, sentences: list[str]) -> None:
    gr.Markdown("A path between the latents of two sentences, each drawn from its posterior and decoded greedily.")
    with gr.Row():
        start, end = gr.Textbox(sentences[0], label="from"), gr.Textbox(sentences[-1], label="to")
    with gr.Row():
        kinds = [(kind.replace("_", " "), kind) for kind in get_args(PathKind)]
        kind = gr.Radio(kinds, value="spherical", label="path")
        points, seed = gr.Slider(2, 24, 8, step=1, label="sentences on the path"), _seed()
    button = gr.Button("Interpolate", variant="primary")
    table, curve = _table("position", "energy", "sentence"), _energy_curve("position")

    def show(*arguments: Any) -> tuple[Any, Any]:
        path = text.path(*arguments)
        return path.round(2), path

    _connect(tab, button, with_messages(show), [start, end, points, kind, seed], [table, curve])


def _map_tab(text: TextViews, tab: gr.Tab, sentences: list[str]) -> None:
    gr.Markdown(
        "Latents drawn from the prior, on their first two principal components. Hover over a point to read its sentence."
    )
    typed = gr.Textbox(f"{sentences[0]}\n{sentences[-1]}", label="your sentences, one per line (optional)", lines=3)
    with gr.Row():
        number, seed = gr.Slider(10, 1000, 200, step=10, label="number of prior draws"), _seed()
    button = gr.Button("Draw the map", variant="primary")
    plot = gr.ScatterPlot(
        x="x", y="y", color="kind", tooltip=["sentence", "energy"], height=460, label="latents",
        x_title="first principal component", y_title="second principal component",
        color_map={"prior draw": "#0969da", "your sentence": "#bc4c00"},
    )  # fmt: skip
    _connect(tab, button, with_messages(text.map), [number, typed, seed], plot)


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
    _connect(tab, button, with_messages(text.anomaly), [sentence, seed], [verdict, table])


def _image_tab(images: ImageViews, tab: gr.Tab) -> None:
    with gr.Row():
        steps, seed = _steps(images.num_steps), _seed()
        number = gr.Slider(1, 64, 16, step=1, label="number of images")
    draw = gr.Button("Sample images", variant="primary")
    samples = gr.Gallery(label="samples", columns=8, object_fit="contain", height=340)
    run = gr.Button("Run a chain", variant="primary")
    chain = gr.Gallery(label="images along a chain", columns=6, object_fit="contain", height=340)
    curve = _energy_curve("step")
    _connect(tab, draw, with_messages(images.sample), [number, steps, seed], samples)
    _connect(tab, run, with_messages(images.chain), [steps, seed], [chain, curve])
