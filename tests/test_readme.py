"""README.md and its tables: they are the registry's and pyproject's, what it shows runs, and it stays short."""

import re
import shutil
import tomllib
from pathlib import Path

import zoo
from datamodules.synthetic.writing import generate
from zoo.commands.list import markdown
from zoo.commands.main import COMMANDS
from zoo.registry import entries

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MODELS = ROOT / "docs" / "models.md"
INSTALL = ROOT / "docs" / "install.md"
ROWS = {"ti": "7 M", "s": "26 M", "m": "74 M", "m-mask": "74 M", "b": "98 M"}
# Title of a column: data set, and (frames, px) of its scores.
SHORT = {
    "ImageNet-1K": ("in1k", [(1, 224)]),
    "Kinetics-400, 16 frames": ("k400", [(16, 224)]),
    "SSv2, 16": ("ssv2", [(16, 224)]),
    "Breakfast, 32": ("breakfast", [(32, 224)]),
    "COIN, 32": ("coin", [(32, 224)]),
}
COMPLETE = {
    "ImageNet-1K<br>224 / 448 / 576 px": ("in1k", [(1, 224), (1, 448), (1, 576)]),
    "Kinetics-400<br>8 / 16 / 32 / 64 frames / 64 at 384 px": (
        "k400", [(8, 224), (16, 224), (32, 224), (64, 224), (64, 384)]
    ),
    "SSv2<br>8 / 16 frames / 16 at 288 px": ("ssv2", [(8, 224), (16, 224), (16, 288)]),
    "Breakfast<br>32 / 64": ("breakfast", [(32, 224), (64, 224)]),
    "COIN<br>32 / 64": ("coin", [(32, 224), (64, 224)]),
}  # fmt: skip


def table(columns: dict[str, tuple[str, list[tuple[int, int]]]]) -> str:
    """Top-1 as published, one row per size."""
    lines = ["| model | parameters | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 2) + "|"]
    by_variant = {}
    for entry in map(zoo.info, zoo.list_models("videomamba-*", task="classification", pretrained=True)):
        meta = entry.meta
        size = entry.name.split(f"-{meta['dataset']}")[0]
        by_variant[size, meta["dataset"], meta["frames"], meta["resolution"]] = entry
    for size, parameters in ROWS.items():
        cells = []
        for dataset, variants in columns.values():
            found = [by_variant.get((f"videomamba-{size}", dataset, *variant)) for variant in variants]
            cells.append(" / ".join(f"{e.meta['top1']:.1f}" if e else "-" for e in found) if any(found) else "")
        lines.append(f"| `videomamba-{size}` | {parameters} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_tables_of_scores_are_the_registrys():
    for page, columns in ((README, SHORT), (MODELS, COMPLETE)):
        rows = table(columns)
        assert rows in page.read_text(encoding="utf-8"), f"put this table into {page.name}:\n{rows}"


def test_the_list_of_all_models_is_that_of_the_command():
    lines = "\n".join(markdown(entries()))
    assert lines in MODELS.read_text(encoding="utf-8"), "put the output of `zoo list --markdown` into docs/models.md"


def test_commands_and_names_in_the_readme_exist():
    text = README.read_text(encoding="utf-8")
    commands = re.findall(r"^(?:\$ )?zoo (\w+)", text, flags=re.MULTILINE)
    assert commands and set(commands) <= set(COMMANDS)
    names = set(re.findall(r'zoo\.(?:load|create|info|predict)\("(videomamba[\w-]+)"', text))
    assert names and all(zoo.info(name) for name in names)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    """All but the line that fetches released weights."""
    generate(tmp_path / "data", num_train=1, num_val=0, num_test=0, classes=["grow"], num_workers=0, progress=False)
    (clip,) = (tmp_path / "data").rglob("*.mp4")
    for name in ("clip.mp4", "film.mp4"):
        shutil.copyfile(clip, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    values, names = {}, {}
    for line in filter(None, block.splitlines()):
        code = line.partition("  #")[0].strip()
        if code.startswith(("import ", "model = ")):
            exec(code, names)
        elif '-k400"' not in code:
            values[code.partition("(")[0]] = eval(code, names)
    assert values.keys() == {"zoo.predict", "zoo.extract_features", "zoo.timeline", "zoo.explain", "zoo.list_models"}
    label, probability, index = values["zoo.predict"][0]
    assert names["model"].class_names[index] == label and 0 < probability <= 1 and len(values["zoo.predict"]) == 3
    assert values["zoo.extract_features"].ndim == 1 and "videomamba-m-k400-f8-r224" in values["zoo.list_models"]


def test_the_table_of_extras_is_complete():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| [\d.]+ \|$", INSTALL.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(project["optional-dependencies"])


def test_the_readme_is_short():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert not [line for line in lines if len(line) > 120]
