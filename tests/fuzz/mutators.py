"""Changes to files as users meet them: damaged, renamed, resaved elsewhere, or made in bad faith.

Every function takes a `random.Random` first, and does the same for the same state of it.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n"
HEADS = [LFS_POINTER, b"<!DOCTYPE html><html>", b"\x1f\x8b\x08\0", b"\x80\x04K\x01.", b"PK\x03\x04"]
ODD_TEXTS = [
    *("", " ", "\n", "\0", "a\0b", "\ufeffa", "\u202egpj.a", "a\u2028b", "a\rb", "e\u0301"),
    *(
        "\U0001f6a2",
        "\ud800",
        "\udcff",
        "a" * 300,
        "red " * 3000,
        "<|endoftext|> boat",
        "&amp;amp;",
    ),
    *("‘boat’", "%s{0}", "nan", "-1", "1e400", "1_000", "٣", "True", "null", "[]", "../../x.png"),
    *("/etc/passwd", "C:\\a.png", "./0.png", "a//0.png", "0.png/", "https://example.org/0.png"),
    *("~/0.png", "0.png\n", "._0.png"),
]
NUMBERS = [torch.int8, torch.float16, torch.bfloat16, torch.float64, torch.bool]


class Raw(str):
    """JSON that is written as it stands, which no encoder would write."""


class Twice(dict):
    """An object whose first key is written twice."""


ODD_JSON = [
    *(Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e400"), Raw("9" * 4400), Raw("01")),
    *(Raw("[" * 3000 + "]" * 3000), Raw('{"a":' * 3000 + "1" + "}" * 3000), Raw("'a'")),
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, 2**31, 2**63, -(2**64), 10**30),
    *([], {}, [None], [[]], [1, "a"], {"a": None}, {"": 1}),
]


def dump(value: Any) -> str:
    """JSON in which `Raw` and `Twice` stand as they are meant."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        items = list(value.items())
        items += items[:1] if isinstance(value, Twice) else []
        return "{" + ", ".join(f"{json.dumps(str(k))}: {dump(v)}" for k, v in items) + "}"
    return f"[{', '.join(map(dump, value))}]" if isinstance(value, list) else json.dumps(value)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in nested lists and objects."""
    keys = value if isinstance(value, dict) else ()
    keys = range(len(value)) if isinstance(value, list) else keys
    return [(value, key) for key in keys] + [one for key in keys for one in places(value[key])]


def odd_value(rng: Random, value: Any = None) -> Any:
    """A value that nobody expects in place of `value`."""
    made = [copy.deepcopy(rng.choice(ODD_JSON)), rng.choice(ODD_TEXTS)]
    made += [[value], {"value": value}, str(value)]
    if isinstance(value, int | float):
        made += [-value, value + 1, value * 1000, float(value) + 0.5]
    if isinstance(value, str):
        made += [value.upper(), value[: len(value) // 2], value + rng.choice(ODD_TEXTS), value * 2]
    return rng.choice(made)


def json_value(rng: Random, value: Any) -> Any:
    """A nested value with one to three things changed: values, keys, order, doubles, losses."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        spots = places(value)
        if not spots or rng.random() < 0.02:
            return odd_value(rng, value)
        holder, key = rng.choice(spots)
        how = rng.randrange(8)
        if how < 3:
            holder[key] = odd_value(rng, holder[key])
        elif how == 3:
            del holder[key]
        elif how == 4 and isinstance(holder, list):
            holder.insert(rng.randint(0, len(holder)), copy.deepcopy(holder[key]))
        elif how == 5 and isinstance(holder, list):
            rng.shuffle(holder)
        elif how == 6 and isinstance(holder, dict):
            name = rng.choice([*ODD_TEXTS, "from", "id", "extra", str(key).upper()])
            holder[name] = holder.pop(key)
        else:
            other, at = rng.choice(spots)
            taken = copy.deepcopy(other[at])
            holder[key] = Twice(taken) if isinstance(taken, dict) else taken
    return value


def text_file(rng: Random, text: str) -> bytes:
    """A text as other programs and systems save it; or damaged."""
    plain = text.encode("utf-8", "surrogatepass")
    ends = rng.choice(["\r", "\r\n", "\n\n", "\u2028", "\x0b"]).encode()
    return plain if rng.random() < 0.7 else rng.choice([
        b"\xef\xbb\xbf" + plain, plain.replace(b"\n", ends), damaged(rng, plain),
        text.encode(rng.choice(["utf-16", "utf-16-le", "utf-32"]), "surrogatepass"),
        text.encode(rng.choice(["latin-1", "cp1252", "cp437"]), "replace"),
        plain + rng.choice([b"\n", b",", b"\x1a", plain, b"\0", b"# end"]),
    ])  # fmt: skip


def json_file(rng: Random, content: bytes) -> bytes:
    """A JSON file, changed by its structure, its letters or its bytes."""
    return text_file(rng, dump(json_value(rng, json.loads(content))))


def json_lines(rng: Random, content: bytes) -> bytes:
    """JSON lines, of which one is changed, doubled, lost or moved."""
    lines = content.decode().splitlines() or ["{}"]
    at, how = rng.randrange(len(lines)), rng.randrange(6)
    if how == 0:
        lines.insert(at, rng.choice([rng.choice(lines), "", "null", "# note", "{}"]))
    elif how == 1:
        del lines[at]
    else:
        lines[at] = dump(json_value(rng, json.loads(lines[at])))
    return text_file(rng, "\n".join(lines) + rng.choice(["\n", "\n", ""]))


def table(rng: Random, content: bytes) -> bytes:
    """A CSV or TSV, changed by its header, its cells, its shape or its bytes."""
    text = content.decode()
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    row, at, how = rng.choice(rows), rng.randrange(len(rows[0])), rng.randrange(8)
    if how == 0:
        row.append(rng.choice(row))
    elif how == 1:
        del row[at]
    elif how == 2:
        rows[0][at] = rng.choice([*ODD_TEXTS, *rows[0], rows[0][at].lower()])
    elif how == 3:
        rows.insert(rng.randint(0, len(rows)), rng.choice([row, [], rows[0]]))
    elif how == 4:
        rng.shuffle(rows)
    else:
        row[at] = rng.choice([*ODD_TEXTS, *row, '"', "a\nb", "=1+1", "a" * 140_000])
    file = io.StringIO()
    quoting = rng.choice([csv.QUOTE_MINIMAL] * 4 + [csv.QUOTE_ALL, csv.QUOTE_NONE])
    form = {"delimiter": rng.choice([delimiter] * 5 + [";", "|"]), "escapechar": "\\"}
    csv.writer(file, quoting=quoting, **form).writerows(rows)
    return text_file(rng, file.getvalue())


def damaged(rng: Random, content: bytes) -> bytes:
    """Bytes cut short, flipped, lost, doubled, overwritten or with another file's beginning."""
    at, to = sorted((rng.randint(0, len(content)), rng.randint(0, len(content))))
    to = min(to, at + rng.choice([1, 4, 64, 10**9]))
    flipped = bytearray(content)
    for _ in range(rng.choice([1, 1, 4, 30]) if content else 0):
        # Heads decide more than bodies: half of the flips go there.
        place = rng.randrange(rng.choice([len(flipped), min(128, len(flipped))]))
        flipped[place] ^= 1 << rng.randrange(8)
    other = [b"", b"\0", LFS_POINTER, b"null", b"\n", rng.randbytes(200)]
    return rng.choice([
        bytes(flipped), bytes(flipped), content[:at], content[:at] + content[to:],
        content[:to] + content[at:], content[:at] + bytes(to - at) + content[to:],
        content[:at] + rng.randbytes(rng.choice([1, 8, 100])) + content[to:],
        rng.choice(HEADS) + content[rng.choice([0, at]) :], rng.choice(other),
    ])  # fmt: skip


MODES = {
    "PNG": "1 L LA P RGB RGBA I;16", "JPEG": "L RGB CMYK", "WEBP": "RGB RGBA", "GIF": "L P",
    "BMP": "1 L P RGB RGBA", "TIFF": "1 L LA P RGB RGBA CMYK YCbCr LAB I;16 I F",
    "AVIF": "RGB RGBA", "JPEG2000": "L RGB", "ICO": "RGB RGBA", "PPM": "1 L RGB I;16",
    "TGA": "L RGB RGBA", "PCX": "L RGB", "DDS": "RGB RGBA", "MPO": "RGB", "EPS": "RGB",
    "PDF": "RGB",
}  # fmt: skip
"""What Pillow writes of each format."""
SUFFIXES = [*".png .jpg .JPEG .jfif .webp .gif .bmp .tif .avif .txt".split(), ""]  # noqa: SIM905
NAMES = ["a", "._a", "a.b.c", "-a", "a'&<b>", "b\u0300", "\u202ea", "\udce9t", "a\nb", "ein Boot"]
SIZES = [(32, 32), (48, 20), (1, 1), (1, 300), (300, 1), (16, 16)]


def picture(rng: Random) -> bytes:
    """A picture of any format, depth, size, orientation and metadata; half of them damaged."""
    form = rng.choice([*MODES, "PNG", "JPEG", "JPEG", "WEBP"])
    mode, size = rng.choice(MODES[form].split()), rng.choice(SIZES)
    image = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
    if mode in ("I;16", "I", "F"):
        numbers = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        deep = np.asarray(image)[..., 0].astype(numbers) * numbers(rng.choice([1, 257]))
        if mode == "F" and rng.random() < 0.3:
            deep[0, 0] = rng.choice([np.nan, np.inf])
        image = Image.fromarray(deep)
    elif mode == "LAB":
        image = Image.frombytes("LAB", size, image.tobytes())
    else:
        image = image.convert("RGBA").convert(mode) if mode == "LA" else image.convert(mode)
    options: dict[str, Any] = {}  # none for AVIF: Pillow 13 dies of damaged metadata when it writes
    if form in ("PNG", "JPEG", "WEBP", "TIFF", "MPO") and rng.random() < 0.5:
        options["exif"] = _exif(rng)
    if form in ("GIF", "WEBP", "PNG", "TIFF", "MPO") and rng.random() < 0.3:
        options |= {"save_all": True, "append_images": [image.rotate(90 * i) for i in range(1, 4)]}
    if form in ("PNG", "JPEG", "TIFF", "WEBP") and rng.random() < 0.2:
        options["icc_profile"] = rng.randbytes(rng.choice([0, 3, 200]))
    file = io.BytesIO()
    try:
        image.save(file, form, **options)
    except Exception:  # Pillow writes less than it reads; then the plain picture
        file = io.BytesIO()
        image.convert("RGB").save(file, "PNG")
    content = file.getvalue()
    if content.startswith(b"\x89PNG") and rng.random() < 0.2:
        content = _png_header(rng, content)
    return damaged(rng, content) if rng.random() < 0.5 else content


def _exif(rng: Random) -> bytes:
    """Metadata with a possible or impossible orientation; every other damaged."""
    exif = Image.Exif()
    exif[0x0112] = rng.choice([*range(10), 65535])
    exif[rng.choice([0x010E, 0x9286, 0x0131])] = rng.choice(["boat", "é" * 50])
    content = exif.tobytes()
    return content if rng.random() < 0.5 else content[:6] + damaged(rng, content[6:])


def _png_header(rng: Random, content: bytes) -> bytes:
    """Another size, depth or colour in the head, with a checksum that fits: a bomb, or nonsense."""
    size = rng.choice([(0, 0), (60_000, 60_000), (2**31 - 1, 1), (9_000, 9_000), (32, 33)])
    forms = [content[24:29], bytes([16, 2, 0, 0, 0]), bytes([1, 3, 0, 0, 0]), rng.randbytes(5)]
    head = b"IHDR" + struct.pack(">II", *size) + rng.choice(forms)
    return content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:]


def picture_name(rng: Random) -> str:
    return rng.choice(NAMES) + rng.choice(SUFFIXES)


def tensors(rng: Random, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A state dict with tensors lost, renamed, reshaped, of other numbers; or wrapped."""
    weights = dict(weights)
    for _ in range(rng.choice([0, 1, 1, 2])):
        name = rng.choice(list(weights))
        value, how = weights[name], rng.randrange(8)
        number = rng.choice([float("nan"), float("inf"), 0.0, 1e30])
        if how == 0:
            del weights[name]
        elif how == 1:
            names = ["extra", "visual.x", name + ".0", "positional_embedding_res", *weights]
            weights[rng.choice(names)] = weights.pop(name)
        else:
            weights[name] = rng.choice([
                value[: len(value) // 2] if value.ndim else value.reshape(1), value[None],
                value.mT.contiguous() if value.ndim > 1 else value.reshape(-1, 1),
                value.to(rng.choice(NUMBERS)), torch.full_like(value, number, dtype=torch.float32),
                torch.zeros((0, *value.shape[1:])), torch.cat([value.reshape(-1)] * 2),
            ])  # fmt: skip
    if rng.random() < 0.1:
        form = rng.choice(NUMBERS)
        weights = {name: value.to(form) for name, value in weights.items()}
    fronts = ["module.", "_orig_mod.", "model.", "clip.", "state_dict."]
    for front in rng.sample(fronts, rng.choice([0, 0, 1, 2])):
        weights = {front + name: value for name, value in weights.items()}
    return weights


def checkpoint(rng: Random, weights: dict[str, torch.Tensor]) -> tuple[str, bytes]:
    """Changed weights in a file, by torch in both its forms or by safetensors: suffix, content."""
    weights = tensors(rng, weights)
    how = rng.choice(["zip", "zip", "old", "safetensors", "safetensors"])
    if how == "safetensors":
        content = save({name: value.contiguous().clone() for name, value in weights.items()})
        content = safetensors_header(rng, content) if rng.random() < 0.3 else content
    else:
        keys = ["state_dict", "model", "model_state_dict", "module", "ema", "net", ""]
        whole: Any = weights
        for key in rng.sample(keys, rng.choice([0, 0, 1, 2])):
            whole = {key: whole, rng.choice(["epoch", "args"]): rng.choice([3, None, "a", {}])}
        if rng.random() < 0.05:
            whole = rng.choice([[], {}, 3, torch.zeros(3), {"a": 1}, [weights], None])
        file = io.BytesIO()
        torch.save(whole, file, _use_new_zipfile_serialization=how == "zip")
        content = file.getvalue()
        content = archive(rng, content) if how == "zip" and rng.random() < 0.2 else content
    content = damaged(rng, content) if rng.random() < 0.2 else content
    suffix = ".safetensors" if how == "safetensors" else rng.choice([".pt", ".pth", ".bin"])
    wrong = rng.choice([".pt", ".SAFETENSORS", ".safetensors", "", ".txt", ".ckpt"])
    return (wrong if rng.random() < 0.15 else suffix), content


def safetensors_header(rng: Random, content: bytes) -> bytes:
    """safetensors whose head says something else: shapes, offsets, types, lengths."""
    size = int.from_bytes(content[:8], "little")
    head = text_file(rng, dump(json_value(rng, json.loads(content[8 : 8 + size]))))
    wrong = rng.choice([0, 2**63 - 1, 2**64 - 1, len(head) + 1])
    length = len(head) if rng.random() < 0.8 else wrong
    return length.to_bytes(8, "little") + head + content[8 + size :]


def archive(rng: Random, content: bytes) -> bytes:
    """A zip with a member lost, renamed, compressed, changed or doubled."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    at = rng.randrange(len(members))
    name, inner = members[at]
    members[at : at + 1] = rng.choice([
        [], [("a/../../x", inner)], [(name, damaged(rng, inner))], [(name + "x", inner)],
        [(name, inner), ("constants.pkl", b"\x80\x02].")], [(name, b"")],
    ])  # fmt: skip
    file = io.BytesIO()
    packing = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(file, "w", packing) as made:
        for name, inner in members:
            made.writestr(name, inner)
    return file.getvalue()


def tar(rng: Random, content: bytes) -> bytes:
    """A tar with members lost, doubled, renamed, moved, changed or of another kind."""
    with tarfile.open(fileobj=io.BytesIO(content)) as file:
        members = [(info.name, file.extractfile(info).read(), tarfile.REGTYPE) for info in file]
    for at in sorted(rng.sample(range(len(members)), rng.choice([1, 1, 2])), reverse=True):
        name, inner, kind = members[at]
        stem, _, suffix = name.rpartition(".")
        if suffix == "json" and rng.random() < 0.6:
            members[at] = (name, json_file(rng, inner), kind)
            continue
        other = rng.choice([stem, f"{stem}.txt", f"{stem}.PNG", "../" + name, "é" * 120 + name])
        members[at : at + 1] = rng.choice([
            [], [members[at]] * 2, [(other, inner, kind)], [(other, inner, kind)],
            [(name, damaged(rng, inner), kind)], [(name, picture(rng), kind)],
            [(name, b"", tarfile.SYMTYPE)], [(name, b"", tarfile.DIRTYPE)],
        ])  # fmt: skip
    if rng.random() < 0.2:
        rng.shuffle(members)
    file = io.BytesIO()
    form, mode = (
        rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
        rng.choice(["w"] * 4 + ["w:gz"]),
    )
    with tarfile.open(fileobj=file, mode=mode, format=form) as made:
        for name, inner, kind in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(inner), kind, "/etc/passwd"
            made.addfile(info, io.BytesIO(inner))
    return file.getvalue()


CHANGES = {
    ".json": json_file, ".jsonl": json_lines, ".jsonlines": json_lines, ".csv": table,
    ".tsv": table, ".tar": tar, ".safetensors": safetensors_header,
}  # fmt: skip


def any_file(rng: Random, path: Path) -> None:
    """Change a file in place by what it is; or lose it, or put a folder in its place."""
    content, fate = path.read_bytes(), rng.random()
    if fate < 0.03:
        path.unlink()
        if fate < 0.01:
            path.mkdir()
    elif path.suffix in (".txt", ".token"):
        path.write_bytes(text_file(rng, content.decode() + rng.choice(ODD_TEXTS)))
    elif path.suffix in (".jpg", ".png", ".webp"):
        path.write_bytes(picture(rng))
    else:
        change = CHANGES.get(path.suffix, damaged) if rng.random() < 0.85 else damaged
        path.write_bytes(change(rng, content))


def folder(rng: Random, home: Path, pattern: str = "*") -> None:
    """Change one or two of the files below `home`."""
    files = sorted(path for path in home.rglob(pattern) if path.is_file())
    for path in rng.sample(files, min(len(files), rng.choice([1, 1, 1, 2]))):
        any_file(rng, path)
