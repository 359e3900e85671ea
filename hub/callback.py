"""A Lightning callback that pushes the trained model."""

import shlex
from dataclasses import replace

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from hub.card import about_run
from hub.errors import HubError
from hub.lightning_ckpt import read_lightning
from hub.remote import check_login, push

__all__ = ["PushToHub"]


class PushToHub(Callback):
    """Pushes the best checkpoint to the Hugging Face Hub at the end of a fit.

    The token is that of huggingface_hub: HF_TOKEN, or ``hf auth login``. It is checked at the start, not after days of
    training. An interrupted run pushes nothing; ``zoo push RUN org/name``
    does it later. In a config::

        trainer:
          callbacks:
            - class_path: hub.PushToHub
              init_args: {repo_id: org/name}

    Args:
        repo_id: "organisation/name".
        private: make a new repository private.
        license: identifier the Hub knows, such as ``apache-2.0``.
        base_model: repository of the weights that the training started from; ``init_from: hf://...`` says it too.

    Raises:
        HubError: from the fit: no token, no connection, or no checkpoint to push.
    """

    def __init__(
        self, repo_id: str, private: bool = False, license: str | None = None, base_model: str | None = None
    ) -> None:
        self.repo_id = repo_id
        self.private = private
        self.license = license
        self.base_model = base_model
        self._fitted = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or _is_trial(trainer):
            return
        if not trainer.checkpoint_callbacks:
            raise HubError("PushToHub pushes the best checkpoint and none is written; leave checkpointing enabled.")
        if trainer.is_global_zero:
            check_login()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fitted = True

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not on_fit_end: other callbacks may write pictures there. Lightning calls teardown only after a success.
        if stage != "fit" or not self._fitted or _is_trial(trainer) or not trainer.is_global_zero:
            return
        self._fitted = False
        # One that watches a score knows the best; of the others, the path is that of their last.
        written = [c for c in trainer.checkpoint_callbacks if getattr(c, "best_model_path", "")]
        written.sort(key=lambda callback: getattr(callback, "monitor", None) is None)
        best: str | None = getattr(written[0], "best_model_path", None) if written else None
        if best is None:
            raise HubError(f"The fit wrote no checkpoint, so nothing was pushed to {self.repo_id}; train longer.")
        for logger in trainer.loggers:
            logger.save()  # the last rows of metrics.csv
        try:
            checkpoint = read_lightning(best)
            about = about_run(checkpoint)
            about = replace(about, license=self.license, base_model=self.base_model or about.base_model)
            address = push(checkpoint, self.repo_id, private=self.private, about=about)
            print(f"Pushed {best}: {address}")
        except HubError as error:
            command = shlex.join(["zoo", "push", best, self.repo_id])
            remedy = f"the training is complete, and `{command}` tries again"
            raise HubError(f"{str(error).rstrip('.')}; {remedy}.") from error


def _is_trial(trainer: Trainer) -> bool:
    """Whether the run is a few batches that test the code; Lightning sets the attribute outside of the class."""
    return bool(getattr(trainer, "fast_dev_run", False))
