"""Control an attribute of real text, beside what one would do without a latent.

    python recipes/control_text.py --model runs/sst2 --dataset_name data/sst2 --label_names negative,positive

    python recipes/control_text.py --model runs/quickstart --attribute topic

Half of the training sentences give the model its attribute; the other half train an independent judge, whose own
accuracy on test sentences is printed first, unless the attribute can be read without one. Then sentences of every
value are generated at several strengths, by the model and by baselines; all are judged alike, and so are real
sentences. Writes control.md, control.json and control.png.
"""

from dataclasses import dataclass

import numpy as np
from control_harness import Harness, HarnessArguments, Metrics, numbers, plot
from label_model import LabelModel, fit_label_model

from latent_ebm_text.commands.arguments import DataArguments
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.commands.train_text import prepare
from latent_ebm_text.evaluation.usefulness import require_probes
from latent_ebm_text.latents.prior import GaussianPrior
from latent_ebm_text.models.loading import load_text_model
from latent_ebm_text.training.arguments import option


@dataclass
class ControlArguments(HarnessArguments):
    """Control"""

    attribute: str = option("label", "What is controlled: `label`, `length`, or an attribute of the embedded corpus.")
    gaussian_model: str | None = option(
        None, "Folder of the same model under a Gaussian prior (prior_type gaussian); by default the model itself "
        "with its energy left out.",
    )  # fmt: skip
    strengths: str = option("1,2,4,8", "Strengths, separated by commas.")
    temperatures: str = option("1,0.8,0.6", "Temperatures of the tokens, separated by commas.")
    num_samples: int = option(200, "Generated sentences per value and setting.")
    label_epochs: int = option(12, "Epochs of the label model.")


def samples(harness: Harness, args: ControlArguments, label_model: LabelModel) -> Metrics:
    """Generation: the model at every strength, and the baselines."""
    n, rows = args.num_samples, Metrics()
    wishes = [{args.attribute: value} for value in harness.data.values(args.attribute)]
    strengths = numbers(args.strengths, "strengths")

    rows["real sentences"] = harness.measure("real sentences", harness.real(n), wishes)
    rows["no control"] = harness.measure("no control", harness.plain(n), wishes)
    for temperature in numbers(args.temperatures, "temperatures"):
        for strength in strengths:
            name = f"ours at temperature {temperature:g}, w={strength:g}"
            rows[name] = harness.measure(name, harness.controlled(n, strength, temperature), wishes)
        name = f"label model, temperature {temperature:g}"
        rows[name] = harness.measure(name, harness.labelled(n, label_model, temperature), wishes)

    # Best of k: as many sentences as are made and read in the time of control, at least two.
    times = [seconds for name, seconds in harness.seconds.items() if name.startswith("ours")]
    k = max(2, round(float(np.median(times)) / harness.seconds["no control"]))
    rows[f"best of {k}"] = harness.measure(f"best of {k}", harness.best_of(n, k), wishes)

    # The setting of LatentOps (Liu et al., 2022): a Gaussian prior under a classifier of the same kind.
    energy, name, other = harness.model.prior, "Gaussian prior", harness.model
    if args.gaussian_model is None:
        name, harness.model.prior = "energy left out", GaussianPrior(harness.model.config.latent_dim)
    else:
        other, tokenizer = load_text_model(args.gaussian_model)
        report = harness.fit(other, tokenizer)[args.attribute]
        harness.facts.append(
            f"classifier of {args.attribute} in latents of the model with a Gaussian prior: accuracy "
            f"{report['accuracy']:.1%}"
        )
    for strength in strengths:
        generate = harness.controlled(n, strength, model=other)
        rows[f"{name}, w={strength:g}"] = harness.measure(f"{name}, w={strength:g}", generate, wishes)
    harness.model.prior = energy
    return rows


def main() -> None:
    data_args, args = parse_arguments((DataArguments, ControlArguments), description=__doc__)
    for name in ("strengths", "temperatures"):
        numbers(getattr(args, name), name)
    require_probes()
    harness = Harness(args, prepare(data_args, args.seed), [args.attribute])
    train = harness.data.splits["train"]
    label_model = fit_label_model(
        harness.model.config, harness.rows_of(train.texts), train.rows(),
        {args.attribute: harness.data.values(args.attribute)},
        folder=harness.folder / "label-model", num_epochs=args.label_epochs, seed=args.seed,
    )  # fmt: skip
    rows = samples(harness, args, label_model)
    plot(rows, harness.folder / "control.png")
    harness.write("control", {"samples": rows})


if __name__ == "__main__":
    run_command(main)
