"""Protocols of zero-shot classification: ImageNet and its kin, CIFAR."""

from __future__ import annotations

from longclip_lab.data.benchmarks.protocol import Protocol

_LONGCLIP = "github.com/beichenzbc/Long-CLIP"
_CLIP_PROMPTS = "github.com/openai/CLIP: data/prompts.md"
_OPEN_CLIP = "open_clip: IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES"
_TEMPLATES, _CIFAR_TEMPLATES = 80, 18
_MD5 = {
    "cifar10": "40351d587109b95175f43aff81a1287e",
    "cifar100": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}
"""Of the test batches for Python, as torchvision has them."""


def _imagenet(name: str, classes: int, count: int, **facts) -> Protocol:
    return Protocol(
        name=name,
        task="classification",
        texts=f"CLIP's names of {classes:,} classes in its {_TEMPLATES} templates, averaged",
        num_images=count,
        num_texts=classes * _TEMPLATES,
        text_field="class name",
        prompts="imagenet",
        classes="imagenet",
        reader="folders",
        **facts,
    )


def _cifar(number: int, own: bool, about: str, users: tuple[str, ...]) -> Protocol:
    name = f"cifar{number}"
    file = "cifar-10-batches-py/test_batch" if number == 10 else "cifar-100-python/test"
    count = _CIFAR_TEMPLATES if own else _TEMPLATES
    return Protocol(
        name=f"{name}-own" if own else name,
        task="classification",
        about=about,
        images=f"10,000 pictures of 32 x 32 pixels, CIFAR-{number}'s test batch",
        texts=f"{number} class names in {count} templates, averaged",
        num_images=10_000,
        num_texts=number * count,
        text_field="class name",
        prompts="cifar" if own else "imagenet",
        classes=name if own or number == 10 else f"{name} with underscores",
        users=users,
        get=(
            f"wget https://www.cs.toronto.edu/~kriz/cifar-{number}-python.tar.gz",
            f"tar xf cifar-{number}-python.tar.gz",
        ),
        licence="none stated; cite Krizhevsky (2009)",
        layout=file,
        needs=((file,),),
        folders=(name, f"cifar-{number}"),
        sources=(_CLIP_PROMPTS,)
        if own
        else (f"{_LONGCLIP}: eval/classification/cifar", _OPEN_CLIP),
        reader="cifar",
        options={
            "md5": _MD5[name],
            "labels": "labels" if number == 10 else "fine_labels",
        },
    )


CLASSIFICATION = (
    _imagenet(
        "imagenet",
        1000,
        50_000,
        about="Class names as open_clip carries them, from CLIP's notebook. Long-CLIP's code has a "
        "copy of that list.",
        images="50,000 photographs of ILSVRC 2012's validation",
        split="val",
        users=("Long-CLIP", "LoTLIP"),
        get=(
            "sign up at https://image-net.org and download ILSVRC2012_img_val.tar",
            "unpack it into val/ and sort the pictures into folders of classes (valprep.sh of "
            "github.com/soumith/imagenetloader.torch)",
        ),
        licence="for research, not for profit (image-net.org's terms)",
        layout="val/n01440764/*.JPEG and so on, 1,000 folders",
        needs=(("val", "validation", "ILSVRC2012_img_val"),),
        folders=("imagenet", "ImageNet", "imagenet1k"),
        sources=(f"{_LONGCLIP}: eval/classification/imagenet", _OPEN_CLIP),
        options={"per_class": 50},
    ),
    _imagenet(
        "imagenet-v2",
        1000,
        10_000,
        about="The variant matched-frequency; papers that say only ImageNet-V2 mean it as a rule. "
        "Folders are called by the label's number: sorted as text, 10 comes before 2, and the "
        "score is near zero.",
        images="10,000 new photographs for ImageNet's classes, matched-frequency",
        users=("Long-CLIP", "LoTLIP's code"),
        get=(
            "wget https://imagenetv2public.s3-us-west-2.amazonaws.com/"
            "imagenetv2-matched-frequency.tar.gz",
            "tar xf imagenetv2-matched-frequency.tar.gz",
        ),
        licence="MIT (github.com/modestyachts/ImageNetV2)",
        layout="imagenetv2-matched-frequency-format-val/0/*.jpeg to .../999/*.jpeg",
        needs=(("imagenetv2-matched-frequency-format-val", "ImageNetV2-matched-frequency"),),
        folders=("imagenet-v2", "imagenetv2", "ImageNetV2"),
        sources=("CLIP_benchmark: imagenetv2.py", "github.com/modestyachts/ImageNetV2", _OPEN_CLIP),
        options={"numbers": True, "per_class": 10},
    ),
    _imagenet(
        "imagenet-o",
        200,
        2000,
        about="Pictures of things that are in none of ImageNet's classes, made to test detectors "
        "of outliers; as classification, a picture's label is the one of 200 classes that it was "
        "mistaken for. Long-CLIP reports an accuracy without code; this is CLIP_benchmark's way, "
        "the 200 classes alone.",
        images="2,000 photographs of ImageNet-O",
        users=("Long-CLIP", "CLIP_benchmark"),
        get=(
            "wget https://people.eecs.berkeley.edu/~hendrycks/imagenet-o.tar",
            "tar xf imagenet-o.tar",
        ),
        licence="MIT (github.com/hendrycks/natural-adv-examples)",
        layout="imagenet-o/n01443537/*.JPEG and so on, 200 folders",
        needs=(("imagenet-o",),),
        folders=("imagenet-o", "imagenet"),
        sources=("CLIP_benchmark: builder.py", "github.com/hendrycks/natural-adv-examples"),
        options={"only_present": True, "classes": 200},
    ),
    _cifar(10, False, "With ImageNet's 80 templates, as Long-CLIP's code has it.", ("Long-CLIP",)),
    _cifar(
        100,
        False,
        "With ImageNet's 80 templates and underscores in class names (aquarium_fish), as "
        "Long-CLIP's code has it.",
        ("Long-CLIP",),
    ),
    _cifar(10, True, "With CLIP's own templates for it.", ("CLIP", "CLIP_benchmark")),
    _cifar(100, True, "With CLIP's own templates and names for it.", ("CLIP", "CLIP_benchmark")),
)
