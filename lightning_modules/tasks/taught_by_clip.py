"""What modules share whose tokens are drawn towards those of a frozen CLIP."""

import torch
from torch import Tensor

from lightning_modules.base import BaseModule
from lightning_modules.errors import ModelError
from lightning_modules.nets.clip_teacher import CLIP_MEAN, CLIP_STD, ClipTeacher

__all__ = ["TaughtByClip"]


class TaughtByClip(BaseModule):
    """Abstract base of modules that learn from CLIP, which sees all of a clip of which they see a part.

    A subclass passes these arguments on, as ``**taught``; none of them is saved. It has an argument ``target_dim``, the
    width of the teacher's features.

    Args:
        init_from: weights that the ``lightning`` command starts from: a registered name, a model folder, a ``.ckpt`` or
            a Hub repository; see `zoo.initialise`.
        teacher: a `lightning_modules.nets.ClipTeacher`, or the name or folder of a CLIP checkpoint, which is fetched
            when training starts.
        mask_type: one of `lightning_modules.nets.masking.MASK_TYPES`.
        mask_ratio: share of masked patches of clips.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        init: "mamba" or "official", see `lightning_modules.nets.bimamba.BiMamba`.
        activations: "speed", "balanced" or "memory": what blocks keep for the backward pass, see
            `lightning_modules.nets.bimamba.set_activations`.
        compile: run the blocks through torch.compile; the first steps then take minutes.
    """

    def __init__(
        self,
        *,
        init_from: str | None = None,
        teacher: ClipTeacher | str | None = None,
        mask_type: str = "attention",
        mask_ratio: float = 0.8,
        drop_path: float = 0.0,
        init: str = "mamba",
        activations: str = "balanced",
        compile: bool = False,
        _class_path: str | None = None,  # from a checkpoint: Lightning passes on all that it finds there
    ) -> None:
        super().__init__()
        self.save_config(locals())
        # In a list, and so neither among the parameters nor in the checkpoints.
        self._teacher = [teacher] if isinstance(teacher, ClipTeacher) else []
        for name, values in (("clip_mean", CLIP_MEAN), ("clip_std", CLIP_STD)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1, 1), persistent=False)

    @property
    def teacher(self) -> ClipTeacher:
        """The teacher, on the module's device; one given by its name is fetched on first use.

        Raises:
            ModelError: there is none, it cannot be fetched, or is of another width than is asked for.
        """
        if not self._teacher:
            source = self.training_arguments["teacher"]
            if source is None:
                raise ModelError(f"{type(self).__name__} needs a teacher; set model.teacher to a CLIP checkpoint, such "
                                 "as openai/clip-vit-base-patch16.")  # fmt: skip
            self._teacher.append(ClipTeacher(source))
        teacher = self._teacher[0]
        target_dim = {**self.hparams, **self.training_arguments}["target_dim"]
        if teacher.output_dim != target_dim:
            raise ModelError(f"The teacher's features have {teacher.output_dim} channels and target_dim is "
                             f"{target_dim}; set model.target_dim to {teacher.output_dim}.")  # fmt: skip
        return teacher.to(self.device)

    def clip_pixels(self, x: Tensor) -> Tensor:
        """What the module normalised, (B, 3, T, H, W), normalised as CLIP was trained."""
        return (x * self.std + self.mean - self.clip_mean) / self.clip_std
