"""Tiny captioners with random weights, of the real architectures, saved as transformers saves them.

They read and write the drawn world's words, a word a token.
"""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BlipImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    T5Config,
)

from longclip_lab.recaptioning import load_captioner
from longclip_lab.world.captions import world_words

SIDE, PATCH = 32, 8
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
ASKED = ("USER", "ASSISTANT", ":", "Describe", "image", "detail")
CHAT = (
    "{% for m in messages %}USER: {% for c in m.content %}"
    "{{ '<image>' if c.type == 'image' else c.text }} {% endfor %}{% endfor %}ASSISTANT:"
)
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "initializer_range": 0.02,  # InstructBLIP's default of 1e-10 tells no two pictures apart
}


def tokenizer(**options) -> PreTrainedTokenizerFast:
    words = dict.fromkeys([*SPECIAL, *world_words(), *ASKED])
    vocabulary = {word: number for number, word in enumerate(words)}
    built = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=built,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        **options,
    )


def language(words: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=words,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def save_llava(folder, seed=0, next_one=False):
    torch.manual_seed(seed)
    words = tokenizer(padding_side="right")  # the loader has to see to it
    parts = {
        "vision_config": CLIPVisionConfig(**VISION),
        "text_config": language(len(words)),
        "image_token_index": 4,
    }
    about = {
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    crop = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    if next_one:
        grid = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
        config = LlavaNextConfig(**parts, image_grid_pinpoints=grid)
        model = LlavaNextForConditionalGeneration(config)
        pictures = LlavaNextImageProcessor(**crop, image_grid_pinpoints=grid)
        LlavaNextProcessor(pictures, words, chat_template=CHAT, **about).save_pretrained(folder)
    else:
        model = LlavaForConditionalGeneration(LlavaConfig(**parts))
        LlavaProcessor(CLIPImageProcessor(**crop), words, **about).save_pretrained(folder)
    return _save(model, folder)


def save_instructblip(folder, seed=0, t5=False):
    torch.manual_seed(seed)
    words = tokenizer()
    encoder_decoder = T5Config(
        vocab_size=len(words), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        decoder_start_token_id=0, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(**VISION),
        qformer_config=InstructBlipQFormerConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            encoder_hidden_size=32,
        ),
        text_config=encoder_decoder if t5 else language(len(words)),
        num_query_tokens=4,
        image_token_index=4,
    )
    pictures = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    processor = InstructBlipProcessor(pictures, words, tokenizer(), num_query_tokens=4)
    processor.save_pretrained(folder)
    return _save(InstructBlipForConditionalGeneration(config), folder)


def _save(model, folder):
    # Random models never end a text; these sometimes do, and depend on the picture more.
    for name, weight in model.named_parameters():
        if "vision" not in name and weight.ndim > 1:
            weight.data.mul_(6)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("captioners")
    return {
        "llava": save_llava(home / "llava"),
        "other": save_llava(home / "other", seed=1),
        "next": save_llava(home / "next", next_one=True),
        "instructblip": save_instructblip(home / "instructblip"),
        "instructblip-t5": save_instructblip(home / "instructblip-t5", t5=True),
    }


@pytest.fixture(scope="session")
def llava(folders):
    return load_captioner(folders["llava"])
