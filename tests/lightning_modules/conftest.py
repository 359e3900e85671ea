from collections.abc import Callable

import pytest
import torch

from lightning_modules.nets.clip_teacher import ClipTeacher

# OpenAI's names of an image tower and transformers'.
NAMES = {
    "class_embedding": "embeddings.class_embedding", "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre": "pre_layrnorm", "ln_post": "post_layernorm", "transformer.resblocks": "encoder.layers",
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip


@pytest.fixture
def official_teacher(golden: Callable) -> tuple[dict[str, torch.Tensor], ClipTeacher]:
    """The golden tensors of teacher and mask, and the teacher with its weights."""
    tensors, sidecar = golden("clip_teacher_masking")
    c = sidecar["constructor"]
    tower = {
        "image_size": c["input_resolution"], "patch_size": c["patch_size"], "hidden_size": c["width"],
        "intermediate_size": 4 * c["width"], "num_hidden_layers": c["layers"], "num_attention_heads": c["heads"],
    }  # fmt: skip
    teacher = ClipTeacher(sizes={"projection_dim": c["output_dim"], "vision_config": tower})
    weights = {}
    for key, tensor in tensors.items():
        if not key.startswith("state_dict."):
            continue
        key = key.removeprefix("state_dict.")
        for old, new in NAMES.items():
            key = key.replace(old, new)
        if key == "proj":
            weights["visual_projection.weight"] = tensor.T
        elif key == "conv1.weight":  # blown up to clips of one frame
            weights["vision_model.embeddings.patch_embedding.weight"] = tensor.squeeze(2)
        elif ".attn.in_proj_" in key:
            block, _, kind = key.partition(".attn.in_proj_")
            parts = zip("qkv", tensor.chunk(3), strict=True)
            weights |= {f"vision_model.{block}.self_attn.{name}_proj.{kind}": part for name, part in parts}
        else:
            weights[f"vision_model.{key}"] = tensor
    teacher.clip.load_state_dict(weights)
    return tensors, teacher
