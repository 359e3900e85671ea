"""`zoo list` and `zoo info` as real processes: what is printed where, and the exit status."""

import itertools
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from zoo.commands.main import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[2]
ZOO = [sys.executable, "-m", "zoo.commands.main"]


def run(*args: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*ZOO, *args], capture_output=True, text=True, timeout=600, cwd=REPOSITORY, env={**os.environ, **env}
    )


def run_in_terminal(columns: int, *args: str) -> str:
    """What the command writes to a terminal that is `columns` wide, without the colours."""
    primary, secondary = pty.openpty()
    env = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen([*ZOO, *args], stdout=secondary, stderr=secondary, cwd=REPOSITORY, env=env)
    os.close(secondary)
    written = b""
    try:
        while chunk := os.read(primary, 65536):
            written += chunk
    except OSError:  # Linux reports the closed terminal as an I/O error
        pass
    os.close(primary)
    assert process.wait(timeout=600) == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", written.decode().replace("\r\n", "\n"))


def assert_one_sentence(result: subprocess.CompletedProcess, status: int = 1) -> str:
    assert (result.returncode, result.stdout) == (status, "")
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("zoo: ")
    return result.stderr


def test_list_into_a_pipe_is_one_uncut_line_per_model(tmp_path):
    result = run("list", COLUMNS="20", HF_HUB_CACHE=str(tmp_path))
    assert result.returncode == 0, result.stderr
    header, *lines = result.stdout.splitlines()
    assert header.split()[:6] == ["name", "task", "data", "frames", "px", "top-1"]
    assert sorted(line.split()[0] for line in lines) == zoo.list_models()
    m = next(line for line in lines if line.startswith("videomamba-m-k400-f16-r224 "))
    assert " ".join(m.split()) == "videomamba-m-k400-f16-r224 video k400 16 224 81.9 73.9 202 OpenGVLab/VideoMamba no"
    assert not any(line.endswith(" ") or "…" in line or "\x1b" in line for line in lines)


def test_list_keeps_what_is_compared_together():
    lines = run("list").stdout.splitlines()[1:]
    data_sets = [line.split()[2] for line in lines]
    assert [name for name in dict.fromkeys(data_sets) if name != "motion"][:5] == [
        "in1k",
        "k400",
        "ssv2",
        "breakfast",
        "coin",
    ]
    assert sum(a != b for a, b in itertools.pairwise(data_sets)) == len(set(data_sets)) - 1


@pytest.mark.parametrize("columns", [40, 80, 100, 200])
def test_list_fits_the_terminal(columns):
    text = run_in_terminal(columns, "list")
    assert max(map(len, text.splitlines())) <= columns
    assert set(zoo.list_models()) <= set(text.split())
    assert ("Left out" in text) == (columns < 129)


def test_list_json_and_filters(tmp_path):
    result = run("list", "--json", "--dataset", "ssv2", "--task", "video", "mask", HF_HUB_CACHE=str(tmp_path))
    records = json.loads(result.stdout)
    assert [record["name"] for record in records] == [
        "videomamba-m-mask-ssv2-f8-r224",
        "videomamba-m-mask-ssv2-f16-r224",
        "videomamba-m-mask-ssv2-f16-r288",
    ]
    assert records[1]["aliases"][0] == "videomamba-m-mask-ssv2"
    assert records[1]["top1"] == 71.0 and records[1]["flops"] == 202e9 and records[1]["cached"] is False


def test_list_as_markdown_is_a_table_of_the_same_on_every_machine():
    lines = run("list", "--markdown", "videomamba-ti-k400").stdout.splitlines()
    assert lines[0] == "| name | task | data | frames | px | top-1 | params (M) | GFLOPs/view | source |"
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + 5
    assert "| `videomamba-ti-k400-f8-r224` | video | k400 | 8 | 224 | 76.9 | 7.0 | 9 | OpenGVLab/VideoMamba |" in lines


def test_list_knows_what_is_in_the_cache(tmp_path):
    # The layout of the Hub's cache: snapshots/<commit>/ holds the files.
    repository = tmp_path / "models--OpenGVLab--VideoMamba"
    snapshot = repository / "snapshots" / zoo.info("videomamba-ti-k400").weights.revision
    snapshot.mkdir(parents=True)
    (snapshot / "videomamba_t16_k400_f16_res224.pth").touch()
    records = json.loads(run("list", "--json", "k400", HF_HUB_CACHE=str(tmp_path)).stdout)
    assert [record["name"] for record in records if record["cached"]] == ["videomamba-ti-k400-f16-r224"]
    cached = [
        run("info", name, HF_HUB_CACHE=str(tmp_path)).stdout for name in ("videomamba-ti-k400", "videomamba-s-k400")
    ]
    assert [re.search(r"^cached +(\w+)", text, re.MULTILINE)[1] for text in cached] == ["yes", "no"]


def test_info_shows_every_fact_and_how_to_load():
    text = run("info", "videomamba-m-mask-breakfast-f64").stdout
    for fact in (
        "videomamba-m-mask-breakfast-f64-r224",
        "video classification",
        "96.9%",
        "4 clips x 3 crops",
        "73,683,082 parameters",
        "videomamba_m16_breakfast_mask_ft_f64_res224.pth",
        "https://huggingface.co/OpenGVLab/VideoMamba",
        "https://arxiv.org/abs/2403.06977",
        "apache-2.0",
        "32-frame temporal embedding",
        'zoo.load("videomamba-m-mask-breakfast-f64")',
    ):
        assert fact in text


def test_info_of_masked_pretraining_names_what_follows():
    text = run("info", "videomamba-m-ssv2-maskpt-f8").stdout
    facts = dict(re.findall(r"^([a-z][a-z0-9 ]+?)  +(.*)$", text, flags=re.MULTILINE))
    assert facts["task"] == "masked pretraining" and facts["trained on"] == "ssv2"
    assert facts["start of"] == "videomamba-m-mask-ssv2-f8-r224, videomamba-m-mask-ssv2-f16-r224"
    assert "--config finetune --data.root my_videos --model.init_from videomamba-m-ssv2-maskpt-f8" in text
    assert "zoo predict" not in text
    assert (
        "from videomamba-m-ssv2-maskpt-f8-r224, after masked pretraining"
        in run("info", "videomamba-m-mask-ssv2").stdout
    )


def test_info_json_is_the_entry():
    record = json.loads(run("info", "videomamba-ti-ssv2", "--json").stdout)
    entry = zoo.info("videomamba-ti-ssv2")
    assert record["name"] == entry.name and record["init_args"] == entry.init_args and record["meta"] == entry.meta
    assert record["weights"]["filename"] == "videomamba_t16_ssv2_f16_res224.pth"


def test_info_fits_the_terminal():
    assert max(map(len, run_in_terminal(70, "info", "videomamba-m-in1k").splitlines())) <= 70


def test_mistakes_get_one_sentence_and_no_traceback():
    assert "videomamba-m-k400" in assert_one_sentence(run("info", "videomamba-m-k40"))
    assert "'resnet'" in assert_one_sentence(run("list", "resnet"))
    assert "k400" in assert_one_sentence(run("list", "--dataset", "k600"))
    assert "video-classification" in assert_one_sentence(run("list", "--task", "x"))


@pytest.mark.parametrize("args", [[], ["lst"], ["list", "--jsn"], ["info"]])
def test_wrong_command_lines_exit_with_two(args):
    result = run(*args)
    assert (result.returncode, result.stdout) == (2, "") and "usage: zoo" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_names_every_command_and_shows_examples():
    top = run("--help").stdout
    assert all(name in top for name in COMMANDS) and "examples:" in top
    for command in ("list", "info"):
        text = run(command, "--help")
        assert text.returncode == 0 and f"zoo {command} " in text.stdout and "--json" in text.stdout


@pytest.mark.parametrize("args", ["list", "list --json", "info videomamba-m-k400 --json"])
def test_a_reader_that_leaves_early_causes_no_traceback(args):
    command = f"{' '.join(ZOO)} {args} | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=600, cwd=REPOSITORY)
    assert result.stdout.count("\n") == 1 and result.stderr == ""
