"""Write what the benchmarks measured into book/speed.md.

    OMP_NUM_THREADS=1 make bench | tee runs/bench.jsonl   # a JSON object for each
    OMP_NUM_THREADS=1 python benchmarks/views.py >> runs/bench.jsonl   # one of them again
    python benchmarks/busy_machine.py >> runs/bench.jsonl   # not with one thread
    python book/update_speed.py

What runs/bench.jsonl holds replaces those benchmarks' objects in book/records/speed.jsonl; the
page's blocks between marks are made of that file and of the scripts' first lines.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longclip_lab.errors import LabError
from longclip_lab.files import atomic_write

ROOT = Path(__file__).parent.parent
PAGE, RECORD = ROOT / "book" / "speed.md", ROOT / "book" / "records" / "speed.jsonl"
SHOWN = re.compile(
    r"ratio|goal|difference|error|peak|slowest|over|implied|beyond|per_second|^seconds$"
)


def merged(kept: str, printed: str) -> dict[str, dict]:
    """Each benchmark's newest object, by the name of its script (and tower)."""
    decoder = json.JSONDecoder(parse_float=lambda digits: float(f"{float(digits):.3g}"))
    objects: dict[str, dict] = {}
    for text in (kept, printed):
        start = text.find("{")
        while start >= 0:
            found, end = decoder.raw_decode(text, start)
            parts = (found.get("benchmark", "world_drawing"), found.get("tower"), found.get("work"))
            objects[" ".join(filter(None, parts))] = _short(found)
            start = text.find("{", end)
    return dict(sorted(objects.items()))


def _short(found: dict) -> dict:
    """Of the views the slowest move of each model; every move is what the script prints."""
    if found.get("benchmark") != "views":
        return found
    results = {
        model: {name: value for name, value in of_model.items() if name != "views"}
        for model, of_model in found["results"].items()
    }
    return {**found, "results": results}


def table(objects: dict[str, dict]) -> str:
    """One row a benchmark: what is compared, and the numbers that say how it came out."""
    lines = ["| `benchmarks/` | what is compared | found |", "|---|---|---|"]
    for name, found in objects.items():
        script = ROOT / "benchmarks" / f"{name.split()[0]}.py"
        about = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))).split("\n")[0]
        numbers = "; ".join(f"{place} {value}" for place, value in leaves(found))
        lines.append(f"| `{name}` | {about} | {numbers} |")
    return "\n".join(lines)


def leaves(value: Any, place: str = "", shown: bool = False) -> Iterator[tuple[str, Any]]:
    """The numbers to show, each with where it stands."""
    if isinstance(value, dict):
        for key, one in value.items():
            where = f"{place} {key}".strip().replace("_", " ")
            nested = isinstance(one, dict) and key == "seconds"  # both sides': the ratio says it
            yield from leaves(one, where, not nested and (shown or bool(SHOWN.search(key))))
    elif isinstance(value, list):
        for one in value:
            if isinstance(one, dict):
                yield from leaves(one, f"{place} {one.get('context_length', '')}".strip(), shown)
    elif shown:
        yield place.removeprefix("results "), value


def busy_table(objects: dict[str, dict]) -> str:
    """Wall and processor time of each setting, alone and beside busy processes."""
    lines = ["| work | busy processes | threads | wall, s | processor, s |", "|---" * 5 + "|"]
    for found in objects.values():
        if found.get("benchmark") == "busy_machine":
            lines += [
                f"| {found['work']} | {row['busy']} | {row['setting']} | {row['wall']} | "
                f"{row['processor']} |"
                for row in found["seconds"]
            ]
    return "\n".join(lines)


def replace_block(text: str, name: str, content: str) -> str:
    """Put `content` between the marks of a block. Raises LabError if the marks are missing."""
    pattern = re.compile(rf"(<!-- {name}[^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise LabError(f"{PAGE.name} has no block '{name}': put its two marks back.")
    return pattern.sub(lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text)


def main() -> None:
    printed = ROOT / "runs" / "bench.jsonl"
    objects = merged(
        RECORD.read_text(encoding="utf-8") if RECORD.exists() else "",
        printed.read_text(encoding="utf-8") if printed.exists() else "",
    )
    atomic_write(RECORD, "".join(json.dumps(found) + "\n" for found in objects.values()))
    text = PAGE.read_text(encoding="utf-8")
    others = {k: v for k, v in objects.items() if v.get("benchmark") != "busy_machine"}
    text = replace_block(text, "benchmarks", table(others))
    atomic_write(PAGE, replace_block(text, "busy", busy_table(objects)))


if __name__ == "__main__":
    main()
