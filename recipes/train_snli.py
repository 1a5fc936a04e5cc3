"""Train a latent space energy-based prior model on the sentences of SNLI.

    accelerate launch recipes/train_snli.py                                                 # rebuilt from the Hub
    accelerate launch recipes/train_snli.py --dataset_name path/to/snli                     # train.txt, valid.txt, ...
    accelerate launch recipes/train_snli.py --dataset_name path/to/snli --train_split validation   # no train.txt there

From the Hub these are the unique premises and hypotheses of stanfordnlp/snli, 100,000 to train on, 10,000 to validate
and 10,000 to test, drawn by a fixed seed: not the sentences of the published down-sample. Run it again and it goes on
from its newest checkpoint.
"""

from pathlib import Path

from latent_ebm_text.training.arguments import DataArguments, HubArguments, ModelArguments, TrainingArguments
from latent_ebm_text.training.configuration import parse_recipe_arguments, run_recipe
from latent_ebm_text.training.text import train_text_model

DEFAULTS = Path(__file__).parent / "configs" / "snli.yaml"


def main() -> int:
    data_args, model_args, args, hub_args = parse_recipe_arguments(
        (DataArguments, ModelArguments, TrainingArguments, HubArguments), default_config=DEFAULTS, description=__doc__
    )
    return train_text_model(data_args, model_args, args, hub_args)


if __name__ == "__main__":
    run_recipe(main)
