"""Build modules from names or configs, with or without weights."""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

import hub
from hub.checkpoint import (
    CONFIG,
    WEIGHTS,
    Checkpoint,
    check_file,
    check_finite,
    check_state_dict,
    load_safetensors,
)
from hub.convert import mambavl, video_mamba_suite, videomamba_text
from hub.convert.videomamba import read_official, to_zoo
from hub.hashes import check_sha256
from hub.lightning_ckpt import find_checkpoint, read_lightning
from lightning_modules.base import BaseModule
from lightning_modules.errors import ModelError
from lightning_modules.ops.graphs import Replayed
from zoo.configs import check_arguments, normalise_of, resolve
from zoo.errors import UnknownModelError, ZooError
from zoo.fetch import REPOSITORY, fetch_folder, fetch_vocabulary, weights_of
from zoo.registry import Entry, info

__all__ = ["create", "initialise", "load", "read_config_of", "read_local"]

# Arguments that change the length of the position embeddings and nothing else: loading interpolates.
RESIZABLE = ("num_frames", "image_size")
VIDEO_MAMBA_SUITE = "cg1177/video-mamba-suite"
"""Repository whose files have their own form."""
SUFFIXES = (".ckpt", ".pth", ".pt", ".safetensors", "/")


def create(name: str, **overrides: Any) -> BaseModule:
    """Build a registered model with fresh weights, in training mode.

    A model made of pretrained parts, such as MUSE on CLIP's towers, starts from these (`Entry.parts`; they are fetched
    on first use). An argument of None makes the part random: ``zoo.create("muse-vit-b32-msrvtt", clip_weights=None)``.

    Args:
        name: registered name or alias.
        overrides: arguments of the module's constructor, e.g. ``num_classes=12``. Class names are dropped where the
            number of classes changes and no others are given; ``short_side`` grows with ``image_size``.

    Raises:
        UnknownModelError: no such name; the message suggests the nearest ones.
        ModelError: an argument the module does not have, or of a wrong type or value.
    """
    entry = info(name)
    config = {"class_path": entry.class_path, "init_args": entry.init_args}
    return _construct(config, _arguments(config, entry.parts | overrides))


def load(
    source: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    graph: bool = False,
    **overrides: Any,
) -> BaseModule:
    """Load a model with its weights, in eval mode.

    Args:
        source: a registered name, a folder in the hub format, a Lightning ``.ckpt`` of a module of the zoo, the folder
            of a run (its best checkpoint), or a Hub repository ``org/repo`` / ``hf://org/repo``, with ``@revision`` if
            wanted. A registered name wins over a folder of that name (write ``./name`` for the folder), a folder
            ``org/repo`` over a repository.
        checkpoint: a file on disk to take the weights from (official, safetensors or ``.ckpt``, or a folder in the hub
            format); `source` then is the registered name they belong to, and nothing is downloaded.
        graph: move the model to the GPU and replay its forward pass as a CUDA graph, recorded at the first call with
            each shape; without gradients (`lightning_modules.ops.graphs.Replayed`).
        overrides: arguments of the module's constructor. Position embeddings are interpolated where ``num_frames`` or
            ``image_size`` differ from the checkpoint; other changes must fit the weights.

    Raises:
        UnknownModelError: no such name, folder or file.
        HubError: the weights cannot be fetched or read, belong to another architecture, or hold NaN.
        ModelError: an override does not fit the module.
        ZooError: another number of classes than the weights have; `graph` without a GPU.
    """
    if graph and not torch.cuda.is_available():
        raise ZooError("graph=True replays a CUDA graph and there is no NVIDIA GPU here; omit it.")
    if checkpoint is not None:
        found, stored = _read_entry(info(str(source)), Path(checkpoint).expanduser())
    else:
        found, stored = _read_source(source)
    where = str(checkpoint or source)
    _refuse_another_head(found.config, overrides, where)
    state_dict, arguments = found.state_dict, _arguments(found.config, overrides)
    # The config and the file may come from anybody: they are compared before anything of the model's size is made.
    outline = _outline(found, arguments, where)
    resized = stored or any(key in overrides for key in RESIZABLE)
    if resized and not _same_shapes(state_dict, outline.state_dict()) and hasattr(outline, "adapt_state_dict"):
        # Compare with the model before resizing, to name missing and unexpected tensors.
        others = {key: value for key, value in overrides.items() if key not in RESIZABLE}
        as_stored = _outline(found, _arguments(found.config, others | stored), where)
        check_state_dict(state_dict, as_stored.state_dict(), where)
        state_dict = outline.adapt_state_dict(state_dict)
    check_state_dict(state_dict, outline.state_dict(), where)
    check_finite(state_dict, where)
    module = outline
    if _is_ours(found.config):
        with _without_values(len(state_dict)):
            module = _construct(found.config, arguments)
        _allocate(module)
    module.load_state_dict(state_dict)
    module.eval()
    if graph:
        module.cuda()
        # It takes no inputs by name.
        module.forward = Replayed(module)  # type: ignore[method-assign, assignment]
    return module


def initialise(module: BaseModule, source: str | os.PathLike[str]) -> bool:
    """Initialise a module with the weights of another one.

    Position embeddings are interpolated, and image weights inflated, where frames or resolution differ. The head keeps
    its fresh weights where the number or the names of the classes differ, or what a predicted number is, and so do
    weights that only the training needs (`BaseModule.training_weights`); everything else has to fit. Masked pretraining
    drops its decoder and whatever else was not trained (`MaskedPretraining.classifier_weights`), except for more of its
    kind.

    Args:
        module: a classifier.
        source: as for `load`; for a model with AVION's tower also a file of AVION's pre-training.

    Returns:
        Whether the head was taken over too.

    Raises:
        UnknownModelError: no such name, folder or file.
        HubError: the weights cannot be fetched or read, belong to another architecture, or hold NaN.
    """
    found = _read_avion(module, Path(source).expanduser()) or _read_source(source)[0]
    check_finite(found.state_dict, os.fspath(source))
    donor = resolve(found.config["class_path"])
    if hasattr(donor, "classifier_weights") and not isinstance(module, donor):
        found = found._replace(state_dict=donor.classifier_weights(found.state_dict, found.config["init_args"]))
    state_dict, expected = module.adapt_state_dict(found.state_dict), module.state_dict()
    head = [key for key in expected if key.startswith("net.head.")]
    taken = all(key in state_dict and state_dict[key].shape == expected[key].shape for key in head)
    theirs = found.config["init_args"]
    taken = taken and ("num_classes" in theirs) == hasattr(module, "num_classes")
    for name in ("class_names", "value_name"):
        taken = taken and (theirs.get(name) is None or getattr(module, name, None) in (None, theirs[name]))
    fresh = [key for key in expected if key.startswith(module.training_weights)] + ([] if taken else head)
    state_dict = {**state_dict, **{key: expected[key] for key in fresh}}
    check_state_dict(state_dict, expected, os.fspath(source))
    module.load_state_dict(state_dict)
    return taken


def _read_avion(module: BaseModule, path: Path) -> Checkpoint | None:
    """The tower of a file of AVION's pre-training, for a model that has one; None for other sources and models."""
    vision = module.hparams.get("vision")
    has_tower = isinstance(vision, dict) and vision.get("tower") == "avion"
    if not has_tower or path.suffix not in (".pt", ".pth") or not path.is_file():
        return None
    return Checkpoint(module.config, mambavl.tower_to_zoo(read_official(path), path))


def read_config_of(source: str | os.PathLike[str]) -> dict[str, Any]:
    """The config {class_path, init_args} of what `load` takes, without building it; see there for the errors."""
    try:
        entry = info(os.fspath(source))
    except UnknownModelError:
        return _read_source(source)[0].config
    return {"class_path": entry.class_path, "init_args": entry.init_args}


def read_local(path: Path) -> Checkpoint:
    """Read a model folder, a run's folder or a ``.ckpt``, and normalise its config.

    Raises:
        HubError: it cannot be read, or is something else.
        ModelError: its class is not registered, or the arguments do not fit.
        ZooError: a file that does not say which model it is.
    """
    if path.is_dir() and not (path / CONFIG).is_file():
        path = find_checkpoint(path) or path
    found: Checkpoint
    if path.is_dir():
        found, where = hub.read(path), path / CONFIG
    elif path.suffix == ".ckpt":
        found, where = read_lightning(path), path
    else:
        check_file(path)
        raise ZooError(f"{path} does not say which model it is; name it: zoo.load(NAME, checkpoint={str(path)!r}).")
    return found._replace(config=normalise_of(where, found.config))


def _refuse_another_head(config: dict[str, Any], overrides: dict[str, Any], where: str) -> None:
    """Raise `ZooError` for another number of classes than the weights have: those of its head cannot be loaded."""
    ours, theirs = overrides.get("num_classes"), config["init_args"].get("num_classes")
    if "num_classes" in overrides and theirs is not None and ours != theirs:
        raise ZooError(f"{where} has weights for {theirs} classes and num_classes is {ours}; build it with "
                       f"zoo.create(NAME, num_classes={ours}) and give it the other weights with zoo.initialise, or "
                       "train it with `lightning fit --model.init_from`.")  # fmt: skip


def _arguments(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """All arguments of the constructor, checked: those of a config with some of them replaced."""
    cls = resolve(config["class_path"])
    init_args = dict(config["init_args"])
    if overrides.get("num_classes", init_args.get("num_classes")) != init_args.get("num_classes"):
        init_args.pop("class_names", None)
    size, old_size = overrides.get("image_size"), init_args.get("image_size")
    grouped = isinstance(init_args.get("preprocessing"), dict)
    prepared = dict(init_args["preprocessing"]) if grouped else init_args
    if prepared.get("short_side") and isinstance(size, int) and old_size:
        # The share that a centre crop leaves out belongs to how the model was trained.
        prepared["short_side"] = int(prepared["short_side"] * size / old_size)
    if grouped:
        init_args["preprocessing"] = prepared
    return check_arguments(cls, init_args | overrides, include_training=True)


def _is_ours(config: dict[str, Any]) -> bool:
    """Whether a class is the zoo's: its constructor does without the values of its parameters and buffers."""
    class_path: str = config["class_path"]
    return class_path.startswith("lightning_modules.")


def _construct(config: dict[str, Any], arguments: dict[str, Any]) -> BaseModule:
    """Call the constructor.

    Raises:
        ModelError: a value that it does not take, or sizes that nothing can be made of.
    """
    cls = resolve(config["class_path"])
    try:
        module: BaseModule = cls(**arguments)
    except ModelError:
        raise
    except Exception as error:  # torch has a type of its own for each kind of size that does not fit
        if not _is_ours(config):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{cls.__name__} cannot be made with these arguments ({reason}); change them.") from error
    return module


def _outline(found: Checkpoint, arguments: dict[str, Any], where: str) -> BaseModule:
    """A module whose tensors have shapes and no memory; one of the user's own classes as it is.

    Raises:
        ModelError: the constructor does not take a value, or makes far more tensors than the file has.
    """
    try:
        if not _is_ours(found.config):
            return _construct(found.config, arguments)
        with _without_values(len(found.state_dict)), torch.device("meta"):
            return _construct(found.config, arguments)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error


class _Thread(threading.local):
    """State of the parameter registration hook in a thread; the hook is active only within `_without_values`.

    Attributes:
        left: how many more parameters may be registered; None leaves them as they are.
        tensors: how many the file has.
    """

    left: int | None = None
    tensors = 0


_here = _Thread()
_installing = threading.Lock()
_installed = False


def _to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    """Move a parameter to the meta device, where what initialises it does nothing."""
    if parameter is None or _here.left is None:
        return None
    _here.left -= 1
    if _here.left < 0:
        raise ModelError(f"The config asks for far more layers than the weights have, which are {_here.tensors} "
                         "tensors; save the model again.")  # fmt: skip
    return None if parameter.is_meta else nn.Parameter(parameter.to("meta"), parameter.requires_grad)


@contextmanager
def _without_values(tensors: int) -> Iterator[None]:
    """Inside the block parameters that this thread registers take no memory and no time until `_allocate`.

    torch has one list of such hooks for all threads, and registering a parameter walks through it. So the hook is
    installed once and stays.

    Args:
        tensors: of the file that the parameters are for. Constructors replace some of what they make, but not most.
    """
    global _installed
    with _installing:
        if not _installed:
            register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]  # torch uses what it returns
            _installed = True
    before = _here.left, _here.tensors
    _here.left, _here.tensors = 2 * tensors + 200, tensors
    try:
        yield
    finally:
        _here.left, _here.tensors = before


def _allocate(module: nn.Module) -> None:
    """Give the parameters of a module made `_without_values` memory, but no values; shared ones stay shared."""
    device = torch.get_default_device()
    made: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter.is_meta:
                if parameter not in made:
                    made[parameter] = nn.Parameter(torch.empty_like(parameter, device=device), parameter.requires_grad)
                setattr(part, name, made[parameter])


def _same_shapes(state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return {k: v.shape for k, v in state_dict.items()} == {k: v.shape for k, v in expected.items()}


def _read_source(source: str | os.PathLike[str]) -> tuple[Checkpoint, dict[str, Any]]:
    """Read a source; also return the arguments that the file was made with where they differ from the config."""
    path, text = Path(source).expanduser(), os.fspath(source)
    unknown = None
    if isinstance(source, str):
        try:
            return _read_entry(info(source))
        except UnknownModelError as error:
            unknown = error
    if path.exists():
        return read_local(path), {}
    repository = None if unknown is None else REPOSITORY.fullmatch(text)
    if "://" in text and not text.startswith("hf://"):
        raise ZooError(f"{text} is an address; download the file, or write hf://organisation/name for a repository.")
    if text.startswith("hf://") and repository is None:
        raise ZooError(f"{text} is not a repository; write hf://organisation/name, with @revision if wanted.")
    if repository is None and "/" not in text and not text.endswith(SUFFIXES) and unknown is not None:
        raise unknown
    if repository is None or text.startswith((".", "~")) or text.endswith(SUFFIXES):
        raise UnknownModelError(f"{text} does not exist; pass a model folder, a .ckpt file or a registered name.")
    try:
        config, (weights, *_) = fetch_folder(repository["repo"], repository["revision"])
        return Checkpoint(config, load_safetensors(weights)), {}
    except hub.HubError as error:
        if text.startswith("hf://"):
            raise
        raise hub.HubError(f"There is no folder {text} here, and as a repository: {error}") from error


def _read_entry(entry: Entry, file: Path | None = None) -> tuple[Checkpoint, dict[str, Any]]:
    """Same as `_read_source` for an entry: weights from `file` if given, else from the place in the registry."""
    config: dict[str, Any] = {"class_path": entry.class_path, "init_args": entry.init_args}
    frames = entry.meta.get("stored_frames")
    stored = {} if frames is None else {"num_frames": frames}
    if file is None:
        weights = weights_of(entry)
        if weights.folder is not None:
            file = Path(weights.folder)
            if weights.sha256 is not None:
                check_sha256(file / WEIGHTS, weights.sha256)
        elif weights.repo_id is None:
            raise ZooError(f"The weights of {entry.name} are nowhere; register them with a folder or a repository.")
        elif weights.filename is None:
            _, fetched = fetch_folder(weights.repo_id, weights.revision, weights.sha256)
            return Checkpoint(config, load_safetensors(fetched[0])), stored
        else:
            file = hub.pull(weights.repo_id, weights.filename, weights.revision, sha256=weights.sha256)
    if file.is_dir():
        state_dict = hub.read(file).state_dict
    elif file.suffix == ".ckpt":
        state_dict = read_lightning(file).state_dict
    elif entry.task == "video-text-pretraining":
        state_dict = videomamba_text.to_zoo(read_official(file)) | {"net.words.pieces": _word_pieces(entry)}
    elif entry.init_args.get("fusion") == "published":
        found = mambavl.to_zoo(read_official(file), file)
        state_dict = {**found.weights, **_roberta_pieces(entry)}
        if not found.has_tower:
            features = {"tower": "features", "feature_dim": found.width}
            config["init_args"] = {**config["init_args"], "vision": features}
    elif entry.weights is not None and entry.weights.repo_id == VIDEO_MAMBA_SUITE:
        # Numbers of NumPy and a table of pandas stand beside the weights.
        state_dict = video_mamba_suite.to_zoo(read_official(file, inert=True), file)
        if "text_weights" in entry.parts:
            state_dict |= _clip_pieces(entry)
    else:
        state_dict = to_zoo(read_official(file))
    return Checkpoint(config, state_dict), stored


def _clip_pieces(entry: Entry) -> dict[str, Tensor]:
    """CLIP's tokenizer, as the module keeps it."""
    from lightning_modules.nets.clip_tower import ClipTokenizer, read_merges  # imports transformers

    tokenizer = ClipTokenizer(entry.init_args["text"].get("vocab_size", 49_408), max_words=3)
    tokenizer.set_merges(read_merges(fetch_vocabulary(entry, "merges.txt")))
    return {f"net.tokenizer.{name}": tensor for name, tensor in tokenizer.state_dict().items()}


def _roberta_pieces(entry: Entry) -> dict[str, Tensor]:
    """The tokenizer of an official MambaVL, as the module keeps it."""
    from lightning_modules.nets.roberta import RobertaWords, read_words  # imports transformers

    pieces = read_words(*(fetch_vocabulary(entry, name) for name in ("vocab.json", "merges.txt")))
    words = RobertaWords(entry.init_args["text"].get("vocab_size", 50_265), max_words=3)
    words.set_pieces(pieces)
    return {f"net.tokenizer.{name}": tensor for name, tensor in words.state_dict().items()}


def _word_pieces(entry: Entry) -> Tensor:
    """The vocabulary of an official model, as the module keeps it."""
    from lightning_modules.nets.bert import BertWords  # imports transformers

    pieces = fetch_vocabulary(entry).read_bytes().decode().rstrip("\n").split("\n")
    words = BertWords(len(pieces), max_words=3)
    words.set_pieces(pieces)
    return words.pieces
