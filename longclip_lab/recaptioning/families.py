"""Which image-to-text models describe pictures, and in which words each is asked.

LoTLIP's three (its section 4.1) by name, and any other model through its own chat template. What
the paper states of its recaptioning is the three models and the prompt; which of their weights
and which settings of generation it used, it does not say.
"""

from __future__ import annotations

from dataclasses import dataclass

from longclip_lab.errors import LabError, suggest

PROMPT = "Describe the image in detail."
"""LoTLIP's section 4.1, following DreamLIP."""

_VICUNA = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)


@dataclass(frozen=True)
class Family:
    """A kind of captioner.

    `label` is the name under which published sets file its captions (`data.Columns`), or "" for
    the model's own; `model_types` are those of transformers' configurations that it fits;
    `template` holds "{image}" where the picture stands and "{prompt}" where the prompt does, or is
    "" where the model's own chat template is used.
    """

    label: str
    model_types: tuple[str, ...]
    template: str
    about: str

    def question(self, prompt: str, image_token: str) -> str:
        """What the model reads.

        >>> FAMILIES["llava"].question("What is it?", "<image>")
        'USER: <image>\\nWhat is it? ASSISTANT:'
        """
        return self.template.replace("{image}", image_token).replace("{prompt}", prompt)


FAMILIES = {
    "instructblip": Family(
        "InstructBLIP",
        ("instructblip",),
        "{prompt}",
        "reads the bare prompt, in its Q-Former as well; Salesforce/instructblip-vicuna-7b",
    ),
    "llava": Family(
        "LLaVA",
        ("llava",),
        "USER: {image}\n{prompt} ASSISTANT:",
        "the format of transformers' documentation for LLaVA 1.5; llava-hf/llava-1.5-7b-hf",
    ),
    "sharegpt4v": Family(
        "ShareGPT4V",
        ("llava",),
        _VICUNA + " USER: {image}\n{prompt} ASSISTANT:",
        "LLaVA 1.5's architecture, asked in the conversation that public code around "
        "ShareGPT4V-7B uses (LLaVA's llava_v1). Its own code names share4v_v0 and share4v_v1; "
        "their text was not at hand, nor which of them LoTLIP used. The published weights are in "
        "the layout of LLaVA's first code: convert them to transformers' first",
    ),
    "chat": Family("", (), "", "any other image-text-to-text model, by its own chat template"),
}


def family_of(model_type: str, wanted: str | None = None) -> str:
    """The name of the family of a model: the wanted one, or the first that fits.

    ShareGPT4V has the architecture of LLaVA, so it has to be asked for.
    Raises LabError for an unknown family, and for one of another architecture.

    >>> family_of("llava"), family_of("llava", "sharegpt4v"), family_of("qwen3_vl")
    ('llava', 'sharegpt4v', 'chat')
    """
    if wanted is None:
        return next((name for name, f in FAMILIES.items() if model_type in f.model_types), "chat")
    if wanted not in FAMILIES:
        raise LabError(f"There is no captioner {wanted!r}. {suggest(wanted, FAMILIES)}")
    fits = FAMILIES[wanted].model_types
    if fits and model_type not in fits:
        raise LabError(
            f"The captioner {wanted} is asked as a model of the type {' or '.join(fits)}; this "
            f"one is a {model_type}. Leave --captioner out, or give chat for its own template."
        )
    return wanted
