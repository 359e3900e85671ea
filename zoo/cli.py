"""The ``lightning`` command: fit, validate, test and predict with any module and DataModule of the zoo (or your own)."""

import difflib
import inspect
import sys
import tempfile
from argparse import ArgumentError
from pathlib import Path

import yaml
from jsonargparse import import_object
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import datamodules
import lightning_modules
from lightning_modules.base import BaseModule
from zoo.commands.main import report
from zoo.errors import ZooError
from zoo.recipe import find_recipe, read_recipe

__all__ = ["ZooCLI", "main"]


class ZooCLI(LightningCLI):
    """LightningCLI whose ``--config`` also takes a recipe's name, understands includes and explains misspelled keys."""

    def __init__(self) -> None:
        strict = {"exit_on_error": False}
        super().__init__(
            BaseModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_kwargs={**strict, **dict.fromkeys(self.subcommands(), strict)},
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        arguments = sys.argv[1:]
        with tempfile.TemporaryDirectory() as scratch:
            config: dict = {}
            for i, (flag, value) in enumerate(zip(["", *arguments], [*arguments, ""], strict=True)):
                flag, joined, inline = (value if value.startswith("--config=") else flag).partition("=")
                if flag not in ("--config", "-c"):
                    continue
                recipe = read_recipe(find_recipe(inline if joined else value))
                merged = Path(scratch) / f"{i}.yaml"
                merged.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
                arguments[i] = f"--config={merged}" if joined else str(merged)
                config.update(recipe)
            check_keys(config, arguments)
            self.config = parser.parse_args(arguments)


def check_keys(config: dict, arguments: list[str]) -> None:
    """Names misspelled keys of the model, data and trainer sections, which jsonargparse reports in terms of types.

    Raises:
        ZooError: an argument that the class does not have, with the nearest one it has.
    """
    for section, package in (("model", lightning_modules), ("data", datamodules), ("trainer", None)):
        prefix = f"--{section}."
        flags = [a[len(prefix) :].partition("=")[0] for a in arguments if a.startswith(prefix)]
        value = config.get(section) or {}
        if section == "trainer":
            cls, given = Trainer, value
        else:
            given = value.get("init_args") or {} if isinstance(value, dict) else {}
            class_path = value.get("class_path") if isinstance(value, dict) else value
            flag = next((b for a, b in zip(arguments, arguments[1:], strict=False) if a == f"--{section}"), class_path)
            if not flag:
                continue
            cls = getattr(package, flag, None) if "." not in flag else _import(flag, section)
            if cls is None:
                raise ZooError(
                    f"There is no {section} class {flag!r}; {package.__name__} has {', '.join(dir(package))}."
                )
            flags = [f.removeprefix("init_args.") for f in flags]
        known = list(inspect.signature(cls).parameters)
        for name in [*given, *(f.split(".")[0].rstrip("+") for f in flags)]:
            if name in known or name in ("help", "class_path", "init_args"):
                continue
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}."
            raise ZooError(f"{section}.{name}: {cls.__name__} has no argument {name!r}: {hint}")


def _import(class_path: str, section: str) -> type:
    try:
        return import_object(class_path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ZooError(f"{section}.class_path {class_path!r} cannot be imported: {error}.") from error


def main() -> None:
    """Console entry: an expected error is one sentence on stderr and exit status 1, 2 for a command line that does not parse."""
    report(ZooCLI, program="lightning", usage_errors=(ArgumentError,))


if __name__ == "__main__":
    main()
