"""Views to play with in JupyterLab; `longclip_lab.views` offers them by the same names.

They need ipywidgets and anywidget, which are an extra: nothing here is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import Any

from longclip_lab.errors import LabError

WIDGETS = {
    "TokenExplorer": "token_explorer",
    "ReadingCut": "reading_cut",
    "Stretcher": "stretcher",
    "Components": "components",
    "CounterfactualBrowser": "counterfactual_browser",
    "SearchBox": "search_box",
}
"""Every widget and its module here."""

_EXTRA = {"anywidget", "ipywidgets", "traitlets", "IPython"}


def __getattr__(name: str) -> Any:
    if name not in WIDGETS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{WIDGETS[name]}")
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        raise LabError(
            f"{name} needs the package {error.name}: pip install 'longclip-lab[notebooks]'"
        ) from error
    return getattr(module, name)
