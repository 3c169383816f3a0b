"""The search box in JupyterLab: a query is answered when it is typed, and nothing is loaded."""

from __future__ import annotations

MAKE = """
import pathlib, tempfile
from PIL import Image
import longclip_lab as ll

clip, pairs = ll.load("tiny"), ll.world.pairs(24)
home = pathlib.Path(tempfile.mkdtemp())
(home / "pictures").mkdir()
for n, values in enumerate(pairs.images):
    Image.fromarray(values).save(home / "pictures" / f"{n:02}.png")
index = ll.search.index(clip, home / "pictures", home / "cache")
ll.views.widgets.SearchBox(index, [pairs.short[3], pairs.long[3], pairs.short[5]])
"""


def test_a_query_is_searched_when_it_is_typed(run_notebook):
    notebook = run_notebook(MAKE, until=".lc-panel .lc-found img")
    first = notebook.find(".lc-panel .lc-found li .name").first
    first.get_by_text("03.png").wait_for()
    notebook.find(".lc-panel select").first.select_option(index=1)
    notebook.find(".lc-panel .mark").get_by_text("77 positions end here").wait_for()
    notebook.screenshot("search-box", ".lc-panel")
    box = notebook.find(".lc-panel textarea")
    box.fill("A xylophone.")
    notebook.page.keyboard.press("Tab")
    notebook.find(".lc-panel .error").get_by_text("not a word of the drawn world").wait_for()
    notebook.find(".lc-panel select").first.select_option(index=2)
    notebook.find(".lc-panel .lc-found li .name").first.get_by_text("05.png").wait_for()
    notebook.check_requests()
