"""Protocols of long texts, as their authors' code and files have them."""

from __future__ import annotations

from longclip_lab.data.benchmarks.protocol import Protocol
from longclip_lab.data.benchmarks.texts import AS_WRITTEN, FIRST_LINE, ON_ONE_LINE, SUBCAPTIONS

_LONGCLIP, _LOTLIP = "github.com/beichenzbc/Long-CLIP", "github.com/wuw2019/LoTLIP"
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
        sources=(f"{_LONGCLIP}: eval/retrieval/Urban1k.py", f"{_LOTLIP}: dataloaders/urban1k.py"),
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
        sources=(f"{_LONGCLIP}: train/sharegpt4v.py", f"{_TULIP}: eval/sharegpt4v.py"),
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
