"""Control two attributes together, of which one combination never occurs among the labelled sentences.

    python recipes/control_combination.py --model runs/sst2 --dataset_name data/sst2 --combination label=1,length=long
    python recipes/control_combination.py --model runs/quickstart --combination topic=sports,tense=future

No sentence of the combination has labels, for the model's attributes, for the classifiers of best-of-k, and for the
label model, which is trained on the same sentences as the model with the same labels, and reads no label where there
is none. By default model and label model have seen the combination's sentences without labels. With
`--corpus_without DIR` the corpus without them is written there, to train a model that has never seen any; with
`--unseen` the label model has not either. Writes combination.md, combination.json and combination.png.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from control_harness import Harness, HarnessArguments, Metrics, numbers, plot
from label_model import LabelModel, fit_label_model
from labelled_text import LabelledText

from latent_ebm_text.commands.arguments import DataArguments
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.commands.train_text import prepare
from latent_ebm_text.errors import UsageError
from latent_ebm_text.evaluation.usefulness import require_probes
from latent_ebm_text.training.arguments import option, required


@dataclass(kw_only=True)
class CombinationArguments(HarnessArguments):
    """Combination"""

    combination: str = required("The values that are left out together, `label=positive,length=long`.")
    unseen: bool = option(False, "Whether the model was trained on the corpus without the combination.")
    corpus_without: str | None = option(None, "Folder for the corpus without the combination; nothing else is done.")
    strengths: str = option("2,4,8,16", "Strengths, separated by commas.")
    temperatures: str = option("1,0.8,0.7", "Temperatures of the tokens, separated by commas.")
    best_of: str = option("2,4,8", "Numbers of sentences that best-of-k chooses from, separated by commas.")
    num_samples: int = option(300, "Generated sentences per setting.")
    label_epochs: int = option(12, "Epochs of the label model.")


def samples(harness: Harness, args: CombinationArguments, label_model: LabelModel, wish: dict[str, str]) -> Metrics:
    """Sentences of the combination: the model at every strength, and the baselines."""
    n = args.num_samples
    settings = {"real sentences": harness.real(n), "no control": harness.plain(n)}
    for temperature in numbers(args.temperatures, "temperatures"):
        for strength in numbers(args.strengths, "strengths"):
            name = f"ours at temperature {temperature:g}, w={strength:g}"
            settings[name] = harness.controlled(n, strength, temperature)
    for temperature in numbers(args.temperatures, "temperatures"):
        settings[f"label model, temperature {temperature:g}"] = harness.labelled(n, label_model, temperature)
    for temperature in numbers(args.temperatures, "temperatures"):
        for k in map(int, numbers(args.best_of, "best_of")):
            name = f"best of k at temperature {temperature:g}, k={k}"
            settings[name] = harness.best_of(n, k, temperature)
    return {name: harness.measure(name, generate, [wish]) for name, generate in settings.items()}


def write_corpus(data: LabelledText, without: dict[str, str], folder: Path) -> None:
    """Writes the training and validation sentences without the combination, and all test sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in data.splits.items():
        rows = [row for row in range(len(split)) if name == "test" or not split.has(row, without)]
        lines = [json.dumps({"text": split.texts[row]}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    data_args, args = parse_arguments((DataArguments, CombinationArguments), description=__doc__)
    for name in ("strengths", "temperatures", "best_of"):
        numbers(getattr(args, name), name)
    wish = _combination(args.combination)
    require_probes()
    text = prepare(data_args, args.seed)
    if args.corpus_without is not None:
        write_corpus(LabelledText(text, list(wish), args.label_names), wish, Path(args.corpus_without))
        return
    harness = Harness(args, text, list(wish), without=wish)
    train, own = harness.data.splits["train"], set(harness.own)
    seen = [row for row in range(len(train)) if not (args.unseen and train.has(row, wish))]
    num_left_out = sum(train.has(row, wish) for row in range(len(train)))
    harness.facts.append(
        f"left out: {args.combination}, {num_left_out:,} of {len(train):,} training sentences; {len(own):,} others "
        f"have labels; the rest {'has not been seen' if args.unseen else 'has been seen without labels'}"
    )
    label_model = fit_label_model(
        harness.model.config, harness.rows_of([train.texts[row] for row in seen]),
        [{name: train.labels[name][row] if row in own else None for name in wish} for row in seen],
        {name: harness.data.values(name) for name in wish},
        folder=harness.folder / "label-model", num_epochs=args.label_epochs, seed=args.seed,
    )  # fmt: skip
    rows = samples(harness, args, label_model, wish)
    plot(rows, harness.folder / "combination.png")
    harness.write("combination", {"samples": rows})


def _combination(text: str) -> dict[str, str]:
    parts = [part.split("=") for part in text.split(",")]
    if any(len(part) != 2 for part in parts) or len({part[0] for part in parts}) < 2:
        raise UsageError(
            f"combination must be values of two attributes, such as label=positive,length=long; got {text!r}"
        )
    return {name.strip(): value.strip() for name, value in parts}


if __name__ == "__main__":
    run_command(main)
