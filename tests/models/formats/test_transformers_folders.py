"""Folders that transformers wrote: whole models, text towers alone, diffusers' pipelines."""

from __future__ import annotations

import json
import os
import shutil
import warnings

import diffusers
import pytest
import torch
import transformers

from longclip_lab.errors import LabError, LabWarning
from longclip_lab.models import export, load, load_text_tower, stretch
from longclip_lab.models.formats.hf import is_hub_id

VERSION = f"transformers {transformers.__version__}"
TEXT = {
    "vocab_size": 520,
    "hidden_size": 64,
    "intermediate_size": 256,
    "projection_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 518,
    "eos_token_id": 519,
}
IMAGE = {**TEXT, "hidden_size": 128, "image_size": 32, "patch_size": 8, "intermediate_size": 320}


@pytest.fixture(scope="module")
def quiet():
    """transformers reports every file it writes."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(level)
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture(scope="module")
def random_model(quiet):
    """A function that makes a `CLIPModel` away from its initial weights."""

    def make(kind=transformers.CLIPModel, **changes):
        text, image = (
            TEXT | changes,
            IMAGE | {k: changes[k] for k in ("hidden_act",) if k in changes},
        )
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            if kind is transformers.CLIPModel:
                config = transformers.CLIPConfig(
                    text_config=text, vision_config=image, projection_dim=32
                )
            else:
                config = transformers.CLIPTextConfig(**text)
            model = kind(config).eval()
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        return model

    return make


def write_processor(folder, **changes):
    facts = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, **changes}
    transformers.CLIPImageProcessor(**facts).save_pretrained(folder)


def texts_of(length, end):
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(1, 500, (3, length), generator=generator)
    for row_T, count in zip(ids_BT, (4, length // 2, length), strict=True):
        row_T[count - 1] = end
        row_T[count:] = 0
    return ids_BT


CASES = {
    "QuickGELU, 77 positions, float32": {},
    "QuickGELU, 248 positions, float32": {"max_position_embeddings": 248},
    "GELU, 248 positions, float32": {"max_position_embeddings": 248, "hidden_act": "gelu"},
    "GELU by tanh, 77 positions, float32": {"hidden_act": "gelu_pytorch_tanh"},
    "eos_token_id 2 of old": {"eos_token_id": 2},
    "an end token that is not the last": {"eos_token_id": 511},
    "another eps": {"layer_norm_eps": 1e-3},
}


@pytest.mark.parametrize("case", CASES)
def test_a_clip_model(case, random_model, apart, tmp_path, compatibility):
    theirs = random_model(**CASES[case])
    theirs.save_pretrained(tmp_path)
    write_processor(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", LabWarning)
        clip = load(tmp_path)
    end = CASES[case].get("eos_token_id", 519)
    texts_BT = texts_of(clip.context_length, 519 if end == 2 else end)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answer = theirs(input_ids=texts_BT, pixel_values=pixels)
        text = theirs.get_text_features(texts_BT).pooler_output
        image = theirs.get_image_features(pixels).pooler_output
        logits, _ = clip.model.get_logits(pixels, texts_BT)
        differences = [
            apart(clip.encode_text(texts_BT), text),
            apart(clip.encode_image(pixels), image),
            apart(logits, answer.logits_per_image),
        ]
    assert max(differences) < 1e-5
    longer = clip.context_length == 248
    assert clip.card["positions"]["method"] == ("unknown" if longer else "none")
    compatibility("transformers", "in", f"tiny ViT, {case}", VERSION, max(differences))


def test_shards_in_half_precision(random_model, apart, tmp_path, compatibility):
    theirs = random_model(max_position_embeddings=248).half()
    theirs.save_pretrained(tmp_path, max_shard_size="300KB")
    write_processor(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    clip, texts_BT = load(tmp_path), texts_of(248, 519)
    with torch.no_grad():
        text = theirs.float().get_text_features(texts_BT).pooler_output
        difference = apart(clip.encode_text(texts_BT), text)
    assert difference < 1e-5
    on = "tiny ViT, shards, float16"
    compatibility("transformers", "in", on, VERSION, difference)
    shards[1].unlink()
    message = rf"1 of {len(shards)} files of weights are missing.*{shards[1].name}"
    with pytest.raises(LabError, match=message):
        load(tmp_path)


def test_pickled_shards_of_old(random_model, tmp_path):
    """pytorch_model.bin, with the buffers that old versions saved along."""
    theirs = random_model()
    weights = theirs.state_dict() | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    theirs.config.save_pretrained(tmp_path)
    write_processor(tmp_path)
    assert torch.equal(load(tmp_path).model.logit_scale, theirs.logit_scale)


def test_preprocessing_of_the_folder(random_model, tmp_path):
    random_model().save_pretrained(tmp_path)
    with pytest.warns(LabWarning, match="no preprocessor_config.json: .*as OpenAI prepares"):
        load(tmp_path)
    write_processor(tmp_path, image_mean=[0.5] * 3, image_std=[0.4] * 3, resample=2)
    clip = load(tmp_path)
    assert (clip.image_mean, clip.image_std) == ((0.5, 0.5, 0.5), (0.4, 0.4, 0.4))
    assert clip.card["preprocess"]["interpolation"] == "bilinear"
    write_processor(tmp_path, size={"height": 32, "width": 32}, do_center_crop=False)
    assert load(tmp_path).card["preprocess"]["resize_mode"] == "squash"
    write_processor(tmp_path, crop_size={"height": 24, "width": 24})
    with pytest.warns(LabWarning, match="24 pixels, but its tower takes 32"):
        assert load(tmp_path).image_size == 32
    write_processor(tmp_path, resample=0)
    with pytest.raises(LabError, match="PIL's way 0"):
        load(tmp_path)


def test_a_tokenizer_that_is_not_clips(random_model, made, tmp_path):
    """Other numbers for the same pieces would go unnoticed."""
    good = export(made(vocab=49408), tmp_path / "good")
    with warnings.catch_warnings():
        warnings.simplefilter("error", LabWarning)
        load(good)
    numbers = json.loads((good / "vocab.json").read_text())
    shifted = {piece: number + 1 for piece, number in numbers.items()}
    (good / "vocab.json").write_text(json.dumps(shifted))
    with pytest.warns(LabWarning, match="is not CLIP's.*texts will be misread"):
        load(good)
    with pytest.warns(LabWarning, match="is not CLIP's"):
        load_text_tower(good)


@pytest.mark.parametrize(
    ("size", "value", "message"),
    [
        ("max_position_embeddings", 200_000, "at most 16,384 positions, got 200,000"),
        ("vocab_size", 10**9, "parameters, more than its file of weights has bytes"),
    ],
)
def test_a_config_of_senseless_sizes_takes_no_memory(size, value, message, made, tmp_path):
    """A causal mask of 200,000 positions alone would take 160 GB."""
    folder = export(made(vocab=49408), tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    change(folder, "config.json", text_config=config["text_config"] | {size: value})
    for opener in (load, load_text_tower):
        with pytest.raises(LabError, match=message):
            opener(folder)


def test_a_config_as_they_were_first_written(made, tmp_path):
    """The towers' sizes twice, dozens of settings for generation, sizes of pictures as numbers."""
    folder = export(made(vocab=49408), tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    old = {"top_k": 50, "torch_dtype": None, "id2label": {"0": "LABEL_0"}, "pruned_heads": {}}
    old |= {"bos_token_id": 0, "eos_token_id": 2, "max_length": 20, "transformers_version": "4.16"}
    text, image = config["text_config"], config["vision_config"]
    change(
        folder,
        "config.json",
        text_config=text | old,
        text_config_dict=text,
        vision_config=image | old,
        vision_config_dict=image,
    )
    change(folder, "preprocessor_config.json", size=32, crop_size=32)
    clip = load(folder)
    expected = made(vocab=49408)
    ids = expected.tokenize("a red boat").ids_BT
    assert torch.equal(clip.encode_text(ids), expected.encode_text(ids))
    assert torch.equal(load_text_tower(folder).encode_text(ids), expected.encode_text(ids))
    assert clip.card["preprocess"] == expected.card["preprocess"]


def change(folder, file, **values):
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | values))


def test_broken_folders(random_model, tmp_path):
    good = tmp_path / "good"
    random_model().save_pretrained(good)
    write_processor(good)

    def refused(message, change_folder):
        folder = tmp_path / f"bad{len(list(tmp_path.iterdir()))}"
        shutil.copytree(good, folder)
        change_folder(folder)
        with pytest.raises(LabError, match=message):
            load(folder)

    config = json.loads((good / "config.json").read_text())
    vision = config["vision_config"]
    refused("no weights in .*expected", lambda f: (f / "model.safetensors").unlink())
    refused("text, not weights", lambda f: (f / "model.safetensors").write_bytes(b"12345"))
    refused("is not JSON", lambda f: (f / "config.json").write_text("{"))
    refused("no CLIPModel of", lambda f: change(f, "config.json", model_type="clip_vision_model"))
    refused("do not fit", lambda f: change(f, "config.json", projection_dim=64))
    refused("is no CLIPConfig", lambda f: change(f, "config.json", projection_dim="many"))
    refused(
        "activation quick_gelu in all",
        lambda f: change(f, "config.json", vision_config=vision | {"hidden_act": "gelu"}),
    )

    def outside(folder):
        (folder / "model.safetensors").unlink()
        index = {"weight_map": {"logit_scale": "../good/model.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    refused("outside its folder, which is refused", outside)


def test_a_text_tower_is_no_clip(random_model, tmp_path):
    random_model(transformers.CLIPTextModel).save_pretrained(tmp_path)
    with pytest.raises(LabError, match=r"text tower alone.*load_text_tower\(FOLDER\)"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPTextModelWithProjection"])
@pytest.mark.parametrize("changes", [{}, {"max_position_embeddings": 248, "hidden_act": "gelu"}])
def test_text_towers(kind, changes, random_model, apart, tmp_path, compatibility):
    theirs = random_model(getattr(transformers, kind), **changes)
    theirs.save_pretrained(tmp_path)
    tower = load_text_tower(tmp_path)
    texts_BT = texts_of(tower.context_length, 519)
    with torch.no_grad():
        answer = theirs(texts_BT, output_hidden_states=True)
        ours = tower.hidden_states(texts_BT)
        projected = kind.endswith("Projection")
        features = answer.text_embeds if projected else answer.pooler_output
        differences = [apart(tower.encode_text(texts_BT), features)]
        differences += [apart(a, b) for a, b in zip(ours, answer.hidden_states, strict=True)]
        differences += [apart(tower.model.ln_final(ours[-1]), answer.last_hidden_state)]
    assert max(differences) < 1e-5
    assert tower.embed_dim == (32 if projected else 64)
    on = f"tiny {kind}, {tower.context_length} positions, with all hidden states"
    compatibility("transformers-text", "in", on, VERSION, max(differences))


def test_the_text_side_of_a_clip_model(random_model, apart, tmp_path, compatibility):
    theirs = random_model(max_position_embeddings=248)
    theirs.save_pretrained(tmp_path)
    tower, texts_BT = load_text_tower(tmp_path), texts_of(248, 519)
    with torch.no_grad():
        features = theirs.get_text_features(texts_BT).pooler_output
        difference = apart(tower.encode_text(texts_BT), features)
    assert difference < 1e-5
    on = "the text side of a tiny CLIPModel"
    compatibility("transformers-text", "in", on, VERSION, difference)


def test_broken_text_towers(random_model, tmp_path):
    random_model(transformers.CLIPTextModelWithProjection).save_pretrained(tmp_path)
    weights = dict(load_text_tower(tmp_path).model.state_dict())
    assert "text_projection" in weights
    theirs = random_model(transformers.CLIPTextModel)
    theirs.save_pretrained(tmp_path / "plain")
    config = tmp_path / "config.json"
    shutil.copy(config, tmp_path / "plain")
    with pytest.raises(LabError, match=r"lacks text_projection.weight"):
        load_text_tower(tmp_path / "plain")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "t5"}))
    with pytest.raises(LabError, match="a 't5', not the text tower of a CLIP"):
        load_text_tower(tmp_path)
    with pytest.raises(LabError, match="There is no folder"):
        load_text_tower(tmp_path / "nowhere" / "at" / "all")


@pytest.fixture(scope="module")
def pipeline(quiet, random_model, made, tmp_path_factory):
    """A folder that diffusers wrote: Stable Diffusion XL's two text encoders, everything tiny."""
    from longclip_lab.models.formats.export import write_tokenizer
    from longclip_lab.text import get_tokenizer

    folder = tmp_path_factory.mktemp("pipelines")
    write_tokenizer(folder / "tokenizer", get_tokenizer("clip"), 77)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=128,
        norm_num_groups=8,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32,), latent_channels=4, norm_num_groups=8, sample_size=16
    )
    vocabulary = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    whole = diffusers.StableDiffusionXLPipeline(
        vae=vae,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(),
        text_encoder=random_model(transformers.CLIPTextModel, **vocabulary),
        text_encoder_2=random_model(
            transformers.CLIPTextModelWithProjection, hidden_act="gelu", **vocabulary
        ),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
    )
    whole.set_progress_bar_config(disable=True)
    whole.save_pretrained(folder / "sdxl")
    return folder / "sdxl"


def test_both_text_encoders_of_a_pipeline(pipeline, apart, compatibility):
    whole = diffusers.StableDiffusionXLPipeline.from_pretrained(pipeline, local_files_only=True)
    prompt = "a red boat to the left of the house"
    conditioning_BTW, _, pooled_BD, _ = whole.encode_prompt(
        prompt, do_classifier_free_guidance=False
    )
    towers = [load_text_tower(pipeline), load_text_tower(pipeline, "text_encoder_2")]
    tokens = [tower.tokenize(prompt).ids_BT for tower in towers]
    with torch.no_grad():
        states = [tower.hidden_states(ids)[-2] for tower, ids in zip(towers, tokens, strict=True)]
        difference = max(
            apart(torch.cat(states, dim=-1), conditioning_BTW),
            apart(towers[1].encode_text(tokens[1]), pooled_BD),
        )
    assert difference < 1e-5
    assert [tower.card["pad_id"] for tower in towers] == [49407, 49407]
    on = "what a tiny Stable Diffusion XL is conditioned on"
    against = f"diffusers {diffusers.__version__}"
    compatibility("diffusers", "in", on, against, difference)


def test_a_pipeline_is_no_clip(pipeline):
    with pytest.raises(LabError, match=r"text encoders of diffusers.*load_text_tower"):
        load(pipeline)
    with pytest.raises(LabError, match=r"There is no config.json in .*text_encoder_3"):
        load_text_tower(pipeline, "text_encoder_3")


def test_a_stretched_text_encoder(pipeline):
    tower = stretch(load_text_tower(pipeline))
    assert (tower.context_length, tower.model.num_pos) == (248, 248)
    tokens = tower.tokenize("red boat " * 60)
    with torch.no_grad():
        assert tower.hidden_states(tokens.ids_BT)[-1].shape == (1, 248, 64)


def test_from_the_hubs_cache(random_model, tmp_path, monkeypatch):
    """What was fetched once opens by its id without a network."""
    snapshot = tmp_path / "models--somebody--long-clip" / "snapshots" / "0"
    random_model(max_position_embeddings=248).save_pretrained(snapshot)
    write_processor(snapshot)
    refs = tmp_path / "models--somebody--long-clip" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", os.fspath(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load("somebody/long-clip").context_length == 248
    assert load_text_tower("somebody/long-clip").name == "somebody/long-clip"
    with pytest.raises(LabError, match="could not be fetched from the hub"):
        load_text_tower("somebody/else")
    assert not is_hub_id("./a/b")
