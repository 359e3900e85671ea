"""Which package may import which, read from the sources (docs/architecture.md): every arrow not drawn there fails here.

zoo -> lightning_modules, datamodules, hub; those three know none of ours; nobody imports zoo. Inside a package every
part has a floor and imports only what stands below it. Imports inside functions count, and so do the names given to
importlib.
"""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "zoo": {"lightning_modules", "datamodules", "hub"},
    "lightning_modules": set(),
    "datamodules": set(),
    "hub": set(),
}
# The parts of each package, file or sub-package, floor by floor from the ground; a part imports from lower floors only.
# What is not named stands on the highest floor: the data sets and the subcommands' entry.
FLOORS = {
    "datamodules": (
        ("errors",),
        ("checks", "storage", "mixing", "overview"),
        ("loading", "splitting", "video", "synthetic"),
        ("annotations", "augment"),
        ("shards", "unreadable"),
        ("clips",),
        ("base", "kitchens", "retrieval", "segments"),
    ),
    "lightning_modules": (
        ("errors",),
        ("checks", "files"),
        ("ops",),
        ("nets",),
        ("training",),
        ("report",),
        ("callbacks",),
        ("base",),
        ("tasks",),
    ),
    "zoo": (
        ("datasets", "errors", "printable", "shadows"),
        ("extras", "files"),
        ("checks", "limits", "plain_yaml", "registry", "runs", "sources"),
        ("recipe", "configs"),
        ("fetch",),
        ("build",),
        ("deploy",),
        ("tables",),
        ("inference", "look", "share"),
        ("retrieval",),
        ("app",),
        ("arguments", "commands"),
        ("cli",),
    ),
    "hub": (
        ("errors",),
        ("answers", "files", "hashes"),
        ("checkpoint",),
        ("card", "convert", "lightning_ckpt"),
        ("remote",),
        ("callback",),
    ),
}
SOURCES = sorted(path for package in MAY_IMPORT for path in (REPOSITORY / package).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_package(module: str) -> bool:
    return REPOSITORY.joinpath(*module.split("."), "__init__.py").exists()


def exists(module: str) -> bool:
    return is_package(module) or REPOSITORY.joinpath(*module.split(".")).with_suffix(".py").exists()


def imports(source: str, module: str, in_init: bool) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a source imports, a name taken from a module included: ``a.b.Name``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".") if in_init else module.split(".")[:-1]
                base = ".".join([*here[: len(here) - node.level + 1], *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called in ("importlib.import_module", "import_module", "__import__") and node.args[0].value:
                yield node.lineno, str(node.args[0].value)


def complaint(module: str, imported: str) -> str | None:
    """Why `module` may not import `imported`, or None."""
    package, other = module.split(".")[0], imported.split(".")[0]
    if other not in MAY_IMPORT:
        return None
    if other != package:
        return None if other in MAY_IMPORT[package] else f"{package} may not import {other}"
    source = imported.rpartition(".")[0]
    if not exists(imported) and is_package(source) and module.startswith(f"{source}."):
        return f"{imported} comes through the __init__ of the module's own package: import from where it is defined"
    ours, theirs = part_of(module), part_of(imported)
    if ours != theirs and floor_of(package, theirs) >= floor_of(package, ours):
        return f"{package}: {ours} may not import {theirs}"
    return None


def part_of(module: str) -> str:
    return [*module.split("."), ""][1]


def floor_of(package: str, part: str) -> int:
    floors = FLOORS[package]
    if not part:  # the package's __init__ stands above all
        return len(floors) + 1
    return next((number for number, parts in enumerate(floors) if part in parts), len(floors))


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_only_the_arrows_of_the_design(path):
    module = module_of(path)
    found = imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    complaints = [f"{path}:{line}: {why}" for line, name in found if (why := complaint(module, name))]
    assert not complaints, "\n".join(complaints)


def test_no_module_reaches_itself():
    """Cycles inside a part too, imports in functions included."""
    names = {module_of(path) for path in SOURCES}
    arrows = {}
    for path in SOURCES:
        module = module_of(path)
        found = imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
        targets = {name if name in names else name.rpartition(".")[0] for _, name in found}
        arrows[module] = (targets & names) - {module}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for target in sorted(arrows[module]):
                visit(target, (*above, module))
            done.add(module)

    for module in arrows:
        visit(module, ())


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hub.remote", "import zoo"),
        ("datamodules.base", "def f():\n    from lightning_modules.nets.videomamba import VideoMamba"),
        ("lightning_modules.base", "import importlib\nimportlib.import_module('datamodules')"),
        ("lightning_modules.ops.backend", "from lightning_modules.nets.bimamba import Block"),
        ("lightning_modules.nets.videomamba", "from ..optim import build"),
        ("lightning_modules.base", "from lightning_modules.tasks.classification import VideoClassifier"),
        ("lightning_modules.training.optim", "from lightning_modules.tasks.classification import VideoClassifier"),
        ("datamodules.storage.files", "from datamodules.video.decode import VideoReader"),
        ("datamodules.annotations.captions", "from datamodules.clips import ClipDataModule"),
        ("datamodules.coin", "from datamodules.imagenet import ImageNet"),
        ("zoo.inference.predict", "from zoo.retrieval.search import search"),
        ("hub.checkpoint", "def f():\n    from hub.remote import pull"),
        ("lightning_modules.tasks.classification", "from lightning_modules import BaseModule"),
        ("lightning_modules.ops.backend", "from lightning_modules.ops import use_backend"),
        ("zoo.build", "from zoo import info"),
    ],
)
def test_a_wrong_arrow_is_seen(module, source):
    assert [why for _, name in imports(source, module, in_init=False) if (why := complaint(module, name))]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("zoo.build", "import hub\nimport lightning_modules\nfrom datamodules.video.views import load_views"),
        ("zoo.build", "from zoo.registry import info"),
        ("lightning_modules.base", "from lightning_modules.training import optim\nimport torch"),
        ("lightning_modules.tasks.classification", "from lightning_modules.nets.videomamba import VideoMamba"),
        ("lightning_modules.tasks.classification", "from lightning_modules.nets import VideoMamba"),
        ("lightning_modules.nets.videomamba", "from .bimamba import BiMamba\nfrom ..ops.backend import choose"),
    ],
)
def test_a_right_arrow_is_not(module, source):
    assert not [why for _, name in imports(source, module, in_init=False) if (why := complaint(module, name))]


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("zoo", "torch numpy lightning lightning_modules datamodules hub"),
        ("hub", "torch lightning transformers"),
        ("datamodules", "torch lightning av"),
        ("lightning_modules", "torch lightning"),
        ("lightning_modules.ops", "lightning torchmetrics transformers"),
        ("lightning_modules.nets", "lightning torchmetrics transformers"),
    ],
)
def test_importing_a_package_stays_light(package, absent):
    code = f"import sys, {package}; print(*[name for name in {absent.split()!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


LAZY = [
    "datamodules",
    "datamodules.synthetic",
    "hub",
    "zoo",
    "lightning_modules",
    "lightning_modules.callbacks",
    "lightning_modules.nets",
    "lightning_modules.ops",
]


@pytest.mark.parametrize("package", LAZY)
def test_each_public_name_is_found_where_the_stub_says(package):
    found = importlib.import_module(package)
    stub = ast.parse(REPOSITORY.joinpath(*package.split("."), "__init__.pyi").read_text())
    homes = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(found.__all__) == set(dir(found)) == set(homes)
    for name, home in homes.items():
        assert getattr(found, name) is getattr(importlib.import_module(f"{package}.{home}"), name)
    with pytest.raises(AttributeError, match="absent"):
        _ = found.absent


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_offer_each_public_name(package):
    """A stub passes on only what it imports under its own name."""
    stub = ast.parse(REPOSITORY.joinpath(*package.split("."), "__init__.pyi").read_text())
    imported = [alias for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert [alias.name for alias in imported if alias.asname != alias.name] == []
