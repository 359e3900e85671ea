"""Lightning ``.ckpt`` files of the zoo's modules, read as data: nothing is instantiated."""

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import yaml

from hub.checkpoint import (
    CURVES,
    METRICS,
    TESTED,
    Checkpoint,
    check_config,
    check_tensors,
    is_state_dict,
    load_pickle,
    read_text,
)
from hub.errors import HubError
from hub.hashes import sha256_of

__all__ = ["find_checkpoint", "read_lightning"]


def find_checkpoint(run: Path) -> Path | None:
    """Return the ``.ckpt`` of a run's folder: its best, else its only one; None if the folder is not a run.

    Raises:
        HubError: several checkpoints, none of them called best.
    """
    if run.name == "checkpoints" and not (run / "checkpoints").is_dir():
        run = run.parent
    found = sorted((run / "checkpoints").glob("*.ckpt"))
    best = [path for path in found if path.stem == "best"]
    if len(best or found) > 1:
        raise HubError(f"{run} has {len(found)} checkpoints and none is called best.ckpt; name the file, "
                       f"for example {found[0]}.")  # fmt: skip
    return next(iter(best or found), None)


def read_lightning(path: str | os.PathLike[str]) -> Checkpoint:
    """Read config and weights of a ``.ckpt`` written while training a module of the zoo.

    From the run's folder, if the ``lightning`` command made it, come the configuration as the recipe, the log of the
    metrics, the picture of the curves, and scores and picture of the newest test of this very file (report.json).
    Of a run with averaged weights (EMA) the averages are the weights. Weights that the module names as of no use after
    training are left out; it may also name another class as what the trained model is (``shared_as``).

    Raises:
        HubError: not a checkpoint of a module of the zoo.
    """
    path = Path(path)
    found = load_pickle(path)
    content: dict[str, Any] = found if isinstance(found, dict) else {}
    arguments, weights = content.get("hyper_parameters"), content.get("state_dict")
    if (
        not isinstance(arguments, dict)
        or not isinstance(arguments.get("_class_path"), str)
        or not is_state_dict(weights)
    ):
        raise HubError(f"{path} is not a checkpoint of a module of the zoo; "
                       "pass its folder, or convert it by the name of its model.")  # fmt: skip
    check_tensors(weights, path)
    check_config(arguments, f"The config of {path} is not that of a model")
    trained = {
        "class_path": arguments["_class_path"],
        "init_args": {name: value for name, value in arguments.items() if name != "_class_path"},
    }
    class_path, without = _shared_as(content, trained["class_path"], path)
    config = {**trained, "class_path": class_path}
    state_dict = {name: tensor for name, tensor in weights.items() if not name.startswith(without)}
    run = _find_run(path, trained)
    if run is None:
        return Checkpoint(config, state_dict)
    extras = {name: (run / name).read_bytes() for name in (METRICS, CURVES) if (run / name).is_file()}
    scores = _scores(extras.get(METRICS, b""), content.get("epoch"), content.get("global_step"), path.stem == "best")
    test = _find_test(path, run)
    if test is not None:
        folder, record = test
        scores |= _scores_of_test(record)
        extras |= {name: (folder / name).read_bytes() for name in TESTED if (folder / name).is_file()}
    return Checkpoint(config, state_dict, read_text(run / "config.yaml"), extras, scores)


def _shared_as(content: dict[str, Any], trained: str, path: Path) -> tuple[str, tuple[str, ...]]:
    """Return the class of the trained model, and prefixes of the weights that it does not have."""
    shared = content.get("shared_as", {"class_path": trained, "without": ()})
    known: dict[str, Any] = shared if isinstance(shared, dict) else {}
    class_path, without = known.get("class_path"), known.get("without")
    are_names = isinstance(without, list | tuple) and all(isinstance(name, str) and name for name in without)
    if not isinstance(class_path, str) or not are_names:
        raise HubError(f"shared_as in {path} is not a class_path and a list of names of weights, so nobody can tell "
                       "what the model is without; take a checkpoint as the training wrote it.")  # fmt: skip
    return class_path, tuple(without or ())


def _find_run(path: Path, config: dict[str, Any]) -> Path | None:
    """The folder of the run that wrote a checkpoint, or None.

    It has a ``config.yaml``, which describes this model; the checkpoint is there or in its folder ``checkpoints``.
    """
    folder = path.resolve().parent
    for run in (folder, folder.parent) if folder.name == "checkpoints" else (folder,):
        if (run / "config.yaml").is_file() and _describes(read_text(run / "config.yaml"), config):
            return run
    return None


def _describes(text: str, config: dict[str, Any]) -> bool:
    """Whether a run's YAML has the class and the arguments of `config`; those it leaves at None are filled in later."""
    try:
        model = yaml.safe_load(text)["model"]
        class_path, given = model["class_path"], model.get("init_args") or {}
        described = {name: value for name, value in given.items() if name in config["init_args"] and value is not None}
    except (yaml.YAMLError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return False
    same_class = str(class_path).rpartition(".")[2] == config["class_path"].rpartition(".")[2]
    return same_class and all(_plain(value) == _plain(config["init_args"][name]) for name, value in described.items())


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _find_test(path: Path, run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The folder and the report.json of the newest test of a checkpoint, known by the file's hash, or None.

    The ``lightning`` command tests beside the run: ``<name>/test_0``, ``<name>/test_1``, ...
    """
    reports = [*run.glob("report.json"), *run.parent.glob("test_*/report.json")]
    sha256 = sha256_of(path) if reports else ""
    for report in sorted(reports, key=lambda report: report.stat().st_mtime, reverse=True):
        try:
            record = json.loads(read_text(report))
            if record["checkpoint"]["sha256"] == sha256:
                return report.parent, record
        except (HubError, ValueError, RecursionError, KeyError, TypeError, OSError):
            continue  # another program's, or half a file
    return None


def _scores_of_test(record: dict[str, Any]) -> dict[str, float]:
    """What a report.json says: what was logged, and the report's own numbers about the main answers.

    They are called ``test/calibration_error``, and ``test/top1_low`` and ``test/top1_high`` for an interval.
    """
    scores = dict(record["logged"]) if isinstance(record.get("logged"), dict) else {}
    kinds = record.get("scores")
    main = next(iter(kinds.values()), None) if isinstance(kinds, dict) else None
    # The shares of several kinds of answers are logged by their own names: action_top1.
    prefix = f"{next(iter(kinds))}_" if isinstance(kinds, dict) and len(kinds) > 1 else ""
    for name, value in main.items() if isinstance(main, dict) else ():
        if name.endswith("_interval") and isinstance(value, list) and len(value) == 2:
            share = name.removesuffix("_interval")
            scores |= {f"test/{prefix}{share}_low": value[0], f"test/{prefix}{share}_high": value[1]}
        elif name in ("mean_recall", "calibration_error"):
            scores[f"test/{prefix}{name}"] = value
    numbers = {str(name): _number(value) for name, value in scores.items()}
    return {name: value for name, value in numbers.items() if value is not None and name.startswith("test/")}


def _scores(log: bytes, epoch: object, global_step: object, best: bool) -> dict[str, float]:
    """Read the scores of one checkpoint from metrics.csv.

    Args:
        log: a row per logging call, with the columns epoch and step; most cells are empty.
        epoch: of the checkpoint; validation follows training within an epoch, several times where so configured.
        global_step: steps of the optimiser when it was written.
        best: whether the checkpoint is the run's best, which is what a test within the run is made with.
    """
    scores: dict[str, float] = {}
    try:
        rows = list(csv.DictReader(io.StringIO(log.decode())))
    except (UnicodeDecodeError, csv.Error):
        return scores
    for row in rows:
        where = _number(row.get("epoch")), _number(row.get("step"))
        validated = where[0] == epoch and isinstance(global_step, int) and (where[1] or 0) <= global_step
        for key, cell in row.items():
            stage = str(key).partition("/")[0]
            value = _number(cell)
            if value is not None and ((stage == "val" and validated) or (stage == "test" and best)):
                scores[key] = value
    return scores


def _number(cell: Any) -> float | None:  # noqa: ANN401 - from a file of anybody: float() says what it is
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
