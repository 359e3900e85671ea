"""The published MambaVL: against tensors of the official code, and what its two initialisations leave."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.errors import ModelError
from lightning_modules.nets.mambavl import FUSIONS, GENERIC_QUESTIONS, MambaVL, TransformerFuser
from lightning_modules.nets.roberta import RobertaWords, build_roberta
from lightning_modules.ops import use_backend

HEADS = {"verb": "head0", "noun": "head1"}
TEXT = {"vocab_size": 261, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
        "intermediate_size": 16, "max_position_embeddings": 48}  # fmt: skip


def official(golden: Callable, fusion: str = "published") -> tuple[dict[str, Tensor], MambaVL]:
    """The golden tensors, and the network with their weights."""
    tensors, sidecar = golden("mambavl_fusion")
    c = sidecar["constructor"]
    scanned = fusion in ("published", "disjoint")
    text = {"vocab_size": c["vocab"], "hidden_size": c["text_width"], "max_position_embeddings": c["text_positions"],
            "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 8}  # fmt: skip
    fuser = {"depth": c["fuser_depth"], "heads": c["fuser_heads"], "positions": c["fuser_positions"]}
    net = MambaVL(
        None, c["embed_dim"], build_roberta(text, not scanned), nn.Identity(), c["verbs"], c["nouns"], fusion, fuser
    )
    weights = {name[11:]: tensor for name, tensor in tensors.items() if name.startswith("state_dict.")}
    if fusion == "disjoint":
        weights["B_log"] = weights["A_log"].clone()
    if not scanned:  # they read a vector that stands for the pooled output
        own = f"{fusion}.state_dict."
        weights = {name: tensor for name, tensor in weights.items() if name.startswith(("txt_proj.", "head"))}
        weights |= {name.removeprefix(own): tensor for name, tensor in tensors.items() if name.startswith(own)}
        weights |= {name: tensor for name, tensor in net.state_dict().items() if name.startswith("text_model.")}
    net.load_state_dict(weights)
    net.text_model.requires_grad_(False)
    return tensors, net.eval()


def losses(logits: dict[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {q: F.cross_entropy(logits[q], tensors[f"input.{q}"], label_smoothing=0.1) for q in HEADS}


def close(ours: Tensor, theirs: Tensor, share: float = 1e-4) -> None:
    """Gradients differ in size by orders of magnitude: the bound is relative to the largest entry of each."""
    assert (ours - theirs).abs().max() <= share * theirs.abs().max()


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_outputs_losses_and_gradients_are_the_official_codes(golden, backend):
    tensors, net = official(golden)
    seen = tensors["input.vision_tokens"].requires_grad_()
    with use_backend(backend):
        fused = net.mamba_video(seen, net.A_log)
        torch.testing.assert_close(fused, tensors["output.vision.fused"], rtol=1e-4, atol=1e-5)
        logits, embedded = {}, {}
        for q, head in HEADS.items():
            embedded[q] = net.embed_text(tensors[f"input.{q}_question.ids"]).requires_grad_()
            torch.testing.assert_close(embedded[q], tensors[f"output.{q}_question.embeddings"])
            joint = net.fuse(net.read_vision(seen), net.read_text(embedded[q]))
            torch.testing.assert_close(joint, tensors[f"output.joint.{q}"], rtol=1e-4, atol=1e-5)
            logits[q] = getattr(net, head)(joint)
            torch.testing.assert_close(logits[q], tensors[f"output.logits.{q}"], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(logits[q].softmax(1), tensors[f"output.probabilities.{q}"], rtol=1e-4, atol=1e-5)
        found = losses(logits, tensors)
        for q in HEADS:
            torch.testing.assert_close(found[q], tensors[f"loss.label_smoothing.{q}"])
            soft = F.cross_entropy(logits[q], tensors[f"mixed.target.{q}"])
            torch.testing.assert_close(soft, tensors[f"loss.soft.{q}"])
        sum(found.values()).backward()
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert {f"grad.{name}" for name in trained} == {n for n in tensors if n.startswith("grad.") and n[5:] in trained}
    for name, parameter in trained.items():
        close(parameter.grad, tensors[f"grad.{name}"])
    close(seen.grad, tensors["grad.input.vision_tokens"])
    for q in HEADS:
        close(embedded[q].grad, tensors[f"grad.output.{q}_question.embeddings"])


def test_the_matrix_gets_the_gradient_of_three_scans(golden):
    """With equal matrices "disjoint" computes the same; the second one gets the share of the questions."""
    tensors, net = official(golden, "disjoint")
    vision = net.read_vision(tensors["input.vision_tokens"])
    logits = {}
    for q, head in HEADS.items():
        text = net.read_text(net.embed_text(tensors[f"input.{q}_question.ids"]))
        logits[q] = getattr(net, head)(net.fuse(vision, text))
        torch.testing.assert_close(logits[q], tensors[f"output.logits.{q}"], rtol=1e-4, atol=1e-5)
    sum(losses(logits, tensors).values()).backward()
    close(net.A_log.grad, tensors["grad_part.A_log.vision"])
    questions = tensors["grad_part.A_log.verb_question"] + tensors["grad_part.A_log.noun_question"]
    close(net.B_log.grad, questions)


@pytest.mark.parametrize("fusion", ["mlp", "transformer"])
def test_the_alternatives_are_the_official_codes(golden, fusion):
    tensors, net = official(golden, fusion)
    vision = net.read_vision(tensors["input.vision_tokens"])
    logits = {}
    for q, head in HEADS.items():
        joint = net.fuse(vision, net.read_text(tensors[f"input.{q}_question.pooled"]))
        torch.testing.assert_close(joint, tensors[f"{fusion}.output.joint.{q}"], rtol=1e-4, atol=1e-5)
        logits[q] = getattr(net, head)(joint)
        torch.testing.assert_close(logits[q], tensors[f"{fusion}.output.logits.{q}"], rtol=1e-4, atol=1e-5)
    sum(losses(logits, tensors).values()).backward()
    gradients = [name for name in tensors if name.startswith(f"{fusion}.grad.")]
    assert gradients
    for name in gradients:
        close(net.get_parameter(name.removeprefix(f"{fusion}.grad.")).grad, tensors[name])


def build(fusion: str = "published", **options) -> MambaVL:
    torch.manual_seed(0)
    text = build_roberta(TEXT, fusion in ("mlp", "transformer"))
    return MambaVL(None, 24, text, RobertaWords(261, 40), 5, 7, fusion, {"depth": 2}, **options)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_question_is_a_bias_on_the_logits(fusion):
    """Of the scanned fusions: the same for every video, so that a generic question adds a constant vector."""
    net = build(fusion).eval()
    with torch.no_grad():
        for parameter in net.parameters():  # fresh weights hardly hear the question
            parameter.add_(0.3 * torch.randn_like(parameter))
    video = torch.randn(3, 6, 24)
    generic = [[GENERIC_QUESTIONS[q]] * 3 for q in HEADS]
    asked = [["what is the <mask> doing with the knife ?"] * 3 for _ in HEADS]
    with torch.no_grad():
        one, other = net(video, *generic), net(video, *asked)
        vectors = net.encode_text(generic[0])
    assert torch.equal(vectors, vectors[:1].expand(3, -1))
    assert one["verb"].shape == (3, 5) and one["noun"].shape == (3, 7)
    for q in HEADS:
        difference = one[q] - other[q]
        assert difference.abs().max() > 1e-3
        constant = torch.allclose(difference, difference[:1].expand(3, -1), atol=1e-4 * difference.abs().max())
        assert constant == (fusion in ("published", "disjoint"))


def test_padding_counts_in_the_mean():
    net = build().eval()
    ids = net.tokenizer(["what ?"])
    cut = ids[:, : int((ids != 1).sum())]
    assert ids.shape == (1, 40) and cut.shape[1] < 12
    with torch.no_grad():
        long, short = (net.read_text(net.embed_text(x)) for x in (ids, cut))
    assert (long - short).abs().max() > 1e-3


def test_the_official_passes_overwrite_what_was_there():
    with torch.no_grad():
        text = build_roberta({**TEXT, "hidden_size": 768, "vocab_size": 50265, "num_attention_heads": 12})
        net = MambaVL(None, 96, text, nn.Identity(), 5, 7, init="official")
    words = net.text_model.embeddings.word_embeddings.weight
    assert words.abs().max() <= 0.01085 and words[1].abs().max() > 0
    assert 0.03 < net.A_log.std() < 0.1 and net.A_log.abs().max() < 0.25  # Xavier over 192 x 16
    for mixer in (net.mamba_video, net.mamba_text):
        assert mixer.dt_proj.bias.abs().max() == 0 and mixer.D.eq(1).all()
        assert mixer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert mixer.conv1d.bias.abs().max() > 0.3
    assert net.txt_proj[2].bias.abs().max() == 0
    sane = build()
    torch.testing.assert_close(sane.A_log[0].exp(), torch.arange(1.0, 17.0))
    steps = F.softplus(sane.mamba_text.dt_proj.bias)
    assert steps.min() > 9e-4 and steps.max() < 0.11


def test_official_sizes():
    """Parameters behind the tower at width 768 and 1024."""
    for dim, count in ((768, 9_593_485), (1024, 16_592_269)):
        with torch.device("meta"):
            net = MambaVL(None, dim, build_roberta({}), nn.Identity(), 97, 300)
        trained = [p.numel() for name, p in net.named_parameters() if not name.startswith("text_model.")]
        assert sum(trained) == count
        names = [name.removeprefix("text_model.") for name in net.state_dict() if name.startswith("text_model.")]
        assert len(names) == 5 and all(name.startswith("embeddings.") for name in names)


def test_mistakes():
    with pytest.raises(ModelError, match="fusion is 'joint'; choose one of published"):
        build("joint")
    with pytest.raises(ModelError, match="init is 'guess'"):
        build(init="guess")
    with pytest.raises(ModelError, match="fuser has 5 heads for a width of 24"):
        TransformerFuser(24, heads=5)
