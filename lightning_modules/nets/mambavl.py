"""MambaVL (arXiv 2409.11513) as its authors published it: video and text meet in one state transition matrix.

Parameter names are those of the official files (docs/mambavl.md).

Legend of shapes: B clips, N vision tokens, L positions of a question, W width of the text model, D width of the fusion,
E = 2 D inner channels, S states, R rank of delta.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth
from transformers import RobertaModel
from typing_extensions import override

from lightning_modules.checks import check_arguments, check_choice
from lightning_modules.errors import ModelError
from lightning_modules.nets.avion import AvionTower
from lightning_modules.nets.bimamba import mixer_weights, reset_step_sizes
from lightning_modules.nets.roberta import RobertaWords
from lightning_modules.nets.towers import OnTower
from lightning_modules.nets.videomamba import VideoMamba
from lightning_modules.ops import Linear, mix

__all__ = ["FUSIONS", "GENERIC_QUESTIONS", "MLPFuser", "MambaMixer", "MambaVL", "TransformerFuser"]

FUSIONS = ("published", "disjoint", "mlp", "transformer")
SCANNED = ("published", "disjoint")
"""Those that scan every token; the others see the class token and one vector of text."""

GENERIC_QUESTIONS = {
    "verb": "what action do the hands perform?",
    "noun": "which object is it?",
}
"""Asked of each head where no question is given: they reveal nothing about the action."""


class MambaVL(OnTower):
    """Vision tokens and two questions, each read by a Mamba of its modality; the means are added.

    ::

        clip (B, 3, T, H, W) -- vision -- tokens (B, N, D) -- mamba_video -- mean --+-- + -- head0 -- verb
                                                                  | A_log           +-- + -- head1 -- noun
        verb question ---- embeddings -- txt_proj (B, L, D) -- mamba_text -- mean ------^     ^
        noun question ---- embeddings -- txt_proj (B, L, D) -- mamba_text -- mean ------------^

    The two Mambas have one layer each, scan in one direction and share nothing but ``A_log``. There is no norm and no
    residual connection, and padding counts in the mean. So for a head the question is a bias on its logits that does
    not depend on the video, and with a fixed question a constant.

    Args:
        vision: gives tokens of a clip (`forward_tokens`); None takes features (B, N, D) in its place.
        dim: width D: that of the vision tower, whose tokens are not projected.
        text_model: from `lightning_modules.nets.roberta.build_roberta`, with layers for "mlp" and "transformer".
        tokenizer: makes ids of questions.
        num_verbs: outputs of ``head0``.
        num_nouns: outputs of ``head1``.
        fusion: one of `FUSIONS`:

            - "published": as above.
            - "disjoint": the text is scanned with a matrix of its own, ``B_log``. In the official code the option of
              that name creates ``B_log`` and never uses it, so that its results are those of "published".
            - "mlp" and "transformer": `MLPFuser` and `TransformerFuser` on the vision's first token and RoBERTa's
              pooled output, the alternatives of the official code.
        fuser: sizes of the transformer: ``depth``, ``heads``, ``positions``.
        init: "mamba" (log(1..S) for A, Mamba's step sizes), or "official": what the two passes of the official code
            leave, which run over everything but the vision tower and overwrite A, the step sizes and RoBERTa alike
            (`official_init`).
        drop: dropout before the heads.

    Raises:
        ValueError: an option that does not exist.
    """

    vision: VideoMamba | AvionTower | None

    def __init__(
        self,
        vision: VideoMamba | AvionTower | None,
        dim: int,
        text_model: RobertaModel,
        tokenizer: RobertaWords,
        num_verbs: int,
        num_nouns: int,
        fusion: str = "published",
        fuser: dict | None = None,
        init: str = "mamba",
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_arguments(locals())
        check_choice("fusion", fusion, FUSIONS)
        check_choice("init", init, ("mamba", "official"))
        self.fusion = fusion
        self.vision = vision
        self.text_model = text_model
        self.tokenizer = tokenizer
        self.txt_proj = nn.Sequential(
            nn.Linear(text_model.config.hidden_size, dim, bias=False), nn.ReLU(),
            nn.Linear(dim, dim), nn.ReLU(),
            nn.Linear(dim, dim),
        )  # fmt: skip
        if fusion in SCANNED:
            self.mamba_video, self.mamba_text = MambaMixer(dim), MambaMixer(dim)
            a_log = torch.arange(1, MambaMixer.STATES + 1, dtype=torch.float32).log().repeat(2 * dim, 1)
            self.A_log = nn.Parameter(a_log)
            if fusion == "disjoint":
                self.B_log = nn.Parameter(a_log.clone())
        else:
            self.fuser = MLPFuser(dim) if fusion == "mlp" else TransformerFuser(dim, **(fuser or {}))
        self.drop = nn.Dropout(drop)
        self.head0 = nn.Linear(dim, num_verbs)
        self.head1 = nn.Linear(dim, num_nouns)
        for head in (self.head0, self.head1):
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
        if init == "official":
            self.official_init()

    @torch.no_grad()
    def official_init(self) -> None:
        """Initialise as the official code's last two passes.

        They make every parameter of two or more dimensions Xavier-uniform, then every linear layer truncated normal
        (0.02) with bias 0 and every LayerNorm 1 and 0. So all of A starts near -1, the step sizes near softplus(0), and
        the embeddings of words are random, whatever they were.
        """
        own = [module for name, module in self.named_children() if name != "vision"]
        parameters = [p for module in own for p in module.parameters()] + list(self.parameters(recurse=False))
        for parameter in parameters:
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        for module in (part for child in own for part in child.modules()):
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def encode_vision(self, video: Tensor) -> Tensor:
        """Normalised clips (B, 3, T, H, W) -> tokens (B, N, D), class token first; features are those themselves."""
        return video if self.vision is None else self.vision.forward_tokens(video)

    def embed_text(self, ids: Tensor) -> Tensor:
        """Ids (M, L) -> what is projected.

        That is embeddings (M, L, W), or for "mlp" and "transformer" the pooled output (M, W) of the whole RoBERTa.
        """
        if self.fusion in SCANNED:
            return self.text_model.embeddings(input_ids=ids)
        return self.text_model(input_ids=ids).pooler_output

    def read_text(self, embedded: Tensor) -> Tensor:
        """What `embed_text` gives -> vectors (M, D): the mean over all positions of a question, or the projection."""
        projected = self.txt_proj(embedded)
        if self.fusion not in SCANNED:
            return projected
        return self.mamba_text(projected, self.B_log if self.fusion == "disjoint" else self.A_log).mean(dim=1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Questions -> vectors (M, D). Equal texts are read once."""
        ids, rows = self.tokenizer.once(texts)
        return self.read_text(self.embed_text(ids))[rows]

    def read_vision(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) -> vectors (B, D): the mean of what `mamba_video` makes of all, or the first one."""
        return self.mamba_video(tokens, self.A_log).mean(dim=1) if self.fusion in SCANNED else tokens[:, 0]

    def fuse(self, vision: Tensor, text: Tensor) -> Tensor:
        """Vectors of clips and of questions, (B, D) both -> joint vectors (B, D)."""
        return vision + text if self.fusion in SCANNED else self.fuser(vision, text)

    def forward(self, video: Tensor, verb_questions: Sequence[str], noun_questions: Sequence[str]) -> dict[str, Tensor]:
        """Logits: verb (B, num_verbs), noun (B, num_nouns).

        Args:
            video: as in `encode_vision`.
            verb_questions: B texts for the verb's head.
            noun_questions: B texts for the noun's head.
        """
        vision = self.read_vision(self.encode_vision(video))
        text = self.encode_text([*verb_questions, *noun_questions])
        verb, noun = (self.drop(self.fuse(vision, part)) for part in text.split(len(vision)))
        return {"verb": self.head0(verb), "noun": self.head1(noun)}


class MambaMixer(nn.Module):
    """Mamba's mixer (arXiv 2312.00752) from the first token to the last, for a matrix that belongs to somebody else.

    Args:
        dim: width D.
    """

    STATES = 16
    TAPS = 4

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = 2 * dim
        dt_rank = math.ceil(dim / 16)
        self.in_proj = Linear(dim, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, self.TAPS, groups=inner)
        self.x_proj = Linear(inner, dt_rank + 2 * self.STATES, bias=False)
        self.dt_proj = Linear(dt_rank, inner)
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = Linear(inner, dim, bias=False)
        for layer in (self.in_proj, self.x_proj, self.out_proj):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
        reset_step_sizes(self.dt_proj)

    def forward(self, tokens: Tensor, a_log: Tensor) -> Tensor:
        """(B, length, D), log of the decay rates (E, S) -> (B, length, D)."""
        x, gate = self.in_proj(tokens).chunk(2, dim=-1)
        return self.out_proj(mix(x, gate, mixer_weights(self, a_log)))


class MLPFuser(nn.Module):
    """Two layers on both vectors, side by side: (B, D), (B, D) -> (B, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    @override
    def forward(self, vision: Tensor, text: Tensor) -> Tensor:
        return self.mlp(torch.cat([vision, text], dim=-1))


class TransformerFuser(nn.Module):
    """A transformer over four tokens, [its own for video, vision, its own for text, text]; the first is the result.

    Args:
        dim: width D.
        depth: number of blocks.
        heads: attention heads.
        positions: learned positions of each modality, of which two are used.
    """

    def __init__(self, dim: int, depth: int = 6, heads: int = 4, positions: int = 5000) -> None:
        super().__init__()
        check_arguments(locals())
        if dim % heads:
            raise ModelError(f"fuser has {heads} heads for a width of {dim}; the width has to be a multiple of them.")
        for modality in ("video", "text"):
            for name, length in (("cls_token", 1), ("pos_embed", positions), ("type", 1)):
                weight = nn.Parameter(torch.zeros(1, length, dim))
                nn.init.trunc_normal_(weight, std=0.02)
                self.register_parameter(f"{name}_{modality}", weight)
        self.pos_drop = nn.Dropout(0.1)
        self.blocks = nn.ModuleList(_FuserBlock(dim, heads, 0.1 * i / max(depth - 1, 1)) for i in range(depth))

    def forward(self, vision: Tensor, text: Tensor) -> Tensor:
        """(B, D), (B, D) -> (B, D)."""
        parts = []
        for name, vector in (("video", vision), ("text", text)):
            first = getattr(self, f"cls_token_{name}").expand(len(vector), -1, -1)
            tokens = torch.cat([first.to(vector.dtype), vector.unsqueeze(1)], dim=1)
            places = getattr(self, f"pos_embed_{name}")[:, : tokens.shape[1]] + getattr(self, f"type_{name}")
            parts.append(tokens + places)
        tokens = self.pos_drop(torch.cat(parts, dim=1))
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, 0]


class _FuserBlock(nn.Module):
    """Attention and MLP, both after a norm; dropout of 0.1 throughout."""

    def __init__(self, dim: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = _FuserAttention(dim, heads)
        layers = (nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim), nn.Dropout(0.1))
        self.mlp = nn.ModuleDict({"mlp": nn.Sequential(*layers)})  # named as in the official files
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp["mlp"](self.norm2(tokens)))


class _FuserAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))
