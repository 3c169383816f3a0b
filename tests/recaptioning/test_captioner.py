"""Captioners of the three architectures: what they say depends on the picture, not on its batch."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.recaptioning import Asking, load_captioner
from longclip_lab.recaptioning.captioner import KeyedSampling

BRIEF = Asking(max_new_tokens=24)
KEYS = [f"{i:06d}" for i in range(8)]
SHAPES = [(72, 72), (150, 60), (60, 150), (72, 40)] * 2


@pytest.fixture(scope="module")
def images():
    return [Image.fromarray(image) for image in world.pairs(8).images]


@pytest.fixture(scope="module", params=["llava", "instructblip", "instructblip-t5", "next"])
def captioner(request, folders):
    return load_captioner(folders[request.param])


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_caption_does_not_depend_on_its_batch(captioner, images, temperature):
    asking = Asking(max_new_tokens=24, temperature=temperature, top_p=0.9)
    shaped = [image.resize(shape) for image, shape in zip(images, SHAPES, strict=True)]
    together = captioner.describe(shaped, KEYS, asking)
    alone = [captioner.describe([i], [k], asking)[0] for i, k in zip(shaped, KEYS, strict=True)]
    assert alone == together
    assert len({said.caption for said in together}) > 1


def test_prompts_of_different_lengths_are_padded_on_the_left(folders, images):
    # LLaVA-NeXT cuts wide pictures into more pieces; its tokenizer was saved padding on the right.
    captioner = load_captioner(folders["next"])
    shaped = [image.resize(shape) for image, shape in zip(images, SHAPES, strict=True)]
    mask_BP = captioner._inputs(shaped, BRIEF.prompt)["attention_mask"]
    assert (mask_BP == 0).any()
    assert (mask_BP[:, -1] == 1).all()


def test_the_model_is_asked_in_its_own_format(folders, images):
    asked = {}
    for name, family in (("llava", None), ("llava", "sharegpt4v"), ("instructblip", None)):
        captioner = load_captioner(folders[name], family)
        inputs = captioner._inputs(images[:1], "Describe the image.")
        text = captioner.processor.tokenizer.decode(inputs["input_ids"][0])
        asked[captioner.name] = " ".join(text.replace("<image>", "").split())
    turn = "USER : Describe the image . ASSISTANT :"
    assert asked["LLaVA"] == f"<s> {turn}"
    # The tiny model does not know the words of "A chat between a curious human and ...".
    assert asked["ShareGPT4V"].startswith("<s> <unk> <unk>")
    assert asked["ShareGPT4V"].endswith(turn)
    assert asked["InstructBLIP"] == "<s> Describe the image ."


@torch.no_grad()
def test_what_is_generated_follows_the_prompt_and_the_picture(captioner, images):
    model, tokenizer = captioner.model, captioner.processor.tokenizer
    inputs = dict(captioner._inputs(images, BRIEF.prompt))
    if model.config.text_config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.zeros(len(images), 1, dtype=torch.long)
    first_B = model(**inputs).logits[:, -1].argmax(1)
    said = captioner.describe(images, KEYS, Asking(max_new_tokens=1))
    for token, one in zip(first_B.tolist(), said, strict=True):
        ended = token in captioner.ends
        assert one == (tokenizer.decode([token], skip_special_tokens=True), 1 - ended, ended)


def test_the_end_is_seen_and_not_counted(llava, images):
    said = llava.describe(images, KEYS, BRIEF)
    ended = next(i for i, one in enumerate(said) if one.finished)
    length = said[ended].tokens
    assert len(said[ended].caption.split()) == length < BRIEF.max_new_tokens
    assert {one.tokens for one in said if not one.finished} == {BRIEF.max_new_tokens}
    for room, finished in ((0, False), (1, True)):
        asking = Asking(max_new_tokens=length + room)
        alone = llava.describe([images[ended]], [KEYS[ended]], asking)[0]
        assert alone == (said[ended].caption, length, finished)


def test_the_models_own_beams_and_temperature_are_not_used(folders, tmp_path, images):
    folder = shutil.copytree(folders["llava"], tmp_path / "beams")
    path = folder / "generation_config.json"
    own = {"do_sample": True, "temperature": 3.0, "num_beams": 4, "repetition_penalty": 2.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    plain, beams = load_captioner(folders["llava"]), load_captioner(folder)
    assert beams.describe(images, KEYS, BRIEF) == plain.describe(images, KEYS, BRIEF)
    assert beams.facts["weights"] != plain.facts["weights"]


def test_samples_come_by_seed_and_key_and_follow_the_softmax():
    scores_BV = torch.tensor([[1.0, 0.0, -1.0, -4.0]]).repeat(4000, 1)
    keys = [str(i) for i in range(4000)]
    ids_BP = torch.zeros(4000, 1, dtype=torch.long)

    def drawn(seed, temperature=0.5, top_p=1.0, keys=keys):
        return KeyedSampling(keys, seed, temperature, top_p)(ids_BP, scores_BV).argmax(1)

    expected_V = torch.softmax(scores_BV[0] / 0.5, 0)
    shares_V = torch.bincount(drawn(0), minlength=4) / 4000
    # four standard errors of a share, 4,000 draws
    margin_V = 4 * (expected_V * (1 - expected_V) / 4000).sqrt() + 1e-3
    assert ((shares_V - expected_V).abs() < margin_V).all()
    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    assert torch.equal(drawn(0, keys=keys[::-1]), drawn(0).flip(0))
    assert set(drawn(0, top_p=0.9).tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_senseless_settings_are_refused(options, message):
    with pytest.raises(LabError, match=message):
        Asking(**options)


def test_what_is_no_captioner_is_refused_in_one_line(folders, tmp_path):
    with pytest.raises(LabError, match="cannot be loaded as a captioner") as caught:
        load_captioner(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)
    with pytest.raises(LabError, match=r"no captioner 'lava'\. Did you mean llava"):
        load_captioner(folders["llava"], "lava")
    with pytest.raises(LabError, match="type instructblip; this one is a llava"):
        load_captioner(folders["llava"], "instructblip")
    with pytest.raises(LabError, match="no chat template"):
        load_captioner(folders["llava"], "chat")


def test_missing_weights_are_not_drawn_at_random(folders, tmp_path):
    folder = shutil.copytree(folders["llava"], tmp_path / "lacking")
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if "projector" in name)]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LabError, match=r"lacks 1 of the model's weights.*projector"):
        load_captioner(folder)


def test_pickled_weights_are_not_read(folders, tmp_path):
    folder = shutil.copytree(folders["llava"], tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(LabError, match="cannot be loaded as a captioner"):
        load_captioner(folder)
