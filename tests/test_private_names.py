"""Names that other packages do not promise and that we use all the same: the one list of them, and that it is whole.

A release that renames one of them fails here, by name. Each of these packages therefore has an upper bound in
pyproject.toml. A name belongs into the list where a class of ours overrides or reads what a base class of theirs keeps
to itself, where one of their objects is asked for a name that begins with "_", and where a module is imported that
their documentation leaves out.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
OURS = ("zoo", "lightning_modules", "datamodules", "hub")
THEIRS = ("lightning", "torchdata", "jsonargparse", "transformers", "huggingface_hub")

NAMES = {
    "huggingface_hub.utils._http": ("_GLOBAL_CLIENT_FACTORY",),
    "lightning.pytorch.callbacks.ModelCheckpoint": (
        "_last_time_checked", "_monitor_candidates", "_save_checkpoint", "_save_topk_checkpoint",
        "_should_skip_saving_checkpoint", "best_k_models", "kth_best_model_path",
    ),
    "lightning.pytorch.callbacks.RichProgressBar": (
        "_get_train_description", "train_progress_bar_id", "validation_description",
    ),
    "lightning.pytorch.callbacks.WeightAveraging": ("_average_model",),
    "lightning.pytorch.cli.LightningCLI": ("_parse_ckpt_path", "_run_subcommand", "config_init"),
    "lightning.pytorch.loggers.csv_logs.CSVLogger": ("_experiment",),
    "lightning.pytorch.loggers.csv_logs.ExperimentWriter": (
        "_check_log_dir_exists", "_rewrite_with_new_header", "metrics", "metrics_file_path", "metrics_keys",
    ),
    "lightning.pytorch.loops.fit_loop._FitLoop": ("_should_accumulate", "epoch_loop"),
    "lightning.pytorch.loops.training_epoch_loop._TrainingEpochLoop": ("batch_progress",),
    "lightning.pytorch.strategies.ModelParallelStrategy": ("_data_parallel_size",),
    "torchdata.stateful_dataloader.StatefulDataLoader": ("next_iter_state",),
    "transformers.models.bert.modeling_bert.BertLayer": ("crossattention",),
    "transformers.models.clip.modeling_clip.CLIPEncoderLayer": ("layer_norm1", "layer_norm2", "mlp", "self_attn"),
    "transformers.models.bert.modeling_bert.BertSelfAttention": ("all_head_size", "is_causal"),
    "transformers.models.bert.modeling_bert.BertPreTrainedModel": ("_init_weights",),
    "transformers.models.clip.modeling_clip.CLIPTextModel": (),
}  # fmt: skip
PUBLIC = {"_replace", "_asdict", "_fields", "_field_defaults", "_abc_impl"}
"""Documented ones of named tuples, and what Python gives every abstract class."""
OF_OTHERS = {"_linear_pointwise", "_cache", "_exit", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks",
             "_backward_pre_hooks"}  # fmt: skip
"""Each used in one place: an operator of torch and its modules' hooks, where numba keeps compiled code, `os._exit`."""


def find(path: str) -> type | ModuleType:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def has(owner: type | ModuleType, name: str) -> bool:
    """Whether a module, or a class of theirs or a base of theirs has an attribute or sets it on its instances."""
    if isinstance(owner, ModuleType):
        return hasattr(owner, name)
    for base in theirs(owner):
        if name in vars(base) or name in vars(base).get("__annotations__", {}):
            return True
        if re.search(
            rf"\bself\.{name}\b(: [^=\n]+)? = |\bself\.{name}, |, self\.{name}\b.* = ", inspect.getsource(base)
        ):
            return True
    return False


def theirs(cls: type) -> Iterator[type]:
    return (base for base in cls.__mro__ if base.__module__.partition(".")[0] in THEIRS)


@pytest.mark.parametrize("path", NAMES)
def test_names_are_there(path):
    owner = find(path)
    assert not [name for name in NAMES[path] if not has(owner, name)], f"names that {path} does not have"


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in (file for package in OURS for file in (REPOSITORY / package).rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def classes() -> Iterator[type]:
    """Those of ours with a base of theirs."""
    for package in OURS:
        for module in pkgutil.walk_packages([str(REPOSITORY / package)], f"{package}."):
            if module.name.endswith("__main__"):
                continue
            try:
                contents = vars(importlib.import_module(module.name))
            except ImportError:  # kernels of a package that is not installed
                continue
            for cls in contents.values():
                if isinstance(cls, type) and cls.__module__ == module.name and any(theirs(cls)):
                    yield cls


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def attributes(tree: ast.AST) -> Iterator[tuple[bool, str]]:
    """Private attributes in a source, and whether each is asked of `self`, `cls` or `super()`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            yield of_self(node), node.attr
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr", "delattr"):
            name = getattr(node.args[1], "value", None)
            if isinstance(name, str) and private(name):
                yield False, name


def of_self(node: ast.Attribute) -> bool:
    return ast.unparse(node.value) in ("self", "cls", "super()")


def test_what_our_classes_use_of_their_bases_is_listed():
    found = list(classes())
    assert len(found) > 15
    listed = {(find(path), name) for path, names in NAMES.items() for name in names}
    for cls in found:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
        used = {name for own, name in attributes(tree) if own} | set(filter(private, vars(cls)))
        for name in used:
            if any(has(base, name) for base in theirs(cls)):
                assert any((base, name) in listed for base in theirs(cls)), f"{cls.__qualname__} uses their {name}"


def test_what_is_used_of_their_objects_is_listed():
    """A private name that nothing of ours defines is somebody else's."""
    known = OF_OTHERS | {name for names in NAMES.values() for name in names}
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                known.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                known.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_self(node):
                known.add(node.attr)
    for path, tree in sources():
        assert not {name for own, name in attributes(tree) if not own} - known, path


def test_imports_are_of_public_modules_or_listed():
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in THEIRS:
                for name in (f"{node.module}.{alias.name}" for alias in node.names):
                    inner = name.startswith("transformers.models.") or any(map(private, name.split(".")))
                    assert name in NAMES or not inner, f"{path}: {ast.unparse(node)}"


def test_each_package_has_an_upper_bound_with_its_reason():
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    dependencies = tomllib.loads(text)["project"]["dependencies"]
    for package in THEIRS:
        (entry,) = (d for d in dependencies if re.match(rf"{package}\b", d))
        (line,) = (line for line in text.splitlines() if f'"{entry}"' in line)
        assert "<" in entry and "#" in line.partition(entry)[2], line
