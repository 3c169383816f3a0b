"""Write the benchmarks' protocols into book/benchmarks.md.

    python book/update_benchmarks.py

The page's block between the marks is made of longclip_lab.data.PROTOCOLS.
"""

from __future__ import annotations

import re
from pathlib import Path

from longclip_lab.data import PROTOCOLS, Protocol, get_protocol
from longclip_lab.errors import LabError
from longclip_lab.files import atomic_write

PAGE = Path(__file__).parent / "benchmarks.md"
MARKS = re.compile(r"(<!-- benchmarks[^>]*-->\n).*?(<!-- /benchmarks -->)", re.DOTALL)

ONE_NAME = {
    "DCI": ("dci-full", "long-dci", "dci-test"),
    "Flickr30k": ("flickr30k-1k", "flickr30k-31k"),
    "COCO": ("coco-val2017-first5", "coco-karpathy-5k"),
    "ShareGPT4V": ("sharegpt4v-1k", "sharegpt4v-10k"),
    "CIFAR-100": ("cifar100", "cifar100-own"),
}
"""What papers call by one name."""


def overview() -> str:
    """One line a benchmark."""
    lines = [
        "| benchmark | task | pictures | texts | split | who reports on it |",
        "|---|---|---|---|---|---|",
    ]
    for protocol in PROTOCOLS.values():
        link = f"[`{protocol.name}`](#{anchor(protocol.name)})"
        lines.append(
            f"| {link} | {protocol.task} | {protocol.num_images:,} | {protocol.num_texts:,} | "
            f"{protocol.split} | {', '.join(protocol.users)} |"
        )
    return "\n".join(lines)


def anchor(name: str) -> str:
    return "benchmark-" + name.replace("/", "-")


def told_apart() -> str:
    """For each name with several meanings, what differs from the first of them."""
    lines = ["| called | here | what differs |", "|---|---|---|"]
    for called, (first, *others) in ONE_NAME.items():
        lines.append(f"| {called} | `{first}` | |")
        for name in others:
            differences = get_protocol(first).differences(get_protocol(name))
            lines.append(f"| | `{name}` | {'; '.join(differences)} |")
    return "\n".join(lines)


def section(protocol: Protocol) -> str:
    """All facts of a protocol."""
    facts = {
        "pictures": protocol.images,
        "texts": protocol.texts,
        "where the text stands": protocol.text_field,
        "what is done to it": protocol.text_processing,
        "preprocessing": protocol.preprocess,
        "equal scores": protocol.tie,
        "layout": f"`{protocol.layout}`",
        "pictures are also in": ", ".join(protocol.contaminated_by),
        "licence": protocol.licence,
        "sources": "; ".join(protocol.sources),
    }
    steps = [f"{number}. {step}" for number, step in enumerate(protocol.get, 1)]
    parts = [
        f"({anchor(protocol.name)})=\n### {protocol.name}",
        protocol.about,
        "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts.items() if v)]),
        "\n".join(["How to get it:", "", *steps]),
    ]
    return "\n\n".join(parts)


def page_block() -> str:
    """Everything between the marks."""
    sections = [section(protocol) for protocol in PROTOCOLS.values()]
    return "\n\n".join(
        [
            overview(),
            "## One name, several benchmarks",
            "What differs from the first of each name, in this order: the first against the other.",
            told_apart(),
            "## Every protocol",
            *sections,
        ]
    )


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if not MARKS.search(page):
        raise LabError(f"{PAGE.name} has no block 'benchmarks': put its two marks back.")
    block = page_block()
    atomic_write(PAGE, MARKS.sub(lambda match: f"{match[1]}\n{block}\n\n{match[2]}", page))


if __name__ == "__main__":
    main()
