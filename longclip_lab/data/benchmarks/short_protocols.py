"""Protocols of short captions: COCO and Flickr30k, each in the two ways that papers mean."""

from __future__ import annotations

from longclip_lab.data.benchmarks.protocol import Protocol

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
