"""Time to a validation reconstruction NLL on the embedded corpus: the quick start against the plain short-run recipe.

Ours is `recipes/configs/quickstart.yaml` in the library's trainer. The other is the recipe of the published scripts in
plain PyTorch, from the same initial weights, on the same batches, at the same learning rates: 20 posterior steps of
0.1 and 60 prior steps of 0.4, all from N(0, I), Adam for decoder and prior. Both are judged alike, by the quick
start's posterior sampler on the same sentences; the time that takes is not counted.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from plain import PlainModel
from sizes import Sizes
from timing import row, table

from latent_ebm_text import LatentEBMForTextGeneration
from latent_ebm_text.commands.arguments import DataArguments, TextModelArguments
from latent_ebm_text.commands.parsing import parse_arguments
from latent_ebm_text.commands.train_text import PreparedText, build, prepare, validation_metrics
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.trainer import train

QUICK_START = Path(__file__).parents[1] / "recipes" / "configs" / "quickstart.yaml"
HEADER = ("validation reconstruction NLL, nats per sentence", "short-run recipe, s", "ours, s", "theirs / ours")
Judge = Callable[[], dict[str, float]]


class Stopwatch:
    """Seconds of training until each target was first reached; stops while the model is judged."""

    def __init__(self, targets: tuple[float, ...]) -> None:
        self.reached = dict.fromkeys(targets, math.inf)
        self._started, self._paused = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started - self._paused

    @property
    def arrived(self) -> bool:
        """Whether every target has been reached."""
        return math.inf not in self.reached.values()

    def look(self, judge: Judge) -> dict[str, float]:
        """The judge's figures; takes note of the targets that are reached for the first time."""
        now, seconds = time.perf_counter(), self.seconds
        figures = judge()
        for target, before in self.reached.items():
            if figures["reconstruction_nll"] <= target:
                self.reached[target] = min(before, seconds)
        self._paused += time.perf_counter() - now
        return figures


class _Arrived(Exception):
    """Ends a training whose targets are all reached."""


def learning(sizes: Sizes, repeats: int) -> Iterator[str]:
    """Seconds of training until the reconstruction NLL of validation sentences is first below a target; one run each.

    The quick start may run to its end. The plain recipe may take ten times as long, or `sizes.plain_seconds` if that
    is less; a target it has not reached by then is one that takes it longer than that.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = ["--config", str(QUICK_START), "--output_dir", folder, "--eval_every", str(sizes.eval_every)]
        options += ["--num_sentences", str(sizes.learning_sentences), "--num_epochs", str(sizes.learning_epochs)]
        options += ["--num_eval_examples", str(sizes.eval_sentences)]
        data_args, model_args, args = parse_arguments(
            (DataArguments, TextModelArguments, TrainingArguments), options, description=""
        )
        torch.set_float32_matmul_precision(args.matmul_precision)
        accelerator = Accelerator(cpu=True)
        text = prepare(data_args, args.seed, accelerator)

        def initial_model() -> LatentEBMForTextGeneration:
            return build(model_args, text, args.seed)

        ours = _train_ours(initial_model(), text, args, accelerator, sizes.targets)
        bound = min(sizes.plain_seconds, 10 * ours.seconds)
        theirs = _train_plain(initial_model(), text, args, sizes.targets, bound)
    yield from table(HEADER)
    for target in sizes.targets:
        yield row([f"{target:.1f}", *_compare(theirs.reached[target], ours.reached[target], bound)])


def _compare(theirs: float, ours: float, bound: float) -> tuple[str, str, str]:
    if ours == math.inf:
        return (f"> {bound:.1f}" if theirs == math.inf else f"{theirs:.1f}"), "not reached", "-"
    if theirs == math.inf:
        return f"> {bound:.1f}", f"{ours:.1f}", f"**>= {bound / ours:.1f}**"
    return f"{theirs:.1f}", f"{ours:.1f}", f"**{theirs / ours:.1f}**"


def _train_ours(
    model: LatentEBMForTextGeneration,
    text: PreparedText,
    args: TrainingArguments,
    accelerator: Accelerator,
    targets: tuple[float, ...],
) -> Stopwatch:
    stopwatch = Stopwatch(targets)

    def evaluate(model: LatentEBMForTextGeneration, step: int) -> dict[str, float]:
        figures = stopwatch.look(lambda: validation_metrics(model, text, args))
        if stopwatch.arrived:
            raise _Arrived
        return figures

    data = text.training_data(args.train_batch_size, args.seed)
    with suppress(_Arrived):
        train(model, data, args, identity={}, evaluate=evaluate, accelerator=accelerator)
    return stopwatch


def _train_plain(
    model: LatentEBMForTextGeneration,
    text: PreparedText,
    args: TrainingArguments,
    targets: tuple[float, ...],
    bound: float,
) -> Stopwatch:
    plain = PlainModel(model, padding=model.config.pad_token_id)
    plain.posterior_sampler = {"num_steps": 20, "step_size": 0.1}
    plain.prior_sampler = {"num_steps": 60, "step_size": 0.4}
    optimizers = [
        torch.optim.Adam(plain.decoder.parameters(), lr=args.decoder_learning_rate),
        torch.optim.Adam(plain.tilt.parameters(), lr=args.prior_learning_rate),
    ]
    data = text.training_data(args.train_batch_size, args.seed)
    torch.manual_seed(args.seed)
    stopwatch, step, epoch = Stopwatch(targets), 0, 0
    while True:
        for indices in data.batches.epoch(epoch):
            _plain_step(plain, data.load(indices)["input_ids"], optimizers)
            step += 1
            if step % args.eval_every == 0:
                _copy_weights(plain, model)
                stopwatch.look(lambda: validation_metrics(model, text, args))
            if stopwatch.arrived or stopwatch.seconds >= bound:
                return stopwatch
        epoch += 1


def _plain_step(plain: PlainModel, input_ids: torch.Tensor, optimizers: list[torch.optim.Adam]) -> None:
    batch = len(input_ids)
    start, prior_start = (torch.randn(batch, plain.latent_dim) for _ in range(2))
    latents, prior_latents = plain.sample_posterior(input_ids, start), plain.sample_prior(prior_start)
    for optimizer in optimizers:
        optimizer.zero_grad()
    (plain.decoder.nll(input_ids, latents) / batch).backward()
    (plain.tilt(prior_latents).mean() - plain.tilt(latents).mean()).backward()
    for optimizer in optimizers:
        optimizer.step()


@torch.no_grad()
def _copy_weights(plain: PlainModel, model: LatentEBMForTextGeneration) -> None:
    """The plain model's weights into ours, which judges them; the parameters of both correspond one to one."""
    for theirs, ours in ((plain.decoder, model.decoder), (plain.tilt, model.prior)):
        for source, target in zip(theirs.parameters(), ours.parameters(), strict=True):
            target.copy_(source)
