"""What is released: one version everywhere, complete archives, and a wheel that works without the repository."""

import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("datamodules", "hub", "lightning_modules", "zoo")
BESIDE = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}
# Prints what is installed, as a user's script would see it.
LOOK = """
import importlib, zoo
print(zoo.__version__)
for name in ("datamodules", "hub", "lightning_modules", "zoo"):
    print(importlib.import_module(name).__file__)
"""


def run(*command, cwd, **environment) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True,
                          timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked() -> list[str]:
    return run("git", "ls-files", "-z", cwd=ROOT).rstrip("\0").split("\0")


def test_the_version_is_that_of_pyproject_everywhere():
    released = re.findall(r"^## \[([\d.]+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert released[0] == (PROJECT["version"], str(citation["date-released"]))
    assert citation["version"] == PROJECT["version"]
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]


def test_the_repository_has_the_address_of_pyproject_everywhere():
    kinds = (".cff", ".ipynb", ".md", ".py", ".toml", ".yaml", ".yml")
    for path in (ROOT / name for name in tracked() if name.endswith(kinds) and not name.startswith("tests/golden/")):
        addresses = set(re.findall(r"https://github\.com/[\w-]+/video-mamba-zoo\b", path.read_text(encoding="utf-8")))
        assert addresses <= {PROJECT["urls"]["Repository"]}, path.relative_to(ROOT)


def test_the_citation_has_what_the_format_asks_for():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["license"] == PROJECT["license"]
    for work in (citation, *citation["references"]):
        assert work["title"] and work["type"]
        assert all(author.keys() & {"name", "family-names"} for author in work["authors"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Citation")[2]
    papers = set(re.findall(r"https://arxiv\.org/abs/[\d.]+", readme))
    assert papers and papers == {work["url"] for work in citation["references"]}


def test_workflows_run_what_pyproject_promises_with_few_rights():
    workflows = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
                 for path in (ROOT / ".github" / "workflows").glob("*.yml")}  # fmt: skip
    assert workflows.keys() == {"test", "docs", "release"}
    promised = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert set(workflows["test"]["jobs"]["quick"]["strategy"]["matrix"]["python"]) == promised
    for workflow in workflows.values():
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"] and set(job.get("permissions", {})) <= {"contents", "id-token", "pages"}
            uses = {step["uses"] for step in job["steps"] if "uses" in step} - {"./.github/actions/environment"}
            assert all(re.fullmatch(r"[\w/-]+@(v\d+|release/v1)", name) for name in uses), uses


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> tuple[Path, Path]:
    """The wheel and the source release, built from the tracked files alone."""
    folder = tmp_path_factory.mktemp("release")
    for name in tracked():
        if not name.startswith(("tests/", "benchmarks/", "docs/")):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "source" / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source", cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    (source,) = (folder / "dist").glob("*.tar.gz")
    return wheel, source


@pytest.mark.slow
def test_both_archives_are_complete_and_nothing_else(archives):
    wheel, source = archives
    ours = {name for name in tracked() if name.startswith(tuple(f"{package}/" for package in PACKAGES))}
    with zipfile.ZipFile(wheel) as file:
        assert {name for name in file.namelist() if ".dist-info/" not in name} == ours
        (metadata,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        described = message_from_bytes(file.read(metadata))
    with tarfile.open(source) as file:
        names = {member.name.partition("/")[2] for member in file.getmembers() if member.isfile()}
    generated = {name for name in names if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    assert names - generated == ours | BESIDE
    assert described["Version"] == PROJECT["version"] and described["Description-Content-Type"] == "text/markdown"
    page = described.get_payload()
    targets = re.findall(r"(?:\]\(|href=\"|src=\")([^)\"]+)", page)
    assert targets and all(target.startswith(("https://", "#")) for target in targets)
    assert f"{PROJECT['urls']['Repository']}/raw/v{PROJECT['version']}/docs/images/predictions.png" in targets
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, source, cwd=wheel.parent)


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(archives, tmp_path):
    """What it depends on comes from the environment of the tests; the project's own packages must not."""
    run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=tmp_path)
    folder = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    run(sys.executable, "-m", "pip", "--python", folder / "python", "install", "--no-deps", "--no-index", archives[0],
        cwd=tmp_path)  # fmt: skip
    here = Path(
        run(folder / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    )
    # Folders named in a .pth are searched, but a .pth inside them, such as that of an editable install, is not read.
    (here / "dependencies.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")

    version, *files = run(folder / "python", "-c", LOOK, cwd=tmp_path).split()
    assert version == PROJECT["version"]
    assert files == [str(here / package / "__init__.py") for package in PACKAGES]

    assert "videomamba-nano-motion" in run(folder / "zoo", "list", cwd=tmp_path)
    assert "finetune" in run(folder / "zoo", "recipe", cwd=tmp_path)
    data = ["--train", 8, "--val", 4, "--test", 4, "--classes", "grow", "turn_clockwise", "--frames", 8]
    run(folder / "python", "-m", "datamodules.synthetic", "data", *data, cwd=tmp_path)
    clip = next((tmp_path / "data" / "test" / "grow").glob("*.mp4"))
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    assert "grow" in run(folder / "zoo", "predict", "videomamba-nano-motion", clip, cwd=tmp_path, **offline)

    fit = ["--config", "finetune", "--data.root", "data", "--model.init_from", "videomamba-nano-motion",
           "--trainer.max_epochs", 1, "--trainer.accelerator", "cpu", "--data.num_workers", 0]  # fmt: skip
    run(folder / "lightning", "fit", *fit, cwd=tmp_path, **offline)
    trained = tmp_path / "runs" / "finetune" / "version_0"
    assert "grow" in run(folder / "zoo", "predict", trained, clip, cwd=tmp_path, **offline)
