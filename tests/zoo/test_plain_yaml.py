"""YAML of others: bombs, loops and foreign files end in one sentence, before anything is unfolded or quoted."""

import os

import pytest

from zoo.errors import ZooError
from zoo.plain_yaml import MAX_BYTES, MAX_VALUES, check_limits, count_values, load_yaml, read_yaml
from zoo.recipe import read_recipe

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


def nested(levels: int) -> str:
    """Mappings in each other by way of aliases, a level on each line."""
    return "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{x: *a{i - 1}}}\n" for i in range(1, levels))


@pytest.mark.parametrize(("text", "reason"), [
    (LAUGHS, "line 6, column .*: it has more than 200,000 values"),
    ("a: &a [*a]", "line 1, column 8: an alias stands for a part that contains it"),
    ("model: &m {init_args: {x: *m}}", "an alias stands for a part that contains it"),
    ("a: " + "[" * 5000, "it is nested more than 64 levels deep"),
    (nested(70), "it is nested more than 64 levels deep"),
    ("a: {b: &b {c: 1}, <<: [*b, 5]}", "expected a mapping for merging"),
    ("a: 2001-99-99", "a value does not fit its type"),
    ("a: !!timestamp x", "a value does not fit its type"),
    ("a: " + "9" * 5000, "a value does not fit its type"),
    ("a: \0", "characters that YAML forbids"),
])  # fmt: skip
def test_what_is_beyond_the_limits_is_refused(tmp_path, text, reason):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ZooError, match=rf"c\.yaml is not valid YAML: .*{reason}"):
        read_recipe(tmp_path / "c.yaml")


def test_what_is_within_the_limits_is_read():
    assert load_yaml("a: &a {x: [1, 2]}\nb: *a\nc: {<<: *a, y: 1.0e-4}") == {
        "a": {"x": [1, 2]}, "b": {"x": [1, 2]}, "c": {"x": [1, 2], "y": 1e-4}}  # fmt: skip
    assert len(load_yaml("names: [" + ", ".join(["name"] * 20_000) + "]")["names"]) == 20_000
    assert load_yaml(nested(60))["a0"] == {"x": 1}
    check_limits("[1, 2, 3]")
    check_limits("&a [")  # jsonargparse says that it is not valid
    with pytest.raises(ZooError, match="more than 200,000 values"):
        check_limits(LAUGHS)


def test_shared_parts_count_wherever_they_stand():
    value: list = [1]
    for _ in range(30):
        value = [value, value]
    assert count_values(value) > 2**30 > MAX_VALUES


def test_files_that_hold_no_config_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large.yaml").write_bytes(b"a: " + b"x" * MAX_BYTES)
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    for name, reason in [("pipe", "not a file to read a config from"), ("large.yaml", "larger than 4 MiB"),
                         ("latin.yaml", "not UTF-8"), ("gone.yaml", "does not exist"), ("", "not a file")]:  # fmt: skip
        with pytest.raises(ZooError, match=reason):
            read_yaml(tmp_path / name)
    (tmp_path / "c.yaml").write_text("include: /dev/zero")
    with pytest.raises(ZooError, match="/dev/zero is not a file to read a config from"):
        read_recipe(tmp_path / "c.yaml")


@pytest.mark.parametrize("secret", [
    "hunter2: [", "hunter2", "%hunter2", "- hunter2", "!hunter2 x", "*hunter2", "&hunter2 x", "include: [[hunter2]]",
    "hunter2: &a [*a]", '"hunter2', "@hunter2", "a:\n hunter2: x\n\tb: c",
])  # fmt: skip
@pytest.mark.parametrize("include", ["../secret", "{model: ../secret}"])
def test_the_content_of_an_included_file_is_not_quoted(tmp_path, secret, include):
    (tmp_path / "secret").write_text(secret)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "c.yaml").write_text(f"include: {include}")
    with pytest.raises(ZooError, match=r"secret (is not|includes)") as caught:
        read_recipe(tmp_path / "recipes" / "c.yaml")
    assert "hunter2" not in str(caught.value)


def test_includes_that_unfold_are_refused(tmp_path):
    """Ten files of a few words each, which would be 8 ** 10 copies of the last."""
    for i in range(10):
        layers = ", ".join(f"{{k{j}: f{i + 1}.yaml}}" for j in range(8))
        (tmp_path / f"f{i}.yaml").write_text(f"include: [{layers}]")
    (tmp_path / "f10.yaml").write_text("x: 1")
    with pytest.raises(ZooError, match=r"f0\.yaml has more than 200,000 values with its includes"):
        read_recipe(tmp_path / "f0.yaml")
    (tmp_path / "outside.yaml").write_text("model: {class_path: x}")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "c.yaml").write_text("include: ../outside.yaml")
    assert read_recipe(tmp_path / "in" / "c.yaml") == {"model": {"class_path": "x"}}
