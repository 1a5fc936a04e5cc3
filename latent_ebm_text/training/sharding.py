"""Training a decoder whose gradients and optimizer state do not fit one device: FSDP2, through Accelerate."""

from __future__ import annotations

import copy
from typing import Any

from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils import fsdp2_prepare_model, parse_flag_from_env
from torch import nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from latent_ebm_text.errors import UsageError
from latent_ebm_text.models.modeling_base import LatentEBMPreTrainedModel
from latent_ebm_text.training.checkpointing import sharded_like, whole_tensor


def is_sharding_asked_for(accelerator: Accelerator | None = None) -> bool:
    """Whether `accelerate` is set up for FSDP."""
    is_set_up = accelerator is not None and accelerator.distributed_type == DistributedType.FSDP
    return is_set_up or bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def check_sharding(is_causal_lm: bool, accelerator: Accelerator | None = None) -> None:
    """Raises a `UsageError` if `accelerate` is set up for FSDP, and the decoder or a setting rules it out.

    Args:
        is_causal_lm: Whether the decoder is a causal language model.
        accelerator: Devices and processes, where they exist already.
    """
    if not is_sharding_asked_for(accelerator):
        return
    if not is_causal_lm:
        raise UsageError(
            "FSDP shards decoders that are causal language models; this model is small and trains by DDP: launch "
            "without --use_fsdp, or choose no FSDP in `accelerate config`"
        )
    plugin = None if accelerator is None else getattr(accelerator.state, "fsdp_plugin", None)
    if (plugin or FullyShardedDataParallelPlugin()).fsdp_version != 2:
        raise UsageError("FSDP1 is not supported: launch with --fsdp_version 2, or set fsdp_version to 2")
    if parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
        raise UsageError("FSDP with weights kept on the CPU is not supported: set fsdp_offload_params to false")


class ShardedCopy:
    """A copy of a model that learns in its place, with weights, gradients and optimizer state sharded by FSDP2.

    The model itself stays whole on every process, without gradients: chains, evaluation and checkpoints read it as
    they do elsewhere, and wait for no other process. After every update it takes over the weights of the copy. A
    process thus holds all weights once, and of copy, gradients and the two moments of AdamW only its share; for the
    loss the layers of the copy are gathered one at a time.

    Args:
        model: The model, with a causal language model as its decoder, on the CPU.
        accelerator: Devices and processes, with the settings of `accelerate config` for FSDP.

    Attributes:
        learner: The copy, whose parameters are `DTensor`s.
        module: What is called for the loss, with the arguments of the model.
    """

    def __init__(self, model: LatentEBMPreTrainedModel, accelerator: Accelerator) -> None:
        decoder: Any = model.decoder
        _ = decoder.has_plain_head  # found by a pass through the language model, for which it must be whole
        self.learner = copy.deepcopy(model.cpu()).train()  # each layer goes to the device when it is sharded
        plugin = getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()
        plugin.auto_wrap_policy = transformer_auto_wrap_policy
        plugin.transformer_cls_names_to_wrap = sorted(
            {type(module).__name__ for module in decoder.modules()} & set(decoder.lm._no_split_modules or ())
        )
        plugin.mixed_precision_policy = None  # autocast keeps chains and energies in full precision
        plugin.cpu_ram_efficient_loading = False  # every process has the weights
        accelerator.state.fsdp_plugin = plugin
        self.module: nn.Module = fsdp2_prepare_model(accelerator, _Loss(self.learner, accelerator))
        model.to(accelerator.device)

    def update(self, model: LatentEBMPreTrainedModel) -> None:
        """Gathers the weights of the copy into the model, one after the other; every process must call it."""
        for whole, shard in zip(model.parameters(), self.learner.parameters(), strict=True):
            if whole.requires_grad:  # the others never change
                whole.data.copy_(whole_tensor(shard.detach()))

    def take(self, model: LatentEBMPreTrainedModel) -> None:
        """Takes over the weights of the model, such as those of a checkpoint."""
        for whole, shard in zip(model.parameters(), self.learner.parameters(), strict=True):
            shard.data.copy_(sharded_like(whole.detach(), shard))


class _Loss(nn.Module):
    """The outermost module, in which FSDP2 gathers all that is not in a layer for the whole of a pass."""

    def __init__(self, learner: LatentEBMPreTrainedModel, accelerator: Accelerator) -> None:
        super().__init__()
        self.learner, self.autocast = learner, accelerator.autocast

    def forward(self, **inputs: Any) -> Any:
        with self.autocast():
            return self.learner(**inputs)
