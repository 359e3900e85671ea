"""What modules share whose tokens are drawn towards those of a frozen CLIP."""

import torch
from torch import Tensor

from lightning_modules.base import BaseModule
from lightning_modules.errors import ModelError
from lightning_modules.nets.clip_teacher import CLIP_MEAN, CLIP_STD, ClipTeacher

__all__ = ["TaughtByClip"]


class TaughtByClip(BaseModule):
    """Abstract base of modules that learn from CLIP. A subclass has the training argument ``teacher`` and calls
    `adopt_teacher` in its constructor."""

    def adopt_teacher(self, teacher: ClipTeacher | str | None, target_dim: int) -> None:
        """Remembers the teacher; one given by its name is fetched on first use.

        Args:
            teacher: one, or the name or folder of a CLIP checkpoint; None is none.
            target_dim: width that its features have to have.
        """
        # In a list, and so neither among the parameters nor in the checkpoints.
        self._teacher = [teacher] if isinstance(teacher, ClipTeacher) else []
        self._target_dim = target_dim
        for name, values in (("clip_mean", CLIP_MEAN), ("clip_std", CLIP_STD)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1, 1), persistent=False)

    @property
    def teacher(self) -> ClipTeacher:
        """The teacher, on the module's device.

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
        if teacher.output_dim != self._target_dim:
            raise ModelError(f"The teacher's features have {teacher.output_dim} channels and target_dim is "
                             f"{self._target_dim}; set model.target_dim to {teacher.output_dim}.")  # fmt: skip
        return teacher.to(self.device)

    def clip_pixels(self, x: Tensor) -> Tensor:
        """What the module normalised, (B, 3, T, H, W), normalised as CLIP was trained."""
        return (x * self.std + self.mean - self.clip_mean) / self.clip_std
