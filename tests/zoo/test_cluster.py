"""Two hosts, which are network namespaces with a cable between them, train together as docs/cluster.md says."""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch

from datamodules.synthetic.writing import generate

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
CONFIG = Path(__file__).parents[1] / "conf" / "resume.yaml"
RUN = Path("resume/version_0")
ADDRESSES = ("10.213.0.1", "10.213.0.2")
# Each process draws its own mixing and dropout.
ALIKE = ["--data.mixup=0", "--data.cutmix=0", "--data.random_erasing=0", "--data.repeats=1", "--model.drop=0",
         "--model.drop_path=0", "--data.num_workers=1", "--trainer.log_every_n_steps=1", "--trainer.max_epochs=2",
         "--trainer.accumulate_grad_batches=1"]  # fmt: skip

KILLER = '''
import os, signal
from lightning.pytorch import Callback

class Outage(Callback):
    """Ends the second host, torchrun included, at the start of a batch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.node_rank == 1 and (trainer.current_epoch, batch_idx) == (1, 2):
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture(scope="module")
def hosts():
    """Names of two namespaces, joined by a pair of virtual network cards that have `ADDRESSES`."""
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2")
    names = [f"zoo-{uuid.uuid4().hex[:8]}-{end}" for end in "ab"]
    commands = [f"netns add {names[0]}", f"netns add {names[1]}",
                f"-n {names[0]} link add cable type veth peer name cable netns {names[1]}"]  # fmt: skip
    for name, address in zip(names, ADDRESSES, strict=True):
        commands += [f"-n {name} addr add {address}/24 dev cable", f"-n {name} link set cable up",
                     f"-n {name} link set lo up"]  # fmt: skip
    try:
        for command in commands:
            done = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"network namespaces are not allowed here: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    generate(folder / "data", num_train=16, num_val=4, num_test=0, classes=("grow", "move_left"), size=(48, 40),
             num_frames=8, num_workers=0, progress=False)  # fmt: skip
    (folder / "outage.py").write_text(KILLER)
    return folder


def documented(host):
    """The first torchrun command of the page, for two hosts of one process each, without what it trains."""
    (block,) = re.findall(r"```\n(torchrun .*?)\n```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    words = shlex.split(block.replace("\\\n", " ").replace("$RANK", str(host)).replace("HOST", ADDRESSES[0]))
    words = words[: words.index("fit") + 1]
    number = {"--nnodes": "2", "--nproc-per-node": "1"}
    return [number.get(before, word) for before, word in zip(["", *words[:-1]], words, strict=True)]


def train(workspace, hosts, name, *options):
    """Both hosts' exit status and what they wrote to standard error."""
    path = os.pathsep.join(filter(None, [str(workspace), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable"}
    started = []
    for number, host in enumerate(hosts):
        torchrun, *rest = documented(number)
        options_of_two = ["--data.batch_size=1", "--trainer.devices=1", "--trainer.num_nodes=2",
                          "--trainer.strategy=ddp", "--trainer.default_root_dir", name]  # fmt: skip
        command = ["ip", "netns", "exec", host, Path(sys.executable).parent / torchrun, *rest,
                   "--config", CONFIG, *ALIKE, *options_of_two, *options]  # fmt: skip
        errors = (workspace / f"{name}-{number}.log").open("w")
        started.append(subprocess.Popen(command, cwd=workspace, env=environment, stdout=errors, stderr=errors))
    status = [process.wait(timeout=800) for process in started]
    return status, [(workspace / f"{name}-{number}.log").read_text() for number in range(len(hosts))]


def curve(run):
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key]) for row in rows if row.get(key)] for key in ("train/loss", "val/loss", "val/top1")}


def leaves(value, place=""):
    if isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{place}/{key}")
    else:
        yield place, value


def test_two_hosts_train_as_one_process_and_resume_when_one_was_killed(workspace, hosts, fit):
    alone = fit(workspace, "alone", *ALIKE, "--data.batch_size=2", OMP_NUM_THREADS="1")
    assert alone.returncode == 0, alone.stderr
    status, logs = train(workspace, hosts, "whole")
    assert status == [0, 0], logs
    expected, found = curve(workspace / "alone" / RUN), curve(workspace / "whole" / RUN)
    assert len(expected["train/loss"]) == 16 and len(expected["val/loss"]) == 2
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-5), name

    status, logs = train(workspace, hosts, "killed", "--trainer.callbacks+=outage.Outage")
    assert status[0] > 0 and status[1] == -9, logs  # the host that is left ends too, it does not wait for ever
    checkpoint = workspace / "killed" / RUN / "checkpoints/last.ckpt"
    assert 8 <= torch.load(checkpoint)["global_step"] < 16
    status, logs = train(workspace, hosts, "killed", "--ckpt_path=last")
    assert status == [0, 0], logs
    runs = [dict(leaves({**torch.load(workspace / name / RUN / "checkpoints/last.ckpt"), "callbacks": {}}))
            for name in ("whole", "killed")]  # fmt: skip
    assert runs[0].keys() == runs[1].keys() and len(runs[0]) > 50
    for place, value in runs[0].items():
        same = torch.equal(value, runs[1][place]) if isinstance(value, torch.Tensor) else value == runs[1][place]
        assert same or value != value, place  # NaN: a score that was never taken
    assert curve(workspace / "killed" / RUN) == curve(workspace / "whole" / RUN)
