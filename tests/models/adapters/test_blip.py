"""BLIP's own files and transformers' folders, against transformers' BLIP."""

from __future__ import annotations

import pytest
import torch
import transformers
from PIL import Image
from torchvision import transforms

from longclip_lab import world
from longclip_lab.errors import LabError
from longclip_lab.evaluation import evaluate
from longclip_lab.models import adapters, encode_images, encode_texts, inspect, load
from longclip_lab.probing import effective_length
from longclip_lab.probing.truncation import CONTROLS

REFERENCE = f"transformers {transformers.__version__}"
SIZE, PATCH, EMBED, WORDS = 32, 16, 24, 30524
TO_RELEASE = (
    (r"^vision_model\.encoder\.layers", "visual_encoder.blocks"),
    (r"^vision_model\.embeddings\.class_embedding", "visual_encoder.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding", "visual_encoder.pos_embed"),
    (r"^vision_model\.embeddings\.patch_embedding", "visual_encoder.patch_embed.proj"),
    (r"^vision_model\.post_layernorm", "visual_encoder.norm"),
    (r"self_attn\.projection", "attn.proj"),
    (r"self_attn", "attn"),
    (r"layer_norm(\d)", r"norm\1"),
)
"""The inverse of transformers' convert_blip_original_pytorch_to_hf.py."""


@pytest.fixture(scope="module")
def theirs(shaken):
    torch.manual_seed(0)
    vision = {
        **{"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2},
        **{"num_attention_heads": 1, "image_size": SIZE, "patch_size": PATCH},
        "layer_norm_eps": 1e-6,  # as in BLIP's vit.py; transformers' default is another
    }
    text = {
        **{"vocab_size": WORDS, "hidden_size": 64, "encoder_hidden_size": 64},
        **{"intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1},
        "max_position_embeddings": 40,
    }
    config = transformers.BlipConfig(
        text_config=text, vision_config=vision, image_text_hidden_size=EMBED
    )
    return shaken(transformers.BlipForImageTextRetrieval(config))


@pytest.fixture(scope="module")
def release(theirs, renamed):
    """The state of a model in the layout of model_base_retrieval_coco.pth."""
    weights = renamed(theirs, *TO_RELEASE)
    momentum = {
        name.replace(part, f"{part}_m"): tensor
        for name, tensor in weights.items()
        for part in ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
        if name.startswith(f"{part}.")
    }
    queues = {"image_queue": torch.zeros(EMBED, 8), "ptr_queue": torch.zeros(1)}
    return {**weights, **momentum, **queues, "temp": torch.tensor(0.07)}


@pytest.fixture
def file(release, tmp_path):
    path = tmp_path / "model_base_retrieval_coco.pth"
    torch.save({"model": release, "config": {"image_size": SIZE}, "epoch": 5}, path)
    return path


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "blip-itm"
    theirs.save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    transformers.BlipImageProcessor(size=size).save_pretrained(folder)
    return folder


def their_features(theirs, ids_BT, pixels_B3HW):
    """Both features before they are normalised, as BlipForImageTextRetrieval computes them."""
    mask_BT = (ids_BT != 0).long()
    texts = theirs.text_encoder(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
    images = theirs.vision_model(pixel_values=pixels_B3HW).last_hidden_state
    return theirs.vision_proj(images[:, 0]), theirs.text_proj(texts[:, 0])


def relative(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["blip", "ptp-blip"])
def test_a_released_file(file, release, theirs, ids_BT, compatibility, tmp_path, kind):
    if kind == "ptp-blip":  # pretraining states, with a decoder and smaller pictures
        more = {"text_decoder.bert.pooler.dense.bias": torch.zeros(2), "queue_ptr": torch.zeros(1)}
        file = tmp_path / "ptp_blip.pth"
        torch.save({"model": {**release, **more}, "optimizer": {"lr": 1e-4}}, file)
    clip = load(file)
    pixels_B3HW = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    images, texts = their_features(theirs, ids_BT, pixels_B3HW)
    differences = (
        relative(clip.encode_image(pixels_B3HW), images),
        relative(clip.encode_text(ids_BT), texts),
    )
    assert max(differences) < 1e-5
    compatibility(kind, "in", "tiny BLIP, release layout", REFERENCE, max(differences))


@torch.no_grad()
def test_a_folder_of_transformers(folder, theirs, pictures, texts, compatibility):
    clip = load(folder)
    processor = transformers.BlipImageProcessor.from_pretrained(folder)
    images = [Image.fromarray(values) for values in pictures(50)]
    pixels_B3HW = processor(images=images, return_tensors="pt")["pixel_values"]
    ids_BT = clip.tokenize(texts).ids_BT
    expected = their_features(theirs, ids_BT, pixels_B3HW)
    ours = encode_images(clip, images), encode_texts(clip, texts).features_ND
    differences = [relative(*both) for both in zip(ours, expected, strict=True)]
    assert max(differences) < 1e-5
    compatibility("blip", "in", "tiny BLIP, transformers folder", REFERENCE, max(differences))
    at_size = pictures(SIZE)  # the quick way, without the processor
    processed = processor(images=[Image.fromarray(v) for v in at_size], return_tensors="pt")
    torch.testing.assert_close(
        encode_images(clip, at_size),
        clip.encode_image(processed["pixel_values"]),
        atol=1e-4,
        rtol=1e-4,
    )


def test_pictures_are_prepared_as_the_release_does(file, pictures):
    image = Image.fromarray(pictures(50)[0]).crop((0, 0, 50, 30))
    theirs = transforms.Compose(
        [
            transforms.Resize((SIZE, SIZE), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize(
                (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
            ),
        ]
    )
    torch.testing.assert_close(load(file).preprocess(image), theirs(image))


def test_what_is_left_out_is_named(file):
    clip = load(file)
    left = clip.card["left_out"]
    assert left["text_encoder, fusion with pictures"] == 2 * 10
    assert left["image_queue"] == left["ptr_queue"] == left["temp"] == 1
    assert left["itm_head"] == left["vision_proj_m"] == 2
    assert clip.card["released_tokens"] == 35
    assert (clip.context_length, clip.embed_dim, clip.image_size) == (40, EMBED, SIZE)
    assert adapters.load_blip(file, context_length=35).context_length == 35
    with pytest.raises(LabError, match="3 to 40, got 41"):
        adapters.load_blip(file, context_length=41)


def test_it_is_explained(file, folder, release, tmp_path):
    found, hub = inspect(file), inspect(folder)
    assert found.format == "BLIP training state"
    assert hub.format == "transformers BlipForImageTextRetrieval"
    assert found.image_size == hub.image_size == SIZE
    assert found.embed_dim == hub.embed_dim == EMBED
    assert hub.missing == hub.unexpected == []
    assert found.parameters["other"] > 0  # momentum, queues, the head for matching
    fewer = {k: v for k, v in release.items() if k != "visual_encoder.norm.bias"}
    torch.save({"model": fewer}, tmp_path / "fewer.pth")
    odd = inspect(tmp_path / "fewer.pth")
    assert not odd.compared
    assert any("norm.bias" in note for note in odd.notes)


def test_it_is_evaluated_and_probed(file):
    clip = load(file)
    pairs = world.pairs(6, seed=5)
    records = evaluate(clip, pairs)
    assert [record.protocol.split("/")[-1] for record in records.records] == [
        "long-retrieval",
        "short-retrieval",
    ]
    assert records.records[0].model == "model_base_retrieval_coco"
    assert records.records[0].settings["context_length"] == 40
    assert records.records[0].num_truncated > 0
    lengths = effective_length(clip, pairs)
    assert lengths.curve.cuts == (3, 6, 9, 12, 15, 20, 25, 30, 38)
    assert set(lengths.lengths) == set(CONTROLS)


def test_files_that_do_not_fit(release, file, tmp_path):
    fewer = {k: v for k, v in release.items() if k != "visual_encoder.blocks.1.norm1.bias"}
    torch.save({"model": fewer}, tmp_path / "fewer.pth")
    with pytest.raises(LabError, match=r"looks like BLIP.*blocks\.1\.norm1\.bias"):
        load(tmp_path / "fewer.pth")
    torch.save({"model": {**release, "extra.weight": torch.ones(1)}}, tmp_path / "more.pth")
    with pytest.raises(LabError, match=r"unexpected weight extra\.weight"):
        load(tmp_path / "more.pth")
    with pytest.raises(LabError, match="a checkpoint of BLIP, not of X-VLM"):
        adapters.load_xvlm(file)
