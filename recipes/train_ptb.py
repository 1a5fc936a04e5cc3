"""Train a latent space energy-based prior model on Penn Treebank, or on any text.

    accelerate launch recipes/train_ptb.py                                     # the paper's setting, PTB from the Hub
    accelerate launch recipes/train_ptb.py --config recipes/configs/ptb_cpu.yaml --dataset_name path/to/ptb
    accelerate launch recipes/train_ptb.py --config recipes/configs/quickstart.yaml      # no download, a few minutes
    accelerate launch recipes/train_ptb.py --decoder transformer              # or gpt2, or a folder with a causal LM

Run it again and it goes on from its newest checkpoint.
"""

from pathlib import Path

from latent_ebm_text.training.arguments import DataArguments, HubArguments, ModelArguments, TrainingArguments
from latent_ebm_text.training.configuration import parse_recipe_arguments, run_recipe
from latent_ebm_text.training.text import train_text_model

PAPER = Path(__file__).parent / "configs" / "ptb.yaml"


def main() -> int:
    data_args, model_args, args, hub_args = parse_recipe_arguments(
        (DataArguments, ModelArguments, TrainingArguments, HubArguments),
        default_config=PAPER,
        description=__doc__,
    )
    return train_text_model(data_args, model_args, args, hub_args)


if __name__ == "__main__":
    run_recipe(main)
