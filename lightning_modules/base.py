"""What all modules of the zoo share: a config, input normalisation, optimiser and schedule."""

import dataclasses
import inspect
import os
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from typing_extensions import override

from lightning_modules.callbacks.finite import FiniteLoss
from lightning_modules.checks import check_constructor, constructors
from lightning_modules.errors import ModelError
from lightning_modules.training.optim import Optim
from lightning_modules.training.sharding import blocks, refuse_flat_parameters, shard

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "BaseModule"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_OPTIM_ALONE = [field.name for field in dataclasses.fields(Optim) if field.name != "name"]
PREPROCESSING_DEFAULTS: dict[str, Any] = {
    "num_frames": 16,
    "image_size": 224,
    "sampling": "sparse",
    "frame_stride": 4,
    "interpolation": "bilinear",
}
"""How input is prepared where a module's constructor does not declare the argument."""


class BaseModule(LightningModule, ABC):
    """Base of the zoo's modules. docs/extend.md has a whole example.

    A subclass sets ``self.net`` in its constructor and has a ``training_step`` that returns the loss. Arguments of the
    constructor before ``*`` say what the network *is*, in plain values: they are the model's config, saved in
    checkpoints, on the hub and in the registry. Those after ``*`` matter only while training and are not saved. A
    constructor with arguments calls ``self.save_config(locals())`` right after ``super().__init__()``.

    The optimiser is an argument ``optim: Optim = Optim(...)`` after ``*``; without it a module trains with the
    defaults of `Optim`. Of the input, `PREPROCESSING_DEFAULTS` stand for what is not declared (the data can override
    these), and pixels are normalised as ImageNet's.

    Attributes:
        training_weights: what the names of weights begin with that matter only while training. Checkpoints have them;
            what is shared and loaded (`config` and the weights) is the model without them.
        training_arguments: names and values of the arguments after ``*``.
    """

    net: nn.Module
    mean: Tensor
    std: Tensor
    training_weights: tuple[str, ...] = ()

    if TYPE_CHECKING:  # torch and Lightning declare less than they give

        @property
        def hparams(self) -> Any:  # noqa: ANN401
            """Arguments of the constructor that say what the model is, as a dict whose items are attributes too."""

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401
            """What a task has of its own, such as ``class_names`` or ``encode_text``: callers ask ``hasattr`` first."""

    def __init__(self) -> None:
        super().__init__()
        self.training_arguments: dict[str, Any] = {}
        self.set_normalisation(IMAGENET_MEAN, IMAGENET_STD)

    @classmethod
    def training_only(cls) -> list[str]:
        """Names of the constructor's arguments that matter only while training: those after ``*``."""
        names: list[str] = []
        for base in constructors(cls):
            parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]  # a class
            names += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name[0] != "_"]
        return names

    def save_config(self, given: Mapping[str, Any]) -> None:
        """Checks and records the constructor's arguments: ``self.save_config(locals())``, before anything else.

        Args:
            given: ``locals()`` of the constructor; names that are not its arguments are skipped.

        Raises:
            ModelError: a number is out of its range, see `lightning_modules.checks`; an argument is missing in `given`;
                ``optim`` is declared before ``*``.
        """
        # `super().__init__()` puts __class__ among the locals: the class whose constructor this is.
        cls: type = given.get("__class__", type(self))
        constructor = cls.__init__  # type: ignore[misc]  # a class
        names = _declared(constructor)
        absent = [name for name in names if name not in given]
        if absent:
            raise ModelError(f"save_config of {type(self).__name__} does not get the argument {absent[0]!r}; "
                             "pass locals() first thing in the constructor.")  # fmt: skip
        arguments = {name: given[name] for name in names}
        check_constructor(constructor, arguments)
        parameters = inspect.signature(constructor).parameters
        training_only = [name for name in names if parameters[name].kind is inspect.Parameter.KEYWORD_ONLY]
        if "optim" in arguments and "optim" not in training_only:
            raise ModelError(f"{type(self).__name__} declares optim among what is saved; put it after *.")
        if isinstance(arguments.get("optim"), Mapping):
            arguments["optim"] = parameters["optim"].default.changed(arguments["optim"])
        self.training_arguments |= {name: arguments.pop(name) for name in training_only}
        self.save_hyperparameters({k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()})

    @property
    def config(self) -> dict[str, Any]:
        """``{"class_path": ..., "init_args": {...}}``: plain values that say what the model is.

        Raises:
            ModelError: the constructor has an argument that `save_config` has not recorded.
        """
        training_only = self.training_only()
        for name in _declared(type(self).__init__):
            if name not in self.hparams and name not in training_only:
                raise ModelError(f"{type(self).__name__} has not recorded its argument {name!r}; its "
                                 "constructor has to call self.save_config(locals()).")  # fmt: skip
        return {"class_path": _class_path(type(self)), "init_args": dict(self.hparams)}

    def forward(self, video: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W), uint8 0..255 or float 0..1 -> what the task is about; here that of ``net``."""
        return self.net(self.normalise(video))

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.hparams.get("image_size") or PREPROCESSING_DEFAULTS["image_size"]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How input is prepared: the keyword arguments that `datamodules.load_views` takes (docs/batches.md)."""
        group = self.hparams.get("preprocessing")  # some modules declare all of it as one argument
        declared = {**self.hparams, **group} if isinstance(group, Mapping) else self.hparams
        prepared = PREPROCESSING_DEFAULTS | {k: v for k, v in declared.items() if k in PREPROCESSING_DEFAULTS}
        size = self.image_size
        sizes = {"image_size": size, "short_side": declared.get("short_side") or size}
        return {**prepared, **sizes, "num_frames": prepared["num_frames"] or 1}

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set what `normalise` subtracts and divides by: mean and deviation per channel, of inputs in [0, 1]."""
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
        gathered = self.all_gather(rows, sync_grads=rows.requires_grad)
        assert isinstance(gathered, Tensor)  # of a tensor it makes a tensor
        return gathered.flatten(0, 1)

    def configure_callbacks(self) -> list[Callback]:
        """A check of the loss; one given to the Trainer takes its place."""
        return [FiniteLoss()]

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Seed a step's dropout and stochastic depth by its place, so that an interrupted run draws the same."""
        seed = os.environ.get("PL_GLOBAL_SEED")
        if seed is not None:
            place = [int(seed), self.current_epoch, batch_idx, self.global_rank]
            torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    def log_results(self, stage: str) -> None:
        """Log what a validation ("val") or a test ("test") has shown; nothing here.

        Metrics join the processes when they compute, so the mean over these, ``sync_dist``, changes nothing.
        """

    @override
    def on_validation_epoch_end(self) -> None:
        self.log_results("val")

    @override
    def on_test_epoch_end(self) -> None:
        self.log_results("test")

    def configure_model(self) -> None:
        """Compile the network's blocks, and share the network out under the strategy ``fsdp2``."""
        if self.training_arguments.get("compile"):
            # In place, so that names in checkpoints stay, and one by one: the first one's code serves the others.
            for block in blocks(self.net):
                block.compile()
        if self.device_mesh is not None:
            shard(self.net, self.device_mesh["data_parallel"])

    def refuse_sharding(self) -> None:
        """Called by the strategy ``fsdp2`` before the processes meet.

        Raises:
            ModelError: something about this training needs all weights in every process.
        """
        name = next((name for name, parameter in self.named_parameters() if parameter.ndim == 0), None)
        if name is not None:
            raise ModelError(f"{name} of {type(self).__name__} is a single number, which fsdp2 cannot share out; set "
                             "trainer.strategy to ddp.")  # fmt: skip
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]  # its connector sets it
        if any(isinstance(callback, WeightAveraging) for callback in callbacks):
            raise ModelError(
                "A moving average keeps all weights in every process and fsdp2 shares them out; "
                "remove the callback, or set trainer.strategy to ddp."
            )

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The key under which LightningCLI looks for the class, and the hub where it is shared as what it is.
        # A module without arguments has no hyper-parameters yet.
        checkpoint.setdefault("hyper_parameters", {})["_class_path"] = _class_path(type(self))
        if self.training_weights:
            shared = {"class_path": self.config["class_path"], "without": list(self.training_weights)}
            checkpoint["shared_as"] = shared

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
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

    @property
    def optim(self) -> Optim:
        """The optimiser and the schedule to train with."""
        return self.training_arguments.get("optim") or Optim()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimiser and the schedule that ``optim`` says.

        Raises:
            ModelError: no end of the training is set; ``lr_samples`` is given and the clips per step are unknown; a
                strategy flattens the weights; a trainable weight is in no group; the
                constructor declares arguments of the optimiser one by one, which would have no effect.
        """
        refuse_flat_parameters(self.trainer.strategy)
        for name in _OPTIM_ALONE:
            if name in self.hparams or name in self.training_arguments:
                raise ModelError(f"{type(self).__name__} declares {name}, which is part of optim: declare "
                                 "`*, optim: Optim = Optim()`, or configure_optimizers of its own.")  # fmt: skip
        optim = self.optim
        lr_scale = 1.0 if optim.lr_samples is None else self._clips_per_step() / optim.lr_samples
        groups = self.parameter_groups()
        self._refuse_weights_outside(groups)
        optimizer = optim.optimizer(groups, lr_scale)
        total = self.trainer.estimated_stepping_batches
        if not 1 <= total < float("inf"):
            raise ModelError("The cosine schedule needs an end: set trainer.max_epochs or trainer.max_steps.")
        factor = optim.factor(int(total), self.trainer.max_epochs, lr_scale)
        interval = "epoch" if optim.schedule == "epoch" else "step"
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups as `Optim.groups` gives them; a subclass may add some."""
        if not hasattr(self, "net"):
            raise ModelError(f"{type(self).__name__} has no network; set self.net in its constructor.")
        return self.optim.groups(self.net)

    def _refuse_weights_outside(self, groups: list[dict[str, Any]]) -> None:
        """Raises `ModelError` for a trainable weight that the optimiser would leave as it is."""
        held = {id(parameter) for group in groups for parameter in group["params"]}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and id(parameter) not in held:
                raise ModelError(f"{name} is trainable and outside net, so nothing would train it; put it into "
                                 "self.net, freeze it, or add it to the groups of parameter_groups.")  # fmt: skip

    @property
    def _data(self) -> LightningDataModule | None:
        """The trainer's DataModule, where it has one."""
        return getattr(self.trainer, "datamodule", None)

    def _clips_per_step(self) -> int:
        """Clips of one optimiser step: per process and batch, times processes, times accumulated batches."""
        data = self._data
        clips = getattr(data, "clips_per_batch", None) or getattr(data, "batch_size", None)
        if clips is None:
            raise ModelError("lr_samples needs a DataModule that has a batch_size; pass one, or lr_samples: null.")
        return clips * self.trainer.world_size * self.trainer.accumulate_grad_batches


def _declared(constructor: Callable[..., None]) -> list[str]:
    """Names of the arguments that a constructor declares; those of ``*args`` and ``**kwargs`` have none."""
    _, *parameters = inspect.signature(constructor).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name[0] != "_"]


def _class_path(cls: type) -> str:
    """The public import path of a module's class."""
    package = "lightning_modules" if cls.__module__.startswith("lightning_modules.") else cls.__module__
    return f"{package}.{cls.__qualname__}"
