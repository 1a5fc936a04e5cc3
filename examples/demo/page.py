"""The page of the demo, made with gradio: what is on it, and where its buttons lead."""

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
#: Pictures of a chain on its way, and the seconds between them.
FRAMES, FRAME_SECONDS = 12, 0.1
SYSTEM_FONTS = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def with_messages(function: Callable[..., Any]) -> Callable[..., Any]:
    """Whatever goes wrong becomes a message on the page; what was not foreseen goes to the log as well."""

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except LatentEBMError as error:
            raise gr.Error(str(error), print_exception=False) from error
        except Exception as error:
            log.exception("%s failed", function.__name__)
            raise gr.Error("This went wrong; the log of the demo says where.", print_exception=False) from error

    return run


def build(text: TextViews, images: ImageViews | None) -> gr.Blocks:
    """The page, one tab for each thing to do."""
    with gr.Blocks(title="Latent energy-based models", analytics_enabled=False) as page:
        gr.Markdown("# A latent space with a learned energy\nLow energy means high probability; energies are in nats.")
        with gr.Tab("Sample"):
            _sample_tab(text)
        with gr.Tab("Chain"):
            _chain_tab(text)
        with gr.Tab("Interpolate"):
            _path_tab(text)
        with gr.Tab("Map"):
            _map_tab(text)
        with gr.Tab("Anomaly"):
            _anomaly_tab(text)
        with gr.Tab("Images"):
            if images is None:
                gr.Markdown("No image model was given. `--image_model runs/quickstart-images/model` names one.")
            else:
                _image_tab(images)
    return page


def _steps(default: int) -> gr.Slider:
    return gr.Slider(1, max(200, 2 * default), default, step=1, label="steps of the chain")


def _seed() -> gr.Slider:
    return gr.Slider(0, 1000, 0, step=1, label="seed")


def _table(*headers: str) -> gr.Dataframe:
    """The last column holds sentences."""
    widths = ["10%"] * (len(headers) - 1)
    widths.append(f"{100 - 10 * len(widths)}%")
    return gr.Dataframe(headers=list(headers), column_widths=widths, interactive=False, wrap=True, label="sentences")


def _energy_curve(x: str) -> gr.LinePlot:
    return gr.LinePlot(x=x, y="energy", y_title="energy in nats", height=260, label="energy")


def _sample_tab(text: TextViews) -> None:
    with gr.Row():
        steps, seed = _steps(text.num_steps), _seed()
        temperature = gr.Slider(0.1, 2.0, 1.0, step=0.05, label="temperature of the words")
        top_p = gr.Slider(0.05, 1.0, 1.0, step=0.05, label="top-p of the words")
    number = gr.Slider(1, 64, 12, step=1, label="sentences")
    button, table = gr.Button("Sample", variant="primary"), _table("energy", "sentence")

    def show(*arguments: Any) -> Any:
        return text.sample(*arguments).round(2)

    button.click(with_messages(show), [number, steps, temperature, top_p, seed], table)


def _chain_tab(text: TextViews) -> None:
    gr.Markdown("A chain from N(0, I) to the prior or, with a sentence, to that sentence's posterior.")
    sentence = gr.Textbox(label="sentence (empty: the prior's chain)")
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

    button.click(frames, [sentence, steps, seed], [curve, table])


def _path_tab(text: TextViews) -> None:
    with gr.Row():
        start, end = gr.Textbox(label="from"), gr.Textbox(label="to")
    with gr.Row():
        kind = gr.Radio(list(get_args(PathKind)), value="spherical", label="path")
        points, seed = gr.Slider(2, 24, 8, step=1, label="sentences on the path"), _seed()
    button = gr.Button("Interpolate", variant="primary")
    table, curve = _table("position", "energy", "sentence"), _energy_curve("position")

    def show(*arguments: Any) -> tuple[Any, Any]:
        path = text.path(*arguments)
        return path.round(2), path

    button.click(with_messages(show), [start, end, points, kind, seed], [table, curve])


def _map_tab(text: TextViews) -> None:
    gr.Markdown("Prior draws on the two directions that they vary most in; hover over one to read its sentence.")
    sentences = gr.Textbox(label="your sentences, one a line (may be empty)", lines=3)
    with gr.Row():
        number, seed = gr.Slider(10, 1000, 200, step=10, label="prior draws"), _seed()
    button = gr.Button("Draw the map", variant="primary")
    plot = gr.ScatterPlot(
        x="x", y="y", color="kind", tooltip=["sentence", "energy"], height=460, label="latents",
        color_map={"prior draw": "#0969da", "typed": "#bc4c00"},
    )  # fmt: skip
    button.click(with_messages(text.map), [number, sentences, seed], plot)


def _anomaly_tab(text: TextViews) -> None:
    sentence, seed = gr.Textbox(label="sentence"), _seed()
    button = gr.Button("Score", variant="primary")
    verdict = gr.Textbox(label="verdict", interactive=False)
    table = gr.Dataframe(interactive=False, label="scores in nats, higher: more anomalous")
    button.click(with_messages(text.anomaly), [sentence, seed], [verdict, table])


def _image_tab(images: ImageViews) -> None:
    with gr.Row():
        steps, seed = _steps(images.num_steps), _seed()
        number = gr.Slider(1, 64, 16, step=1, label="images")
    with gr.Row():
        draw, run = gr.Button("Sample images", variant="primary"), gr.Button("Run an image chain")
    gallery = gr.Gallery(label="images", columns=8, object_fit="contain", height=340)
    curve = _energy_curve("step")
    draw.click(with_messages(images.sample), [number, steps, seed], gallery)
    run.click(with_messages(images.chain), [steps, seed], [gallery, curve])
