"""Long prompts in diffusers' pipelines: what is read, and what that changes."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from longclip_lab import generation, models
from longclip_lab.errors import LabError, LabWarning
from tests.generation.pipelines import (
    LAYERS,
    PROMPT,
    WIDTH,
    fine_tuned,
    flux,
    quiet,
    stable_diffusion_3,
)

LATE = PROMPT.rsplit(" ", 200)[0] + " A green dragon. " + " ".join(PROMPT.split()[-60:])
"""The same but for words behind token 77 and before 248."""


def words(count, other=""):
    return " ".join(["boat"] * count + [other] * bool(other))


def drawn(pipe, prompt, **options):
    shown = pipe(
        prompt, num_inference_steps=2, height=16, width=16, output_type="np",
        generator=torch.Generator().manual_seed(0), **options,
    )  # fmt: skip
    return shown.images


@pytest.mark.parametrize("name", ["sd", "xl"])
def test_a_word_behind_token_200_changes_the_picture(name, request):
    pipe = request.getfixturevalue(name)
    one, other = words(210, "lake"), words(210, "dragon")
    long = generation.use_long_clip(pipe)
    assert type(long) is type(pipe)
    assert np.array_equal(drawn(pipe, one), drawn(pipe, other))
    assert not np.array_equal(drawn(long, one), drawn(long, other))
    assert long.encode_prompt(one, device="cpu", num_images_per_prompt=1,
                              do_classifier_free_guidance=True)[0].shape[1] == 248  # fmt: skip
    # The pipeline given reads what it read before.
    assert pipe.tokenizer.model_max_length == 77
    assert pipe.text_encoder.config.max_position_embeddings == 77
    assert long.unet is pipe.unet


def test_the_states_are_those_that_sdxl_was_trained_on(xl, long_clip):
    """Of the penultimate layers side by side, and the pooled vector of the second's projection."""
    long = generation.use_long_clip(xl, long_clip)
    ids_1T = long.tokenizer(
        PROMPT, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    assert ids_1T.shape == (1, 248)
    with torch.no_grad():
        first = long_clip.hidden_states(ids_1T)
        second = long.text_encoder_2(ids_1T, output_hidden_states=True)
    for skip, at in ((None, -2), (1, -3)):
        states_1TW, _, pooled_1D, _ = long.encode_prompt(PROMPT, device="cpu", clip_skip=skip)
        expected = torch.cat([first[at], second.hidden_states[at]], dim=-1)
        torch.testing.assert_close(states_1TW, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(pooled_1D, second.text_embeds)


def test_stretched_positions_keep_what_they_promise(sd):
    """The first 20 tokens come out as before: the mask is causal, and their positions are kept.
    Those behind them, of a short prompt all padding, do not."""
    prompt = words(18)
    long = generation.use_long_clip(sd)
    before_TW, after_LW = (pipe.encode_prompt(prompt, "cpu", 1, False)[0][0] for pipe in (sd, long))
    torch.testing.assert_close(after_LW[:20], before_TW[:20], atol=1e-6, rtol=0)
    assert (after_LW[20:77] - before_TW[20:]).abs().max() > 1e-3


def test_negative_prompts_and_several_images(sd, xl):
    for pipe in (sd, xl):
        long = generation.use_long_clip(pipe)
        one = {"guidance_scale": 5.0, "negative_prompt": words(220, "rain")}
        other = one | {"negative_prompt": words(220, "fog")}
        images = drawn(long, "a boat", num_images_per_prompt=2, **one)
        assert images.shape == (2, 16, 16, 3)
        assert not np.array_equal(images[:1], drawn(long, "a boat", **other))


def test_a_saved_pipeline_needs_nothing_of_ours(xl, long_clip, tmp_path):
    long = generation.use_long_clip(xl, long_clip)
    long.save_pretrained(tmp_path)
    again = quiet(diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path))
    assert again.tokenizer_2.model_max_length == 248
    np.testing.assert_allclose(drawn(again, PROMPT), drawn(long, PROMPT), atol=1e-5)


def test_stable_diffusion_3_and_flux(tokenizer, long_clip):
    three = quiet(stable_diffusion_3(tokenizer))
    long = generation.use_long_clip(three)
    one, other = words(210, "lake"), words(210, "dragon")
    assert np.array_equal(drawn(three, one), drawn(three, other))
    assert not np.array_equal(drawn(long, one), drawn(long, other))
    short = quiet(flux(tokenizer))
    long = generation.use_long_clip(short, long_clip)
    pooled = [
        [pipe.encode_prompt(text, None, "cpu", max_sequence_length=8)[1] for text in (one, other)]
        for pipe in (short, long)
    ]
    assert torch.equal(*pooled[0])
    assert not torch.equal(*pooled[1])


def test_a_release_replaces_an_encoder(sd, long_clip, tmp_path):
    """A folder that was exported does as the tower itself."""
    models.export(long_clip, tmp_path / "out", "diffusers")
    for source in (tmp_path / "out", str(tmp_path / "out")):
        pipe = generation.use_long_clip(sd, source)
        assert np.array_equal(
            drawn(pipe, PROMPT), drawn(generation.use_long_clip(sd, long_clip), PROMPT)
        )


def test_skipping_layers(sd, xl):
    skipped, last = (
        generation.encode_prompt(xl, words(200), "kps", clip_skip=skip).arguments["prompt_embeds"]
        for skip in (1, None)
    )
    assert not torch.allclose(skipped, last)
    # diffusers 0.42 looks for a layer of SD 1.5's encoder that transformers 5 has elsewhere.
    with pytest.raises(LabError, match="cannot skip layers"):
        generation.encode_prompt(sd, words(200), "kps", clip_skip=1)


@pytest.mark.parametrize("name", ["sd", "xl"])
def test_truncating_is_what_the_pipeline_does(name, request):
    pipe = request.getfixturevalue(name)
    with pytest.warns(LabWarning, match="75 of the prompt's"):
        encoded = generation.encode_prompt(pipe, PROMPT)
    assert encoded.reading.read == 75
    assert PROMPT.endswith(encoded.reading.unread)
    assert np.array_equal(drawn(pipe, None, **encoded.arguments), drawn(pipe, PROMPT))


@pytest.mark.parametrize("name", ["sd", "xl"])
@pytest.mark.parametrize("cut", ["token", "comma", "sentence"])
def test_chunks_are_prompts_of_their_own(name, cut, request):
    pipe = request.getfixturevalue(name)
    encoded = generation.encode_prompt(pipe, PROMPT, "chunk", cut=cut)
    pieces = encoded.pieces
    assert "".join(pieces).replace(" ", "") == PROMPT.replace(" ", "")
    assert all(generation.read_prompt(pipe, piece).whole for piece in pieces)
    if cut != "token":
        assert all(piece.endswith((".", ",")) for piece in pieces[:-1])
    if cut == "sentence":
        assert all(piece.endswith(".") for piece in pieces)
    assert encoded.reading.whole
    states = encoded.arguments["prompt_embeds"]
    assert states.shape[1] == 77 * len(pieces)
    alone = [pipe.encode_prompt(piece, device="cpu", num_images_per_prompt=1,
                                do_classifier_free_guidance=True) for piece in pieces]  # fmt: skip
    torch.testing.assert_close(states, torch.cat([one[0] for one in alone], dim=1))
    assert encoded.arguments["negative_prompt_embeds"].shape == states.shape
    mean = generation.encode_prompt(pipe, PROMPT, "average", cut=cut).arguments["prompt_embeds"]
    torch.testing.assert_close(mean, torch.stack([one[0] for one in alone]).mean(dim=0))
    assert drawn(pipe, None, **encoded.arguments).shape == (1, 16, 16, 3)


def test_the_pooled_vector_of_chunks_knows_the_first_only(xl):
    one, other = (
        generation.encode_prompt(xl, words(120, word), "chunk").arguments
        for word in ("lake", "dragon")
    )
    assert torch.equal(one["pooled_prompt_embeds"], other["pooled_prompt_embeds"])
    assert not torch.equal(one["prompt_embeds"], other["prompt_embeds"])


def test_a_long_negative_prompt_is_chunked_too(sd):
    encoded = generation.encode_prompt(sd, "a boat", "chunk", negative_prompt=PROMPT).arguments
    assert encoded["prompt_embeds"].shape == encoded["negative_prompt_embeds"].shape
    empty = sd.encode_prompt("", "cpu", 1, False)[0]
    torch.testing.assert_close(encoded["prompt_embeds"][:, 77:154], empty)


def test_pieces_of_a_word_that_is_longer_than_a_piece(sd):
    pieces = generation.split_prompt(sd, "boat " + "zx" * 300)
    assert "".join(pieces) == "boat" + "zx" * 300
    assert all(generation.read_prompt(sd, piece).tokens <= 75 for piece in pieces)


def test_kps_and_tuned_read_248(sd, long_clip):
    kps = generation.encode_prompt(sd, words(200), "kps")
    assert kps.reading.whole
    assert kps.arguments["prompt_embeds"].shape == (1, 248, WIDTH)
    tuned = generation.encode_prompt(sd, words(200), "tuned", clip_l=long_clip)
    assert not torch.allclose(tuned.arguments["prompt_embeds"], kps.arguments["prompt_embeds"])
    with pytest.warns(LabWarning, match=r"246 of the prompt's 300 tokens .* “boat boat"):
        assert not generation.encode_prompt(sd, words(300), "kps").reading.whole


def test_what_cannot_be_replaced(sd, xl, tmp_path_factory):
    wide = fine_tuned(tmp_path_factory, 128, LAYERS)
    with pytest.raises(LabError, match="hidden_size 128 in place of 64"):
        generation.use_long_clip(sd, wide)
    with pytest.raises(LabError, match="num_hidden_layers 4 in place of 3"):
        generation.use_long_clip(sd, fine_tuned(tmp_path_factory, WIDTH, LAYERS + 1))
    short = fine_tuned(tmp_path_factory, WIDTH, LAYERS)
    with pytest.raises(LabError, match="no second CLIP encoder"):
        generation.use_long_clip(sd, big_g=wide)
    with pytest.raises(LabError, match="reads 248 tokens; stretching is for"):
        generation.use_long_clip(generation.use_long_clip(sd))
    cut = models.stretch(models.load_text_tower(short_folder(short, tmp_path_factory)), ratio=2)
    with pytest.raises(LabError, match=r"two lengths .*text_encoder 134 .*text_encoder_2 248"):
        generation.use_long_clip(xl, cut)
    nowhere = tmp_path_factory.mktemp("empty") / "longclip-L.pt"
    with pytest.raises(LabError, match=r"longclip-L.pt"):
        generation.use_long_clip(sd, nowhere)


def short_folder(tower, tmp_path_factory):
    """The same tower before it was stretched."""
    folder = tmp_path_factory.mktemp("short")
    base = transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS,
            num_attention_heads=1, projection_dim=16, vocab_size=49408,
            bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
        )
    )  # fmt: skip
    base.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "Expected a prompt in words, got ''"),
        ("  ", {"strategy": "chunk"}, "Expected a prompt in words"),
        ("a boat", {"strategy": "chunks"}, "no strategy 'chunks'. Did you mean chunk"),
        ("a boat", {"strategy": "chunk", "cut": "word"}, "no cut 'word'"),
        ("a boat", {"strategy": "tuned"}, "Expected clip_l"),
        ("a boat", {"clip_l": "kps"}, "Expected clip_l"),
    ],
)
def test_senseless_requests(sd, prompt, options, message):
    with pytest.raises(LabError, match=message):
        generation.encode_prompt(sd, prompt, **options)


def test_pipelines_without_clip_and_with_t5(tokenizer):
    with pytest.raises(LabError, match="other text encoders beside CLIP's"):
        generation.encode_prompt(flux(tokenizer), "a boat")
    unconditional = diffusers.DDIMPipeline(None, diffusers.DDIMScheduler())
    with pytest.raises(LabError, match="A DDIMPipeline has no text encoder of CLIP's"):
        generation.use_long_clip(unconditional)


def test_half_precision_stays(sd):
    half = quiet(diffusers.StableDiffusionPipeline(**{
        **sd.components, "text_encoder": sd.text_encoder.__class__(sd.text_encoder.config).half()
    }, requires_safety_checker=False))  # fmt: skip
    assert generation.use_long_clip(half).text_encoder.dtype == torch.float16
    assert sd.unet.dtype == torch.float32


def test_pipelines_that_cannot_be_opened(tmp_path):
    with pytest.raises(LabError, match="cannot be opened as a pipeline"):
        generation.load_pipeline(tmp_path)


@settings(max_examples=30, deadline=None)
@given(
    st.text("aAzxZ9.,! éΩ🚢\n", min_size=1, max_size=700).filter(str.strip),
    st.sampled_from(["token", "comma", "sentence"]),
)
def test_any_prompt_is_cut_in_pieces_that_are_read_whole(sd, prompt, cut):
    pieces = generation.split_prompt(sd, prompt, cut)
    assert "".join("".join(pieces).split()) == "".join(prompt.split())
    assert all(generation.read_prompt(sd, piece).whole for piece in pieces)


def test_an_unread_negative_prompt_is_told(sd):
    with pytest.warns(LabWarning, match="75 of the negative prompt's"):
        generation.encode_prompt(sd, "a boat", negative_prompt=PROMPT)
