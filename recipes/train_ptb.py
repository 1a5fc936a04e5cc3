"""Train a latent space energy-based prior model on Penn Treebank, or on any text.

    accelerate launch recipes/train_ptb.py                                     # the paper's setting, PTB from the Hub
    accelerate launch recipes/train_ptb.py --config recipes/configs/ptb_cpu.yaml --dataset_name path/to/ptb
    accelerate launch recipes/train_ptb.py --config recipes/configs/quickstart.yaml      # no download, a few minutes
    accelerate launch recipes/train_ptb.py --decoder transformer              # or gpt2, or a folder with a causal LM

Run it again and it goes on from its newest checkpoint.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from latent_ebm_text.streams import stream_seed
from latent_ebm_text.training.arguments import DataArguments, ModelArguments, TrainingArguments
from latent_ebm_text.training.configuration import parse_recipe_arguments, run_recipe
from latent_ebm_text.training.models import build_model, load_tokenizer
from latent_ebm_text.training.text import describe_results, finish_text_run, prepare_text, quick_evaluation
from latent_ebm_text.training.trainer import train

PAPER_SETTING = Path(__file__).parent / "configs" / "ptb.yaml"


def main() -> int:
    data_args, model_args, args = parse_recipe_arguments(
        (DataArguments, ModelArguments, TrainingArguments), default_config=PAPER_SETTING, description=__doc__
    )
    torch.set_float32_matmul_precision(args.matmul_precision)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())

    # Data: loaded, tokenised, described, so that nobody is mistaken about what was trained on.
    text = prepare_text(data_args, args.seed, accelerator, load_tokenizer(model_args))
    accelerator.print(text.description)

    # Model: the same initial weights on every process.
    torch.manual_seed(stream_seed(args.seed, "initial weights"))
    model = build_model(model_args, text.tokenizer, data_args.max_length)
    accelerator.print(f"model: {model.num_parameters():,} parameters, {model.config.latent_dim} latent dimensions")

    # Training: from the newest checkpoint, where there is one.
    result = train(
        model,
        text.training_data(args.train_batch_size, args.seed),
        args,
        identity=text.identity(model, args),
        evaluate=quick_evaluation(text, args, accelerator),
        accelerator=accelerator,
    )
    if result.signal is not None:
        accelerator.print(f"stopped by signal {result.signal} after step {result.step}; run again to go on")
        return 128 + result.signal

    # Evaluation, and everything a reader wants to see.
    if accelerator.is_main_process:
        run = {
            "command": " ".join(sys.argv),
            "step": result.step,
            "training_seconds": round(result.seconds, 1),
            "warnings": result.warnings,
        }
        results = finish_text_run(model, text, args, run)
        print(f"\ntrained {result.step} steps in {result.seconds / 60:.1f} min\n{describe_results(results)}\n")
        samples = Path(results["paths"]["samples"]).read_text(encoding="utf-8").splitlines()
        print("\n".join(["16 samples, as they came:", *(f"  {sample}" for sample in samples[:16])]))
        print("\n".join(["", *(f"{name:>8}: {path}" for name, path in results["paths"].items())]))
    return 0


if __name__ == "__main__":
    run_recipe(main)
