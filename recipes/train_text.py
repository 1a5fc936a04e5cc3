"""Train a latent space energy-based prior model on any text: a file, a folder, a set of the Hugging Face Hub.

    accelerate launch recipes/train_text.py --dataset_name my_corpus.txt
    accelerate launch recipes/train_text.py --dataset_name path/to/folder --tokenizer word --vocab_size 20000
    accelerate launch recipes/train_text.py --dataset_name allenai/c4 --streaming --num_sentences 1000000 --num_proc 4

The text need not be split into words: the default tokeniser is byte-level BPE, trained on it. Run it again and it goes
on from its newest checkpoint.
"""

from pathlib import Path

from latent_ebm_text.training.arguments import DataArguments, HubArguments, ModelArguments, TrainingArguments
from latent_ebm_text.training.configuration import parse_recipe_arguments, run_recipe
from latent_ebm_text.training.text import train_text_model

DEFAULTS = Path(__file__).parent / "configs" / "text.yaml"


def main() -> int:
    data_args, model_args, args, hub_args = parse_recipe_arguments(
        (DataArguments, ModelArguments, TrainingArguments, HubArguments), default_config=DEFAULTS, description=__doc__
    )
    return train_text_model(data_args, model_args, args, hub_args)


if __name__ == "__main__":
    run_recipe(main)
