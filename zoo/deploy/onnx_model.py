"""An exported ONNX file in the place of the model it was made from: what `zoo predict` asks of a model."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.base import BaseModule
from zoo.build import load
from zoo.deploy.session import open_session
from zoo.errors import ZooError

__all__ = ["OnnxModel", "open_model"]

_PREPARED = {"num_frames": int, "image_size": int, "short_side": int, "sampling": str, "frame_stride": int,
             "interpolation": str}  # fmt: skip


class OnnxModel(nn.Module):
    """A classifier or a regressor in an ONNX file, run by ONNX Runtime on the CPU.

    Args:
        file: written by `zoo.export` in the format "onnx".

    Attributes:
        preprocessing: see `lightning_modules.base.BaseModule`.
        class_names: of a classifier; None where they are not known.
        value_name: of a regressor.

    Raises:
        ZooError: it cannot be read, or is no such file.
    """

    class_names: list[str] | None
    value_name: str | None

    def __init__(self, file: str | os.PathLike[str]) -> None:
        super().__init__()
        self._session = open_session(file)
        metadata = self._session.get_modelmeta().custom_metadata_map
        try:
            prepared = json.loads(metadata["preprocessing"])
            still = json.loads(metadata["still"])
            self.hparams: dict[str, Any] = {"num_frames": None if still else prepared["num_frames"]}
            self.preprocessing = {name: kind(prepared[name]) for name, kind in _PREPARED.items()}
            self._as_float = metadata["input"] == "float32"
            if metadata["output"] == "logits":
                self.class_names = json.loads(metadata["class_names"])
            elif metadata["output"] == "value":
                self.value_name = json.loads(metadata["value_name"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ZooError(f"{file} was not written by `zoo export` for videos; export a model to get one that tells "
                           "how to read videos.") from error  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the session runs, whatever the model is moved to."""
        return torch.device("cpu")

    def forward(self, video: Tensor) -> Tensor:
        """Clips uint8 (B, 3, T, H, W) -> logits (B, num_classes), or numbers (B,).

        Raises:
            ZooError: under autocast, which does not reach ONNX Runtime.
        """
        if torch.is_autocast_enabled("cpu"):
            raise ZooError("An exported file computes in the precision it was written with; omit precision.")
        given = (video / 255 if self._as_float else video).numpy()
        return torch.from_numpy(self._session.run(None, {"video": given})[0])


def open_model(source: str | os.PathLike[str], **arguments: Any) -> BaseModule:
    """What `zoo.load` loads, or an `OnnxModel` where the source is a file that ends in .onnx.

    Raises:
        ZooError: arguments are given for an exported file, which is as it is.
    """
    if Path(source).suffix.lower() != ".onnx":
        return load(source, **arguments)
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise ZooError(f"{source} is an exported file, in which {given[0]} cannot be changed; export the model so.")
    return OnnxModel(source)  # type: ignore[return-value]  # it has what prediction asks of a BaseModule
