"""Train the bundled latent diffusion model of the drawn world, `data/tiny-diffusion`.

    python data/train_diffusion.py vae --steps 7500         # pictures to latents of 9 x 9
    python data/train_diffusion.py denoiser --steps 8000    # latents from prompts
    python data/train_diffusion.py score                    # facts of prompts in its pictures

Stable Diffusion XL in small, a folder that `StableDiffusionXLPipeline.from_pretrained` reads: an
autoencoder, and a U-Net that reads by cross-attention the penultimate states of the frozen text
tower of `tiny` at 77 tokens, and its pooled feature beside the time step. Both are trained on
scenes of two to six things. Prompts are what `tiny` read in its own training, captions of 5 to 20
tokens with one in seven longer, and as often a whole long caption, cut at 77 tokens as everywhere.
One prompt in ten is dropped, for classifier-free guidance.

Every batch is a function of its step, so a call that was interrupted goes on to the same weights
(`--resume` keeps weights and moments beside the folder).
"""

from __future__ import annotations

import argparse
import copy
import math
import shutil
import tempfile
import time
from pathlib import Path

import diffusers
import numpy as np
import tokenizers
import torch
import transformers
from torch import nn
from torch.nn import functional as F

import longclip_lab as ll
from longclip_lab.files import atomic_path
from longclip_lab.models.formats.hf import TEXT, prefixed, to_transformers

HERE = Path(__file__).parent
PIXELS, LATENT, SIDE, LENGTH = ll.world.PIXELS, 16, 9, 77
DROPPED = 0.1
"""The share of prompts that are dropped."""
SCENES = 60_000
"""Pictures of the denoiser, which are encoded once; their prompts are written anew each time."""
SEEDS = {"vae": 71, "denoiser": 72}
SIZES = {"vae": 16, "denoiser": 128}
"""Pictures of a batch."""
NOISE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
PEAK = {"vae": 2e-3, "denoiser": 1e-3}
"""The learning rate behind the warm-up."""


def new_vae() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 24, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=PIXELS,
        force_upcast=False,
    )


def new_denoiser(width: int = 80) -> diffusers.UNet2DConditionModel:
    """One scale of 9 x 9, so that every latent attends to all others and to the prompt."""
    return diffusers.UNet2DConditionModel(
        sample_size=SIDE,
        in_channels=LATENT,
        out_channels=LATENT,
        block_out_channels=(width,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        transformer_layers_per_block=2,
        cross_attention_dim=128,
        attention_head_dim=4,  # the number of heads, by its old name
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 128,
    )


def scenes_of(stage: str, number: int, size: int) -> tuple[list, np.random.Generator]:
    """Scenes of two to six things, and what goes on drawing numbers behind them."""
    rng = np.random.default_rng((ll.world.PRETRAIN_SEED, SEEDS[stage], number))
    return [ll.world.random_scene(rng, int(rng.integers(2, 7))) for _ in range(size)], rng


def pixels_of(scenes: list) -> torch.Tensor:
    images = torch.from_numpy(ll.world.draw_all(scenes)).permute(0, 3, 1, 2)
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def prompt_of(scene: object, rng: np.random.Generator) -> str:
    if rng.random() < 0.5:
        return ll.world.web_caption(scene, rng, 0.15).text
    return ll.world.long_caption(scene, rng).text


def vae_loss(vae: diffusers.AutoencoderKL, scenes: list, rng: np.random.Generator) -> torch.Tensor:
    """Differences of pixels, absolute and squared, and a weak pull of the latents to a normal
    distribution, as Stable Diffusion's own."""
    pixels = pixels_of(scenes)
    posterior = vae.encode(pixels).latent_dist
    drawn = vae.decode(posterior.sample(torch.Generator().manual_seed(int(rng.integers(2**31)))))
    error = drawn.sample - pixels
    return error.abs().mean() + 2 * error.square().mean() + 1e-6 * posterior.kl().mean()


class Reader:
    """The frozen text tower of `tiny`: penultimate states [B, 77, W], pooled features [B, D]."""

    def __init__(self, folder: Path):
        self.encoder = transformers.CLIPTextModelWithProjection.from_pretrained(
            folder / "text_encoder_2"
        ).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer_2")

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids_BT = self.tokenizer(
            prompts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
        ).input_ids
        read = self.encoder(ids_BT, output_hidden_states=True)
        return read.hidden_states[-2], read.text_embeds


@torch.no_grad()
def latents_of(vae: diffusers.AutoencoderKL, scenes: list) -> torch.Tensor:
    """Latents [N, 16, 9, 9] with a deviation of about one, in half precision."""
    parts = [
        vae.encode(pixels_of(scenes[start : start + 100])).latent_dist.mean
        for start in range(0, len(scenes), 100)
    ]
    return (torch.cat(parts) * vae.config.scaling_factor).half()


def denoiser_loss(
    unet: nn.Module,
    read: Reader,
    scheduler: diffusers.DDPMScheduler,
    scenes: list,
    latents: torch.Tensor,
    rng: np.random.Generator,
) -> torch.Tensor:
    """The squared error of the predicted velocity (Salimans and Ho 2022) of noised latents."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    states_BTW, pooled_BD = read([prompt_of(scene, rng) for scene in scenes])
    kept_B = torch.rand(len(scenes), generator=generator) >= DROPPED  # SDXL's empty prompt is zeros
    states_BTW, pooled_BD = states_BTW * kept_B[:, None, None], pooled_BD * kept_B[:, None]
    noise = torch.randn(latents.shape, generator=generator)
    times_B = torch.randint(0, scheduler.config.num_train_timesteps, (len(scenes),),
                            generator=generator)  # fmt: skip
    noised = scheduler.add_noise(latents, noise, times_B)
    wanted = scheduler.get_velocity(latents, noise, times_B)
    size_and_crop = torch.tensor([[PIXELS, PIXELS, 0, 0, PIXELS, PIXELS]] * len(scenes)).float()
    known = {"text_embeds": pooled_BD, "time_ids": size_and_crop}
    found = unet(noised, times_B, states_BTW, added_cond_kwargs=known).sample
    return F.mse_loss(found, wanted)


def new_scheduler() -> diffusers.DPMSolverMultistepScheduler:
    return diffusers.DPMSolverMultistepScheduler(**NOISE, timestep_spacing="trailing")


def train(stage: str, steps: int, stop: int | None, resume: Path, folder: Path) -> float:
    """Train one part to `steps`, or this call to `stop`; returns the minutes that all calls took.

    The part that is kept is an average of the weights over about a thousand steps.
    """
    torch.manual_seed(0)
    model = new_vae() if stage == "vae" else new_denoiser()
    model = model.to(memory_format=torch.channels_last).train()
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    )
    optimizer = torch.optim.AdamW(model.parameters(), PEAK[stage], (0.9, 0.99), weight_decay=0.01)
    done, minutes = 0, 0.0
    if resume.exists():
        kept = torch.load(resume, weights_only=True)
        model.load_state_dict(kept["model"])
        average.load_state_dict(kept["average"])
        optimizer.load_state_dict(kept["optimizer"])
        done, minutes = kept["step"], kept["minutes"]
    if stage == "denoiser":
        vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae").eval()
        read, scheduler = Reader(folder), diffusers.DDPMScheduler(**NOISE)
        scenes, _ = scenes_of(stage, 0, SCENES)
        latents = latents_of(vae, scenes)
    began, told, losses = time.monotonic(), time.monotonic(), []

    def keep(step: int) -> None:
        states = {"model": model.state_dict(), "average": average.state_dict()}
        spent = minutes + (time.monotonic() - began) / 60
        with atomic_path(resume) as path:
            torch.save(
                {**states, "optimizer": optimizer.state_dict(), "step": step, "minutes": spent},
                path,
            )

    for step in range(done, min(steps, stop or steps)):
        rate = min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = PEAK[stage] * max(rate, 0.01)
        if stage == "vae":
            loss = vae_loss(model, *scenes_of(stage, step, SIZES[stage]))
        else:
            rng = np.random.default_rng((SEEDS[stage], step))
            rows = rng.integers(0, SCENES, SIZES[stage])
            drawn = [scenes[row] for row in rows]
            loss = denoiser_loss(model, read, scheduler, drawn, latents[rows].float(), rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            pace = 100 * SIZES[stage] / (time.monotonic() - told)
            print(f"step {step + 1} loss {np.mean(losses[-100:]):.4f}, {pace:.0f}/s", flush=True)
            told = time.monotonic()
        if (step + 1) % 500 == 0:
            keep(step + 1)
    keep(min(steps, stop or steps))
    part = average.module.eval()
    if stage == "vae":
        part.register_to_config(scaling_factor=scale_of(part))
    save_part(part, folder / ("vae" if stage == "vae" else "unet"))
    return minutes + (time.monotonic() - began) / 60


@torch.no_grad()
def scale_of(vae: diffusers.AutoencoderKL) -> float:
    """What brings the latents to a deviation of one."""
    scenes, _ = scenes_of("vae", 10**6, 500)
    return round(1 / vae.encode(pixels_of(scenes)).latent_dist.mean.std().item(), 4)


def save_part(part: nn.Module, folder: Path) -> None:
    copy.deepcopy(part).half().save_pretrained(folder)


def save_text_tower(folder: Path) -> None:
    """The text tower of `tiny` as a text encoder of transformers, and its words as a tokenizer.

    A word that the world does not have is an error there too.
    """
    clip = ll.load("tiny")
    weights = {n: t for n, t in clip.model.state_dict().items() if not n.startswith("visual.")}
    projection = weights.pop("text_projection")
    weights.pop("logit_scale")
    own, sizes = clip.tokenizer, clip.card["model_cfg"]["text_cfg"]
    config = transformers.CLIPTextConfig(
        vocab_size=own.vocab_size, hidden_size=sizes["width"], intermediate_size=4 * sizes["width"],
        num_hidden_layers=sizes["layers"], num_attention_heads=sizes["heads"],
        max_position_embeddings=LENGTH, projection_dim=clip.embed_dim, hidden_act="gelu",
        bos_token_id=own.start_id, eos_token_id=own.end_id, pad_token_id=own.pad_id,
    )  # fmt: skip
    encoder = transformers.CLIPTextModelWithProjection(config)
    renamed = prefixed(to_transformers(weights, TEXT), "text_model.")
    encoder.load_state_dict(renamed | {"text_projection.weight": projection.T})
    save_part(encoder, folder / "text_encoder_2")
    start, end, pad = "<start>", "<end>", "<pad>"
    ids = {pad: own.pad_id, **{word: i for i, word in enumerate(own.words, 1)}}
    ids |= {start: own.start_id, end: own.end_id}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, own.start_id), (end, own.end_id)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=start, eos_token=end, pad_token=pad,
        model_max_length=LENGTH,
    ).save_pretrained(folder / "tokenizer_2")  # fmt: skip


def pipeline_of(folder: Path) -> diffusers.StableDiffusionXLPipeline:
    """The parts of the folder as a pipeline, which is saved there."""
    read = Reader(folder)
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=diffusers.AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=None, text_encoder_2=read.encoder, tokenizer=None, tokenizer_2=read.tokenizer,
        unet=diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=new_scheduler(), add_watermarker=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as made:  # the folder's own files are of half precision
        pipe.save_pretrained(made)
        shutil.copy(Path(made) / "model_index.json", folder)
        shutil.copytree(Path(made) / "scheduler", folder / "scheduler", dirs_exist_ok=True)
    return pipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=["vae", "denoiser", "score"])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--stop", type=int, help="this call ends behind so many steps")
    parser.add_argument("--out", type=Path, default=HERE / "tiny-diffusion")
    parser.add_argument("--resume", type=Path, default=Path("runs"))
    options = parser.parse_args()
    options.resume.mkdir(parents=True, exist_ok=True)
    if options.stage in SIZES:
        kept = options.resume / f"diffusion-{options.stage}.pt"
        if options.stage == "denoiser":
            save_text_tower(options.out)
        minutes = train(options.stage, options.steps, options.stop, kept, options.out)
        print(f"{options.stage}: {minutes:.1f} minutes")
        if options.stage == "denoiser":
            pipeline_of(options.out)


if __name__ == "__main__":
    main()
