"""View 1 in JupyterLab: what is pointed at lights up the other side."""

from __future__ import annotations

CELL = """
import longclip_lab as ll

pairs = ll.world.pairs(3, seed=5)
ll.views.TokenExplorer(ll.load("tiny"), pairs.images, pairs.long)
"""

_LIT = """nodes => nodes.map(node => +node.style.getPropertyValue("--lit"))"""


def lit(notebook, kind: str) -> list[float]:
    return notebook.find(f".lc-explorer .{kind}").evaluate_all(_LIT)


def says(notebook, text: str) -> None:
    notebook.find(".lc-explorer .status").get_by_text(text).wait_for()


def test_pointing_and_keys_light_up_the_other_side(run_notebook):
    notebook = run_notebook(CELL, until=".lc-explorer .patch")
    says(notebook, "The whole text lights up row")
    whole = lit(notebook, "patch")
    assert len(whole) == 36
    assert max(whole) == 1

    notebook.find(".lc-explorer .word").get_by_text("cup", exact=True).first.hover()
    says(notebook, "“cup” lights up")
    assert lit(notebook, "patch") != whole
    notebook.screenshot("token-explorer-word")

    notebook.find(".lc-explorer .patch").nth(14).click()
    says(notebook, "The patch in row 3, column 3 lights up")
    notebook.screenshot("token-explorer-patch")
    words = lit(notebook, "word")
    assert max(words) == 1
    assert set(lit(notebook, "patch")) == {0}

    notebook.page.keyboard.press("ArrowRight")
    says(notebook, "The patch in row 3, column 4 lights up")
    assert lit(notebook, "word") != words
    notebook.page.keyboard.press("Escape")
    says(notebook, "Point at a word")
    notebook.check_requests()
