"""The README's table of models is what the registry says, and its commands exist."""

import re
from pathlib import Path

import zoo
from zoo.commands.list import markdown
from zoo.commands.main import COMMANDS
from zoo.registry import entries

README = Path(__file__).parents[1] / "README.md"
COLUMNS = {
    "ImageNet-1K<br>224 / 448 / 576 px": ("in1k", [(1, 224), (1, 448), (1, 576)]),
    "Kinetics-400<br>8 / 16 / 32 / 64 frames / 64 at 384 px": (
        "k400", [(8, 224), (16, 224), (32, 224), (64, 224), (64, 384)]
    ),
    "SSv2<br>8 / 16 frames / 16 at 288 px": ("ssv2", [(8, 224), (16, 224), (16, 288)]),
    "Breakfast<br>32 / 64": ("breakfast", [(32, 224), (64, 224)]),
    "COIN<br>32 / 64": ("coin", [(32, 224), (64, 224)]),
}  # fmt: skip
ROWS = {"ti": "7 M", "s": "26 M", "m": "74 M", "m-mask": "74 M", "b": "98 M"}


def table() -> str:
    """Top-1 as published, one row per size."""
    lines = ["| model | parameters | " + " | ".join(COLUMNS) + " |", "| --- " * (len(COLUMNS) + 2) + "|"]
    by_variant = {}
    for entry in map(zoo.info, zoo.list_models("videomamba-*", task="classification", pretrained=True)):
        meta = entry.meta
        size = entry.name.split(f"-{meta['dataset']}")[0]
        by_variant[size, meta["dataset"], meta["frames"], meta["resolution"]] = entry
    for size, parameters in ROWS.items():
        cells = []
        for dataset, variants in COLUMNS.values():
            found = [by_variant.get((f"videomamba-{size}", dataset, *variant)) for variant in variants]
            cells.append(" / ".join(f"{e.meta['top1']:.1f}" if e else "-" for e in found) if any(found) else "")
        lines.append(f"| `videomamba-{size}` | {parameters} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_table_of_models_is_the_registrys():
    assert table() in README.read_text(encoding="utf-8"), f"put this table into README.md:\n{table()}"


def test_the_list_of_all_models_is_that_of_the_command():
    lines = "\n".join(markdown(entries()))
    assert lines in README.read_text(encoding="utf-8"), "put the output of `zoo list --markdown` into README.md"


def test_commands_and_names_in_the_readme_exist():
    text = README.read_text(encoding="utf-8")
    for command in re.findall(r"^(?:\$ )?zoo (\w+)", text, flags=re.MULTILINE):
        assert command in COMMANDS, command
    for name in set(re.findall(r'zoo\.(?:load|create|info)\("(videomamba[\w-]+)"', text)):
        assert zoo.info(name)
    for file in re.findall(r"\]\(((?:docs|zoo|benchmarks)/[\w./-]+)\)", text):
        assert (README.parent / file).exists(), file
