"""View 1 in JupyterLab: what is pointed at lights up the other side."""

from __future__ import annotations

CELL = """
import longclip_lab as ll

pairs = ll.world.pairs(3, seed=5)
ll.views.TokenExplorer(ll.load("tiny"), pairs.images, pairs.long, method="similarity-gain")
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

    tree = notebook.find(".lc-explorer .word").get_by_text("tree", exact=True).first
    tree.hover()
    says(notebook, "“tree” lights up")
    assert lit(notebook, "patch") != whole
    tree.click()
    notebook.page.mouse.move(0, 0)
    says(notebook, "“tree” lights up")
    assert tree.get_attribute("aria-pressed") == "true"
    notebook.screenshot("token-explorer-word")

    notebook.find(".lc-explorer .patch").nth(14).click()
    notebook.page.mouse.move(0, 0)
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


def test_what_is_read_and_by_what_can_be_chosen(run_notebook):
    notebook = run_notebook(CELL, until=".lc-explorer .patch")
    says(notebook, "The whole text lights up row")
    strip = notebook.find(".lc-explorer .strip")
    strip.get_by_text("whole text").focus()
    notebook.page.keyboard.press("ArrowDown")
    says(notebook, "“A white cup and a red tree on a snowfield under a clear sky.” lights up")
    notebook.page.keyboard.press("ArrowRight")
    says(notebook, "“A” lights up")
    strip.get_by_text("seven", exact=True).hover()
    says(notebook, "“seven” is behind the model’s cut: it was never read.")
    notebook.page.mouse.move(0, 0)

    notebook.find(".lc-explorer select[name=method]").select_option("attention")
    notebook.find(".lc-explorer select[name=head]").select_option("2")
    notebook.find(".lc-explorer .about").get_by_text("attention: ").wait_for()
    notebook.find(".lc-explorer select[name=picture]").select_option("1")
    strip.get_by_text("seven", exact=True).wait_for(state="detached")

    notebook.find(".lc-explorer summary").click()
    box = notebook.find(".lc-explorer textarea")
    box.fill("A zeppelin.")
    notebook.find(".lc-explorer .read").click()
    says(notebook, "'zeppelin' is not a word of the drawn world")
    box.fill("A red boat under a clear sky.")
    notebook.find(".lc-explorer .read").click()
    strip.get_by_text("boat", exact=True).wait_for()
    notebook.find(".lc-explorer .whole").get_by_text("whole picture").click()
    notebook.page.mouse.move(0, 0)
    says(notebook, "The whole picture lights up")
    notebook.screenshot("token-explorer-typed")
    notebook.check_requests()
