"""What all modules of the zoo share: a config, input normalisation, optimiser and schedule."""

import inspect
import os
from abc import ABC, abstractmethod

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from lightning_modules.callbacks.finite import FiniteLoss
from lightning_modules.checks import check_constructor
from lightning_modules.errors import ModelError
from lightning_modules.training.optim import official_image_schedule, parameter_groups, warmup_cosine
from lightning_modules.training.sharding import blocks, refuse_flat_parameters, shard

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "BaseModule"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class BaseModule(LightningModule, ABC):
    """Base of the zoo's modules; concrete classes are final.

    A subclass declares what the network *is* as plain positional-or-keyword arguments and what matters only while
    training after ``*``. The first group is the model's config: it is saved in checkpoints, on the hub and in the
    registry. The second group is left out of all three. A subclass calls ``self.save_config()`` first thing in its
    constructor and sets ``self.net``, a network with ``depth`` and ``layer_id``. Numbers under the names that
    `lightning_modules.checks` knows, the optimiser's among them, are compared with their ranges there.

    Attributes:
        training_weights: what the names of weights begin with that matter only while training. Checkpoints have them;
            what is shared and loaded (`config` and the weights) is the model without them.
    """

    net: nn.Module
    training_weights: tuple[str, ...] = ()

    @classmethod
    def training_only(cls) -> list[str]:
        """Names of the constructor's arguments that matter only while training: those after ``*``."""
        names: list[str] = []
        for base in cls.__mro__:
            parameters = inspect.signature(base.__init__).parameters.values()
            names += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
        return names

    def save_config(self) -> None:
        """Checks and records the arguments of the constructor that calls it, which does so first thing.

        Raises:
            ModelError: a number is out of its range; see `lightning_modules.checks`.
        """
        caller = inspect.currentframe().f_back
        names, _, _, given = inspect.getargvalues(caller)
        arguments = {name: given[name] for name in names if name != "self"}
        constructors = (base.__init__ for base in type(self).__mro__)
        own = next(init for init in constructors if getattr(init, "__code__", None) is caller.f_code)
        check_constructor(own, arguments)
        training_only = [name for name in self.training_only() if name in arguments]
        self.training_arguments = {name: arguments.pop(name) for name in training_only}
        self.save_hyperparameters({k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()})

    @property
    def config(self) -> dict:
        """``{"class_path": ..., "init_args": {...}}``: plain values that say what the model is."""
        return {"class_path": _class_path(type(self)), "init_args": dict(self.hparams)}

    @abstractmethod
    def forward(self, video: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W), uint8 0..255 or float 0..1 -> what the task is about."""

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.hparams.image_size

    @property
    def preprocessing(self) -> dict:
        """How input is prepared: the keyword arguments that `datamodules.load_views` takes (docs/batches.md)."""
        h = self.hparams
        return {
            "num_frames": h.num_frames or 1,
            "image_size": self.image_size,
            "short_side": h.short_side or self.image_size,
            "sampling": h.sampling,
            "frame_stride": h.frame_stride,
            "interpolation": h.interpolation,
        }

    def set_normalisation(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1, 1), persistent=False)

    def normalise(self, video: Tensor) -> Tensor:
        """uint8 0..255 or float 0..1 (not clipped), (..., 3, T, H, W) -> normalised float, on the module's device.

        Raises:
            ModelError: another dtype, for which it is not known what white is.
        """
        if video.dtype != torch.uint8 and not video.is_floating_point():
            raise ModelError(f"The video is {str(video.dtype).removeprefix('torch.')}; pass uint8 of 0 to 255 or float "
                             "of 0 to 1: video.to(torch.uint8), or video / 255.")  # fmt: skip
        video = video.to(self.mean.device)
        video = video.to(self.mean.dtype) / 255 if video.dtype == torch.uint8 else video.to(self.mean.dtype)
        return (video - self.mean) / self.std

    def gather(self, rows: Tensor) -> Tensor:
        """(B, ...) of this process -> (processes * B, ...), with gradients; every process has the same B."""
        if self.trainer.world_size == 1:
            return rows
        return self.all_gather(rows, sync_grads=rows.requires_grad).flatten(0, 1)

    def configure_callbacks(self) -> list[Callback]:
        """A check of the loss; one given to the Trainer takes its place."""
        return [FiniteLoss()]

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:
        """Makes the random numbers of a step (dropout, stochastic depth) depend on the seed, the epoch, the batch and
        the process alone, so that an interrupted run goes on as if it had not been."""
        seed = os.environ.get("PL_GLOBAL_SEED")
        if seed is not None:
            place = [int(seed), self.current_epoch, batch_idx, self.global_rank]
            torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    def configure_model(self) -> None:
        """Compiles the network's blocks, and shares the network out under the strategy ``fsdp2``.

        The blocks are compiled in place, so that names in checkpoints stay as they are, and one by one, since they are
        all alike and the first one's code serves the others.
        """
        if self.training_arguments.get("compile"):
            for block in blocks(self.net):
                block.compile()
        if self.device_mesh is not None:
            shard(self.net, self.device_mesh["data_parallel"])

    def refuse_sharding(self) -> None:
        """Called by the strategy ``fsdp2`` before the processes meet.

        Raises:
            ModelError: something about this training needs all weights in every process.
        """
        if any(isinstance(callback, WeightAveraging) for callback in self.trainer.callbacks):
            raise ModelError(
                "A moving average keeps all weights in every process and fsdp2 shares them out; "
                "remove the callback, or set trainer.strategy to ddp."
            )

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        # The key under which LightningCLI looks for the class, and the hub where it is shared as what it is.
        checkpoint["hyper_parameters"]["_class_path"] = _class_path(type(self))
        if self.training_weights:
            shared = {"class_path": self.config["class_path"], "without": list(self.training_weights)}
            checkpoint["shared_as"] = shared

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Compares a checkpoint with the module before Lightning loads it.

        Raises:
            ModelError: it has another number of classes, or weights of other shapes.
        """
        theirs = (checkpoint.get("hyper_parameters") or {}).get("num_classes")
        ours = self.hparams.get("num_classes")
        if None not in (ours, theirs) and ours != theirs:
            raise ModelError(f"The checkpoint has {theirs} classes and the model {ours}; set model.num_classes to "
                             f"{theirs}, or start from its weights with model.init_from.")  # fmt: skip
        # The strategy fsdp2 has loaded the weights already.
        expected, found = self.state_dict(), checkpoint.get("state_dict") or {}
        wrong = [name for name in expected if name in found and found[name].shape != expected[name].shape]
        if wrong:
            name = wrong[0]
            raise ModelError(f"The checkpoint is of another model: {name} has the shape {tuple(found[name].shape)} "
                             f"there and {tuple(expected[name].shape)} here, and so on for {len(wrong)} weights; give "
                             "the model the sizes it was trained with.")  # fmt: skip

    def configure_optimizers(self) -> dict:
        """AdamW with layer-wise decay; a linear warm-up and a half cosine, as ``schedule`` says.

        Raises:
            ModelError: no end of the training is set; ``lr_samples`` is given and the clips per step are unknown; a
                strategy flattens the weights.
        """
        refuse_flat_parameters(self.trainer.strategy)
        args = self.training_arguments
        lr_scale = 1.0 if args["lr_samples"] is None else self._clips_per_step() / args["lr_samples"]
        lr = args["lr"] * lr_scale
        end_scale = lr_scale if args["scale_all_lr"] else 1.0
        start, end = args["warmup_lr"] * end_scale, args["min_lr"] * end_scale
        groups = self.parameter_groups()
        for group in groups:
            group["lr"] = lr * group.pop("lr_scale")
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=tuple(args["betas"]), eps=1e-8)
        total = self.trainer.estimated_stepping_batches
        if not 1 <= total < float("inf"):
            raise ModelError("The cosine schedule needs an end: set trainer.max_epochs or trainer.max_steps.")
        if args["schedule"] == "epoch":
            if self.trainer.max_epochs is None or self.trainer.max_epochs < 1:
                raise ModelError("schedule 'epoch' counts epochs: set trainer.max_epochs.")
            factor = official_image_schedule(self.trainer.max_epochs, int(args["warmup_epochs"]), lr, start, end)
        else:
            per_epoch = total / max(self.trainer.max_epochs or 1, 1)
            warmup = round(min(args["warmup_epochs"] * per_epoch, total))
            factor = warmup_cosine(int(total), warmup, lr, start, end)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": args["schedule"]}}

    def parameter_groups(self) -> list[dict]:
        """The optimiser's groups, with ``lr_scale``; see `lightning_modules.training.optim.parameter_groups`."""
        args = self.training_arguments
        return parameter_groups(
            self.net, args["weight_decay"], args["layer_decay"], args["layer_decay_scope"], args["decay_state_matrix"]
        )

    def _clips_per_step(self) -> int:
        """Clips of one optimiser step: per process and batch, times processes, times accumulated batches."""
        data = self.trainer.datamodule
        clips = getattr(data, "clips_per_batch", None) or getattr(data, "batch_size", None)
        if clips is None:
            raise ModelError("lr_samples needs a DataModule that has a batch_size; pass one, or lr_samples: null.")
        return clips * self.trainer.world_size * self.trainer.accumulate_grad_batches


def _class_path(cls: type) -> str:
    """The public import path of a module's class."""
    package = "lightning_modules" if cls.__module__.startswith("lightning_modules.") else cls.__module__
    return f"{package}.{cls.__qualname__}"
