"""Tiny pipelines of diffusers with random weights: Stable Diffusion 1.5, XL and 3, and Flux."""

from __future__ import annotations

import diffusers
import torch
import transformers

from longclip_lab import models, text
from longclip_lab.models.formats.export import write_tokenizer

LAYERS, WIDTH, POOLED = 3, 64, 16
PROMPT = " ".join(f"A red boat number {n} on a calm lake, with a bird." for n in range(30))


def encoder(kind=transformers.CLIPTextModel, seed=0, width=WIDTH, layers=LAYERS):
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    config = transformers.CLIPTextConfig(
        **sizes, num_attention_heads=width // 64 or 1, projection_dim=POOLED, vocab_size=49408,
        hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    made = kind(config).eval()
    for one in made.modules():
        if hasattr(one, "position_embedding"):  # random ones would be lost in the tokens'
            torch.nn.init.normal_(one.position_embedding.weight, std=0.1)
    return made


def denoiser(width, **more):
    torch.manual_seed(5)
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8,), down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",), attention_head_dim=2, cross_attention_dim=width,
        layers_per_block=1, norm_num_groups=4, sample_size=8, **more,
    )  # fmt: skip


def vae(channels=4):
    torch.manual_seed(6)
    return diffusers.AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=channels, shift_factor=0.1
    )


def stable_diffusion(tokenizer):
    return diffusers.StableDiffusionPipeline(
        vae=vae(), unet=denoiser(WIDTH), text_encoder=encoder(), tokenizer=tokenizer,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl(tokenizer):
    of_size_and_crop = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=encoder(), tokenizer=tokenizer, tokenizer_2=tokenizer,
        text_encoder_2=encoder(transformers.CLIPTextModelWithProjection, 1, 128),
        unet=denoiser(
            WIDTH + 128, projection_class_embeddings_input_dim=6 * 8 + POOLED, **of_size_and_crop
        ),
        scheduler=diffusers.EulerDiscreteScheduler(),
    )  # fmt: skip


def t5():
    torch.manual_seed(7)
    config = transformers.T5Config(vocab_size=49408, d_model=32, d_ff=32, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config).eval()


def stable_diffusion_3(tokenizer):
    torch.manual_seed(8)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=2,
        attention_head_dim=8, num_attention_heads=2, caption_projection_dim=16,
        joint_attention_dim=256, pooled_projection_dim=2 * POOLED,
    )  # fmt: skip
    projected = transformers.CLIPTextModelWithProjection
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae(),
        text_encoder=encoder(projected), tokenizer=tokenizer, tokenizer_2=tokenizer,
        text_encoder_2=encoder(projected, 1, 128), text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def flux(tokenizer):
    torch.manual_seed(9)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae(1), transformer=transformer,
        text_encoder=encoder(), tokenizer=tokenizer, text_encoder_2=t5(), tokenizer_2=tokenizer,
    )  # fmt: skip


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def fine_tuned(tmp_path_factory, width, layers):
    folder = tmp_path_factory.mktemp("long")
    encoder(transformers.CLIPTextModelWithProjection, 3, width, layers).save_pretrained(
        folder / "text_encoder"
    )
    write_tokenizer(folder / "tokenizer", text.get_tokenizer("clip"), 77)
    return models.stretch(models.load_text_tower(folder))
