"""`longclip-lab`, also as `python -m longclip_lab`: Ctrl-C is one line from the first import on."""

from __future__ import annotations

import sys


def main() -> int:
    """As `longclip_lab.cli.main`, which takes half a second to import."""
    try:
        from longclip_lab.cli import main as command_line
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return command_line()


if __name__ == "__main__":
    sys.exit(main())
