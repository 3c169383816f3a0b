"""The package as a whole: light to import, rooms in order, small modules, a wheel with its data."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import longclip_lab
from tests.structure import (
    CORE,
    EXPLAINED,
    LEAST_COMMENTS,
    LIMITS,
    circles,
    comments_per_100_lines,
    hops,
    imports,
    sources,
)

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "longclip_lab"
MODULES = sorted(PACKAGE.rglob("*.py"))
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))

ROOMS = [  # bottom to top
    *("text", "world", "models", "objectives", "data", "training", "evaluation", "probing"),
    "recaptioning",
    *("attribution", "search", "views", "generation", "reproduction", "cli"),
]

VENDORED = {  # sha256 of the files in the npm packages that book/README.md names
    "embed-amd.js": "ca87dff57c70ffb2658794fde0eab0e27e5f5472a1f5df7ab2b08e1039fc4b72",
    "require.js": "c1fc6b1d53af7522f78d664922abb32acac64ed0ecccb8f907f1e6fc7262563a",
    "tex-svg-full.js": "a4354ff94fd868aea0cc6eaaa79a57fda0588646fc46ee3700a349ee0a11cbe6",
}


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _run(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_import_is_light():
    heavy = ["torch", "open_clip", "transformers", "timm", "plotly", "pandas", "numpy", "PIL"]
    code = f"import sys, longclip_lab; print([name for name in {heavy} if name in sys.modules])"
    assert _run(sys.executable, "-c", code).strip() == "[]"


def test_the_first_figure_pays_for_nothing_else():
    """scipy.stats and plotly's renderers, with their nbformat, take seconds of a first cell."""
    unneeded = ["scipy.stats", "nbformat", "pandas", "sklearn", "captum", "webdataset", "IPython"]
    code = (
        "import sys, longclip_lab as ll; clip = ll.load('tiny'); "
        "ll.probe.effective_length(clip, ll.world.pairs(4)).plot(); "
        f"print([name for name in {unneeded} if name in sys.modules])"
    )
    assert _run(sys.executable, "-c", code).strip() == "[]"


@pytest.mark.parametrize("name", longclip_lab.__all__)
def test_every_public_name_is_there(name):
    assert getattr(longclip_lab, name) is not None
    assert name in dir(longclip_lab)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = longclip_lab.lod


def _imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name.split(".")[1] for name in names if name.startswith("longclip_lab.")}


def test_a_room_imports_only_from_rooms_below():
    upward = []
    for path in MODULES:
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room in ROOMS:
            imported = _imported(ast.parse(path.read_text(encoding="utf-8")))
            above = imported & set(ROOMS[ROOMS.index(room) + 1 :])
            upward += [f"{_name(path)} imports {name}" for name in sorted(above)]
    assert upward == []


def test_nothing_imports_in_a_circle():
    assert circles(imports(sources())) == []


@pytest.mark.parametrize("name", CORE)
def test_the_papers_parts_have_addresses(name):
    room, module = name.split(".")
    importlib.import_module(f"longclip_lab.{name}")
    assert hasattr(getattr(longclip_lab, room), module)


def test_the_ways_through_the_library_are_short():
    """How many modules a reader opens who follows a caption, a file or a benchmark."""
    ways = {what: sorted(by) for what, by in hops().items()}
    assert {what: by for what, by in ways.items() if len(by) > LIMITS[what]} == {}


@pytest.mark.parametrize("room", EXPLAINED)
def test_the_code_says_why(room):
    assert comments_per_100_lines(sources(), room) >= LEAST_COMMENTS


def test_modules_and_functions_fit_the_page():
    too_long = []
    for path in MODULES:
        source = path.read_text(encoding="utf-8")
        if len(source.splitlines()) > 800:  # a file tells one story
            too_long.append(_name(path))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 80:
                too_long.append(f"{_name(path)}: {node.name}")
    assert too_long == []


def test_the_wheel_carries_the_bundled_data_and_nothing_unneeded(tmp_path):
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    data = {path.relative_to(ROOT / "data") for path in (ROOT / "data").rglob("*.*")}
    wanted = {f"longclip_lab/_bundled/{path.as_posix()}" for path in data if path.suffix != ".py"}
    assert {name for name in wanted if "__pycache__" not in name} <= packed
    assert {_name(path) for path in PACKAGE.glob("text/vocabularies/*")} <= packed
    assert {_name(path) for path in PACKAGE.glob("views/widgets/static/*")} <= packed
    assert {_name(path) for path in PACKAGE.glob("*/templates/*")} <= packed
    folders = {name.split("/")[0] for name in packed}
    assert folders == {"longclip_lab", f"longclip_lab-{longclip_lab.__version__}.dist-info"}
    assert not [name for name in packed if name.startswith("longclip_lab/_bundled/train")]


def test_vendored_scripts_are_the_published_ones():
    vendor = ROOT / "book" / "assets" / "vendor"
    found = {name: hashlib.sha256((vendor / name).read_bytes()).hexdigest() for name in VENDORED}
    assert found == VENDORED


def test_the_book_lists_every_lesson():
    contents = (ROOT / "book" / "_toc.yml").read_text(encoding="utf-8")
    listed = [line.split("lessons/")[1] for line in contents.splitlines() if "lessons/" in line]
    assert listed == [path.stem for path in LESSONS]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lessons_run_on_any_python_3_kernel(path):
    lesson = json.loads(path.read_text(encoding="utf-8"))
    assert lesson["metadata"]["kernelspec"]["name"] == "python3"
