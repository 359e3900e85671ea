"""The file that the EPIC-KITCHENS-100 challenges take."""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from lightning_modules.files import written
from lightning_modules.training.epic_metrics import ACTION_BASE

__all__ = ["EpicSubmission"]

_LOWEST = 1e-30  # of a probability, whose logarithm is a number then


class EpicSubmission(Callback):
    """Writes what `lightning predict` found as a challenge's JSON (version 0.2; docs/protocol.md, section 23).

    Scores of verbs, nouns and of the hundred best actions are logarithms of probabilities. Beside the JSON lies a zip
    with it under the name test.json, which is what the challenge's server takes.

    Args:
        file: name of the JSON in the run's folder, or a path.
        sls_pt: supervision level of the pretraining, as the challenge defines it; -1 says nothing.
        sls_tl: of the labels that were trained with.
        sls_td: of the data that was trained with.
    """

    def __init__(self, file: str = "submission.json", sls_pt: int = -1, sls_tl: int = -1, sls_td: int = -1) -> None:
        self.file = file
        self.levels = {"sls_pt": sls_pt, "sls_tl": sls_tl, "sls_td": sls_td}
        self.results: dict[str, dict[str, Any]] = {}

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.results = {}

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for row, name in enumerate(outputs["narration_id"]):
            result = {}
            for part in ("verb", "noun"):
                result[part] = {str(number): _log(value) for number, value in enumerate(outputs[part][row].tolist())}
            pairs = zip(outputs["best"][row].tolist(), outputs["best_scores"][row].tolist(), strict=True)
            result["action"] = {"{},{}".format(*divmod(number, ACTION_BASE)): _log(value) for number, value in pairs}
            self.results[name] = result

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        results = self.results
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, results)
            results = {name: result for part in parts for name, result in part.items()}
        if not trainer.is_global_zero:
            return
        task = pl_module.hparams["task"]
        submission = {"version": "0.2", "challenge": f"action_{task}", **self.levels, "results": results}
        out = Path(trainer.log_dir or trainer.default_root_dir) / self.file
        out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(submission)
        with written(out) as beside:
            beside.write_text(text, encoding="utf-8")
        with (
            written(out.with_suffix(".zip")) as beside,
            zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            archive.writestr("test.json", text)
        rank_zero_info(f"Submission of {len(results)} segments: {out} and {out.with_suffix('.zip').name}")


def _log(probability: float) -> float:
    return round(math.log(max(probability, _LOWEST)), 6)
