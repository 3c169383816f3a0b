"""All protocols by name.

Every picture set is held out: test pictures come from world.TEST_SEED, which no training set uses.
"""

from __future__ import annotations

from functools import lru_cache

from longclip_lab import world
from longclip_lab.data.benchmarks.protocol import (
    AS_WRITTEN,
    FIRST_LINE,
    ON_ONE_LINE,
    SUBCAPTIONS,
    Benchmark,
    Protocol,
)
from longclip_lab.errors import LabError, suggest

# --- Protocols of short captions: COCO and Flickr30k, each in the two ways that papers mean ---

_LONGCLIP = "github.com/beichenzbc/Long-CLIP"
_SPLITS = "wget https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
_FLICKR = (
    "fill in the form at https://shannon.cs.illinois.edu/DenotationGraph for the pictures, and "
    "unpack them into flickr30k-images"
)
_FLICKR_LICENCE = "for research, not for profit; the pictures under Flickr's terms"
_COCO_LICENCE = "CC BY 4.0 (captions); the pictures under Flickr's terms"

SHORT = (
    Protocol(
        name="coco-val2017-first5",
        task="retrieval",
        about="COCO's split of 2017, not Karpathy's: other pictures than coco-karpathy-5k. A few "
        "have six or seven captions; the first five count. val2017 was drawn from val2014, most of "
        "which Karpathy's splits use for training.",
        images="5,000 photographs of COCO's val2017",
        texts="the first five captions of each, by people",
        num_images=5000,
        num_texts=25_000,
        texts_per_image=5,
        split="val2017",
        users=("Long-CLIP",),
        get=(
            "wget http://images.cocodataset.org/zips/val2017.zip",
            "wget http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
            "unzip both in one folder",
        ),
        licence=_COCO_LICENCE,
        layout="val2017/*.jpg and annotations/captions_val2017.json",
        needs=(("annotations/captions_val2017.json", "captions_val2017.json"),),
        picture_folders=(("val2017",),),
        folders=("coco", "COCO", "coco2017"),
        contaminated_by=("coco/val2017", "coco/karpathy-train"),
        sources=(f"{_LONGCLIP}: eval/retrieval/coco.py", "cocodataset.org"),
        reader="coco",
        options={"first": 5},
    ),
    Protocol(
        name="coco-karpathy-5k",
        task="retrieval",
        about="Karpathy's test split with all its captions; some codes take the first five of each "
        "(25,000). LoTLIP's Table 1 says 5,000 pictures and 25,000 texts, not which. The split was "
        "drawn from val2014, 35,504 pictures of which are in train2017: who trains on train2017, "
        "as ShareGPT4V does, has seen most of these pictures.",
        images="5,000 photographs of COCO's val2014",
        texts="all captions of each, five to seven, by people",
        num_images=5000,
        num_texts=25_010,
        text_field="sentences[].raw",
        users=("CLIP_benchmark",),
        get=(
            f"{_SPLITS}; it has dataset_coco.json",
            "wget http://images.cocodataset.org/zips/val2014.zip",
            "unzip both in one folder",
        ),
        licence=_COCO_LICENCE,
        layout="dataset_coco.json and val2014/COCO_val2014_*.jpg",
        needs=(
            tuple(f"{folder}dataset_coco.json" for folder in ("", "annotations/", "karpathy/")),
        ),
        picture_folders=(("val2014",),),
        folders=("coco", "COCO", "coco2014"),
        contaminated_by=("coco/karpathy-test", "coco/train2017", "sharegpt4v"),
        sources=(
            "Karpathy and Li (CVPR 2015): dataset_coco.json",
            "huggingface.co/datasets/justram/COCO2014-Captions: 25,010 captions",
        ),
        reader="karpathy",
    ),
    Protocol(
        name="flickr30k-1k",
        task="retrieval",
        about="Karpathy's test split: what most papers call Flickr30k.",
        images="1,000 photographs of Flickr30k",
        texts="five captions of each, by people",
        num_images=1000,
        num_texts=5000,
        texts_per_image=5,
        text_field="sentences[].raw",
        users=("CLIP", "LoTLIP (Table 1)", "CLIP_benchmark"),
        get=(f"{_SPLITS}; it has dataset_flickr30k.json", _FLICKR),
        licence=_FLICKR_LICENCE,
        layout="dataset_flickr30k.json and flickr30k-images/*.jpg",
        needs=(("dataset_flickr30k.json", "karpathy/dataset_flickr30k.json"),),
        picture_folders=(("flickr30k-images", "flickr30k_images", "images"),),
        folders=("flickr", "flickr30k", "Flickr30k"),
        contaminated_by=("flickr30k/test",),
        sources=("Karpathy and Li (CVPR 2015): dataset_flickr30k.json",),
        reader="karpathy",
    ),
    Protocol(
        name="flickr30k-31k",
        task="retrieval",
        about="All of Flickr30k, thirty times the pool of flickr30k-1k: the scores are far lower "
        "and cannot be compared with it. The captions of this file are tokenised, with blanks "
        "before full stops.",
        images="all 31,783 photographs of Flickr30k",
        texts="five captions of each, by people",
        num_images=31_783,
        num_texts=158_915,
        texts_per_image=5,
        split="all",
        text_field="the line after the tab",
        users=("Long-CLIP", "TULIP (from another copy, results.csv)"),
        get=(
            "get results_20130124.token at "
            "https://shannon.cs.illinois.edu/DenotationGraph/data/index.html",
            _FLICKR,
        ),
        licence=_FLICKR_LICENCE,
        layout="results_20130124.token and flickr30k-images/*.jpg",
        needs=(("results_20130124.token", "flickr30k/results_20130124.token"),),
        picture_folders=(("flickr30k-images", "flickr30k_images", "images"),),
        folders=("flickr", "flickr30k", "Flickr30k"),
        contaminated_by=("flickr30k",),
        sources=(f"{_LONGCLIP}: eval/retrieval/flickr30k.py",),
        reader="flickr",
    ),
)


# --- Protocols of long texts, as their authors' code and files have them ---

_LONG_PROTOCOLS_LONGCLIP, _LOTLIP = "github.com/beichenzbc/Long-CLIP", "github.com/wuw2019/LoTLIP"
_DCI, _TULIP = "github.com/facebookresearch/DCI", "github.com/ivonajdenkoska/tulip"
_SAM = (
    "sign for SA-1B at https://ai.meta.com/datasets/segment-anything-downloads/ and download "
    "sa_000000.tar and the following ones"
)
_DCI_GET = (
    "wget https://dl.fbaipublicfiles.com/densely_captioned_images/dci.tar.gz",
    "tar xf dci.tar.gz, so that densely_captioned_images/splits.json is there",
    "sign for SA-1B at https://ai.meta.com/datasets/segment-anything-downloads/ and download "
    "sa_000138.tar, which has all of its pictures",
    "unpack its pictures into densely_captioned_images/photos",
)


def _urban(name: str, count: int, **facts) -> Protocol:
    return Protocol(
        name=name,
        task="retrieval",
        images=f"{count:,} pictures of cities that look alike",
        texts="one caption a picture, by GPT-4V",
        num_images=count,
        num_texts=count,
        texts_per_image=1,
        split="all",
        text_field="caption/N.txt",
        text_processing=FIRST_LINE,
        layout="image/1.jpg and so on, caption/1.txt and so on",
        needs=(("caption",),),
        picture_folders=(("image",),),
        reader="urban",
        **facts,
    )


def _dci(name: str, splits: list[str] | None, **facts) -> Protocol:
    return Protocol(
        name=name,
        task="retrieval",
        texts="one text a picture by people: short_caption, a line break, extra_caption",
        texts_per_image=1,
        text_field="short_caption and extra_caption",
        get=_DCI_GET,
        licence="CC BY-NC (texts); SA-1B's licence for research (pictures)",
        layout="densely_captioned_images/{splits.json, annotations/*.json, photos/*.jpg}",
        needs=tuple(
            tuple(f"{prefix}{name}" for prefix in ("densely_captioned_images/", ""))
            for name in ("splits.json", "annotations")
        ),
        picture_folders=(("densely_captioned_images/photos", "photos"),),
        folders=("DCI", "dci"),
        reader="dci",
        options={"splits": splits},
        **facts,
    )


def _sharegpt4v(name: str, count: int, files: tuple[str, ...], **facts) -> Protocol:
    return Protocol(
        name=name,
        task="retrieval",
        images=f"the first {count:,} entries of ShareGPT4V's captions, pictures of SA-1B",
        texts="one caption a picture, by ShareCaptioner",
        num_images=count,
        num_texts=count,
        texts_per_image=1,
        split=f"entries 0 to {count - 1:,}",
        text_field="conversations[1].value",
        licence="CC BY-NC 4.0 (texts); SA-1B's licence for research (pictures)",
        layout=f'{files[0]} and the pictures where its entries\' "image" says',
        needs=(files,),
        folders=("ShareGPT4V", "sharegpt4v", "sharegpt4v/data", "share4v"),
        reader="sharegpt4v",
        **facts,
    )


LONG = (
    _urban(
        "urban1k",
        1000,
        about="Long-CLIP's and LoTLIP's code read only the first line of a caption file. One "
        "public copy has an empty caption/592.txt: with it the benchmark is not whole.",
        users=(
            *("Long-CLIP (supplement, Table 1)", "TULIP", "FineLIP", "SmartCLIP", "Fix-CLIP"),
            *("HiMo-CLIP", "beta-CLIP", "DeBias-CLIP", "HyFL-CLIP"),
        ),
        get=(
            "download Urban-1k.zip from https://huggingface.co/datasets/BeichenZhang/Urban1k",
            "unzip Urban-1k.zip, so that Urban1k/image and Urban1k/caption are there",
        ),
        licence="CC BY-NC 4.0",
        folders=("Urban1k", "Urban-1k", "urban1k"),
        sources=(
            f"{_LONG_PROTOCOLS_LONGCLIP}: eval/retrieval/Urban1k.py",
            f"{_LOTLIP}: dataloaders/urban1k.py",
        ),
    ),
    _urban(
        "urban200",
        200,
        about="The smaller set of Long-CLIP's main paper; Urban-1k was made in the same way. Its "
        "authors have released Urban-1k only, so this is for a folder of your own in that layout.",
        users=("Long-CLIP (main paper)",),
        get=(
            "not released: make a folder of 200 pictures and captions in Urban-1k's layout",
            "call it Urban200, or give its path",
        ),
        licence="yours",
        folders=("Urban200", "Urban-200", "urban200"),
        sources=("Long-CLIP's supplement, section 1",),
    ),
    _sharegpt4v(
        "sharegpt4v-1k",
        1000,
        ("share-captioner_coco_lcs_sam_1246k_1107.json", "share4v_sam_10k.json"),
        about="Long-CLIP's validation set: its training takes the entries from the 1,000th on. "
        "LoTLIP's code joins sub-captions instead (see sharegpt4v-10k).",
        text_processing=ON_ONE_LINE,
        users=("Long-CLIP", "LoTLIP (Table 4)", "TULIP (line breaks as written)"),
        get=(
            "download share-captioner_coco_lcs_sam_1246k_1107.json from "
            "https://huggingface.co/datasets/Lin-Chen/ShareGPT4V",
            _SAM,
            "unpack the pictures that the entries name, into sam/images beside the file",
        ),
        contaminated_by=("sharegpt4v/all", "sharegpt4v/val"),
        sources=(
            f"{_LONG_PROTOCOLS_LONGCLIP}: train/sharegpt4v.py",
            f"{_TULIP}: eval/sharegpt4v.py",
        ),
    ),
    _sharegpt4v(
        "sharegpt4v-10k",
        10_000,
        ("share4v_sam_10k.json", "share-captioner_coco_lcs_sam_1246k_1107.json"),
        about="9,000 of its pictures are in Long-CLIP's training set. LoTLIP keeps the entries in "
        "a file of its own, share4v_sam_10k.json, with the pictures in SA-1B's folders. Its page "
        "says that they are the first 10,000 of the large file; this was not checked.",
        text_processing=SUBCAPTIONS,
        users=("LoTLIP (Tables 2 to 5)",),
        get=(
            f"take dataloaders/share4v/share4v_sam_10k.json from {_LOTLIP}",
            _SAM,
            "unpack them beside the file, so that its entries' pictures are there",
        ),
        contaminated_by=("sharegpt4v",),
        sources=(f"{_LOTLIP}: EVAL_DATASETS.md, dataloaders/share4v.py",),
    ),
    _dci(
        "dci-full",
        None,
        about="All three splits of DCI, as LoTLIP scores it. Not Long-DCI, and not DCI's own test.",
        images="all 7,805 pictures of DCI (SA-1B)",
        num_images=7805,
        num_texts=7805,
        split="train, valid and test",
        text_processing=SUBCAPTIONS,
        users=("LoTLIP (Tables 1 to 5)",),
        contaminated_by=("dci",),
        sources=(f"{_LOTLIP}: dataloaders/dci_retrieval.py, Table 1", f"{_DCI}: README.md"),
    ),
    Protocol(
        name="long-dci",
        task="retrieval",
        about="DCI's extra captions alone, without those that are empty and without the short "
        "captions. TULIP publishes the script that makes the table, not the table.",
        images="7,602 pictures of DCI (SA-1B), those with an extra caption",
        texts="one extra caption a picture, as people wrote them",
        num_images=7602,
        num_texts=7602,
        texts_per_image=1,
        split="train, valid and test",
        text_field="title (DCI's extra_caption)",
        users=("TULIP",),
        get=(
            *_DCI_GET,
            f"make dci_long.csv with open_clip/data_prep/dci_long_part.py of {_TULIP}, and put it "
            "beside photos or into it",
        ),
        licence="CC BY-NC (texts); SA-1B's licence for research (pictures)",
        layout="dci_long.csv (columns filepath and title, parted by tabs), and the pictures "
        "beside it or in photos/",
        needs=(("dci_long.csv", "densely_captioned_images/dci_long.csv"),),
        picture_folders=(("photos", "densely_captioned_images/photos", "."),),
        folders=("dci_long", "long-dci", "DCI"),
        contaminated_by=("dci",),
        sources=(f"{_TULIP}: eval/dci_long.py, open_clip/data_prep/dci_long_part.py",),
        reader="long-dci",
    ),
    _dci(
        "dci-test",
        ["test"],
        about="The pictures of DCI's test split as whole-picture retrieval. DCI's own test is "
        "another task, on crops and summaries. DCI's page and ImageInWords count 112 pictures; "
        "a count of splits.json gave 108. Either is taken as whole, and a record has the number.",
        images="the test split of DCI (SA-1B)",
        num_images=112,
        num_texts=112,
        also_counted=(108,),
        split="test",
        text_processing=AS_WRITTEN,
        users=("DCI (another task)",),
        contaminated_by=("dci/test",),
        sources=(f"{_DCI}: README.md, dense_image.py",),
    ),
    Protocol(
        name="iiw",
        task="retrieval",
        about="The three parts of ImageInWords with people's descriptions. LoTLIP's preparation "
        "takes the picture called train_... where a test_... is not there; here it is missing.",
        images="100 of DOCCI's test, 400 of DOCCI-AAR, 112 of DCI's test",
        texts="one description a picture, by people",
        num_images=612,
        num_texts=612,
        texts_per_image=1,
        split="DOCCI_Test, IIW-400, DCI_Test",
        text_field="IIW",
        text_processing=SUBCAPTIONS,
        users=("LoTLIP (Tables 1 to 5)",),
        get=(
            "git clone https://github.com/google/imageinwords: datasets/ holds the texts",
            "wget https://storage.googleapis.com/docci/data/docci_images.tar.gz and "
            ".../docci_images_aar.tar.gz",
            "copy DOCCI's test pictures into docci/, the AAR ones into docci_aar/",
            "copy DCI's pictures (see dci-full) into dci/",
        ),
        licence="CC BY 4.0 (texts and DOCCI); SA-1B's licence for research (DCI's pictures)",
        layout="{DOCCI_Test,IIW-400,DCI_Test}/data.jsonl and pictures in docci/, docci_aar/, dci/",
        needs=tuple(
            (f"{part}/data.jsonl", f"datasets/{part}/data.jsonl")
            for part in ("DOCCI_Test", "IIW-400", "DCI_Test")
        ),
        picture_folders=(("docci",), ("docci_aar",), ("dci",)),
        folders=("imageinwords", "iiw", "IIW"),
        contaminated_by=("dci", "docci/test", "docci-aar"),
        sources=(
            f"{_LOTLIP}: dataloaders/iiw_retrieval.py, dataloaders/imageinwords/data_preprocess.py",
            "github.com/google/imageinwords: datasets/*/README.md",
        ),
        reader="imageinwords",
    ),
    Protocol(
        name="docci",
        task="retrieval",
        about="DOCCI's test split. HiMo-CLIP's HiMo-DOCCI is a set of its own, with other texts.",
        images="5,000 photographs of DOCCI's test split",
        texts="one description a picture, by people",
        num_images=5000,
        num_texts=5000,
        texts_per_image=1,
        text_field="description",
        users=("DOCCI",),
        get=(
            "wget https://storage.googleapis.com/docci/data/docci_descriptions.jsonlines",
            "wget https://storage.googleapis.com/docci/data/docci_images.tar.gz",
            "tar xf docci_images.tar.gz, so that images/test_00000.jpg is there",
        ),
        licence="CC BY 4.0",
        layout="docci_descriptions.jsonlines and images/*.jpg",
        needs=(("docci_descriptions.jsonlines",),),
        picture_folders=(("images",),),
        folders=("docci", "DOCCI"),
        contaminated_by=("docci/test",),
        sources=(
            "google.github.io/docci",
            "huggingface.co/datasets/google/docci: docci.py, README",
        ),
        reader="docci",
    ),
)


# --- Protocols of zero-shot classification: ImageNet and its kin, CIFAR ---

_CLASS_PROTOCOLS_LONGCLIP = "github.com/beichenzbc/Long-CLIP"
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
        else (f"{_CLASS_PROTOCOLS_LONGCLIP}: eval/classification/cifar", _OPEN_CLIP),
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
        sources=(f"{_CLASS_PROTOCOLS_LONGCLIP}: eval/classification/imagenet", _OPEN_CLIP),
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


# --- The drawn world's own benchmarks: nothing to download, the same pictures everywhere ---

POOL = 1000
"""Pictures in a pool of the world. R@1 at 1,000 has a standard error of up to 1.6 points."""
SIBLINGS = 4
"""Pictures of the long captions' pool that share a summary and differ only in details."""

_SCENES = f"{POOL:,} pictures of the drawn world, seed {world.TEST_SEED}"


def _drawn(name: str, **facts) -> Protocol:
    return Protocol(
        name=f"world/{name}",
        num_images=POOL,
        users=("longclip_lab",),
        get=("nothing to download: it is drawn when it is opened",),
        licence="Apache-2.0, as this library",
        layout="none",
        sources=("longclip_lab.world",),
        reader="drawn",
        **facts,
    )


def _attribute(attribute: str) -> Protocol:
    names = tuple(world.classes(attribute))
    return _drawn(
        attribute,
        task="classification",
        about="Zero-shot: one large or medium thing a picture.",
        images=f"{_SCENES}, of single things",
        texts=f"the {len(names)} classes of the world's {attribute}, templates averaged",
        num_texts=len(names) * len(world.TEMPLATES),
        text_field="class name",
        prompts="world",
        classes=f"world {attribute}",
        options={"set": "single", "attribute": attribute},
    )


DRAWN = (
    _drawn(
        "long-retrieval",
        task="retrieval",
        about=f"{SIBLINGS} pictures share each summary: who reads only that is right one time in "
        f"{SIBLINGS}.",
        images=f"{_SCENES}, {SIBLINGS} with each summary",
        texts="one long caption a picture, 100 to 200 tokens",
        num_texts=POOL,
        texts_per_image=1,
        text_field="long",
        options={"set": "siblings"},
    ),
    _drawn(
        "short-retrieval",
        task="retrieval",
        about="Every summary is unique.",
        images=_SCENES,
        texts="one summary a picture",
        num_texts=POOL,
        texts_per_image=1,
        text_field="captions",
        options={"set": "pairs"},
    ),
    _attribute("kind"),
    _attribute("colour"),
)


def open_drawn(protocol: Protocol) -> Benchmark:
    """The benchmark of one of `DRAWN`."""
    if protocol.task == "classification":
        single = _single()
        return Benchmark(
            protocol,
            single.images,
            labels=single.labels[protocol.options["attribute"]],
            class_names=protocol.class_names,
            templates=protocol.templates,
            source=dict(single.source),
        )
    siblings = protocol.options["set"] == "siblings"
    pairs = _pairs(SIBLINGS if siblings else 1)
    return Benchmark(
        protocol,
        pairs.images,
        texts=list(pairs.long if siblings else pairs.short),
        image_of_text=list(range(len(pairs))),
        source=dict(pairs.source),
    )


@lru_cache(maxsize=2)
def _pairs(siblings: int) -> world.WorldPairs:
    return world.pairs(POOL, seed=world.TEST_SEED, siblings=siblings)


@lru_cache(maxsize=1)
def _single() -> world.SingleObjects:
    return world.single_objects(POOL, seed=world.TEST_SEED)


# --- All protocols by name ---

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol for protocol in (*LONG, *SHORT, *CLASSIFICATION, *DRAWN)
}


def get_protocol(name: str) -> Protocol:
    """The protocol of a benchmark. Raises LabError for an unknown name, with near ones.

    >>> get_protocol("urban-1k")
    Traceback (most recent call last):
    longclip_lab.errors.LabError: There is no benchmark 'urban-1k'. Did you mean urban1k...
    """
    if name not in PROTOCOLS:
        raise LabError(f"There is no benchmark {name!r}. {suggest(name, PROTOCOLS)}")
    return PROTOCOLS[name]
