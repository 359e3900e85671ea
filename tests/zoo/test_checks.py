"""Configs and arguments that mean nothing: one sentence, no traceback, no status 0, no call of what they name."""

import contextlib
import copy
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zoo.cli
from datamodules.synthetic.writing import generate

CONFIG = {
    "model": {
        "class_path": "lightning_modules.VideoClassifier",
        "init_args": {"num_classes": 2, "embed_dim": 16, "depth": 1, "num_frames": 4, "image_size": 32},
    },
    "data": {
        "class_path": "datamodules.VideoFolder",
        "init_args": {"root": "data", "batch_size": 4, "num_workers": 0},
    },
    "trainer": {"accelerator": "cpu", "max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False},
}
LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"
NO_CLASSES = ["os.system", "numpy.array", "zoo.load", ".x", "x.", "os", "nope.X", 1, True, 1.5, ["a"], {}, None,
              "torch.nn.Linear", "lightning_modules.base.BaseModule", "a b.c", "os.path"]  # fmt: skip
NO_SECTIONS = [1.5, -1, True, [], [1], "text", {5: None}, float("nan"), 10**400]
# What no training can have, by the place in the config.
NONSENSE = {
    **{("model", "class_path"): NO_CLASSES, ("data", "class_path"): NO_CLASSES},
    **{("trainer", "callbacks"): [[{"class_path": c}] for c in NO_CLASSES] + [1.5, "text", {5: None}]},
    **{("trainer", name): [{"class_path": c} for c in NO_CLASSES] for name in ("logger", "strategy", "plugins")},
    ("optimizer",): [{"class_path": c} for c in NO_CLASSES],
    **{(name,): NO_SECTIONS for name in ("model", "data", "trainer")},
    ("config",): [1.5, {}, {"a": 1}, "text", True],
    ("seed_everything",): [-1, 2**32, 10**400, 1.5, [], "text"],
    ("include",): [1, "nowhere.yaml", {5: "x"}, [[1]], "/dev/zero"],
    ("model", "init_args"): [1.5, [1], True, "text", {5: None}],
    ("data", "init_args"): [1.5, [1], True, "text", {5: None}],
    **{("trainer", name): [-5, 10**25, float("nan"), -0.5, "x", [0], {"a": 1}]
       for name in ("max_epochs", "min_epochs", "max_steps", "accumulate_grad_batches", "check_val_every_n_epoch",
                    "log_every_n_steps", "num_sanity_val_steps", "num_nodes", "devices",
                    "reload_dataloaders_every_n_epochs")},
    ("trainer", "gradient_clip_val"): [-1, float("nan"), "x", [0]],
    ("trainer", "val_check_interval"): [0, -1, float("nan"), 10**9, "x"],
    **{("trainer", name): [-1, 1.5, float("nan"), 10**25, "x"] for name in ("limit_train_batches", "fast_dev_run")},
    ("trainer", "overfit_batches"): [-1, 1, float("nan")],
    ("trainer", "max_time"): ["x", 5, {"a": 1}],
    ("trainer", "precision"): ["x", 5, []],
    ("trainer", "accelerator"): ["x", 5, []],
    ("trainer", "profiler"): ["x", 5],
}  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "x", "os.system"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["class_path", "init_args", "a", 1]), inner, max_size=2)
    ),
    max_leaves=4,
)
KEYS = st.sampled_from(["model", "data", "trainer", "optimizer", "lr_scheduler", "ckpt_path", "weights_only", "x"])
TRAINER_KEYS = st.sampled_from(["strategy", "devices", "callbacks", "logger", "plugins", "max_time", "profiler",
                                "val_check_interval", "limit_val_batches", "default_root_dir", "barebones"]
)  # fmt: skip


class Started(BaseException):
    """All has been set up, and the first batch would follow."""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """``start(config, *arguments, subcommand="fit")``: what the command comes to, up to the first batch: the exit
    status, None if it started, and what it wrote to stderr."""
    folder = tmp_path_factory.mktemp("checks")
    generate(folder / "data", num_train=8, num_val=4, num_test=0, classes=("grow", "move_left"), size=(48, 40),
             num_frames=8, num_workers=0, progress=False)  # fmt: skip
    made: dict = {}

    class Quick(zoo.cli.ZooCLI):
        """Makes the parser, which takes most of the time, once."""

        def setup_parser(self, *arguments) -> None:
            if not made:
                super().setup_parser(*arguments)
                made.update(vars(self))
            for key in ("parser", "_subcommand_method_arguments", "_subcommand_parsers"):
                setattr(self, key, made[key])

    def stop(*_) -> None:
        raise Started

    def run(config: dict | str, *arguments: str, subcommand: str = "fit") -> tuple[int | None, str]:
        text = config if isinstance(config, str) else yaml.safe_dump(config)
        (folder / "c.yaml").write_text(text)
        errors = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
            patch.chdir(folder)
            patch.setattr(zoo.cli, "ZooCLI", Quick)
            patch.setattr(zoo.cli._Running, "on_sanity_check_start", stop)
            patch.setattr(zoo.cli._Running, "on_train_start", stop)
            patch.setattr(zoo.cli._Running, "on_test_start", stop)
            patch.setattr(sys, "argv", ["lightning", subcommand, "--config", "c.yaml", *arguments])
            try:
                zoo.cli.main()
                status: int | None = 0
            except SystemExit as end:
                status = end.code
            except Started:
                status = None
        if status is None:
            shutil.rmtree(folder / "runs", ignore_errors=True)
        return status, errors.getvalue()

    run.folder = folder
    return run


def changed(path: tuple[str, ...], value: object) -> dict:
    config = copy.deepcopy(CONFIG)
    place = config
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value
    return config


def refused(start, config: dict | str, *arguments: str, subcommand: str = "fit") -> str:
    """The sentence with which the command refuses a config, after which no folder is left."""
    status, errors = start(config, *arguments, subcommand=subcommand)
    *_, sentence = errors.splitlines()
    assert status in (1, 2), (status, errors)
    assert sentence.startswith("lightning: ") and "Traceback" not in errors
    assert sorted(p.name for p in start.folder.iterdir() if p.name in ("runs", "config.yaml", "called")) == []
    return sentence


def test_the_config_itself_starts(start):
    assert start(CONFIG)[0] is None


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(NONSENSE)).flatmap(lambda p: st.tuples(st.just(p), st.sampled_from(NONSENSE[p]))))
def test_nonsense_is_refused(start, case):
    refused(start, changed(*case))


@pytest.mark.slow
def test_all_nonsense_is_refused(start):
    for path, values in NONSENSE.items():
        for value in values:
            refused(start, changed(path, value))


def never_a_traceback(start, key: str, trainer_key: str, value: object, other: object) -> None:
    for config in (changed((key,), value), changed(("trainer", trainer_key), other)):
        status, errors = start(config)  # which lets what is no sentence through
        assert status in (None, 1, 2), errors


ARBITRARY = dict(key=KEYS, trainer_key=TRAINER_KEYS, value=ANYTHING, other=ANYTHING)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(**ARBITRARY)
def test_never_a_traceback(start, key, trainer_key, value, other):
    never_a_traceback(start, key, trainer_key, value, other)


@pytest.mark.slow
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(**ARBITRARY)
def test_never_a_traceback_of_many(start, key, trainer_key, value, other):
    never_a_traceback(start, key, trainer_key, value, other)


@pytest.mark.parametrize("callbacks", [
    [{"class_path": LAMBDA, "init_args": {"setup": {"class_path": "os.system", "init_args": {"command": "> called"}}}}],
    [{"class_path": LAMBDA, "init_args": {"setup": {"class_path": "helper.call", "init_args": {"a": 1}}}}],
    [{"class_path": "helper.call", "init_args": {"a": 1}}],
])  # fmt: skip
def test_only_classes_are_called(start, monkeypatch, callbacks):
    (start.folder / "helper.py").write_text("from pathlib import Path\ndef call(a): Path('called').touch()\n")
    monkeypatch.syspath_prepend(start.folder)
    refused(start, changed(("trainer", "callbacks"), callbacks))
    for section in ("model", "data"):
        refused(start, changed((section,), {"class_path": "helper.call", "init_args": {"a": 1}}))


def test_checkpoints_that_are_none(start):
    folder = start.folder
    (folder / "text.ckpt").write_text("hello\n")
    (folder / "empty.ckpt").touch()
    (folder / "folder.ckpt").mkdir()
    os.mkfifo(folder / "pipe.ckpt")
    torch.save({"state_dict": {}}, folder / "weights.ckpt")
    hyper_parameters = {"_class_path": "antigravity.X", "num_classes": 2}
    torch.save({"global_step": 1, "hyper_parameters": hyper_parameters}, folder / "foreign.ckpt")
    for file, reason in [
        ("text.ckpt", "truncated or not a checkpoint"), ("empty.ckpt", "truncated or not a checkpoint"),
        ("folder.ckpt", "is a folder"), ("pipe.ckpt", "is a device or a pipe"), ("/dev/zero", "is a device or a pipe"),
        ("gone.ckpt", "does not exist"), ("weights.ckpt", "is not a checkpoint of a run"), ("", "is a folder"),
        ("foreign.ckpt", "'antigravity.X' is not a class of the zoo"), ("hpc", "no HPC checkpoint was found"),
        ("http://127.0.0.1:9/x.ckpt", "http://127.0.0.1:9/x.ckpt"), ("s3://a/b.ckpt", "s3"),
    ]:  # fmt: skip
        subcommand = "test" if file in ("text.ckpt", "foreign.ckpt", "/dev/zero") else "fit"
        assert reason in refused(start, CONFIG, "--ckpt_path", file, subcommand=subcommand)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("root", ["/dev/null", "/dev/null/x", "c.yaml", "\udcff", "a\0b", "a" * 300])
def test_runs_that_cannot_be_written(start, root):
    refused(start, changed(("trainer", "default_root_dir"), root))
    if "\0" not in root:
        refused(start, CONFIG, f"--trainer.default_root_dir={root}")


@pytest.mark.parametrize(("break_data", "sentence"), [
    (lambda root: [shutil.rmtree(p) for p in root.glob("train/*")], "train"),
    (lambda root: [p.unlink() for p in root.glob("train/*/*.mp4")], "train"),
    (lambda root: shutil.rmtree(root), "data"),
])  # fmt: skip
def test_data_that_cannot_be_set_up_leaves_a_sentence_and_no_folder(start, tmp_path, break_data, sentence):
    shutil.copytree(start.folder / "data", tmp_path / "data")
    break_data(tmp_path / "data")
    assert sentence in refused(start, CONFIG, "--data.root", str(tmp_path / "data"))
    missing = refused(start, CONFIG, "--data", "VideoCSV", "--data.root", str(start.folder / "data"),
                      "--data.train", "gone.csv")  # fmt: skip
    assert "gone.csv" in missing


def test_a_bug_keeps_its_traceback(start, monkeypatch):
    """What fails while batches are processed, and what cannot come from a value of the config."""
    (start.folder / "buggy.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Buggy(Callback):\n"
        "    def __init__(self, hook: str): setattr(self, hook, self.fail)\n"
        "    def fail(self, *arguments, **options): raise {}('a bug')\n"
    )
    monkeypatch.syspath_prepend(start.folder)
    source = (start.folder / "buggy.py").read_text()
    for hook, kind, type_ in [("setup", "AttributeError", AttributeError), ("on_fit_start", "NameError", NameError)]:
        (start.folder / "buggy.py").write_text(source.replace("{}", kind))
        sys.modules.pop("buggy", None)
        callback = {"class_path": "buggy.Buggy", "init_args": {"hook": hook}}
        with pytest.raises(type_, match="a bug"):
            start(changed(("trainer", "callbacks"), [callback]))
        shutil.rmtree(start.folder / "runs", ignore_errors=True)


@pytest.mark.slow
def test_processes_started_from_outside_are_compared_with_the_trainer(start):
    """The real torchrun: two processes that would train a model each."""
    (start.folder / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    torchrun = Path(sys.executable).parent / "torchrun"
    command = [torchrun, "--standalone", "--nproc-per-node=2", "-m", "zoo.cli", "fit", "--config", "c.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=start.folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0
    assert "lightning: torchrun started 2 processes and the trainer counts on 1 x 1" in done.stderr
    assert "pass --trainer.devices 2." in done.stderr
    assert not (start.folder / "runs").exists()


@pytest.mark.parametrize(("variables", "sentence"), [
    ({"LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "--trainer.devices 2 --trainer.num_nodes 2"),
    ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "fit", "SLURM_PROCID": "0",
      "SLURM_LOCALID": "0", "SLURM_JOB_ID": "1"}, "SLURM started 2 processes"),
])  # fmt: skip
def test_jobs_of_several_machines(start, monkeypatch, variables, sentence):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert sentence in refused(start, CONFIG)


def test_help_names_the_arguments_of_a_class(start, capsys):
    for flag, words in [(["--data.help", "VideoFolder"], "--data.root ROOT"), (["--help"], "--data.help"),
                        (["--data.help=VideoFolder"], "--data.root ROOT"),
                        (["--model.help", "VideoRegressor"], "--model.optim.lr LR")]:  # fmt: skip
        status, errors = start(CONFIG, *flag)
        assert (status, "Traceback" in errors) == (0, False)
        assert words in capsys.readouterr().out
