"""What a test leaves: files whose numbers are counted again here, the same from two processes as from one."""

import base64
import csv
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics

from lightning_modules.callbacks import Report
from lightning_modules.errors import ModelError

SCRIPT = Path(__file__).with_name("report_run.py")


@pytest.fixture(scope="module")
def known():
    """The module of report_run.py."""
    spec = importlib.util.spec_from_file_location("report_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


class Elements(HTMLParser):
    """Start tags with their attributes, and the text between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def page_of(folder: Path) -> Elements:
    page = Elements((folder / "report.html").read_text(encoding="utf-8"))
    addresses = [value for _, attributes in page.tags for name, value in attributes.items()
                 if name in ("src", "srcset", "href", "poster", "data")]  # fmt: skip
    assert addresses and all(address.startswith("data:image/") for address in addresses)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    return page


def moving(page: Elements) -> list[Image.Image]:
    found = [a["src"] for tag, a in page.tags if tag == "img" and a["src"].startswith("data:image/webp;base64,")]
    return [Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) for address in found]


def test_a_classifications_files(known, tmp_path):
    items, _ = known.run("class", tmp_path)
    folder = tmp_path / "known" / "test_0"
    kept = [i for i in range(25) if i != known.BROKEN]
    truth = items.truth[kept]
    scores = np.stack([known.scores_of(i, 7, items.truth[i]).numpy() for i in kept])
    answer = scores.argmax(axis=1)

    expected = metrics.precision_recall_fscore_support(
        truth, answer, labels=range(7), average=None, zero_division=np.nan
    )
    for k, row in enumerate(rows_of(folder / "per_class.csv")):
        assert (row["class"], int(row["index"]), int(row["count"])) == (f"class <{k}>", k, (truth == k).sum())
        precise = metrics.average_precision_score(truth == k, scores[:, k]) if (truth == k).any() else np.nan
        for name, value in zip(("precision", "recall", "f1"), (v[k] for v in expected[:3]), strict=True):
            assert float(row[name] or "nan") == pytest.approx(value, abs=1e-6, nan_ok=True)
        assert float(row["average_precision"] or "nan") == pytest.approx(precise, abs=1e-6, nan_ok=True)

    mistakes = rows_of(folder / "mistakes.csv")
    wrong = sorted((i for i in range(24) if answer[i] != truth[i]), key=lambda i: -scores[i].max())
    assert [row["index"] for row in mistakes] == [str(kept[i]) for i in wrong] and len(wrong) > 5
    for row, i in zip(mistakes, wrong, strict=True):
        assert row["path"] == f"videos/<i>{kept[i]}</i>.mp4" and row["truth"] == f"class <{truth[i]}>"
        for rank, k in enumerate(np.argsort(-scores[i])[:5], start=1):
            assert row[f"answer_{rank}"] == f"class <{k}>"
            assert float(row[f"probability_{rank}"]) == pytest.approx(scores[i, k], abs=1e-6)

    record = json.loads((folder / "report.json").read_text())
    found = record["scores"]["class"]
    assert found["top1"] == pytest.approx((answer == truth).mean()) == pytest.approx(record["logged"]["test/top1"])
    assert found["top5"] == pytest.approx(record["logged"]["test/top5"])
    assert (record["samples"], record["unreadable"], record["checkpoint"]) == (24, 1, None)
    with Image.open(folder / "confusion.png") as picture:
        assert picture.format == "PNG"

    page = page_of(folder)
    assert "class <3>" in page.text and "24 samples" in page.text and "could not be read: 1" in page.text
    assert f"{found['top1']:.1%}" in page.text and mistakes[0]["path"] in page.text
    # The clips of the worst five, of pixels that are their index.
    pictures = moving(page)
    assert len(pictures) == 5
    for picture, i in zip(pictures, wrong, strict=False):
        assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - kept[i]).max() <= 3
    assert items.reads[25:] == [kept[i] for i in wrong[:5]]


@pytest.mark.parametrize("dual_softmax", [False, True])
def test_a_retrievals_files(known, tmp_path, dual_softmax):
    items, _ = known.run("dual" if dual_softmax else "retrieval", tmp_path)
    folder = tmp_path / "known" / "test_0"
    record = json.loads((folder / "report.json").read_text())
    found = record["scores"]["retrieval"]
    for name in ("t2v_r1", "t2v_r5", "t2v_mdr", "v2t_r10", "v2t_mnr"):
        assert found[name] == pytest.approx(record["logged"][f"test/{name}"], abs=1e-6)

    kept = [i for i in range(25) if i != known.BROKEN]
    vectors = [known.vectors_of(i, 1 + i % 3) for i in kept]
    video, text = torch.stack([v for v, _ in vectors]), torch.cat([t for _, t in vectors])
    owner = np.repeat(np.arange(24), [len(t) for _, t in vectors])
    scores = 5 * text @ video.T
    products = (scores.softmax(dim=1) * scores.softmax(dim=0) if dual_softmax else scores).numpy()
    ranks = (products >= products[np.arange(len(owner)), owner][:, None]).sum(axis=1)
    mistakes = rows_of(folder / "mistakes.csv")
    assert [int(row["rank"]) for row in mistakes] == sorted((r for r in ranks if r > 1), reverse=True)
    captions = [f"caption {k} of <b>{i}</b>" for i in kept for k in range(1 + i % 3)]
    for row in mistakes:
        query = captions.index(row["caption"])
        assert row["path"] == f"videos/<i>{kept[owner[query]]}</i>.mp4" and int(row["rank"]) == ranks[query]
        best = np.argsort(-products[query])[:5]
        assert [row[f"answer_{k}"] for k in range(1, 6)] == [f"videos/<i>{kept[b]}</i>.mp4" for b in best]
        cosines = [float(row[f"similarity_{k}"]) for k in range(1, 6)]
        assert cosines == pytest.approx((text[query] @ video[best].T).tolist(), abs=1e-5)
    page = page_of(folder)
    assert len(moving(page)) == 5 and mistakes[0]["caption"] in page.text
    assert f"{mistakes[0]['rank']} of 24" in page.text
    assert items.reads[25:] == [kept[owner[captions.index(row["caption"])]] for row in mistakes[:5]]


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """The distributed sampler repeats one of 25 items."""
    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    kinds = ["class", "action,verb,noun", "retrieval"]
    for processes in ("1", "2"):
        command = [sys.executable, str(SCRIPT), str(tmp_path / processes), processes, *kinds]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    for kind in kinds:
        one, two = (tmp_path / processes / kind / "known" / "test_0" for processes in ("1", "2"))
        names, others = ({path.name for path in folder.iterdir()} - {"metrics.csv", "hparams.yaml"}
                         for folder in (one, two))  # fmt: skip
        assert names == others and {"report.html", "report.json", "mistakes.csv"} <= names
        for name in names:
            assert (one / name).read_bytes() == (two / name).read_bytes(), f"{kind}: {name}"


def test_kinds_of_answers_stand_in_the_same_files(known, tmp_path):
    known.run("action,verb", tmp_path, worst=0)
    folder = tmp_path / "known" / "test_0"
    rows = rows_of(folder / "per_class.csv")
    assert [row["kind"] for row in rows] == ["action"] * 7 + ["verb"] * 7
    assert rows[0]["class"] == "class <0>" and rows[7]["class"] == "0"
    # The second kind is the first one with every class moved by one.
    assert [row["recall"] for row in rows[7:]] == [row["recall"] for row in (rows[6], *rows[:6])]
    assert {"confusion.png", "confusion_verb.png"} <= {path.name for path in folder.iterdir()}
    assert {row["kind"] for row in rows_of(folder / "mistakes.csv")} == {"action", "verb"}
    page = page_of(folder)
    assert "Action: Scores" in page.text and "Verb: Calibration" in page.text and not moving(page)


def test_of_many_classes_the_most_confused_are_shown(known, tmp_path):
    known.run("class", tmp_path, samples=90, classes=60)
    page = page_of(tmp_path / "known" / "test_0")
    assert "Of 60 classes the 40 that take part in the most mistakes are shown." in page.text
    assert "The worst by F1" in page.text and "The best by F1" in page.text
    assert len(rows_of(tmp_path / "known" / "test_0" / "per_class.csv")) == 60


def test_scores_that_take_too_much_memory_are_not_kept(known, tmp_path, monkeypatch):
    known.run("class", tmp_path / "all")
    monkeypatch.setattr("lightning_modules.report.answers.MOST_SCORES", 100)
    known.run("class", tmp_path / "few")
    every, few = (rows_of(tmp_path / name / "known" / "test_0" / "per_class.csv") for name in ("all", "few"))
    assert any(row["average_precision"] for row in every) and not any(row["average_precision"] for row in few)
    assert [row["f1"] for row in every] == [row["f1"] for row in few]


def test_a_disk_that_is_gone_costs_the_clips_and_not_the_test(known, tmp_path):
    def take(items):
        items.gone = True

    known.run("class", tmp_path, before=take)
    page = page_of(tmp_path / "known" / "test_0")
    assert page.text.count("This clip cannot be shown.") == 5 and not moving(page)


def test_a_report_that_fails_is_a_warning(known, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr("lightning_modules.report.page.render", fail)
    with pytest.warns(UserWarning, match=r"report\.html could not be written: RuntimeError: no ink"):
        known.run("class", tmp_path)
    assert not (tmp_path / "known" / "test_0" / "report.html").exists()
    monkeypatch.setattr("lightning_modules.report.answers.AnswerRows.add", fail)
    with pytest.warns(UserWarning, match="no ink"):
        known.run("class", tmp_path / "other")


def test_nothing_is_written_without_a_folder(known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known.run("class", str(tmp_path), logger=False)
    known.run("class", str(tmp_path), fast_dev_run=True)
    assert not list(tmp_path.rglob("report*"))


def test_mistakes(tmp_path):
    with pytest.raises(ModelError, match=r"worst is -1; the report shows from 0 to 100 clips"):
        Report(worst=-1)


def test_the_tested_checkpoint_is_named_by_its_hash(known, tmp_path):
    from hashlib import sha256

    from lightning_modules.callbacks.report import _checkpoint

    file = tmp_path / "version_0" / "best.ckpt"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    found = _checkpoint(file, tmp_path / "test_0")
    assert found == {"path": "../version_0/best.ckpt", "sha256": sha256(b"weights").hexdigest()}
    assert _checkpoint(None, tmp_path) is None and _checkpoint(tmp_path, tmp_path) is None
    assert re.fullmatch(r"[0-9a-f]{64}", found["sha256"])
