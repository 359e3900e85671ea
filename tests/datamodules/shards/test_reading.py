"""Reading from shards is reading from files: same items, same epochs for every process, going on anywhere."""

import json
import shutil
import subprocess
import sys
import tarfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import LVU, CaptionCSV, Kinetics, VideoCSV, VideoFolder
from datamodules.errors import DataError
from datamodules.loading import Draw, TrainSampler
from datamodules.shards.reading import open_shards, shard_order
from datamodules.shards.writing import Source, write_shards
from datamodules.storage.members import as_member

REPOSITORY = Path(__file__).resolve().parents[3]
CLIP = {"num_frames": 2, "image_size": 32, "short_side": 32, "sampling": "sparse", "frame_stride": 1,
        "interpolation": "bilinear"}  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("buffer", [0, 3, 10, 1000])
def test_shards_in_random_order_their_samples_near_each_other(buffer):
    sizes = [5, 1, 8, 2, 30, 4] * 5
    order = shard_order(sizes, buffer, generator(1))
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    # Without a buffer whole shards follow each other; with one, nothing moves further than it says.
    shards = torch.randperm(len(sizes), generator=generator(1)).tolist()
    starts = np.cumsum([0, *sizes])
    stream = [i for shard in shards for i in range(starts[shard], starts[shard + 1])]
    moved = np.abs(np.argsort(stream)[order.numpy()] - np.arange(len(stream)))
    assert moved.max() <= buffer and (buffer == 0 or moved.mean() > min(buffer, len(stream)) / 6)
    assert torch.equal(order, shard_order(sizes, buffer, generator(1)))
    assert not torch.equal(order, shard_order(sizes, buffer, generator(2)))


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_share_an_epoch_equally(processes):
    sizes, options = [7, 1, 12, 30, 3], {"num_replicas": processes, "seed": 4}
    order = partial(shard_order, sizes, 5)
    ranks = [TrainSampler(range(53), order=order, rank=rank, **options) for rank in range(processes)]
    alone = TrainSampler(range(53), order=order, seed=4)
    for epoch in (0, 1):
        for sampler in (*ranks, alone):
            sampler.set_epoch(epoch)
        drawn = [list(sampler) for sampler in ranks]
        assert {len(part) for part in drawn} == {len(ranks[0])} == {-(-53 // processes)}
        dealt = [draw for step in zip(*drawn, strict=True) for draw in step]
        assert [draw.index for draw in dealt[:53]] == [draw.index for draw in alone]
        assert sorted({draw.index for draw in dealt}) == list(range(53))


def sharded(data, out, splits=("train", "val"), **options):
    """Writes a DataModule's listings as shards of a few samples."""
    for split in splits:
        entries = data.listing(split)
        fields = [name for name in entries[0]._fields if name != "path"]
        sources = [Source(e.path, e.path.rpartition("/")[2], {f: getattr(e, f) for f in fields}) for e in entries]
        about = {"class_names": getattr(data, "class_names", None), "media": "video"}
        write_shards(sources, out, split, about=about, **{"max_bytes": 4000, **options})
    return out


@pytest.fixture(scope="module")
def shards(class_root, tmp_path_factory):
    """The shards of `class_root` in the order of its listing: 8 + 4 videos."""
    return sharded(VideoFolder(class_root, **CLIP), tmp_path_factory.mktemp("shards") / "out")


def module(root, stage="fit", cls=VideoFolder, **options):
    data = cls(root, **{"batch_size": 2, "num_workers": 0, **CLIP, **options})
    data.setup(stage)
    return data


def equal(a, b, keys=("video", "label", "index")):
    return all(torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in keys)


def test_items_are_those_of_the_files(class_root, shards):
    plain, tarred = module(class_root, None, rand_augment_ops=2), module(shards, None, rand_augment_ops=2)
    assert tarred.class_names == plain.class_names == ["left", "right"] and tarred.num_classes == 2
    assert len(tarred.shard_listings.split("train").sizes) > 2
    for number in range(8):
        a, b = (data.datasets["train"][Draw(number, 100 + number)] for data in (plain, tarred))
        assert equal(a, b) and b["path"].endswith(a["path"].rpartition("/")[2]) and as_member(b["path"])
    for name in ("val", "test"):
        batches = [list(getattr(data, f"{name}_dataloader")()) for data in (plain, tarred)]
        assert all(map(equal, *batches)) and len(batches[0]) == len(batches[1])
        assert torch.cat([batch["index"] for batch in batches[1]]).tolist() == [0, 1, 2, 3]  # in order, each once


def test_every_way_to_name_them(class_root, shards, tmp_path):
    names = sorted(path.name for path in shards.glob("train-*.tar"))
    listing = [sample.path for sample in module(shards).datasets["train"].samples]
    for options in ({"shards": str(shards)}, {"shards": [f"{shards}/train-*.tar", f"{shards}/val-*.tar"]},
                    {"shards": f"{shards}/{{train,val}}-{{000000..000099}}.tar"}):  # fmt: skip
        assert [s.path for s in module(class_root, **options).datasets["train"].samples] == listing
    # Some of them, and those of two folders.
    some = [f"{shards}/{names[1]}", f"{shards}/val-*.tar"]
    part = module(class_root, shards=some).datasets["train"].samples
    assert {as_member(sample.path).shard for sample in part} == {some[0]} and 0 < len(part) < 8
    copy = shutil.copytree(shards, tmp_path / "copy")
    both = module(tmp_path, shards=["copy", str(shards)])
    assert len(both.datasets["train"]) == 16 and both.datasets["train"].samples[0].path.startswith(f"{copy}/")
    assert len({item["index"] for item in map(both.datasets["val"].__getitem__, range(8))}) == 8


def test_any_datamodule_takes_them(class_root, shards):
    assert len(module(shards, cls=Kinetics, num_classes=2).datasets["train"]) == 8
    assert module(class_root, cls=VideoCSV, shards=str(shards)).class_names == ["left", "right"]
    with pytest.raises(DataError, match=r"has 2 classes, but num_classes is 400; set data\.num_classes"):
        module(shards, cls=Kinetics).class_names  # noqa: B018


def test_captions_too(captioned_clips, tmp_path):
    rows = ["video,caption", *(f'{path},"{text}"' for path, texts in captioned_clips for text in texts)]
    (tmp_path / "captions.csv").write_text("\n".join(rows))
    lists = {"train": "captions.csv", "val": "captions.csv"}
    plain = module(tmp_path, cls=CaptionCSV, videos="/", **lists)
    out = sharded(plain, tmp_path / "out", max_bytes=20_000)
    tarred = module(out, cls=CaptionCSV, **lists)
    assert len(tarred.datasets["train"]) == len(plain.datasets["train"]) == 24
    assert sum(tarred.train_dataloader().sampler.order.args[0]) == 24
    for number in (0, 5, 23):
        a, b = (data.datasets["train"][Draw(number, 3)] for data in (plain, tarred))
        assert torch.equal(a["video"], b["video"]) and a["text"] == b["text"] and a["video_index"] == b["video_index"]
    (batch, *_), (other, *_) = tarred.val_dataloader(), plain.val_dataloader()
    assert batch["text"] == other["text"] and equal(batch, other, ("video", "index"))
    with pytest.raises(DataError, match="holds captions and span of each sample, and this data set needs label"):
        module(out)


def test_numbers_and_windows_too(captioned_clips, tmp_path):
    """LVU: an answer that is no class, and several training items of a film, as many as it has windows."""
    films = [path for path, _ in captioned_clips]
    (tmp_path / "like_ratio").mkdir()
    for split in ("train", "val"):
        rows = [f"{film},{number / 10},{2 + number / 4}" for number, film in enumerate(films)]
        (tmp_path / "like_ratio" / f"{split}.csv").write_text("\n".join(rows))
    options = {"cls": LVU, "task": "like_ratio", "window_seconds": 1.0, "window_stride": 0.5}
    plain = module(tmp_path, **options)
    tarred = module(sharded(plain, tmp_path / "out", max_bytes=20_000), **options)
    items, sizes = len(plain.datasets["train"]), tarred.train_dataloader().sampler.order.args[0]
    assert len(tarred.datasets["train"]) == items == sum(sizes) > 8 and len(sizes) > 2
    for number in range(items):
        a, b = (data.datasets["train"][Draw(number, 3)] for data in (plain, tarred))
        assert equal(a, b, ("video", "value", "index"))
    batch, other = (next(iter(data.val_dataloader())) for data in (plain, tarred))
    assert equal(batch, other, ("video", "value", "index"))


@pytest.mark.parametrize("place", ["local", "remote"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_epoch_goes_on(shards, shard_server, place, workers):
    """Bit by bit, behind any batch, over the network as from the disk, and with the next epochs whole."""
    options = {"num_workers": workers, "rand_augment_ops": 2, "shuffle_buffer": 3}
    with shard_server(shards) as server:
        root = server.url if place == "remote" else shards
        whole = module(shards, **options).train_dataloader()
        epochs = []
        for epoch in range(2):
            whole.sampler.set_epoch(epoch)
            epochs.append(list(whole))
        orders = [[batch["index"].tolist() for batch in batches] for batches in epochs]
        assert orders[0] != orders[1]
        begun = module(root, **options)
        loader = begun.train_dataloader()
        batches = iter(loader)
        first = next(batches)
        state = begun.state_dict()
        del batches
        again = module(root, **options)
        again.load_state_dict(state)
        loader = again.train_dataloader()
        rest = list(loader)
        assert len(rest) == 3 and all(map(equal, [first, *rest], epochs[0]))
        loader.sampler.set_epoch(1)
        assert all(map(equal, loader, epochs[1]))


def test_a_batch_is_fetched_together(shards, shard_server):
    """Four requests at a time, one for each sample, and the same batch."""
    expected = next(iter(module(shards, batch_size=8, shuffle_buffer=3).train_dataloader()))
    with shard_server(shards) as server:
        server.delay = 0.05
        found = next(iter(module(server.url, batch_size=8, shuffle_buffer=3).train_dataloader()))
        assert server.most == 4 and len(server.log) == len(set(server.log)) == 8
    assert sorted(found["index"].tolist()) == sorted(expected["index"].tolist()) == list(range(8))


def test_an_epoch_goes_on_with_the_same_shards_only(shards, tmp_path):
    begun = module(shards)
    next(iter(begun.train_dataloader()))
    other = sharded(VideoFolder(shards, **CLIP), tmp_path / "other", max_bytes=20_000)
    for root, options in ((other, {}), (shards, {"shuffle_buffer": 2})):
        again = module(root, **options)
        again.load_state_dict(begun.state_dict())
        with pytest.raises(DataError, match="read in another order"):
            again.train_dataloader()


@pytest.fixture
def damaged(class_root, tmp_path):
    """The same video broken as a file and in its shard: root of the files, shards, number of the video."""
    root = shutil.copytree(class_root, tmp_path / "files")
    (root / "train" / "right" / "1.mp4").write_bytes(b"not a video at all" * 50)
    (root / "val" / "left" / "1.mp4").write_bytes(b"nor this" * 50)
    return root, sharded(VideoFolder(root, **CLIP), tmp_path / "out")


def test_a_broken_member_is_treated_as_a_broken_file(damaged):
    items, messages = {}, {}
    for kind, root in zip(("file", "member"), damaged, strict=True):
        data = module(root, max_unreadable=0.5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            items[kind] = [data.datasets["train"][Draw(number, 7)] for number in range(8)]
            items[kind] += [data.datasets["train"][Draw(5, 8)], *map(data.datasets["val"].__getitem__, range(4))]
        messages[kind] = [str(warning.message) for warning in caught]
        assert len(messages[kind]) == 2
        data.datasets["train"].tally.check()
    assert all(map(equal, items["file"], items["member"]))
    indices = [item["index"] for item in items["member"]]
    assert indices[9:] == [0, -1, 2, 3] and 5 not in indices[:9] and not items["member"][10]["video"].any()
    assert ".tar!" in messages["member"][0] and "right/1.mp4" not in messages["member"][0]
    assert "1.mp4 cannot be opened as a video" in messages["member"][0]


def test_shards_tell_what_they_hold(shards):
    rows = module(shards).describe()
    assert [(row.split, row.videos, row.classes, row.origin) for row in rows] == [
        ("train", 8, 2, f"shards of {shards}"), ("val", 4, 2, f"shards of {shards}")]  # fmt: skip


def test_missing_shards(shards, tmp_path):
    root = shutil.copytree(shards, tmp_path / "out")
    sizes = module(root).shard_listings.split("train").sizes
    (root / "train-000001.tar").unlink()
    with pytest.warns(UserWarning, match=rf"{sizes[1]} of the 8 train videos do not exist: .*train-000001\.tar!"):
        data = module(root, max_unreadable=0.9)
    assert data.datasets["train"].tally.flags.sum() == sizes[1]
    with (root / "train-000000.tar").open("ab") as file:
        file.write(b"longer than the index says")
    with pytest.raises(DataError, match="more than max_unreadable allows"), pytest.warns(UserWarning):
        module(root, max_unreadable=0.2)
    gone = module(shutil.copytree(shards, tmp_path / "gone"), check_files=False)
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(DataError, match=r"as the folder .*/gone is gone"), pytest.warns(UserWarning):
        list(gone.train_dataloader())
        gone.datasets["train"].tally.check()


def test_mistakes_are_named(class_root, shards, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    index = (shards / "train.index.jsonl").read_text().splitlines()
    for options, message in [
        ({"shards": str(empty)}, "no index of shards .*zoo shard"),
        ({"shards": f"{shards}/valid-*.tar"}, "no shards of the train split"),
        ({"shards": "a/{0..1}/{0..9}.tar"}, "give each folder by itself"),
        ({"shuffle_buffer": -1}, "shuffle_buffer is -1"),
    ]:
        with pytest.raises(DataError, match=message):
            module(class_root, **options)
    for text, message in [
        (index[:-1], "no complete index"),
        ([index[0].replace('": 1,', '": 2,')], "no complete"),
        ([*index[:-1], index[-1][:50]], "is not JSON .line .*copy the index"),
        ([], "no complete index"),
    ]:
        (empty / "train.index.jsonl").write_text("\n".join(text))
        with pytest.raises(DataError, match=message):
            module(class_root, shards=str(empty))
    other = [json.dumps({**json.loads(index[0]), "class_names": ["up", "down"]}), *index[1:]]
    (empty / "train.index.jsonl").write_text("\n".join(other))
    with pytest.raises(DataError, match="has other class_names than"):
        open_shards([str(shards), str(empty)], "train")


@pytest.mark.parametrize("name", ["../x.tar", "/x.tar", "a/../../x.tar", "http://127.0.0.1/x.tar", "%2e%2e/x.tar",
                                  "..\\x.tar", "file:///x.tar", "x.zip", "x.tar?y.tar", "./x.tar", ""])  # fmt: skip
def test_an_index_names_shards_of_its_own_folder_only(class_root, shards, tmp_path, name):
    folder = shutil.copytree(shards, tmp_path / "inside" / "folder")
    for place in (tmp_path / "inside" / "x.tar", tmp_path / "x.tar"):
        shutil.copy(shards / "train-000000.tar", place)
    index = folder / "train.index.jsonl"
    header, first, *rest = index.read_text().splitlines()
    index.write_text("\n".join([header, json.dumps({**json.loads(first), "shard": name}), *rest]))
    with pytest.raises(DataError, match=r"train\.index\.jsonl, line 2: the shard .* is not a tar in the index's"):
        module(folder)


def test_a_name_is_not_taken_for_an_address(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "folder")
    index = folder / "train.index.jsonl"
    header, first, *rest = index.read_text().splitlines()
    shard = json.loads(first)
    shard["name"][0] = "../../secret.tar!512+100!x.mp4"
    index.write_text("\n".join([header, json.dumps(shard), *rest]))
    path = VideoFolder(folder, **CLIP).listing("train")[0].path
    assert as_member(path).shard == str(folder / "train-000000.tar")


def _without(key):
    return lambda line: {name: value for name, value in line.items() if name != key}


def _with(**values):
    return lambda line: {**line, **values}


@pytest.mark.parametrize("change", [
    *map(_without, ("shard", "bytes", "sha256", "offset", "size", "name", "label")),
    *(_with(**{key: None}) for key in ("shard", "bytes", "sha256", "offset", "size", "name", "label")),
    *(_with(**{key: [1]}) for key in ("offset", "size", "name", "label")),
    _with(label=["0", "1"] * 4), _with(label=[[0]] * 8), _with(label=[True] * 8), _with(label=[10**30] * 8),
    _with(offset=[-512] * 8), _with(offset=[2**80] * 8), _with(size=[10**15] * 8), _with(size=[-1] * 8),
    _with(offset=[1.5] * 8), _with(bytes=0), _with(name=[""] * 8), lambda line: [line], lambda line: 7,
])  # fmt: skip
def test_a_line_of_another_form_is_one_sentence(class_root, tmp_path, change):
    folder = sharded(VideoFolder(class_root, **CLIP), tmp_path / "out", ("train",), max_bytes=10**6)
    index = folder / "train.index.jsonl"
    header, line = index.read_text().splitlines()
    assert len(json.loads(line)["label"]) == 8
    index.write_text(f"{header}\n{json.dumps(change(json.loads(line)))}")
    with pytest.raises(DataError) as refused:
        module(folder, max_unreadable=0)
    assert str(index) in str(refused.value) and "write the index again." in str(refused.value)


@pytest.mark.parametrize("values", [
    {"fields": None}, {"fields": "label"}, {"fields": ["label", "label"]}, {"fields": ["size"]}, {"fields": [1]},
    {"class_names": "left"}, {"class_names": [1]}, {"samples": None}, {"bytes": "1"}, {"left_out": None}, {"media": 1},
    {"shards": None}, {"shards": "1"}, {"version": [1]}, {"format": None}, {"fields": []}, {"fields": ["captions"]},
])  # fmt: skip
def test_a_header_of_another_form_is_one_sentence(shards, tmp_path, values):
    folder = shutil.copytree(shards, tmp_path / "out")
    index = folder / "train.index.jsonl"
    header, *rest = index.read_text().splitlines()
    index.write_text("\n".join([json.dumps({**json.loads(header), **values}), *rest]))
    with pytest.raises(DataError, match=r"train\.index\.jsonl"):
        module(folder)


def test_a_number_of_thousands_of_digits(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "out")
    index = folder / "train.index.jsonl"
    header, first, *rest = index.read_text().splitlines()
    index.write_text("\n".join([header, first.replace('"bytes": ', f'"bytes": {"9" * 5000}'), *rest]))
    with pytest.raises(DataError, match=r"is not JSON \(line 2: a number of too many digits\)"):
        module(folder)


def test_a_pattern_that_stands_for_too_many(tmp_path):
    with pytest.raises(DataError, match=r"\{0\.\.99999999\}\.tar stands for more than 100000 names"):
        open_shards([f"{tmp_path}/{{0..99999999}}.tar"], "train")


def test_index_and_tar_agree(shards):
    """What the index says of places is what a reader of tars finds."""
    (folder,) = open_shards([str(shards)], "train")
    for path, values in folder.samples:
        member = as_member(path)
        with tarfile.open(member.shard) as tar:
            (info,) = [info for info in tar if info.offset_data == member.offset]
            assert info.size == member.size
            said = json.load(tar.extractfile(info.name.rpartition(".")[0] + ".json"))
        assert said == {"name": member.name, **values}


SCRIPT = """
import json, sys
import lightning as L, torch
from datamodules import VideoFolder

class Recorder(L.LightningModule):
    preprocessing = dict(num_frames=2, image_size=32, short_side=32, sampling="sparse", frame_stride=1,
                         interpolation="bilinear")
    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(())), []
    def training_step(self, batch):
        self.seen.append(["train", self.current_epoch, batch["index"].tolist()])
        return self.weight * batch["video"].float().mean()
    def validation_step(self, batch):
        self.seen.append(["val", self.current_epoch, batch["index"].tolist()])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
    def on_train_end(self):
        with open(f"{out}/{self.global_rank}.json", "w") as file:
            json.dump(self.seen, file)

root, out = sys.argv[1:]
L.seed_everything(5)
data = VideoFolder(root, batch_size=2, num_workers=2, shuffle_buffer=2)
L.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=2, logger=False, num_sanity_val_steps=0,
          enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False).fit(Recorder(), data)
"""


@pytest.mark.slow
def test_two_processes_over_the_network(class_root, shard_server, tmp_path):
    """Seven training videos in shards of unequal length, two processes with two workers each, gloo, two epochs."""
    root = shutil.copytree(class_root, tmp_path / "files")
    (root / "train" / "left" / "0.mp4").unlink()
    out = sharded(VideoFolder(root, **CLIP), tmp_path / "out")
    with shard_server(out) as server:
        command = [sys.executable, "-c", SCRIPT, server.url, str(tmp_path)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for epoch in range(2):
        mine = [[indices for kind, e, indices in rank if (kind, e) == ("train", epoch)] for rank in seen]
        assert [list(map(len, batches)) for batches in mine] == [[2, 2], [2, 2]]
        drawn = [index for batches in mine for batch in batches for index in batch]
        assert set(drawn) == set(range(7)) and len(drawn) == 8  # one comes again, so that both have as many
        evaluated = [index for rank in seen for kind, e, indices in rank if (kind, e) == ("val", epoch)
                     for index in indices]  # fmt: skip
        assert sorted(evaluated) == [0, 1, 2, 3]


FROM_THE_HUB = """
import sys, torch
from datamodules import VideoFolder

clip = dict(num_frames=2, image_size=32, short_side=32, sampling="sparse", frame_stride=1, interpolation="bilinear")
found = {}
for root in sys.argv[2:]:
    torch.manual_seed(3)
    data = VideoFolder(root, batch_size=4, num_workers=2, **clip)
    data.setup("fit")
    found[root] = [*data.train_dataloader(), *data.val_dataloader()]
torch.save(found, sys.argv[1])
"""


@pytest.mark.slow
def test_data_sets_on_the_hub(class_root, shards, hub_server, tmp_path):
    """Files and shards by the real client, whose loader processes are forked."""
    for name, folder in (("clips", class_root), ("shards", shards)):
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        hub_server.commit(f"datasets/org/{name}", files)
    pairs = [(str(class_root), "hf://datasets/org/clips"), (str(shards), "hf://datasets/org/shards@main")]
    command = [sys.executable, "-c", FROM_THE_HUB, tmp_path / "found.pt", *(root for pair in pairs for root in pair)]
    done = subprocess.run(list(map(str, command)), cwd=REPOSITORY, env=hub_server.environment(tmp_path / "home"),
                          capture_output=True, text=True, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "found.pt")
    for local, remote in pairs:
        assert len(found[local]) == len(found[remote]) == 3
        assert all(map(equal, found[local], found[remote]))
    assert hub_server.count(r"GET .*/resolve/main/train/left/0\.mp4") and hub_server.count(r"GET .*train-000000\.tar")
