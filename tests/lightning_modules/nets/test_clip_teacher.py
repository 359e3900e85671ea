"""The CLIP teacher against the official one (golden tensors) and against transformers' own numbers."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import CLIPModel

from lightning_modules.errors import ModelError
from lightning_modules.nets.clip_teacher import ClipTeacher

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
SIZES = {"projection_dim": 24, "vision_config": {"image_size": 32, "patch_size": 8, **TOWER}}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_teacher_equals_the_official_one(golden, official_teacher):
    tensors, teacher = official_teacher
    clip = golden("videomamba_pretrain")[0]["input"]
    hidden, attention = teacher(clip, 4, final_norm=False)
    close(attention.flatten(0, 1), tensors["attn"])
    close(F.normalize(teacher.project(hidden), dim=-1), tensors["teacher_features"])
    # The published code applies CLIP's last norm where it leaves the class token out.
    patches = teacher(clip, 4).hidden[:, :, 1:]
    close(F.normalize(teacher.project(patches), dim=-1), tensors["teacher_features_without_cls"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint as transformers writes it, of towers for images and texts."""
    from lightning_modules.nets.clip_tower import build_clip

    torch.manual_seed(0)
    text = {"vocab_size": 514, "max_position_embeddings": 8, **TOWER}
    path = tmp_path_factory.mktemp("clip")
    build_clip({**SIZES, "text_config": text}).save_pretrained(path)
    return path


def test_a_checkpoint_is_read_and_gives_transformers_numbers(folder):
    teacher = ClipTeacher(str(folder))
    theirs = CLIPModel.from_pretrained(folder, attn_implementation="eager").eval()
    clip = torch.randn(2, 3, 3, 32, 32)
    images = clip.transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        expected = theirs.vision_model(images, output_hidden_states=True, output_attentions=True)
        embeds = theirs.get_image_features(images).pooler_output
    hidden, attention = teacher(clip, 4, layers=[0, 2])
    assert hidden.shape == (2, 2, 1 + 3 * 16, 32) and attention.shape == (2, 3, 16)
    torch.testing.assert_close(attention.flatten(0, 1), expected.attentions[-1].mean(1)[:, 0, 1:])
    for found, block in zip(hidden, (1, 3), strict=True):  # transformers' first is the embedding
        tokens = theirs.vision_model.post_layernorm(expected.hidden_states[block]).unflatten(0, (2, 3))
        torch.testing.assert_close(found[:, 0], tokens[:, :, 0].mean(1))
        torch.testing.assert_close(found[:, 1:], tokens[:, :, 1:].flatten(1, 2))
    torch.testing.assert_close(teacher.project(hidden)[1, :, 0], embeds.unflatten(0, (2, 3)).mean(1))


def test_other_sizes_are_resized_to_the_students_grid(folder):
    teacher = ClipTeacher(str(folder))
    clip = torch.randn(1, 3, 1, 48, 48)  # 3 x 3 patches of 16 px for the student, of 8 px for the teacher
    hidden, attention = teacher(clip, 3)
    assert hidden.shape == (1, 1, 1 + 9, 32) and attention.shape == (1, 1, 9)
    small = F.interpolate(clip[:, :, 0], size=(24, 24), mode="bicubic", align_corners=False)
    theirs = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = theirs.get_image_features(small, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(teacher.project(hidden)[0, :, 0], expected)


def test_a_teacher_is_frozen(folder):
    teacher = ClipTeacher(str(folder)).train()
    assert not teacher.training and not teacher.clip.training
    assert not any(p.requires_grad for p in teacher.parameters())
    clip = torch.randn(1, 3, 1, 32, 32, requires_grad=True)
    assert not teacher.project(teacher(clip, 4).hidden).requires_grad
    assert (teacher.depth, teacher.output_dim) == (3, 24)


def test_mistakes_are_named(tmp_path, folder):
    with pytest.raises(ModelError, match="takes either the name of a checkpoint"):
        ClipTeacher()
    with pytest.raises(ModelError, match=r"clip\.vision_config has no entry 'width'"):
        ClipTeacher(sizes={"vision_config": {"width": 3}})
    with pytest.raises(ModelError, match="'/nowhere/at/all' cannot be read"):
        ClipTeacher("/nowhere/at/all")
    weights = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    del weights["vision_model.post_layernorm.weight"]
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"cannot be read \(.*post_layernorm.weight"):
        ClipTeacher(str(tmp_path))
