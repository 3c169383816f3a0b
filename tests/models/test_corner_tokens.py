"""Corner tokens: LoTLIP's attention mask element by element, and towers that have them."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from longclip_lab.errors import LabError
from longclip_lab.models import (
    Clip,
    add_corner_tokens,
    causal_corner_mask,
    corner_attention_mask,
    corners_of,
    encode_corner_tokens,
    encode_text_corners,
    encode_texts,
    load,
    save,
    stretch,
)
from longclip_lab.models.build import assemble, build_model, preprocess_card
from longclip_lab.models.towers import can_pack
from longclip_lab.text import get_tokenizer

# --- The mask ---

CLS, CORNER, TEXT = "cls", "corner", "text"


def formula(q: int, k: int, roles: list[str]) -> bool:
    """A(q, k) of LoTLIP's section 4.3, as it is printed."""
    pooled = {CLS, CORNER}
    blocked = roles[k] == CORNER or (roles[q] in pooled and roles[k] in pooled)
    return not (blocked and q != k)


@settings(deadline=None)
@given(
    num_corner=st.integers(0, 4),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_every_element_follows_the_formula(num_corner, lengths):
    size = 1 + num_corner + max(lengths)
    tokens_BT = torch.zeros(len(lengths), size, dtype=torch.long)
    for row_T, length in zip(tokens_BT, lengths, strict=True):
        row_T[: 1 + num_corner + length] = 1
    roles = [CLS] + [CORNER] * num_corner + [TEXT] * max(lengths)
    allowed_BTT = corner_attention_mask(tokens_BT, num_corner)
    assert allowed_BTT.dtype == torch.bool
    for b in range(len(lengths)):
        for q in range(size):
            for k in range(size):
                expected = formula(q, k, roles) and bool(tokens_BT[b, k])
                assert bool(allowed_BTT[b, q, k]) is expected, (b, q, k)


def test_matches_the_released_code(golden):
    """In the golden mask T counts [CLS], the corners and the text, as here."""
    expected = load_file(golden / "lotlip-text-tiny-io.safetensors")
    allowed_BTT = corner_attention_mask(expected["input_ids"] != 0, num_corner=2)
    assert torch.equal(allowed_BTT.long(), expected["attention_mask"])


@settings(deadline=None)
@given(
    num_corner=st.integers(0, 3),
    ends=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    mask=st.booleans(),
)
def test_causal_towers_combine_the_formula_with_the_order_of_reading(num_corner, ends, mask):
    """Read as text, corners, end; the end token plays the part of [CLS]."""
    allowed = causal_corner_mask(torch.tensor(ends), num_corner, mask)
    length = max(ends) + 1
    for b, end in enumerate(ends):
        place = {i: i for i in range(end)} | {end: end + num_corner}
        role = dict.fromkeys(range(end), TEXT) | {end: CLS}
        for c in range(num_corner):
            place[length + c], role[length + c] = end + c, CORNER
        for q in place:
            for k in place:
                rule = not mask or formula(0, 1 if q != k else 0, [role[q], role[k]])
                assert bool(allowed[b, q, k]) is (rule and place[k] <= place[q]), (b, q, k)
        padding = list(range(end + 1, length))
        read = allowed[b, [*range(end + 1), *range(length, length + num_corner)]]
        assert not read[:, padding].any()


def test_no_row_is_empty():
    assert corner_attention_mask(torch.tensor([[1, 1, 1, 0, 0]]), 2).any(-1).all()
    for mask in (True, False):
        assert causal_corner_mask(torch.tensor([1, 4]), 3, mask).any(-1).all()


@pytest.mark.parametrize(
    ("shape", "num_corner", "message"),
    [
        ((2, 5), -1, "must be a whole number from 0 .* came -1"),
        ((2, 5), 1.5, "must be a whole number from 0 .* came 1.5"),
        ((2, 5), 5, "no room for"),
        ((2, 5), 9, r"at least 10 are needed"),
        ((5,), 1, r"Expected an attention mask \[B, T\]"),
    ],
)
def test_bad_input(shape, num_corner, message):
    with pytest.raises(LabError, match=message):
        corner_attention_mask(torch.ones(shape), num_corner)


def test_bad_number_of_causal_corners():
    with pytest.raises(LabError, match="whole number from 0"):
        causal_corner_mask(torch.tensor([2]), -2)


# --- Towers with corner and register tokens ---

VISION = {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8}
WORDS = [5, 17, 1, 9]
SAME = 6e-7  # relative, in float32


def bert_config(kind: str = "bert", **changed) -> dict:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    config = {
        "model_type": kind,
        "vocab_size": get_tokenizer("world").vocab_size,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        **sizes,
        **changed,
    }
    if kind == "electra":
        config["embedding_size"] = 16
    if kind == "distilbert":
        del config["intermediate_size"]
    return config


def bert_clip(kind: str = "bert", pooler: str = "cls_pooler", seed: int = 0) -> Clip:
    torch.manual_seed(seed)
    text_cfg = {
        "hf_model_name": kind,
        "hf_config": bert_config(kind),
        "hf_proj_type": "linear",
        "hf_pooler_type": pooler,
    }
    model_cfg = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text_cfg}
    model = build_model(model_cfg)
    with torch.no_grad():  # fresh weights make nearly the same feature of every text
        for weight in model.text.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return assemble(model, model_cfg, get_tokenizer("world"), preprocess_card(model), kind)


@pytest.fixture(scope="module")
def bert() -> Clip:
    return bert_clip()


@pytest.fixture(params=["bert", "clip"])
def clip(request, bert, tiny) -> Clip:
    return {"bert": bert, "clip": tiny}[request.param]


@pytest.fixture
def ids_BT(clip, world_texts):
    """Token ids with some padding, but not so much that corners take its place."""
    return clip.tokenize(world_texts(WORDS)).ids_BT[:, :24]


def error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return ((ours - expected).abs().max() / expected.abs().max()).item()


def golden_tower(golden, **corner) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    weights = load_file(golden / "lotlip-text-tiny.safetensors")
    words = "transformer.embeddings.word_embeddings.weight"
    weights |= {words: weights[words][:400], "corner_embedding": weights[words][400:]}
    config = bert_config(vocab_size=400, hidden_size=64, num_attention_heads=4)
    config |= {"intermediate_size": 256, "max_position_embeddings": 64}
    text_cfg = {
        "hf_model_name": "bert",
        "hf_config": config,
        "hf_proj_type": "linear",
        "hf_pooler_type": "cls_pooler",
    }
    model = build_model(
        {
            "embed_dim": 48,
            "vision_cfg": VISION,
            "text_cfg": text_cfg,
            "corner_tokens": {"num_corner": 2, **corner},
        }
    ).eval()
    model.text.load_state_dict(weights)
    return model, load_file(golden / "lotlip-text-tiny-io.safetensors")


@torch.no_grad()
def test_features_match_the_released_code(golden):
    model, expected = golden_tower(golden)
    features_BKD = encode_corner_tokens(model, expected["input_ids"])
    assert features_BKD.shape == (6, 3, 48)
    assert error(features_BKD.flatten(0, 1), expected["projected"]) < 1e-5
    without_corner_ids = torch.cat(
        [expected["input_ids"][:, :1], expected["input_ids"][:, 3:]], dim=1
    )
    assert torch.equal(encode_corner_tokens(model, without_corner_ids), features_BKD)


@torch.no_grad()
def test_the_golden_numbers_depend_on_the_mask_and_the_positions(golden):
    for corner in ({"mask": False}, {"positions": "kept"}):
        model, expected = golden_tower(golden, **corner)
        features_BKD = encode_corner_tokens(model, expected["input_ids"])
        assert error(features_BKD.flatten(0, 1), expected["projected"]) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("positions", ["shifted", "kept"])
def test_with_the_mask_nothing_is_seen_of_the_corners(clip, ids_BT, positions):
    """LoTLIP's [CLS] (here: and CLIP's end token) is the same with corners and without."""
    masked = add_corner_tokens(clip, 3, positions=positions)
    with_corners_BD = encode_text_corners(masked, ids_BT)[:, 0]
    assert error(masked.encode_text(ids_BT), with_corners_BD) < 3 * SAME
    masked.model.text.corner_embedding.mul_(100)
    assert error(encode_text_corners(masked, ids_BT)[:, 0], with_corners_BD) < 3 * SAME
    unmasked = add_corner_tokens(clip, 3, mask=False, positions=positions)
    before_BD = unmasked.encode_text(ids_BT)
    unmasked.model.text.corner_embedding.mul_(100)
    assert error(unmasked.encode_text(ids_BT), before_BD) > 1e-3


@torch.no_grad()
def test_kept_positions_change_nothing_for_the_text(clip, ids_BT):
    kept = add_corner_tokens(clip, 2, positions="kept")
    assert kept.context_length == clip.context_length
    assert error(kept.encode_text(ids_BT), clip.encode_text(ids_BT)) < SAME
    shifted = add_corner_tokens(clip, 2)
    assert shifted.context_length == clip.context_length - 2
    assert error(shifted.encode_text(ids_BT), clip.encode_text(ids_BT)) > 1e-3


@torch.no_grad()
def test_masked_corners_do_not_see_each_other(clip, ids_BT):
    """Each is what it would be if it were the only one with its position."""
    three = add_corner_tokens(clip, 3, positions="kept", seed=4)
    one = add_corner_tokens(clip, 1, positions="kept", seed=4)
    expected_BD = encode_text_corners(one, ids_BT)[:, 1]
    assert error(encode_text_corners(three, ids_BT)[:, 1], expected_BD) < 3 * SAME


@torch.no_grad()
def test_features_do_not_depend_on_padding(clip, world_texts):
    for mask in (True, False):
        corners = add_corner_tokens(clip, 2, mask=mask)
        texts = world_texts(WORDS)
        together = encode_text_corners(corners, corners.tokenize(texts).ids_BT)
        assert together.shape == (4, 3, clip.embed_dim)
        for row, text in zip(together, texts, strict=True):
            alone = encode_text_corners(corners, corners.tokenize(text).ids_BT[:, :24])[0]
            assert error(alone, row) < 1e-5
        expected_BD = corners.encode_text(corners.tokenize(texts).ids_BT)
        assert error(encode_texts(corners, texts).features_ND, expected_BD) < 1e-5
        assert error(corners.model.encode_text(corners.tokenize(texts).ids_BT), expected_BD) < 1e-5


@torch.no_grad()
def test_old_weights_stay_and_tokens_are_drawn_one_by_one(clip):
    two, four = (add_corner_tokens(clip, m, seed=5) for m in (2, 4))
    old = {name.removeprefix("text."): w for name, w in clip.model.state_dict().items()}
    new = {name.removeprefix("text."): w for name, w in two.model.state_dict().items()}
    drawn = new.pop("corner_embedding")
    assert new.keys() == old.keys()
    assert all(torch.equal(new[name], old[name]) for name in old)
    assert two.vocab_size == clip.vocab_size
    assert torch.equal(four.model.text.corner_embedding[:2], drawn)
    assert not torch.equal(drawn[0], drawn[1])
    other = add_corner_tokens(clip, 2, seed=6).model.text.corner_embedding
    assert not torch.equal(other, drawn)
    assert not hasattr(getattr(clip.model, "text", clip.model), "corner")
    assert corners_of(clip) is None
    assert (corners_of(two).num_corner, corners_of(two).mask) == (2, True)


def test_the_callers_random_state_is_left_alone(clip):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    add_corner_tokens(clip, 2)
    assert torch.equal(torch.rand(1), expected)


def test_corners_are_trained_only_through_their_own_features(clip, ids_BT):
    corners = add_corner_tokens(clip, 2)
    corners.encode_text(ids_BT).square().sum().backward()
    assert corners.model.text.corner_embedding.grad is None
    encode_text_corners(corners, ids_BT)[:, 1].square().sum().backward()
    gradient = corners.model.text.corner_embedding.grad
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0
    register = add_corner_tokens(clip, 2, kind="register")
    register.encode_text(ids_BT).square().sum().backward()
    assert (register.model.text.corner_embedding.grad.abs().amax(dim=1) > 0).all()


def test_saved_and_loaded(clip, ids_BT, tmp_path):
    for arguments in ({}, {"kind": "register"}, {"positions": "kept", "mask": False}):
        corners = add_corner_tokens(clip, 2, **arguments)
        back = load(save(corners, tmp_path / "model"))
        assert back.card == corners.card
        assert corners_of(back) == corners_of(corners)
        with torch.no_grad():
            expected = encode_text_corners(corners, ids_BT)
            assert torch.equal(encode_text_corners(back, ids_BT), expected)


@torch.no_grad()
def test_no_corners_at_all(clip, ids_BT):
    plain = add_corner_tokens(clip, 0)
    assert plain.name == clip.name
    features_BKD = encode_text_corners(plain, ids_BT)
    assert torch.equal(features_BKD[:, 0], clip.encode_text(ids_BT))
    assert features_BKD.shape[1] == 1


@torch.no_grad()
def test_blocks_are_called_as_modules(clip, ids_BT):
    """What hooks and relevance methods rely on; the first T states are the tokens' own."""
    corners = add_corner_tokens(clip, 2, mask=False)
    transformer = corners.model.text.transformer
    block = transformer.encoder.layer[0] if clip.name == "bert" else transformer.resblocks[0]
    seen = []
    handle = block.register_forward_hook(lambda _m, _i, output: seen.append(output))
    encode_text_corners(corners, ids_BT)
    corners.encode_text(ids_BT)
    handle.remove()
    longest = max(WORDS) + 2
    assert [states.shape[1] for states in seen] == [longest + 2] * 2


@torch.no_grad()
@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "electra", "distilbert"])
def test_other_berts(kind, world_texts):
    """Kept positions give the plain tower's feature, and corners see the text."""
    clip = bert_clip(kind)
    ids_BT = clip.tokenize(world_texts(WORDS)).ids_BT
    corners = add_corner_tokens(clip, 2, positions="kept")
    expected_BD = clip.model.encode_text(ids_BT)
    assert error(corners.encode_text(ids_BT), expected_BD) < SAME
    features_BKD = encode_text_corners(corners, ids_BT)
    assert error(features_BKD[:, 0], expected_BD) < 3 * SAME
    assert features_BKD[:, 1].std(dim=0).max() > 1e-3
    shifted = add_corner_tokens(clip, 2)
    longest = shifted.tokenize(world_texts([60]))
    assert longest.ids_BT.shape[1] == shifted.context_length
    assert encode_text_corners(shifted, longest.ids_BT).isfinite().all()


@torch.no_grad()
def test_a_tower_from_a_folder_keeps_its_weights(tmp_path, world_texts):
    transformers.BertModel(transformers.BertConfig(**bert_config())).save_pretrained(tmp_path)
    text_cfg = {
        "hf_model_name": str(tmp_path),
        "hf_proj_type": "linear",
        "hf_pooler_type": "cls_pooler",
    }
    model_cfg = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text_cfg}
    model = build_model(model_cfg)
    clip = assemble(model, model_cfg, get_tokenizer("world"), preprocess_card(model), "folder")
    corners = add_corner_tokens(clip, 2, positions="kept")
    ids_BT = clip.tokenize(world_texts(WORDS)).ids_BT
    assert error(corners.encode_text(ids_BT), clip.encode_text(ids_BT)) < SAME


@torch.no_grad()
def test_stretched_with_corners(tiny, world_texts):
    long = stretch(add_corner_tokens(tiny, 2))
    assert long.context_length == 248 - 2
    tokens = long.tokenize(world_texts([300]))
    assert encode_text_corners(long, tokens.ids_BT).shape == (1, 3, 128)
    other_way = add_corner_tokens(stretch(tiny), 2)
    ids_BT = long.tokenize(world_texts([5, 100])).ids_BT
    assert torch.equal(encode_text_corners(other_way, ids_BT), encode_text_corners(long, ids_BT))


def test_only_exact_short_cuts_are_taken(tiny):
    for arguments, packs in [
        ({}, False),
        ({"positions": "kept"}, True),
        ({"positions": "kept", "mask": False}, False),
        ({"kind": "register"}, False),
    ]:
        assert can_pack(add_corner_tokens(tiny, 2, **arguments).model) is packs


@torch.no_grad()
def test_under_autocast(clip, ids_BT):
    corners = add_corner_tokens(clip, 2)
    expected = encode_text_corners(corners, ids_BT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = encode_text_corners(corners, ids_BT)
    assert error(ours.float(), expected) < 0.1


def test_gradient_checkpointing(clip, ids_BT):
    corners = add_corner_tokens(clip, 2)
    corners.model.train()
    expected = encode_text_corners(corners, ids_BT).detach() if clip.name != "bert" else None
    corners.model.text.set_grad_checkpointing()
    features = encode_text_corners(corners, ids_BT)
    features.square().sum().backward()
    assert corners.model.text.corner_embedding.grad.isfinite().all()
    if expected is not None:  # BERT's dropout differs from run to run
        torch.testing.assert_close(features.detach(), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_corner": -1}, "must be a whole number from 0 .* came -1"),
        ({"num_corner": 2.5}, "whole number from 0"),
        ({"kind": "registre"}, "Did you mean register"),
        ({"positions": "kpt"}, "Did you mean kept"),
        ({"kind": "register", "mask": True}, "carry no loss"),
        ({"num_corner": 76}, "76 tokens do not fit into a context of"),
    ],
)
def test_bad_arguments(clip, arguments, message):
    with pytest.raises(LabError, match=message):
        add_corner_tokens(clip, **arguments)


def test_texts_that_fit_only_without_corners(clip):
    corners = add_corner_tokens(clip, 2)
    with pytest.raises(LabError, match=f"reads at most {clip.context_length - 2}"):
        encode_text_corners(corners, torch.ones(1, clip.context_length, dtype=torch.long))


def test_towers_without_one_pooled_token(tiny):
    with pytest.raises(LabError, match="averages its tokens"):
        add_corner_tokens(bert_clip(pooler="mean_pooler"), 2)
    with pytest.raises(LabError, match="already"):
        add_corner_tokens(add_corner_tokens(tiny, 1), 1)
    text_cfg = {"context_length": 20, "vocab_size": 50, "width": 64, "heads": 2, "layers": 1}
    model_cfg = {
        "embed_dim": 32,
        "vision_cfg": VISION,
        "text_cfg": {**text_cfg, "no_causal_mask": True},
        "custom_text": True,
    }
    model = build_model(model_cfg)
    both_ways = assemble(model, model_cfg, get_tokenizer("world"), preprocess_card(model), "x")
    with pytest.raises(LabError, match="is neither"):
        add_corner_tokens(both_ways, 2)
