"""Code on the pages of docs/: every block is run here, tested by another file, or marked as needing what tests lack.

A comment in the line before a block says so:

    <!-- tested in: tests/test_extend.py -->     another test runs it
    <!-- needs: real data -->                    it is not run; see `NEEDS`
    <!-- shows: output -->                       it is no code; see `SHOWS`

Blocks without a comment are run by `test_unmarked_blocks_run`, page by page, in a folder with generated videos. Tests
have no released weights, so the shipped model takes the place of `videomamba-...` there. Whatever is not run has to
parse: commands by their own parsers, Python, YAML with its classes and their arguments.
"""

import argparse
import ast
import importlib
import inspect
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from zoo.commands.main import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [
    page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name not in ("api", "notebooks", "_build")
]
MORE = [page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if page.exists()]  # commands parse; not marked
NEEDS = ("real data", "released weights", "network", "packages", "a GPU", "several machines")
SHOWS = ("output", "files", "a drawing")
SHIPPED = "videomamba-nano-motion"
# Other programs of the pages; what they do is theirs.
FOREIGN = (
    "g++",
    "trtexec",
    "ovc",
    "cd",
    "export",
    "git",
    "hf",
    "pip",
    "pre-commit",
    "srun",
    "tensorboard",
    "source",
    "sha256sum",
)
MARK = re.compile(r"<!-- (needs|shows|tested in): (.+) -->")
DIRECTIVES = ("{toctree}", "{include}", "{code-cell}", "{eval-rst}", "{admonition}")


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    kind: str  # of its mark; "" without one
    what: str
    text: str


def blocks(page: Path) -> list[Block]:
    """All blocks of code of a page; what Sphinx alone reads, such as its tables of contents, is none."""
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    opened = None
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if opened is None:
            opened = number
            continue
        language = lines[opened].strip().strip("`")
        if not language.startswith(DIRECTIVES):
            mark = MARK.fullmatch(lines[opened - 1].strip())
            kind, what = mark.groups() if mark else ("", "")
            text = "\n".join(lines[opened + 1 : number]) + "\n"
            found.append(Block(page, opened + 1, language, kind, what, text))
        opened = None
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """Words of each command of a block of shell; assignments before the program are dropped."""
    for line in block.text.replace("\\\n", " ").splitlines():
        for part in re.split(r"\s&&\s|\s\|\s", line):
            words = shlex.split(part.replace(" ... ", " "), comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words and words[0] == "srun":
                words = words[1:]
            if words and "zoo.cli" in words:
                words = ["lightning", *words[words.index("zoo.cli") + 1 :]]
            if words:
                yield words


BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in [*BLOCKS, *(b for page in MORE for b in blocks(page))]
         if block.language in ("", "bash", "sh") and block.kind != "shows"]  # fmt: skip


def place(block: Block) -> str:
    return f"{block.page.relative_to(ROOT)}:{block.line}"


def test_marks_are_known_and_tests_exist():
    wrong = []
    for block in BLOCKS:
        known = {"needs": NEEDS, "shows": SHOWS}.get(block.kind)
        if block.kind == "tested in":
            if not (ROOT / block.what).is_file():
                wrong.append(f"{place(block)}: there is no {block.what}")
        elif known and block.what not in known:
            wrong.append(f"{place(block)}: {block.what!r} is none of {', '.join(known)}")
    assert not wrong
    # A comment that is nearly a mark marks nothing.
    for page in PAGES:
        for comment in re.findall(r"<!--.*?-->", page.read_text(encoding="utf-8"), re.DOTALL):
            assert MARK.fullmatch(comment), f"{page.name}: {comment}"


def test_shell_blocks_have_known_programs():
    wrong = []
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for block in SHELL:
        if block.text.startswith("#!") or block.what.endswith("test_space.py"):
            continue
        for words in commands(block):
            program, rest = words[0], words[1:]
            if program == "python" and rest[:1] == ["-m"]:
                found = importlib.util.find_spec(rest[1]) is not None
            elif program == "python":
                found = rest[0] == "-c" or (ROOT / rest[0]).is_file()
            elif program == "make":
                found = all(word in targets for word in rest if "=" not in word)
            elif program == "pytest":
                found = all((ROOT / word.split("::")[0]).exists() for word in rest if word.startswith("tests/"))
            elif program == "zoo":
                found = rest[0] in COMMANDS
            else:
                found = program in ("lightning", *FOREIGN) or (ROOT / program).is_file()
            if not found:
                wrong.append(f"{place(block)}: {shlex.join(words)}")
    assert not wrong


def test_zoo_commands_parse():
    for block in SHELL:
        for words in commands(block):
            if words[0] == "zoo":
                parser = argparse.ArgumentParser()
                importlib.import_module(f"zoo.commands.{words[1]}").add_arguments(parser)
                try:
                    parser.parse_args(words[2:])
                except SystemExit:
                    pytest.fail(f"{place(block)}: `{shlex.join(words)}` is no command of this zoo")


def lightning_commands() -> dict[str, list[str]]:
    """Place -> words, as far as they mean something without the reader's files; each command once."""
    found: dict[tuple[str, ...], str] = {}
    for block in SHELL:
        if block.kind == "tested in":
            continue
        for words in commands(block):
            if words[0] != "lightning":
                continue
            kept = words[1:]
            for i in reversed(range(len(kept) - 1)):
                if kept[i] == "--model.init_from" and not kept[i + 1].startswith(("videomamba", "vivim", "timemamba")):
                    del kept[i : i + 2]
                elif kept[i] == "--config" and re.match("runs/.*config.yaml$", kept[i + 1]):
                    kept[i + 1] = "finetune"
            if "--config" in kept or "--data" in kept:
                found.setdefault(tuple(kept), place(block))
    return {f"{where}: lightning {shlex.join(words)}": list(words) for words, where in found.items()}


def write_pages_files(folder: Path) -> None:
    """YAML blocks whose first line names a file are those files."""
    for block in BLOCKS:
        named = re.match(r"# ([\w-]+\.yaml)\n", block.text)
        if block.language == "yaml" and named and block.kind != "tested in":
            (folder / named[1]).write_text(block.text)


def test_lightning_commands_name_recipes_and_arguments(tmp_path, monkeypatch):
    from zoo.arguments import rewrite
    from zoo.errors import ZooError

    monkeypatch.chdir(tmp_path)
    write_pages_files(tmp_path)
    wrong = []
    assert len(lightning_commands()) > 40
    for where, words in lightning_commands().items():
        try:
            rewrite(words, ("fit", "validate", "test", "predict"), tmp_path)
        except ZooError as error:
            wrong.append(f"{where}\n    {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_options_of_the_trainer_parse(tmp_path, monkeypatch):
    """By the parser of the command itself; the test above has seen the others."""
    from zoo.cli import ZooCLI

    class Parsed(Exception):
        pass

    class Parser(ZooCLI):
        def before_instantiate_classes(self) -> None:
            raise Parsed

        def _explained(self, error: Exception) -> Exception:
            return error

    monkeypatch.chdir(tmp_path)
    write_pages_files(tmp_path)
    wrong = []
    found = {where: words for where, words in lightning_commands().items() if "--trainer." in where}
    assert len(found) > 5
    for where, words in found.items():
        words = [word for i, word in enumerate(words) if "--ckpt_path" not in (word, words[i - 1])]
        if "--data.root" not in words:
            words += ["--data.root", "my_videos"]
        monkeypatch.setattr(sys, "argv", ["lightning", *words])
        try:
            Parser()
        except Parsed:
            continue
        except BaseException as error:  # SystemExit too
            wrong.append(f"{where}\n    {error}")
    assert not wrong, "\n".join(wrong)


def classes_of(config: object) -> Iterator[dict]:
    """Every mapping with a class_path, at any depth."""
    if isinstance(config, dict):
        if "class_path" in config:
            yield config
        for value in config.values():
            yield from classes_of(value)
    elif isinstance(config, list):
        for value in config:
            yield from classes_of(value)


def test_python_and_yaml_blocks_are_well_formed():
    for block in BLOCKS:
        if block.language == "python":
            ast.parse(block.text, filename=place(block))
        elif block.language == "yaml":
            for named in classes_of(yaml.safe_load(block.text)):
                module, _, name = named["class_path"].rpartition(".")
                if module == "tiny":  # of the reader
                    continue
                cls = getattr(importlib.import_module(module), name)
                known = inspect.signature(cls).parameters
                strays = set(named.get("init_args", {})) - set(known)
                # What a class hands on to its base is known there.
                strays -= {p for base in cls.__mro__[1:] for p in inspect.signature(base.__init__).parameters}
                assert not strays, f"{place(block)}: {name} takes no {', '.join(sorted(strays))}"


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """What the pages' reader has: my_videos in folders of splits and classes, some clips, and a film."""
    from datamodules.synthetic.writing import generate

    folder = tmp_path_factory.mktemp("reader")
    videos = generate(folder / "my_videos", num_train=4, num_val=2, num_test=2, classes=("grow", "move_left"),
                      size=(64, 48), num_workers=0, progress=False)  # fmt: skip
    clips = sorted(videos.rglob("*.mp4"))
    for name in ("clip.mp4", "a.mp4", "b.mp4", "film.mp4", "film.mkv"):
        shutil.copy(clips[0], folder / name)
    return folder


def runnable() -> list[Path]:
    return [page for page in PAGES if any(not b.kind and b.language in ("", "python") for b in blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", runnable(), ids=lambda page: page.stem)
def test_unmarked_blocks_run(page, material, tmp_path, monkeypatch):
    import torch

    import datamodules
    import hub
    import zoo
    from zoo.commands.main import main

    shutil.copytree(material, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    video = torch.randint(256, (1, 3, 8, 48, 48), dtype=torch.uint8)
    known = {"zoo": zoo, "hub": hub, "datamodules": datamodules, "model": zoo.load(SHIPPED), "video": video}
    released = r"videomamba-(?:ti|s|m|b)-[\w-]+"
    for block in blocks(page):
        if block.kind:
            continue
        if block.language == "python":
            text = re.sub(f'"{released}"', f'"{SHIPPED}"', block.text)
            exec(compile(text, place(block), "exec"), known)
        elif not block.language:
            for words in commands(block):
                if words[0] == "pip":  # what it installs is here
                    continue
                assert words[0] == "zoo", f"{place(block)}: mark this block; only `zoo` and Python are run here"
                if words[1] == "predict":
                    words = [re.sub(released, SHIPPED, word) for word in words]
                main(words[1:])
