"""This zoo's own variant of MambaVL: question and video in one scan, from both ends, through several blocks.

It is not the published model (`lightning_modules.nets.mambavl`), in which the modalities share a parameter and nothing
else: here states pass from one to the other. `FusionBlock` and `JointMambaVL` say how.

Legend of shapes: B clips, N vision tokens, L language tokens, D width, E = expand * D inner channels, S states.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel

from lightning_modules.checks import check_arguments, check_choice
from lightning_modules.nets.bimamba import BiMamba
from lightning_modules.nets.clip_tower import CLIP_SIZES, ClipTokenizer, text_tower
from lightning_modules.nets.towers import OnTower
from lightning_modules.nets.videomamba import VideoMamba
from lightning_modules.ops import bidirectional_conv1d, bidirectional_scan, linear

__all__ = [
    "FUSIONS",
    "TOKENS",
    "CrossAttentionBlock",
    "FusionBlock",
    "JointMambaVL",
    "Stream",
    "build_text_tower",
    "pool_tokens",
    "text_sizes_of",
]

FUSIONS = ("joint", "separate", "concat", "cross_attention", "late")
TOKENS = ("all", "frames", "cls")

_NO_STEP = -1e4
"""Step size before softplus at which a token changes nothing: exp(0 A) = 1 and 0 B x = 0, exactly."""


class JointMambaVL(OnTower):
    """Vision tokens, language tokens, fusion blocks, one joint vector, heads for verb, noun, action and answer.

    ::

        clip (B, 3, T, H, W) -- vision -- Linear -- vision tokens (B, N, D)   --+
                                                                                +-- depth x block --+
        question             -- text   -- Linear -- language tokens (B, L, D) --+                   |
                                                                                                    |
             verb, noun, action, answer <- Linear <- joint (B, D) <- GELU, Linear <- [mean of vision tokens,
                                                                                      mean of language tokens]

    Our choices: the heads and the pooling; that the answers to all questions are one vocabulary, [verbs, nouns,
    actions], so that the question has to be read to know which kind of answer is wanted; and that there always is a
    question, a neutral one where nothing is asked.

    Args:
        vision: gives tokens of a clip; None takes features (B, N, `vision_dim`) in its place.
        vision_dim: width of its tokens.
        text: text tower of CLIP's form.
        tokenizer: makes ids of questions.
        dim: width D of the fusion.
        depth: number of fusion blocks.
        fusion: one of `FUSIONS`, see `FusionBlock` and `CrossAttentionBlock`.
        tokens: what is made of the vision tower's tokens, see `pool_tokens`.
        num_verbs: outputs of the verb head.
        num_nouns: outputs of the noun head.
        num_actions: outputs of the action head.
        drop: dropout before the heads.

    Raises:
        ValueError: an option that does not exist.
    """

    vision: VideoMamba | None

    def __init__(
        self,
        vision: VideoMamba | None,
        vision_dim: int,
        text: CLIPTextModel,
        tokenizer: ClipTokenizer,
        dim: int,
        depth: int,
        fusion: str,
        tokens: str,
        num_verbs: int,
        num_nouns: int,
        num_actions: int,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_arguments(locals())
        check_choice("fusion", fusion, FUSIONS)
        check_choice("tokens", tokens, TOKENS)
        self.tokens = tokens
        self.vision = vision
        self.text = text
        self.tokenizer = tokenizer
        self.vision_proj = nn.Linear(vision_dim, dim)
        self.text_proj = nn.Linear(text.config.hidden_size, dim)
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(dim) if fusion == "cross_attention" else FusionBlock(dim, fusion) for _ in range(depth)
        )
        with torch.no_grad():
            for name, weight in self.blocks.named_parameters():
                if name.endswith("out_proj.weight"):  # of what is added to the residual streams, as in VideoMamba
                    weight.div_(math.sqrt(depth))
        self.vision_norm = nn.RMSNorm(dim, eps=1e-5)
        self.text_norm = nn.RMSNorm(dim, eps=1e-5)
        self.joint = nn.Linear(2 * dim, dim)
        self.drop = nn.Dropout(drop)
        sizes = {"verb": num_verbs, "noun": num_nouns, "action": num_actions}
        sizes["answer"] = sum(sizes.values())
        self.heads = nn.ModuleDict({name: nn.Linear(dim, size) for name, size in sizes.items()})
        for head in self.heads.values():
            assert isinstance(head, nn.Linear)
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)

    def encode_vision(self, video: Tensor) -> Tensor:
        """Normalised clips (B, 3, T, H, W) -> tokens (B, N, D); without a vision tower features (B, N, vision_dim)."""
        if self.vision is None:
            # Features lie on a line in time and carry no position.
            places = _waves(video.shape[1], self.vision_proj.out_features, video.device)
            return self.vision_proj(video) + places.to(video.dtype)
        return self.vision_proj(pool_tokens(self.vision.forward_tokens(video), self.vision.grid_size**2, self.tokens))

    def encode_text(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts -> tokens (M, L, D), and bool (M, L), False behind the end of a text. Equal texts are read once."""
        ids, rows = self.tokenizer.once(texts)
        # The end token has the largest id and padding repeats it: the first one ends the text.
        mask = torch.arange(ids.shape[1], device=ids.device) <= ids.argmax(dim=1, keepdim=True)
        tokens = self.text_proj(self.text(input_ids=ids).last_hidden_state)
        return tokens[rows], mask[rows]

    def fuse(self, vision: Tensor, language: Tensor, mask: Tensor) -> Tensor:
        """Vision tokens (B, N, D), language tokens (B, L, D), bool (B, L) -> joint vectors (B, D)."""
        for block in self.blocks:
            vision, language = block(vision, language, mask)
        weight = mask.unsqueeze(-1)
        pooled = (self.text_norm(language) * weight).sum(dim=1) / weight.sum(dim=1)
        return F.gelu(self.joint(torch.cat([self.vision_norm(vision).mean(dim=1), pooled.to(vision.dtype)], dim=-1)))

    def forward(self, video: Tensor, questions: Sequence[str]) -> dict[str, Tensor]:
        """Logits: verb (B, num_verbs), noun (B, num_nouns), action (B, num_actions), answer (B, the sum of the three).

        Args:
            video: as in `encode_vision`.
            questions: B texts.
        """
        joint = self.drop(self.fuse(self.encode_vision(video), *self.encode_text(questions)))
        return {name: head(joint) for name, head in self.heads.items()}


def build_text_tower(sizes: dict) -> CLIPTextModel:
    """CLIP's text tower with random weights.

    Args:
        sizes: those that are not ViT-B/32's, see `lightning_modules.nets.clip_tower.text_tower`.

    Raises:
        ModelError: an unknown key or a value that does not fit.
    """
    return text_tower(CLIPTextModel, sizes)


def text_sizes_of(tower: CLIPTextModel) -> dict:
    """The sizes of a text tower, written out in full, as `build_text_tower` takes them."""
    return {name: getattr(tower.config, name) for name in CLIP_SIZES["text_config"]}


def pool_tokens(tokens: Tensor, patches: int, kind: str) -> Tensor:
    """Tokens of a VideoMamba (B, 1 + T' * patches, C), class token first -> fewer of them.

    Args:
        tokens: after the final norm.
        patches: of a frame (or tubelet).
        kind: "all" (as they are), "frames" (class token and the mean over each frame's patches: (B, 1 + T', C)), or
            "cls" (B, 1, C).
    """
    if kind == "all":
        return tokens
    first = tokens[:, :1]
    if kind == "cls":
        return first
    return torch.cat([first, tokens[:, 1:].unflatten(1, (-1, patches)).mean(dim=2)], dim=1)


def _waves(length: int, dim: int, device: torch.device) -> Tensor:
    """Sine and cosine of the place at wavelengths from 2 pi to 10,000 times that (arXiv 1706.03762): (length, dim)."""
    rates = torch.exp(torch.arange(0, dim, 2, device=device) * (-math.log(10_000) / dim))
    angles = torch.arange(length, device=device).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]


class Selection(NamedTuple):
    """What a stream hands to the scan, all (B, length, ...).

    Input, step size, B, C from the first token and, ending in ``_b``, from the last; and the gate.
    """

    x: Tensor
    delta: Tensor
    b: Tensor
    c: Tensor
    x_b: Tensor
    delta_b: Tensor
    b_b: Tensor
    c_b: Tensor
    gate: Tensor


class Stream(BiMamba):
    """What a modality has for itself: norm, projections, convolutions, step size, B, C, skip, gate; all but A."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        del self.A_log, self.A_b_log  # the block's
        self.norm = nn.RMSNorm(dim, eps=1e-5)

    def select(self, tokens: Tensor, mask: Tensor | None) -> Selection:
        """(B, length, D), bool (B, length) -> what is scanned; tokens that the mask leaves out change no state."""
        h = self.norm(tokens)
        h = h if mask is None else h * mask.unsqueeze(-1)
        x, gate = self.in_proj(h).chunk(2, dim=-1)
        x, x_b = bidirectional_conv1d(x, self.conv1d.weight, self.conv1d.bias, self.conv1d_b.weight, self.conv1d_b.bias)
        found: list[Tensor] = []
        for part, x_proj, dt_proj in ((x, self.x_proj, self.dt_proj), (x_b, self.x_proj_b, self.dt_proj_b)):
            dt, b, c = x_proj(part).split([self.dt_rank, self.state_size, self.state_size], dim=-1)
            # The bias here and not in the scan, which takes both streams at once.
            delta = linear(dt, dt_proj.weight) + dt_proj.bias
            delta = delta if mask is None else delta.masked_fill(~mask.unsqueeze(-1), _NO_STEP)
            found += [part, delta, b, c]
        return Selection(*found, gate)  # type: ignore[call-arg]  # four of each direction

    def finish(self, y: Tensor, own: Selection) -> Tensor:
        """Scanned (B, length, E) -> what is added to the tokens (B, length, D)."""
        return self.out_proj((y + self.D * own.x + self.D_b * own.x_b) * F.silu(own.gate))


class FusionBlock(nn.Module):
    """x + Mamba(norm(x)) for two streams of tokens that meet in the state of one bidirectional scan.

    "joint"::

        language --norm, in_proj, conv-- x, delta, B, C --+                             +-- gate, out_proj -> + language
                                                          +- [language, vision] -scan A-+
        vision   --norm, in_proj, conv-- x, delta, B, C --+                             +-- gate, out_proj -> + vision

    ``A_log`` and ``A_b_log`` (one for each direction) are single parameters: both streams' states decay by the same
    matrix and both send gradients into it. Everything else is each stream's own (`Stream`).

    **One scan goes through both**, the question first. The state that the question leaves is the one in which the
    video's first token is written, and in the other direction the state that the video leaves is the one in which the
    question is read. It costs nothing beside scanning each alone, and it is what a common A allows: states of both
    streams are in the same basis.

    The alternatives differ in one thing each:

    - "separate": each stream reads the same joint sequence with an A of its own: two scans. Equal to "joint" where the
      two matrices are equal.
    - "late": an A of its own, and each stream is scanned alone: the modalities meet in the joint vector only.
    - "concat": one stream: both kinds of tokens go through the same weights, as in a Mamba over a longer text.

    Args:
        dim: width D.
        fusion: one of these.
    """

    def __init__(self, dim: int, fusion: str = "joint") -> None:
        super().__init__()
        self.fusion = fusion
        self.vision = Stream(dim)
        if fusion != "concat":
            self.language = Stream(dim)
        for owner in ("vision_", "language_") if fusion in ("separate", "late") else ("",):
            for name in ("A_log", "A_b_log"):
                a_log = torch.arange(1, self.vision.state_size + 1, dtype=torch.float32).log()
                self.register_parameter(owner + name, nn.Parameter(a_log.repeat(len(self.vision.D), 1)))

    def forward(self, vision: Tensor, language: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D), (B, L, D), bool (B, L) -> both, of the same shapes.

        Tokens that the mask leaves out influence nothing.
        """
        length = language.shape[1]
        if self.fusion == "concat":
            tokens = torch.cat([language, vision], dim=1)
            everything = torch.cat([mask, mask.new_ones(vision.shape[:2])], dim=1)
            own = self.vision.select(tokens, everything)
            tokens = tokens + self.vision.finish(self._scan(own), own)
            return tokens[:, length:], tokens[:, :length]
        seen, read = self.vision.select(vision, None), self.language.select(language, mask)
        if self.fusion == "late":
            from_vision, from_language = self._scan(seen, "vision_"), self._scan(read, "language_")
        else:
            both = Selection(*(torch.cat(pair, dim=1) for pair in zip(read, seen, strict=True)))
            shared = self.fusion == "joint"
            from_both = self._scan(both, "" if shared else "vision_")
            from_vision = from_both[:, length:]
            from_language = (from_both if shared else self._scan(both, "language_"))[:, :length]
        return vision + self.vision.finish(from_vision, seen), language + self.language.finish(from_language, read)

    def _scan(self, s: Selection, owner: str = "") -> Tensor:
        """The scan in both directions, without skip and gate (B, length, E)."""
        a, a_b = (-torch.exp(getattr(self, f"{owner}{name}").float()) for name in ("A_log", "A_b_log"))
        return bidirectional_scan(s.x, s.delta, a, s.b, s.c, None, s.x_b, s.delta_b, a_b, s.b_b, s.c_b, None)


class CrossAttentionBlock(nn.Module):
    """The usual way, to compare with: each stream attends to itself, then to the other (LXMERT, arXiv 1908.07490).

    Args:
        dim: width D; heads of 64 channels where it allows.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {name: _Attention(dim) for name in ("vision", "language", "language_to_vision", "vision_to_language")}
        )

    def forward(self, vision: Tensor, language: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D), (B, L, D), bool (B, L) -> both, of the same shapes."""
        vision = vision + self.layers["vision"](vision, vision)
        language = language + self.layers["language"](language, language, mask)
        return (
            vision + self.layers["language_to_vision"](vision, language, mask),
            language + self.layers["vision_to_language"](language, vision),
        )


class _Attention(nn.Module):
    """Multi-head attention of tokens to others, both normed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_heads = max(1, dim // 64)
        self.norm = nn.LayerNorm(dim)
        self.context_norm = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, n, D), (B, m, D), bool (B, m) -> (B, n, D)."""
        context = self.context_norm(context)
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.q(self.norm(tokens)), *self.kv(context).chunk(2, dim=-1))
        )
        allowed = None if mask is None else mask[:, None, None]
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, allowed).transpose(1, 2).flatten(2))
