"""Measure a trained text model: likelihoods, use of the latent, samples, FPPL and RPPL, each with its interval.

    python recipes/evaluate_text.py --model runs/ptb/model --dataset_name path/to/ptb
    python recipes/evaluate_text.py --model runs/ptb/model --dataset_name path/to/ptb --evaluator quick
    accelerate launch recipes/evaluate_text.py --model runs/ptb/model --dataset_name path/to/ptb  # on all devices

Prints a table with the definition of every metric, and writes it as JSON and Markdown, with plots. The evaluator, a
language model, is trained once per dataset and kept in --cache_dir; the full one takes an hour on a CPU, and as long
again for the RPPL of every model.
"""

from latent_ebm_text.commands.arguments import CorpusArguments
from latent_ebm_text.commands.evaluate_text import TextEvaluationArguments, run_text_evaluation
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.running import run_command


def main() -> None:
    data_args, args = parse_arguments((CorpusArguments, TextEvaluationArguments), description=__doc__)
    for path in run_text_evaluation(data_args, args):
        print(path)


if __name__ == "__main__":
    run_command(main)
