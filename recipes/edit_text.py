"""Edit an attribute of real text, beside what one would do without a latent.

    python recipes/edit_text.py --model runs/sst2 --dataset_name data/sst2 --label_names negative,positive

The corpus has a column of labels. Half of its training sentences give the model its attribute; the other half train
an independent judge, whose own accuracy on test sentences is printed first. Then test sentences are edited to have
another value, by the model and by baselines; all are judged alike. Writes edits.md, with the first edits in words, and
edits.json.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from control_harness import Harness, HarnessArguments, Metrics, numbers
from labelled_text import LABEL
from text_judges import delete_words

from latent_ebm_text.commands.arguments import DataArguments
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command
from latent_ebm_text.commands.train_text import prepare
from latent_ebm_text.data.embeddings import embed_sentences
from latent_ebm_text.evaluation.usefulness import require_probes
from latent_ebm_text.training.arguments import option


@dataclass
class EditArguments(HarnessArguments):
    """Editing"""

    strengths: str = option("4,16,64", "Strengths, separated by commas.")
    num_edits: int = option(200, "Sentences that are edited.")
    split: str = option("test", "Split of these sentences; validation to choose settings by.")


class Editing:
    """Edits of some sentences, by the model and by baselines, and what the judges say of them.

    Args:
        harness: The models and the judges.
        args: The arguments.
    """

    def __init__(self, harness: Harness, args: EditArguments) -> None:
        self.harness, self.args, self.rows = harness, args, Metrics()
        split, self.values = harness.data.splits[args.split], harness.data.values(LABEL)
        self.sources, labels = split.texts[: args.num_edits], split.labels[LABEL][: args.num_edits]
        self.targets = [self.values[(self.values.index(label) + 1) % len(self.values)] for label in labels]

    def measure(self, name: str, edit: Callable[[list[str], str], list[str]]) -> list[str]:
        """Edits the sentences, value by value, and measures the result."""
        started, texts = time.perf_counter(), [""] * len(self.sources)
        for target in self.values:
            places = [place for place, own in enumerate(self.targets) if own == target]
            for place, new in zip(places, edit([self.sources[i] for i in places], target), strict=True):
                texts[place] = new
        self.harness.seconds[name] = (time.perf_counter() - started) / len(self.sources)
        wanted = [{LABEL: target} for target in self.targets]
        self.rows[name] = found = self.harness.judges.edit_metrics(self.sources, texts, wanted)
        print(f"{name}: {', '.join(f'{key} {value:.3g}' for key, value in found.items())}", flush=True)
        return texts

    def ours(self, strength: float) -> Callable[[list[str], str], list[str]]:
        """The model's edits."""

        def edit(texts: list[str], target: str) -> list[str]:
            harness = self.harness
            edits = harness.model.edit(
                texts, attributes={LABEL: target}, strength=strength, tokenizer=harness.tokenizer,
                generator=harness.generator(f"edit {strength} {target}"),
            )  # fmt: skip
            return harness.decode(edits.best)

        return edit

    def retrieval(self, texts: list[str], target: str) -> list[str]:
        """The nearest labelled sentences with the value."""
        harness = self.harness
        places = [place for place, label in enumerate(harness.own_labels[LABEL]) if label == target]
        nearest = (embed_sentences(texts) @ harness.own_embeddings[places].T).argmax(axis=1)
        return [harness.own_texts[places[place]] for place in nearest]

    def ranked_retrieval(self, texts: list[str], target: str) -> list[str]:
        """Labelled sentences, ranked by their similarity times a classifier of the same labels."""
        harness = self.harness
        probs = harness.classifiers[LABEL](harness.own_texts, harness.own_embeddings, target)
        best = ((embed_sentences(texts) @ harness.own_embeddings.T) * probs).argmax(axis=1)
        return [harness.own_texts[place] for place in best]

    def word_deletion(self, texts: list[str], target: str) -> list[str]:
        """The sentences without the few words that speak most against the value."""
        return [delete_words(text, self.harness.classifiers[LABEL], target) for text in texts]


def main() -> None:
    data_args, args = parse_arguments((DataArguments, EditArguments), description=__doc__)
    strengths = numbers(args.strengths, "strengths")
    require_probes()
    harness = Harness(args, prepare(data_args, args.seed), [LABEL])
    editing = Editing(harness, args)
    editing.measure("unchanged", lambda texts, target: texts)
    made = [editing.measure(f"ours, w={strength:g}", editing.ours(strength)) for strength in strengths]
    editing.measure("retrieval", editing.retrieval)
    editing.measure("retrieval, ranked", editing.ranked_retrieval)
    editing.measure("word deletion", editing.word_deletion)
    shown = list(zip(editing.sources, editing.targets, made[len(made) // 2], strict=True))[:20]
    head = [f"The first edits, w={strengths[len(made) // 2]:g}:", "", "| source | wanted | edit |", "|---|---|---|"]
    lines = [*head, *(f"| {source} | {target} | {new} |" for source, target, new in shown)]
    harness.write("edits", {"edits": editing.rows}, lines)


if __name__ == "__main__":
    run_command(main)
