"""Loading a model from files that may be damaged, or made by somebody with bad intentions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging

from latent_ebm_text.errors import DataError, LatentEBMError, UsageError, in_one_line, some_of
from latent_ebm_text.hub.folders import check_model, read_json
from latent_ebm_text.models.configuration import LatentEBMConfig, refuse_quantization


class SafetensorsModel(PreTrainedModel):
    """A model whose weights come from safetensors files alone, all of them and no others."""

    config_class = LatentEBMConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Loads a model as transformers does, but from safetensors files only, and only if they hold all its weights.

        With `output_loading_info=True` the caller is told what differs, as by transformers, and nothing is refused
        but weights of another shape; `ignore_mismatched_sizes=True` draws these anew.

        Raises:
            UsageError: If it asks for quantised weights.
            DataError: If the folder leads out of itself or its files are damaged, see
                [`~latent_ebm_text.hub.folders.check_model_folder`]; if its configuration cannot be right; or if
                weights are missing, unexpected, or of another shape than the configuration says.
        """
        name = pretrained_model_name_or_path
        folder = None if name is None else Path(name) / kwargs.get("subfolder", "")
        if folder is not None:
            check_model(name, **kwargs)
            if kwargs.get("config") is None and folder.is_dir():
                cls._check_configuration(folder / "config.json")
        refuse_quantization(kwargs.get("quantization_config"))  # which the configuration would not see
        kwargs["use_safetensors"] = True  # or a pickle would be read where there is nothing else
        wants_info = kwargs.pop("output_loading_info", False)
        may_differ = kwargs.pop("ignore_mismatched_sizes", False)
        options = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}  # refused below, by name
        try:
            with nullcontext() if wants_info else _without_report():
                model, info = super().from_pretrained(name, *model_args, **options)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error
        except (LatentEBMError, ImportError, OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except SafetensorError as error:
            raise DataError(f"the safetensors weights of {name} cannot be read: {in_one_line(error)}") from error
        except Exception as error:  # what transformers stumbles over in a configuration that is wrong has no limits
            if torch.get_default_device().type == "meta":  # on which nothing can be loaded, whatever the folder
                raise
            raise DataError(f"the model in {name} cannot be loaded: {in_one_line(error)}") from error
        if info["mismatched_keys"] and not may_differ:
            shapes = [
                f"{key} {tuple(found)} in place of {tuple(wanted)}" for key, found, wanted in info["mismatched_keys"]
            ]
            raise DataError(
                f"the weights of {name} have, against its configuration, the shapes {some_of(sorted(shapes))}"
            )
        if wants_info:
            return model, info
        for key, problem in (("missing_keys", "lack"), ("unexpected_keys", "have, against its configuration,")):
            if info[key]:
                raise DataError(f"the weights of {name} {problem} {some_of(sorted(info[key]))}")
        return model

    @classmethod
    def _check_configuration(cls, path: Path) -> None:
        """Raises a `DataError` that names the file unless it holds a configuration of this model."""
        try:
            cls.config_class.from_dict(read_json(path))
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{path}: {in_one_line(error)}") from error


@contextmanager
def _without_report() -> Iterator[None]:
    """Without the table that transformers prints of weights that do not fit, which an error names instead."""
    logger = logging.get_logger("transformers.modeling_utils")
    logger.addFilter(_is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_report)


def _is_no_report(record: Any) -> bool:
    return "LOAD REPORT" not in record.getMessage()
