"""The systems whose weights the lab takes or gives: one entry each, the rows of the docs' table.

What was verified on each is not written here: tests record it, see `compatibility` in
tests/models/conftest.py, and `python book/update_formats.py` makes the table of what they recorded.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """One system's weights, and through which doors they go.

    At least one of `load` and `export` is given. `waits_for` names the real weights that nobody
    has put through the door yet.
    """

    title: str
    load: str | None
    """The call that takes such weights in."""
    export: str | None
    """The call that gives such weights out."""
    waits_for: str

    @property
    def directions(self) -> tuple[str, ...]:
        """ "in", "out" or both: every one needs a test that records a difference."""
        doors = {"in": self.load, "out": self.export}
        return tuple(name for name, call in doors.items() if call is not None)


SYSTEMS: dict[str, System] = {
    "openai": System(
        "OpenAI CLIP, `.pt`",
        "load(FILE)",
        'export(clip, FILE, "openai")',
        "RN50 to RN50x64, ViT-B/32 to ViT-L/14@336px as OpenAI released them",
    ),
    "longclip": System(
        "Long-CLIP, `.pt`",
        "load(FILE)",
        'export(clip, FILE, "longclip")',
        "longclip-B.pt, longclip-L.pt, the 336-pixel and B/32 variants",
    ),
    "open_clip": System(
        "open_clip: its names with a file of weights, and folders in its layout",
        "load(NAME, pretrained=FILE), load(FOLDER)",
        'export(clip, FOLDER, "open_clip")',
        "tags and hub ids, which need a network",
    ),
    "siglip": System(
        "SigLIP through open_clip",
        'load("ViT-B-16-SigLIP", pretrained="webli"), load(FOLDER)',
        'export(clip, FOLDER, "open_clip")',
        "Google's weights and their tokenizers, which need a network",
    ),
    "transformers": System(
        "transformers' `CLIPModel`",
        "load(FOLDER), load(HUB_ID)",
        'export(clip, FOLDER, "transformers")',
        "openai/clip-vit-base-patch32 to -large-patch14-336, conversions of Long-CLIP",
    ),
    "transformers-text": System(
        "transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`",
        "models.load_text_tower(FOLDER)",
        'export(tower, FOLDER, "transformers")',
        "text encoders on the hub",
    ),
    "diffusers": System(
        "the text encoders of diffusers' pipelines",
        "models.load_text_tower(PIPELINE)",
        'export(clip, FOLDER, "diffusers")',
        "Stable Diffusion 1.5, 2.1 and XL, FLUX",
    ),
    "declip": System(
        "DeCLIP, training states of its release",
        "load(FILE)",
        None,
        "the ViT-B/32 states of Sense-GVT/DeCLIP (88M and YFCC)",
    ),
    "align": System(
        "ALIGN through transformers (adapter)",
        "load(FOLDER)",
        None,
        "kakaobrain/align-base",
    ),
    "blip": System(
        "BLIP, the head for contrast, its own files and transformers' folders (adapter)",
        "load(FILE), load(FOLDER)",
        None,
        "model_base_retrieval_coco.pth and its kin, Salesforce/blip-itm-base-coco",
    ),
    "ptp-blip": System(
        "PTP-BLIP, which has BLIP's layout (adapter)",
        "load(FILE)",
        None,
        "Pretrain_concated_pred_4m.pth, coco_retrieval_ft_4m.pth of sail-sg/ptp",
    ),
    "x-vlm": System(
        "X-VLM with a Swin, the unimodal heads (adapter)",
        "load(FILE)",
        None,
        "4m_base_model_state_step_199999.th, the 16M and retrieval states of zengyan-97/X-VLM",
    ),
    "x2-vlm": System(
        "X2-VLM with a BEiT-2, the unimodal heads (adapter)",
        "load(FILE)",
        None,
        "the base and large states of zengyan-97/X2-VLM",
    ),
}
"""By the name under which tests record them."""
