"""Faithfulness on photographs with boxes: COCO's instances, from the file to the command."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from longclip_lab import attribution, data, models, views
from longclip_lab.attribution.faithfulness import pointing_scores
from longclip_lab.attribution.grounding import patch_shares
from longclip_lab.attribution.maps import PatchMap
from longclip_lab.cli import main
from longclip_lab.errors import LabError

SPLIT = "val2017"
CATEGORIES = {1: "boat", 2: "cup", 3: "car", 4: "traffic light"}
THINGS = [  # picture, category, box (x, y, width, height), crowd
    (0, 1, (40, 20, 30, 40), 0),
    (0, 2, (110, 60, 20, 20), 0),
    (0, 2, (60, 80, 15, 15), 0),
    (0, 3, (2, 2, 20, 10), 0),  # left of the centre crop
    (1, 1, (20, 30, 50, 40), 0),
    (1, 3, (60, 90, 30, 20), 1),
    (1, 4, (10, 100, 20, 40), 0),
    (2, 3, (0, 0, 100, 100), 0),  # its picture is not on disk
    (3, 2, (40, 20, 100, 100), 0),
    (3, 1, (10, 10, 30, 30), 0),
]
SIZES = [(160, 100), (100, 160), (100, 100), (150, 150)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    (root / SPLIT).mkdir()
    rng = np.random.default_rng(0)
    for number in (0, 1, 3):
        width, height = SIZES[number]
        noise = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / SPLIT / f"{number}.jpg")
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(4)],
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
        "annotations": [
            {
                "image_id": i,
                "category_id": c,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": crowd,
            }
            for i, c, box, crowd in THINGS
        ],
    }
    (root / "annotations" / f"instances_{SPLIT}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def clip():
    return models.load("tiny")


def test_a_photograph_that_exif_turns_is_left_out_by_name(root, clip, tmp_path):
    home = tmp_path / "coco"
    shutil.copytree(root, home)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(home / SPLIT / "3.jpg") as opened:
        opened.save(home / SPLIT / "3.jpg", exif=exif)
    asked = attribution.photographed_things(clip, data.coco_boxes(home), 4)
    assert asked.skipped["turned by EXIF, so that its boxes are uncertain"] == ["3.jpg"]
    assert len(asked.images) == 2


def test_boxes_are_read_by_picture_and_category(root):
    boxed = data.coco_boxes(root)
    assert [path.name for path in boxed.images] == ["0.jpg", "1.jpg", "3.jpg"]
    boat, cups, car = boxed.things[0]
    assert (boat.category, boat.boxes, boat.size) == ("boat", ((40, 20, 70, 60),), "medium")
    assert (len(cups.boxes), cups.size, car.size) == (2, "small", "small")
    assert boxed.skipped == {
        "category marked as a crowd": ["1.jpg: car"],
        "missing picture": ["2.jpg"],
    }
    assert boxed.source["pictures"] == 3


def test_what_the_model_cannot_see_or_read_is_named(clip, root):
    questions = attribution.photographed_things(clip, data.coco_boxes(root), n=10)
    assert questions.skipped["outside the centre crop"] == ["0.jpg: car"]
    assert questions.skipped["word unknown to the model"] == ["1.jpg: traffic light"]
    assert set(questions.texts) <= {f"a picture of a {name}." for name in ("boat", "cup", "car")}
    assert len(questions) == 5
    assert questions.images.shape == (3, 72, 72, 3)


def test_boxes_lie_where_the_model_sees_the_thing(clip, root):
    questions = attribution.photographed_things(clip, data.coco_boxes(root), n=10)
    (box,) = questions.answers[0]  # the boat of picture 0: crop from x = 30, scaled by .72
    assert np.allclose(box, (7.2, 14.4, 28.8, 43.2), atol=0.6)
    maps = [
        PatchMap("box", "none", image, patch_shares(boxes, (9, 9), 72))
        for image, boxes in zip(questions.asked(), questions.answers, strict=True)
    ]
    scores = pointing_scores("box", questions, maps)
    (pointing,) = [s for s in scores if (s.criterion, s.size) == ("pointing", "all")]
    assert pointing.value == 1


def test_unusable_files_are_refused(root, tmp_path):
    with pytest.raises(LabError, match="Did you mean val2017"):
        data.coco_boxes(root, "val2071")
    (tmp_path / "annotations").mkdir()
    (tmp_path / SPLIT).mkdir()
    path = tmp_path / "annotations" / f"instances_{SPLIT}.json"
    wrong = {"no JSON": "is not JSON", '{"images": []}': 'no list "categories"', "[]": "JSON list"}
    for content, said in wrong.items():
        path.write_text(content)
        with pytest.raises(LabError, match=said):
            data.coco_boxes(tmp_path)
    path.write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(LabError, match="no picture with a boxed thing"):
        data.coco_boxes(tmp_path)


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        ("images", {"id": 0}, r"images\[1\] repeats the image id 0"),
        ("images", {"file_name": "./0.jpg"}, r"repeats the file 0\.jpg"),
        ("images", {"file_name": "../../secret.jpg"}, "leads out of the picture folder"),
        ("images", {"file_name": "..\\secret.jpg"}, "leads out of the picture folder"),
        ("images", {"file_name": "/etc/a.jpg"}, "leads out of the picture folder"),
        ("images", {"file_name": None}, r'images\[1\] has no file\'s name under "file_name"'),
        ("categories", {"name": None}, r'categories\[1\] has no text under "name"'),
        ("categories", {"id": 1}, "repeats the category id 1"),
        ("annotations", {"image_id": 9}, r"annotations\[1\] is of the image id 9"),
        ("annotations", {"category_id": 9}, "category id 9, which is not listed"),
        ("annotations", {"bbox": None}, 'no list of 4 numbers under "bbox"'),
        ("annotations", {"bbox": [1, 2, 3]}, "no list of 4 numbers"),
        ("annotations", {"bbox": [1, 2, 3, "4"]}, "no list of 4 numbers"),
        ("annotations", {"bbox": [1, 2, 3, 10**400]}, "no list of 4 numbers"),
        ("annotations", {"bbox": [1, 2, -3, 4]}, "below zero"),
        ("annotations", {"area": None}, 'no number under "area"'),
        ("annotations", {"area": float("nan")}, "it holds NaN"),
    ],
)
def test_what_would_put_a_box_on_another_picture_is_named(root, tmp_path, part, values, said):
    content = json.loads((root / "annotations" / f"instances_{SPLIT}.json").read_text())
    content[part][1] |= values
    (tmp_path / "annotations").mkdir()
    (tmp_path / SPLIT).mkdir()
    path = tmp_path / "annotations" / f"instances_{SPLIT}.json"
    path.write_text(json.dumps(content))
    with pytest.raises(LabError, match=said):
        data.coco_boxes(tmp_path)


def test_boxes_with_a_number_that_python_cannot_hold(root, tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / SPLIT).mkdir()
    path = tmp_path / "annotations" / f"instances_{SPLIT}.json"
    path.write_text('{"images": [' + "1" * 4400 + "]}")
    with pytest.raises(LabError, match="cannot be read"):
        data.coco_boxes(tmp_path)


def test_the_command_on_photographs_writes_record_and_table(root, tmp_path, capsys):
    arguments = ["faithfulness", "tiny", "--data", "coco", "--root", str(root), "--no-progress"]
    arguments += ["--methods", "similarity-gain", "rollout", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "| similarity-gain |" in said
    assert "left out, outside the centre crop: 1\n  0.jpg: car" in said
    record = json.loads((tmp_path / "out" / "faithfulness.json").read_text())
    assert record["facts"]["questions"]["patches"]["skipped"]["missing picture"] == ["2.jpg"]
    assert (tmp_path / "out" / "faithfulness.md").read_text().startswith("**Maps on patches")


def test_the_command_prints_one_json_object_that_draws(capsys):
    arguments = ["faithfulness", "tiny", "--n", "8", "--methods", "relevance", "--json"]
    assert main([*arguments, "--no-progress"]) == 0
    result = attribution.Faithfulness.from_dict(json.loads(capsys.readouterr().out))
    assert result.sides() == ["patches", "tokens"]
    chart = result.plot()
    assert "relevance" in chart.layout.title.text.lower()
    assert result.of("patches", "relevance")["pointing"].value * 100 in [t.x[0] for t in chart.data]
    tokens = views.faithfulness_figure(result, "tokens", "deletion")
    assert len(tokens.to_json()) < 30_000
    with pytest.raises(LabError, match="No scores of 'centre' for tokens"):
        result.plot(side="tokens", criterion="centre")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--methods relevence", "Did you mean relevance"),
        ("--data coco", "--root"),
        ("--root here", "--data coco"),
        ("--n 1", "at least 4 pictures"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, message, capsys):
    assert main(["faithfulness", "tiny", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
