"""The model card, generated from what was measured, so that it claims no more and no less."""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader

from latent_ebm_text.errors import DataError
from latent_ebm_text.hub.corpora import CorpusFacts, corpus_facts
from latent_ebm_text.hub.folders import TEXT, model_kind, read_json
from latent_ebm_text.hub.metrics import CardMetric, card_metrics

#: The plots and grids of images that a card shows if the run or its evaluation has made them, with their captions.
PLOTS = {
    "training.png": "The course of the training",
    "evaluation.png": "The evaluation",
    "chains.png": "Chains of the prior",
    "samples.png": "Samples, none picked",
    "reconstructions.png": "Test images above, their reconstructions below",
}
#: Number of generated sentences that a card shows.
NUM_SAMPLES = 16
_MARK = re.compile(r"\n*<!-- Written by latent_ebm_text\. digest: (\w+) -->\s*$")
_FRONT_MATTER = re.compile(r"^---\n(.*?)\n---\n(.*)$", re.DOTALL)
_TEXT_EXAMPLE = """\
from transformers import AutoTokenizer
from latent_ebm_text import LatentEBMForTextGeneration

model = LatentEBMForTextGeneration.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
print("\\n".join(tokenizer.batch_decode(model.generate(num_samples=4), skip_special_tokens=True)))"""
_IMAGE_EXAMPLE = """\
from latent_ebm_text import LatentEBMForImageGeneration

model = LatentEBMForImageGeneration.from_pretrained("{name}")
for number, image in enumerate(model.generate(num_samples=4, output_type="pil")):
    image.save(f"sample-{{number}}.png")"""


def build_card(
    model_folder: Path,
    model_id: str,
    *,
    run: Path | None = None,
    evaluation: Path | None = None,
    remote_code: bool = False,
) -> str:
    """The card of a model, in Markdown with its metadata.

    Args:
        model_folder: The folder of the model.
        model_id: The name to load it by: its id on the Hub, or a folder.
        run: The folder of the run that made it, with `results.json` and `samples.txt`.
        evaluation: The folder of its evaluation, with `evaluation.json`.
        remote_code: Whether the repository holds the code that loads it as remote code.

    Raises:
        DataError: If one of these files is damaged, or the evaluation used other data than the run.
    """
    is_text, config = model_kind(model_folder) == TEXT, read_json(model_folder / "config.json")
    record = read_json(run / "results.json") if run else {}
    evaluated = read_json(evaluation / "evaluation.json") if evaluation else {}
    dataset, settings = record.get("dataset", {}), record.get("settings", {})
    fingerprint = dataset.get("fingerprint", "")
    facts = corpus_facts(dataset.get("name", ""), fingerprint)
    measured_on = evaluated.get("facts", {}).get("fingerprint")
    if fingerprint and measured_on and measured_on != fingerprint:
        raise DataError(
            f"{evaluation} was made on other data (fingerprint {measured_on}) than the run ({fingerprint}): leave it "
            "out of the card, or evaluate on the run's data"
        )
    metrics = card_metrics(record, evaluated)
    samples = _samples(evaluation, run) if is_text else []
    folders = [folder for folder in (evaluation, run) if folder]
    environment = Environment(
        loader=PackageLoader("latent_ebm_text.hub", ""), trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    text = environment.get_template("card.md.jinja").render(
        metadata=_metadata(model_id, is_text, facts, metrics, config, fingerprint),
        title=model_id.rstrip("/").split("/")[-1],
        is_text=is_text,
        description=_describe(config, is_text),
        model_id=model_id,
        example=(_TEXT_EXAMPLE if is_text else _IMAGE_EXAMPLE).format(name=model_id),
        remote_code=remote_code,
        data=[line.removeprefix("data: ").strip() for line in record.get("data", ["not recorded"])],
        facts=facts,
        metrics=metrics,
        definitions={metric.name: metric.definition for metric in reversed(metrics)},
        can_verify=is_text and bool(settings or evaluated.get("settings")),
        dataset_name=facts.name or settings.get("dataset_name", "path/to/the/data"),
        verdict=read_json(evaluation / "chains.json").get("verdict") if evaluation else None,
        samples=samples,
        sampling=evaluated.get("facts", {}).get("sampling") or "ancestral sampling at temperature 1",
        plots={
            name: caption for name, caption in PLOTS.items() if any((folder / name).is_file() for folder in folders)
        },
        record=record,
        training=_describe_training(record, evaluated),
        settings=yaml.safe_dump(settings, sort_keys=False).rstrip() if settings else "",
        limits=_limits(record, metrics, is_text),
    )
    home = str(Path.home())
    return sign(text if home == "/" else text.replace(f"{home}/", "~/"))


# -------- whether a card was edited by hand


def sign(card: str) -> str:
    """The card with a mark at its end, by which a later edit is recognised."""
    card = _MARK.sub("", card).rstrip()
    return f"{card}\n\n<!-- Written by latent_ebm_text. digest: {_digest(card)} -->\n"


def is_edited(card: str) -> bool:
    """Whether somebody else wrote or changed a card: it has no mark, or one that does not fit its content."""
    found = _MARK.search(card.replace("\r\n", "\n"))
    return found is None or found[1] != _digest(_MARK.sub("", card.replace("\r\n", "\n")))


def _digest(card: str) -> str:
    """A hash of what the card says, whatever the layout of its metadata, which tools of the Hub change."""
    parts = _FRONT_MATTER.match(card.strip() + "\n")
    metadata, body = (yaml.safe_load(parts[1]), parts[2]) if parts else (None, card)
    content = json.dumps(metadata, sort_keys=True, default=str) + body.strip()
    return hashlib.sha256(content.encode()).hexdigest()[:16]


# -------- the parts of a card


def _metadata(
    model_id: str,
    is_text: bool,
    facts: CorpusFacts,
    metrics: list[CardMetric],
    config: dict[str, Any],
    fingerprint: str,
) -> str:
    task = "text-generation" if is_text else "unconditional-image-generation"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=facts.hub_id or facts.title,
            dataset_name=facts.title,
            dataset_split=metric.split,
            dataset_args={"fingerprint": fingerprint} if fingerprint else None,
            metric_type=metric.slug,
            metric_name=metric.name,
            metric_value=_rounded(metric.value),
            metric_args={"interval_95": [_rounded(bound) for bound in metric.interval_95], "n": metric.n},
        )
        for metric in metrics
        if not metric.is_of_real_data
    ]
    base_model = (config.get("decoder_config") or {}).get("_name_or_path")
    data = ModelCardData(
        language=facts.language,
        license=facts.licence,
        license_name="see-the-section-on-data" if facts.licence == "other" else None,
        library_name="latent_ebm_text",
        pipeline_tag=task,
        tags=[
            "energy-based-model",
            "latent-variable-model",
            "langevin-dynamics",
            *(["text"] if is_text else ["image"]),
        ],
        datasets=[facts.hub_id] if facts.hub_id else None,
        base_model=base_model if base_model and not Path(base_model).exists() else None,
        model_name=model_id.rstrip("/").split("/")[-1],
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _describe(config: dict[str, Any], is_text: bool) -> str:
    dimensions = config.get("latent_dim", 32 if is_text else 100)
    prior = "a learned energy" if config.get("prior_type", "energy") == "energy" else "N(0, I)"
    latent = f"a latent of {dimensions} dimensions, whose prior is {prior}"
    if not is_text:
        size, channels = config.get("image_size", 32), config.get("num_channels", 3)
        return f"a convolutional network decodes images of {size} x {size} x {channels} from {latent}."
    kind = config.get("decoder_type", "lstm")
    decoder = "an LSTM" if kind == "lstm" else f"a {kind.replace('_', ' ')}"
    return f"{decoder} over a vocabulary of {config.get('vocab_size', 10_000):,} decodes {latent}."


def _describe_training(record: dict[str, Any], evaluated: dict[str, Any]) -> list[str]:
    lines = []
    if "step" in record:
        memory = f", peak memory {record['peak_memory_gib']} GiB" if "peak_memory_gib" in record else ""
        lines.append(f"{record['step']:,} steps in {record['training_seconds'] / 60:.1f} minutes{memory}")
    lines += [f"{name}: {value}" for name, value in record.get("environment", {}).items() if value is not None]
    if evaluated:
        facts = evaluated["facts"]
        lines.append(f"evaluation: `{facts['command']}`, {facts.get('wall time', 'time not recorded')}")
    return lines


def _limits(record: dict[str, Any], metrics: list[CardMetric], is_text: bool) -> list[str]:
    limits = [
        "The model was trained once, with one seed: the intervals cover the choice of test data, not that of the seed."
    ]
    by_name = {metric.name: metric for metric in metrics if metric.split == "test"}
    if is_text and {"reconstruction NLL", "NLL with z averaged out"} <= by_name.keys():
        own, averaged = (by_name[name].value for name in ("reconstruction NLL", "NLL with z averaged out"))
        limits.append(
            f"A sentence costs {own:.1f} nats with a latent of its own and {averaged:.1f} with the latents of others "
            "averaged out; the difference is what the latent tells."
        )
    limits += [f"The training warned: {warning}." for warning in record.get("warnings", [])]
    limits += [f"{metric.name}: {metric.warning}." for metric in metrics if metric.warning]
    if is_text:
        limits += [
            "The model generates single sentences or short texts like those of its corpus. It follows no "
            "instructions, knows no facts, and repeats the biases of its corpus. Samples were not filtered.",
            "NLLs and perplexities can be compared only on the same data and with the same tokenizer.",
        ]
    else:
        limits.append(
            "The model generates images like those of its data, with the biases of these. Nothing was filtered."
        )
    return limits


def _samples(evaluation: Path | None, run: Path | None) -> list[str]:
    for folder in (evaluation, run):
        if folder and (folder / "samples.txt").is_file():
            with (folder / "samples.txt").open(encoding="utf-8") as file:
                return [
                    line.rstrip("\n").replace("```", "'''") for _, line in zip(range(NUM_SAMPLES), file, strict=False)
                ]
    return []


def _rounded(value: float) -> float:
    return float(f"{value:.6g}") if math.isfinite(value) else value
