"""What all modules of the zoo share: a config, input normalisation, optimiser and schedule."""

import inspect
from abc import ABC, abstractmethod

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_modules.errors import ModelError
from lightning_modules.optim import parameter_groups, warmup_cosine

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "BaseModule"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class BaseModule(LightningModule, ABC):
    """Base of the zoo's modules; concrete classes are final.

    A subclass declares what the network *is* as plain positional-or-keyword arguments and what matters only while
    training after ``*``. The first group is the model's config: it is saved in checkpoints, on the hub and in the
    registry. The second group is left out of all three. A subclass calls ``self.save_config()`` first thing in its
    constructor and sets ``self.net``, a network with ``depth`` and ``layer_id``.
    """

    net: nn.Module

    @classmethod
    def training_only(cls) -> list[str]:
        """Names of the constructor's arguments that matter only while training: those after ``*``."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    def save_config(self) -> None:
        """Records the constructor's arguments; call it first thing in the subclass's ``__init__``."""
        given = inspect.currentframe().f_back.f_locals
        arguments = {name: given[name] for name in inspect.signature(type(self)).parameters}
        self.training_arguments = {name: arguments.pop(name) for name in self.training_only()}
        self.save_hyperparameters({k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()})

    @property
    def config(self) -> dict:
        """``{"class_path": ..., "init_args": {...}}``: plain values that say what the model is."""
        cls = type(self)
        package = "lightning_modules" if cls.__module__.startswith("lightning_modules.") else cls.__module__
        return {"class_path": f"{package}.{cls.__qualname__}", "init_args": dict(self.hparams)}

    @property
    @abstractmethod
    def preprocessing(self) -> dict:
        """How input is prepared: the keyword arguments that `datamodules.views.load_views` takes (docs/batches.md)."""

    def set_normalisation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1, 1), persistent=False)

    def normalise(self, video: Tensor) -> Tensor:
        """uint8 0..255 or float 0..1 (not clipped), (..., 3, T, H, W) -> normalised float, on the module's device."""
        video = video.to(self.mean.device)
        video = video.to(self.mean.dtype) / 255 if video.dtype == torch.uint8 else video.to(self.mean.dtype)
        return (video - self.mean) / self.std

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        # The key under which LightningCLI and the hub's export look for the class.
        checkpoint["hyper_parameters"]["_class_path"] = self.config["class_path"]

    def configure_optimizers(self) -> dict:
        """AdamW with layer-wise decay, and a linear warm-up followed by a half cosine, stepped every optimiser step."""
        args = self.training_arguments
        groups = parameter_groups(
            self.net, args["weight_decay"], args["layer_decay"], args["layer_decay_scope"], args["decay_state_matrix"]
        )
        for group in groups:
            group["lr"] = args["lr"] * group.pop("lr_scale")
        optimizer = torch.optim.AdamW(groups, lr=args["lr"], betas=tuple(args["betas"]), eps=1e-8)
        total = int(self.trainer.estimated_stepping_batches)
        if total < 1 or self.trainer.estimated_stepping_batches == float("inf"):
            raise ModelError("The cosine schedule needs an end: set trainer.max_epochs or trainer.max_steps.")
        per_epoch = total / max(self.trainer.max_epochs or 1, 1)
        warmup = round(min(args["warmup_epochs"] * per_epoch, total))
        factor = warmup_cosine(total, warmup, args["lr"], args["warmup_lr"], args["min_lr"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}
