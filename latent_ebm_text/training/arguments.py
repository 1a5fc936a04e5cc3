"""The arguments of a training, a dataclass that checks itself."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from latent_ebm_text.errors import UsageError, require_in_interval, require_positive

#: The value of an option that follows from the data, see [`~latent_ebm_text.models.defaults`].
AUTO = "auto"


def option(default: Any, help: str, auto: bool = False) -> Any:
    """A field of a dataclass of arguments, with its default and its line of `--help`.

    Args:
        default: The default.
        help: What the option does.
        auto: Whether its value may also be `"auto"`.
    """
    return field(default=default, metadata={"help": help, "auto": auto})


def required(help: str) -> Any:
    """A field of a dataclass of arguments that has no default."""
    return field(metadata={"help": help})


@dataclass
class TrainingArguments:
    """Training"""

    output_dir: str = option("runs/latent-ebm", "Folder of the run: checkpoints, metrics, plots, the final model.")
    seed: int = option(0, "Every random draw is a function of this seed and of the step.")
    num_epochs: float = option(30.0, "Passes through the training data.", auto=True)
    train_batch_size: int = option(128, "Examples (sentences or images) per step, over all processes.", auto=True)
    eval_batch_size: int = option(256, "Examples in a batch of evaluation.")
    decoder_learning_rate: float = option(
        1e-3,
        "Learning rate of the decoder and the encoder (AdamW). Where all weights of a pretrained decoder learn, they "
        "do so at a tenth of it; adapters and all that is new learn at this rate.",
        auto=True,
    )
    prior_learning_rate: float = option(1e-4, "Learning rate of the energy (AdamW).")
    decoder_weight_decay: float = option(0.0, "Weight decay of the decoder and the encoder.")
    prior_weight_decay: float = option(1e-3, "Weight decay of the energy.")
    prior_start: float = option(
        0.0, "Share of the training, 0 to 1, after which the energy starts to learn; the prior is Gaussian until then."
    )
    prior_chain_num_steps: int | None = option(
        None,
        "Langevin steps that chains of the prior make at each training step, from where the step before left them; "
        "none for chains of prior_sampler from N(0, I) at every step (the paper).",
    )
    warmup: float = option(0.02, "Share of the training, 0 to 1, over which the learning rates rise from zero.")
    final_learning_rate_factor: float = option(
        0.05, "Both learning rates fall linearly to this share of their first value."
    )
    averaging_start: float = option(
        1.0, "Share of the training, 0 to 1, after which weights are averaged for the final model; 1 for no average."
    )
    max_decoder_grad_norm: float = option(100.0, "Gradient clip of the decoder, for a loss in nats per example.")
    max_prior_grad_norm: float = option(1.0, "Gradient clip of the energy.")
    inference: Literal["short_run", "persistent", "amortized", "variational", "fitted"] = option(
        "short_run",
        "Where posterior draws come from: short_run, chains from N(0, I) at every step (the paper); persistent, one "
        "chain kept for every example; amortized, chains from an encoder's proposal; variational, the encoder itself; "
        "fitted, chains from a Gaussian fitted to every example in num_fit_steps steps.",
    )
    chain_num_steps: int = option(
        4, "Langevin steps of a persistent, amortized or fitted chain at each visit of an example."
    )
    chain_step_size: float | dict[str, Any] = option(0.5, "Langevin step size of these steps, a number or a schedule.")
    chain_refresh: float = option(0.3, "Share of each persistent latent, 0 to 1, that is drawn anew at a visit.")
    initial_likelihood_weight: float | None = option(
        None, "Likelihood weight at the first step, from which it falls to likelihood_weight; a high one makes the "
        "decoder use the latent.",
    )  # fmt: skip
    likelihood_weight_fall: float = option(
        0.25, "Share of the training, 0 to 1, over which the likelihood weight falls, geometrically."
    )
    information: float | None = option(
        None, "Nats per example that the latent is to carry. The likelihood weight is then moved until it does, from "
        "initial_likelihood_weight on (50 by default); for inference variational. None for a weight that is given.",
        auto=True,
    )  # fmt: skip
    log_every: int = option(50, "Steps between lines of metrics.jsonl.")
    eval_every: int = option(1000, "Steps between evaluations on part of the validation split.")
    save_every: int = option(500, "Steps between checkpoints.")
    keep_checkpoints: int = option(2, "Number of checkpoints that are kept, the newest ones.")
    report_to: str = option(
        "none",
        "Trackers beside metrics.jsonl, with commas between them: `trackio`, `tensorboard`, `wandb` (extras of these "
        "names), or `none`.",
    )
    max_rollbacks: int = option(
        3,
        "How often a value that is not finite sends a run back to its newest checkpoint, to continue at half the "
        "learning rate.",
    )
    usr1_exit_code: int = option(
        138, "Exit code after SIGUSR1, the warning of some schedulers; SIGTERM gives 143 and SIGINT 130."
    )
    num_eval_examples: int = option(512, "Validation examples of evaluations while training; the last one takes all.")
    num_eval_samples: int = option(1000, "Sentences generated for the sample statistics of the last evaluation.")
    gradient_checkpointing: bool = option(
        False,
        "Compute the layers of a transformer decoder again in the backward pass of the loss, in place of keeping what "
        "they have computed: less memory, more time.",
    )
    matmul_precision: Literal["highest", "high", "medium"] = option(
        "highest", "torch.set_float32_matmul_precision; `medium` may be several times as fast and is less exact."
    )

    def __post_init__(self) -> None:
        for name in (
            "num_epochs", "train_batch_size", "eval_batch_size", "decoder_learning_rate", "prior_learning_rate",
            "max_decoder_grad_norm", "max_prior_grad_norm", "chain_num_steps", "likelihood_weight_fall", "log_every",
            "eval_every", "save_every", "keep_checkpoints", "num_eval_samples",
        ):  # fmt: skip
            if name not in self.automatic:
                require_positive(name, getattr(self, name))
        if self.prior_chain_num_steps is not None:
            require_positive("prior_chain_num_steps", self.prior_chain_num_steps)
        from latent_ebm_text.latents.samplers.schedules import schedule_values  # here, because it imports torch

        schedule_values(self.chain_step_size, self.chain_num_steps, name="chain_step_size")
        if self.initial_likelihood_weight is not None:
            require_positive("initial_likelihood_weight", self.initial_likelihood_weight)
        if self.information is not None:
            if "information" not in self.automatic:
                require_positive("information", self.information)
            if self.inference != "variational":
                raise UsageError(
                    f"information is measured with an encoder, and inference is {self.inference!r}: set inference to "
                    "variational, or leave information out and set likelihood_weight"
                )
        shares = ("chain_refresh", "prior_start", "averaging_start", "warmup", "likelihood_weight_fall")
        for name in ("final_learning_rate_factor", *shares):
            require_in_interval(name, getattr(self, name), 0.0, 1.0)
        require_in_interval("num_eval_examples", self.num_eval_examples, 2, float("inf"))  # for a standard error
        for name in ("decoder_weight_decay", "prior_weight_decay", "max_rollbacks"):
            require_in_interval(name, getattr(self, name), 0.0, float("inf"))
        require_in_interval("usr1_exit_code", self.usr1_exit_code, 0, 255)

    @property
    def automatic(self) -> tuple[str, ...]:
        """The names of the settings that are still to follow from the data."""
        return tuple(each.name for each in fields(self) if getattr(self, each.name) == AUTO)

    def check_inference(self, has_encoder: bool, num_fit_steps: int) -> None:
        """Raises a `UsageError` if the inference needs an encoder or a fit that is not there, or does not use one.

        Args:
            has_encoder: Whether the model has an encoder.
            num_fit_steps: The model's steps of a fit.
        """
        if (num_fit_steps > 0) != (self.inference == "fitted"):
            raise UsageError(
                f"inference {self.inference!r} and num_fit_steps {num_fit_steps} do not go together: set inference to "
                "fitted and num_fit_steps to a positive number, 16 for example, or leave num_fit_steps at 0"
            )
        if has_encoder == (self.inference in ("amortized", "variational")) or self.inference == "fitted":
            return
        change = (
            "set encoder_hidden_size to none, or inference to amortized, variational or fitted"
            if has_encoder
            else "set encoder_hidden_size, 256 for example, or inference to short_run, persistent or fitted"
        )
        raise UsageError(
            f"inference {self.inference!r} and {'an' if has_encoder else 'no'} encoder do not go together: {change}"
        )

    def exit_code(self, signal_number: int) -> int:
        """The exit code after a signal has stopped the training: what shells report, except for SIGUSR1."""
        return self.usr1_exit_code if signal_number == signal.SIGUSR1 else 128 + signal_number
