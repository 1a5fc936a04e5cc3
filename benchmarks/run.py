"""How much faster the library is than the same model in plain PyTorch, on this machine.

    python benchmarks/run.py                                       # everything at the paper's PTB size: many minutes
    python benchmarks/run.py --only posterior-gradient --threads 2
    python benchmarks/run.py --quick                               # toy sizes: a smoke test, its ratios mean nothing

Both implementations (`plain.py` holds the other one) start from the same weights, words and noise. Each case first
compares their results and then times them in turn, in one process. Prints a Markdown table; exits with 1 if results
disagree. The comparison is made at the precision `highest`: below it both may round, each in its own way.

The arithmetic floor is the time of the necessary matrix products alone, each measured at its own shape with `torch.mm`
at the same precision: what would remain if all else were free. Faster products lower it.
"""

from __future__ import annotations

import argparse
import itertools
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from plain import PlainModel
from torch import Tensor

from latent_ebm_text import LatentEBMForTextGeneration, LatentEBMTextConfig
from latent_ebm_text.decoders.softmax import CHUNK_ROWS
from latent_ebm_text.training.arguments import TrainingArguments
from latent_ebm_text.training.trainer import build_optimizer

TOLERANCE = 1e-4  # relative to the largest entry of a tensor
PRECISIONS = ("highest", "medium")


@dataclass(frozen=True)
class Sizes:
    """Sizes of model and batch; the defaults are the paper's for PTB."""

    embedding: int = 128
    hidden: int = 512
    vocab: int = 10_000
    latent: int = 32
    prior_hidden: int = 200
    batch: int = 128
    tokens: int = 22  # predicted tokens of a sentence
    prior_batches: tuple[int, ...] = (128, 4096)
    posterior_steps: int = 20
    prior_steps: int = 60

    def model(self, tied: bool) -> LatentEBMForTextGeneration:
        """The model with its initial weights, without dropout: the same at every call."""
        torch.manual_seed(0)
        config = LatentEBMTextConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            embedding_size=self.embedding,
            latent_dim=self.latent,
            prior_hidden_size=self.prior_hidden,
            tie_word_embeddings=tied,
            dropout=0.0,
            prior_sampler={"name": "langevin", "num_steps": self.prior_steps, "step_size": 0.4},
            posterior_sampler={"name": "langevin", "num_steps": self.posterior_steps, "step_size": 0.1},
        )
        return LatentEBMForTextGeneration(config)

    def inputs(self) -> dict[str, Tensor]:
        """Sentences of one length: padding, which the library skips and the plain code would not, plays no part."""
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(self.vocab, (self.batch, self.tokens + 1), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


QUICK = Sizes(
    embedding=16, hidden=32, vocab=200, latent=8, prior_hidden=16, batch=8, tokens=5,
    prior_batches=(8, 64), posterior_steps=3, prior_steps=4,
)  # fmt: skip


@dataclass(frozen=True)
class Product:
    """`count` matrix products of `(rows, inner)` by `(inner, columns)`; `count` need not be whole."""

    rows: int
    inner: int
    columns: int
    count: float = 1.0

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.inner * self.columns * self.count

    def seconds(self, repeats: int) -> float:
        """Time of all products, from the fastest of several timings of a few."""
        left, right = torch.randn(self.rows, self.inner), torch.randn(self.inner, self.columns)
        out = torch.empty(self.rows, self.columns)
        loops = 20 if self.rows * self.inner * self.columns < 1e7 else 1  # what is over too soon to be timed alone

        def multiply() -> None:
            for _ in range(loops):
                torch.mm(left, right, out=out)

        multiply()
        return self.count * min(_seconds(multiply) for _ in range(max(repeats, 3))) / loops


@dataclass(frozen=True)
class Case:
    """Two implementations of one task. Each call starts anew and returns the tensors that the two must agree on."""

    name: str
    ours: Callable[[], Sequence[Tensor]]
    plain: Callable[[], Sequence[Tensor]]
    products: tuple[Product, ...]


def posterior_gradient(sizes: Sizes, tied: bool) -> Case:
    """`d log p(x | z) / d z` of a batch, everything that depends on the batch included."""
    model, inputs = sizes.model(tied), sizes.inputs()
    plain, latents = PlainModel(model), torch.randn(sizes.batch, sizes.latent)
    return Case(
        f"posterior-gradient, {_layer(tied)}",
        lambda: [model.decoder.likelihood(inputs).score(latents)],
        lambda: [plain.likelihood_gradient(inputs["input_ids"], latents)],
        score_products(sizes, tied, steps=1),
    )


def posterior_chain(sizes: Sizes, tied: bool) -> Case:
    """The posterior's Langevin chain of a batch."""
    model, inputs = sizes.model(tied), sizes.inputs()
    plain, start = PlainModel(model), torch.randn(sizes.batch, sizes.latent)
    return Case(
        f"posterior-chain, {sizes.posterior_steps} steps, {_layer(tied)}",
        _seeded(lambda: [model.sample_posterior(inputs, initial_latents=start).latents]),
        _seeded(lambda: [plain.sample_posterior(inputs["input_ids"], start)]),
        score_products(sizes, tied, sizes.posterior_steps) + prior_products(sizes, sizes.batch, sizes.posterior_steps),
    )


def prior_chain(sizes: Sizes, batch: int) -> Case:
    """The prior's Langevin chain."""
    model = sizes.model(tied=True)
    plain, start = PlainModel(model), torch.randn(batch, sizes.latent)
    return Case(
        f"prior-chain, {sizes.prior_steps} steps, batch {batch}",
        _seeded(lambda: [model.sample_prior(batch, initial_latents=start).latents]),
        _seeded(lambda: [plain.sample_prior(start)]),
        prior_products(sizes, batch, sizes.prior_steps),
    )


def training_step(sizes: Sizes, tied: bool) -> Case:
    """Short-run posterior and prior chains, loss, backward pass, clipping and update, as `train` does them."""
    model, inputs, args = sizes.model(tied), sizes.inputs(), TrainingArguments()
    plain, start = PlainModel(model), torch.randn(sizes.batch, sizes.latent)
    batch = {**inputs, "labels": inputs["input_ids"]}
    optimizer = build_optimizer(model, args)
    decoder_group, prior_group = optimizer.param_groups
    plain_parts, plain_optimizers = (plain.decoder, plain.tilt), []
    for part, group in zip(plain_parts, (decoder_group, prior_group), strict=True):
        settings = {key: group[key] for key in ("lr", "betas", "weight_decay")}
        plain_optimizers.append(torch.optim.AdamW(part.parameters(), **settings))

    def clip(parts: Sequence[torch.nn.Module]) -> None:
        for part, limit in zip(parts, (args.max_decoder_grad_norm, args.max_prior_grad_norm), strict=True):
            torch.nn.utils.clip_grad_norm_(part.parameters(), limit)

    def ours() -> Sequence[Tensor]:
        latents = model.sample_posterior(inputs, initial_latents=start).latents
        prior_latents = model.sample_prior(sizes.batch, initial_latents=start).latents
        output = model(**batch, latents=latents, prior_latents=prior_latents)
        output.loss.backward()
        clip((model.decoder, model.prior))
        optimizer.step()
        gradients = _gradients(model.decoder, model.prior)
        optimizer.zero_grad()
        return [latents, prior_latents, output.loss.detach(), *gradients]

    def plainly() -> Sequence[Tensor]:
        latents = plain.sample_posterior(inputs["input_ids"], start)
        prior_latents = plain.sample_prior(start)
        decoder_loss = plain.decoder.nll(inputs["input_ids"], latents) / sizes.batch
        decoder_loss.backward()
        energies = [0.5 * z.square().sum(-1).mean() - plain.tilt(z).mean() for z in (latents, prior_latents)]
        prior_loss = energies[0] - energies[1]
        prior_loss.backward()
        clip(plain_parts)
        for plain_optimizer in plain_optimizers:
            plain_optimizer.step()
        gradients = _gradients(*plain_parts)
        for plain_optimizer in plain_optimizers:
            plain_optimizer.zero_grad()
        return [latents, prior_latents, (decoder_loss + prior_loss).detach(), *gradients]

    products = (
        score_products(sizes, tied, sizes.posterior_steps)
        + prior_products(sizes, sizes.batch, sizes.posterior_steps + sizes.prior_steps)
        + update_products(sizes, tied)
    )
    return Case(f"training-step, {_layer(tied)}", _seeded(ours), _seeded(plainly), products)


def score_products(sizes: Sizes, tied: bool, steps: int) -> tuple[Product, ...]:
    """What `steps` gradients of the likelihood in z need, the words' share of the gates computed once."""
    rows, gates = sizes.batch * sizes.tokens, 4 * sizes.hidden
    count = float(steps * sizes.tokens)
    return (
        Product(rows, sizes.embedding, gates),
        Product(sizes.batch, sizes.hidden, gates, count),
        Product(sizes.batch, gates, sizes.hidden, count),
        *(p for a, b in _output_layers(sizes, tied) for p in (_rows(rows, a, b, steps), _rows(rows, b, a, steps))),
    )


def update_products(sizes: Sizes, tied: bool) -> tuple[Product, ...]:
    """What the decoder's loss and the gradients of all its weights need."""
    rows, gates = sizes.batch * sizes.tokens, 4 * sizes.hidden
    width = sizes.embedding + sizes.latent
    layers = _output_layers(sizes, tied)
    return (
        *(Product(rows, width, gates), Product(rows, gates, width), Product(width, rows, gates)),
        Product(sizes.batch, sizes.hidden, gates, sizes.tokens),
        Product(sizes.batch, gates, sizes.hidden, sizes.tokens),
        Product(sizes.hidden, rows, gates),
        *(p for a, b in layers for p in (_rows(rows, a, b), _rows(rows, b, a))),
        *(Product(b, min(rows, CHUNK_ROWS), a, rows / min(rows, CHUNK_ROWS)) for a, b in layers),
    )


def prior_products(sizes: Sizes, batch: int, steps: int) -> tuple[Product, ...]:
    """What `steps` scores of the prior need."""
    widths = [(sizes.latent, sizes.prior_hidden), (sizes.prior_hidden, sizes.prior_hidden)]
    return tuple(p for a, b in widths for p in (Product(batch, a, b, steps), Product(batch, b, a, steps)))


def _output_layers(sizes: Sizes, tied: bool) -> list[tuple[int, int]]:
    if tied:
        return [(sizes.hidden, sizes.embedding), (sizes.embedding, sizes.vocab)]
    return [(sizes.hidden, sizes.vocab)]


def _rows(rows: int, inner: int, columns: int, times: int = 1) -> Product:
    """A product over all tokens, in the chunks of rows that suit the cache."""
    chunk = min(rows, CHUNK_ROWS)
    return Product(chunk, inner, columns, times * rows / chunk)


def _layer(tied: bool) -> str:
    return "tied low-rank output" if tied else "full-rank output"


def _seeded(task: Callable[[], Sequence[Tensor]]) -> Callable[[], Sequence[Tensor]]:
    """The task with the same noise at every call."""

    def run() -> Sequence[Tensor]:
        torch.manual_seed(2)
        return task()

    return run


def _gradients(*parts: torch.nn.Module) -> list[Tensor]:
    gradients = [parameter.grad for part in parts for parameter in part.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return gradients  # type: ignore[return-value]


#: The benchmarks, with the variants that each is run in.
BENCHMARKS: dict[str, tuple[Callable[[Sizes, Any], Case], Callable[[Sizes], Sequence[Any]]]] = {
    "posterior-gradient": (posterior_gradient, lambda sizes: (False, True)),
    "posterior-chain": (posterior_chain, lambda sizes: (False, True)),
    "prior-chain": (prior_chain, lambda sizes: sizes.prior_batches),
    "training-step": (training_step, lambda sizes: (False, True)),
}


class Disagreement(Exception):
    """The two implementations do not compute the same."""


def difference(ours: Sequence[Tensor], plain: Sequence[Tensor]) -> float:
    """Largest difference of any entry, relative to the largest entry of its tensor; infinite for other shapes."""
    if [value.shape for value in ours] != [value.shape for value in plain]:
        return float("inf")
    pairs = zip(ours, plain, strict=True)
    differences = [float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs]
    return max(d if math.isfinite(d) else float("inf") for d in differences)


def measure(case: Case, precision: str, repeats: int) -> str:
    """One row of the table.

    Raises:
        Disagreement: If the results differ by more than `TOLERANCE` at the precision `highest`.
    """
    apart = difference(case.ours(), case.plain())  # also the warm-up
    if precision == "highest" and not apart <= TOLERANCE:
        raise Disagreement(f"{case.name}: results differ by {apart:.1e}, relative, where {TOLERANCE:.0e} is allowed")
    plain, ours = [], []
    for _ in range(repeats):
        plain.append(_seconds(case.plain))
        ours.append(_seconds(case.ours))
    floor = sum(product.seconds(repeats) for product in case.products)
    rate = sum(product.flops for product in case.products) / floor / 1e9
    cells = [
        case.name,
        precision,
        *(f"{1e3 * min(times):,.1f} / {1e3 * statistics.median(times):,.1f}" for times in (plain, ours)),
        f"**{min(plain) / min(ours):.2f}** / **{statistics.median(plain) / statistics.median(ours):.2f}**",
        f"{1e3 * floor:,.1f} ({rate:.0f} GFLOP/s)",
        f"{min(ours) / floor:.2f}",
        f"{apart:.0e}",
    ]
    return _row(cells)


def describe_machine() -> str:
    """Processor, versions, threads and date: what a ratio is worth nothing without."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return (
        f"{processor} ({torch.backends.cpu.get_cpu_capability()}), {platform.system()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {date.today()}"
    )


def _seconds(task: Callable[[], object]) -> float:
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(BENCHMARKS), help="run this benchmark alone")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each implementation (default 5)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: torch's own choice)")
    parser.add_argument("--quick", action="store_true", help="toy sizes: a smoke test of a few seconds")
    options = parser.parse_args(argv)
    if options.repeats < 1 or (options.threads is not None and options.threads < 1):
        parser.error("--repeats and --threads must be positive")
    threads, precision_before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(options.threads or threads)
        print(f"{describe_machine()}; {options.repeats} repeats{'; toy sizes' if options.quick else ''}\n")
        header = [
            "benchmark", "precision", "plain, ms (min / median)", "ours, ms (min / median)",
            "plain / ours (min / median)", "arithmetic floor, ms", "ours / floor (min)", "difference",
        ]  # fmt: skip
        print(_row(header), _row(["---"] * len(header)), sep="\n")
        sizes = QUICK if options.quick else Sizes()
        for name in [options.only] if options.only else BENCHMARKS:
            make_case, variants = BENCHMARKS[name]
            for variant, precision in itertools.product(variants(sizes), PRECISIONS):
                torch.set_float32_matmul_precision(precision)
                print(measure(make_case(sizes, variant), precision, options.repeats), flush=True)
    except Disagreement as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision_before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
