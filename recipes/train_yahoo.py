"""Train a latent space energy-based prior model on Yahoo answers, documents of up to 200 words.

    accelerate launch recipes/train_yahoo.py                                                # rebuilt from the Hub
    accelerate launch recipes/train_yahoo.py --dataset_name path/to/yahoo                   # train.txt, valid.txt, ...
    accelerate launch recipes/train_yahoo.py --dataset_name path/to/yahoo --train_split validation # no train.txt there

From the Hub these are questions with their best answers of community-datasets/yahoo_answers_topics, 100,000 to train
on, 10,000 to validate and 10,000 to test, drawn by a fixed seed: not the documents of the published set. Run it again
and it goes on from its newest checkpoint.
"""

from pathlib import Path

from latent_ebm_text.training.arguments import DataArguments, HubArguments, ModelArguments, TrainingArguments
from latent_ebm_text.training.configuration import parse_recipe_arguments, run_recipe
from latent_ebm_text.training.text import train_text_model

DEFAULTS = Path(__file__).parent / "configs" / "yahoo.yaml"


def main() -> int:
    data_args, model_args, args, hub_args = parse_recipe_arguments(
        (DataArguments, ModelArguments, TrainingArguments, HubArguments), default_config=DEFAULTS, description=__doc__
    )
    return train_text_model(data_args, model_args, args, hub_args)


if __name__ == "__main__":
    run_recipe(main)
