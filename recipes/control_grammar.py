"""Control attributes of generated sentences with classifiers of latents, on a saved model of the embedded corpus.

    python recipes/control_grammar.py --model runs/quickstart/model

Trains nothing but the classifiers, on posterior draws of labelled sentences, and saves them. Then samples latents from
`p(z) p(c | z)^w` for every value of every attribute and several weights w, decodes them, and prints how many sentences
have what was asked for beside how many are still grammatical.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import tqdm
from attribute_metrics import AttributeReader, Wish, control_metrics, control_table

from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.data.newswire import newswire_grammar
from latent_ebm_text.errors import UsageError
from latent_ebm_text.latents import Control, LatentClassifier, fit_classifier
from latent_ebm_text.latents.rng import derived_generator
from latent_ebm_text.latents.samplers import sampler_from_dict
from latent_ebm_text.models.loading import load_text_model
from latent_ebm_text.training.arguments import option, required

TOGETHER = {
    "topic=sports and tense=future": [Wish("topic", "sports"), Wish("tense", "future")],
    "topic=weather and number=plural and sentiment=good": [
        Wish("topic", "weather"), Wish("number", "plural"), Wish("sentiment", "good")
    ],
    "not topic=markets": [Wish("topic", "markets", negated=True)],
    "topic=technology and not sentiment=good": [
        Wish("topic", "technology"), Wish("sentiment", "good", negated=True)
    ],
}  # fmt: skip


@dataclass
class ControlArguments:
    """Control"""

    model: str = required("Folder of a model of the embedded corpus and its tokenizer.")
    output_dir: str = option("runs/control", "Folder of the classifiers and of the table.")
    weights: str = option("1,2,4,8", "Weights w, separated by commas.")
    num_labelled: int = option(4000, "Labelled sentences that the classifiers are fitted to.")
    num_draws: int = option(4, "Posterior draws of each.")
    num_samples: int = option(100, "Generated sentences per value of an attribute.")
    num_steps: int = option(100, "Steps of the chains, of the size of the prior's own.")
    batch_size: int = option(256, "Sentences a batch.")
    seed: int = option(0, "Seed of all draws.")


def main() -> None:
    (args,) = parse_arguments((ControlArguments,), description=__doc__)
    try:
        weights = [float(weight) for weight in args.weights.split(",")]
    except ValueError as error:
        raise UsageError(f"weights must be numbers separated by commas, got {args.weights!r}") from error
    folder, grammar = Path(args.output_dir), newswire_grammar()
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_text_model(args.model)
    words = grammar.vocabulary()
    missing = set(words) - set(tokenizer.get_vocab())
    if len(missing) > len(words) / 10:  # a small corpus lacks a few rare ones
        raise UsageError(
            f"{args.model} is no model of the embedded corpus: it lacks {len(missing)} of its {len(words)} words"
        )

    # Classifiers, from posterior draws of labelled sentences that no split of the corpus holds.
    labelled = grammar.sample(args.num_labelled, (args.seed, 100))
    draws = model.posterior_draws(
        [sentence.text for sentence in labelled], tokenizer=tokenizer, num_draws=args.num_draws,
        batch_size=args.batch_size, generator=derived_generator(args.seed, "labelled", device=model.device),
        progress=True,
    )  # fmt: skip
    classifiers: dict[str, LatentClassifier] = {}
    for attribute in grammar.attributes:
        labels = [sentence.attributes[attribute.name] for sentence in labelled]
        classifiers[attribute.name] = classifier = fit_classifier(attribute.name, draws, labels, seed=args.seed)
        classifier.save_pretrained(folder / "classifiers" / attribute.name)
        report = classifier.report
        low, high = report["accuracy_interval_95"]
        print(
            f"{attribute.name}: accuracy {report['accuracy']:.1%} [{low:.1%}, {high:.1%}] on {report['n']} held out "
            f"(commonest class {report['commonest_class_accuracy']:.1%}), calibration error "
            f"{report['calibration_error']:.3f}, {report['uncalibrated_error']:.3f} before calibration"
        )

    # Generates and judges sentences for every requested attribute.
    sampler = sampler_from_dict({**model.config.prior_sampler, "num_steps": args.num_steps})
    reader = AttributeReader(grammar, labelled)
    single = [[Wish(name, value)] for name, classifier in classifiers.items() for value in classifier.classes]

    def generate(wishes: list[Wish], weight: float) -> list[str]:
        purpose = f"control {weight} {' '.join(map(str, wishes))}"
        generator = derived_generator(args.seed, purpose, device=model.device)
        if weight == 0:
            latents = model.sample_prior(args.num_samples, sampler=sampler, generator=generator).latents
        else:
            controls = [Control(classifiers[w.attribute], w.value, weight, w.negated) for w in wishes]
            latents = model.sample_controlled(controls, args.num_samples, sampler=sampler, generator=generator).latents
        return tokenizer.batch_decode(model.generate(latents=latents, generator=generator), skip_special_tokens=True)

    rows, samples = {}, []
    bar = tqdm(total=(len(single) + len(TOGETHER)) * (len(weights) + 1), desc="generating")
    for weight in [0.0, *weights]:
        groups = {f"each attribute, w={weight:g}": single}
        groups |= {
            f"{name}, each value, w={weight:g}": [[Wish(name, value)] for value in classifier.classes]
            for name, classifier in classifiers.items()
        }
        texts = {}
        for wishes in [*single, *TOGETHER.values()]:
            texts[str(wishes)] = generate(wishes, weight)
            bar.update()
        groups |= {f"{name}, w={weight:g}": [wishes] for name, wishes in TOGETHER.items()}
        for name, members in groups.items():
            generated = [text for wishes in members for text in texts[str(wishes)]]
            wanted = [wishes for wishes in members for _ in texts[str(wishes)]]
            rows[name] = control_metrics(generated, wanted, grammar, reader)
        samples += [f"{name}, w={weight:g}: {texts[str(wishes)][0]}" for name, wishes in TOGETHER.items()]
    bar.close()

    held_out = grammar.sample(1000, (args.seed, 101))
    agreement = {
        name: sum(reader.by_words(s.text, name) == s.attributes[name] for s in held_out) / len(held_out)
        for name in classifiers
    }
    facts = [
        f"command: {' '.join(sys.argv)}",
        "the reading by words agrees with the parser on 1,000 sentences of the language: "
        + ", ".join(f"{name} {share:.1%}" for name, share in agreement.items()),
    ]
    table = "\n".join([*(f"- {fact}" for fact in facts), "", control_table(rows), "", *(f"    {s}" for s in samples)])
    (folder / "control.md").write_text(table + "\n", encoding="utf-8")
    written = {name: {figure: m.to_dict() for figure, m in figures.items()} for name, figures in rows.items()}
    written = {"facts": facts, "rows": written, "classifiers": {n: c.report for n, c in classifiers.items()}}
    (folder / "control.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table}\n\n{folder / 'control.md'}\n{folder / 'control.json'}\n{folder / 'classifiers'}")


if __name__ == "__main__":
    run_command(main)
