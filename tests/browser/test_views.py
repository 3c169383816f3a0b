"""Views 2 to 5 in JupyterLab: keys move a control, the picture changes, nothing is loaded."""

from __future__ import annotations

import pytest

MAKE = "import longclip_lab as ll\nclip, pairs = ll.load('tiny'), ll.world.pairs(40)\n"
HANDLE = ".widget-slider .noUi-handle"


def says(notebook, text: str) -> None:
    notebook.find(".lc-panel [role=status]").get_by_text(text).first.wait_for()


def press(notebook, slider: int, key: str) -> None:
    notebook.find(HANDLE).nth(slider).focus()
    notebook.page.keyboard.press(key)


def test_moving_the_cut_moves_the_rank(run_notebook):
    notebook = run_notebook(
        f"{MAKE}ll.views.widgets.ReadingCut(clip, pairs, index=3)", until=".lc-panel .headline"
    )
    says(notebook, "1 of 165 tokens read")
    notebook.screenshot("reading-cut-1", ".lc-panel")
    press(notebook, 0, "ArrowRight")
    says(notebook, "2 of 165 tokens read")
    press(notebook, 0, "End")
    says(notebook, "75 of 165 tokens read: the right picture is number 1 of 40")
    assert notebook.find(".lc-panel .thumbs .own").count() == 1
    notebook.screenshot("reading-cut-75", ".lc-panel")
    notebook.find(".lc-panel textarea").fill("A xylophone.")
    notebook.page.keyboard.press("Tab")
    notebook.find(".lc-panel .error").get_by_text("not a word of the drawn world").wait_for()
    notebook.check_requests()


def test_k_moves_the_verdict(run_notebook):
    notebook = run_notebook(
        f"{MAKE}ll.views.widgets.Components(clip, pairs, k=8)", until=".lc-panel .headline"
    )
    says(notebook, "With k=8 PCM is at work")
    press(notebook, 0, "ArrowRight")
    says(notebook, "With k=9 PCM is at work")
    notebook.screenshot("components-9", ".lc-panel")
    press(notebook, 1, "Home")
    says(notebook, "With k=9 PCM does nothing here: the 2 features have rank 1")
    notebook.screenshot("components-identity", ".lc-panel")
    notebook.check_requests()


def test_keep_moves_the_map(run_notebook):
    notebook = run_notebook(
        f"{MAKE}ll.views.widgets.Stretcher(clip, pairs)", until=".lc-panel .headline"
    )
    says(notebook, "77 become 248")
    before = notebook.find(".lc-panel image").last.get_attribute("href")
    press(notebook, 0, "ArrowRight")
    says(notebook, "21 positions stay, 56 are stretched to 224: 77 become 245.")
    assert notebook.find(".lc-panel image").last.get_attribute("href") != before
    notebook.find(".lc-panel button").click()
    says(notebook, "long captions fit 245 positions")
    notebook.screenshot("stretcher", ".lc-panel")
    press(notebook, 0, "End")
    notebook.find(".lc-panel .error").get_by_text("nothing would be left").wait_for()
    notebook.check_requests()


def test_questions_are_leafed_through(run_notebook):
    notebook = run_notebook(
        f"{MAKE}ll.views.widgets.CounterfactualBrowser(clip, ll.world.counterfactuals(40))",
        until=".lc-panel .headline",
    )
    says(notebook, "question 1 of 40")
    notebook.find(".lc-panel button").last.focus()
    notebook.page.keyboard.press("Enter")
    says(notebook, "question 2 of 40")
    notebook.find(".lc-panel select").first.focus()
    for _ in range(2):
        notebook.page.keyboard.press("ArrowDown")
    says(notebook, "wrong, by")
    notebook.screenshot("counterfactual-browser", ".lc-panel")
    notebook.check_requests()


@pytest.mark.parametrize(
    ("made", "moved"),
    [
        ("ReadingCut(clip, pairs, index=3)", "2 of 165 tokens read"),
        ("Components(clip, pairs, k=8)", "With k=16 PCM"),
    ],
)
def test_pages_move_without_a_kernel(run_notebook, made, moved):
    notebook = run_notebook(f"{MAKE}ll.views.widgets.{made}.static()", until=".lc-states .panel")
    notebook.find(".lc-states input").first.focus()
    notebook.page.keyboard.press("ArrowRight")
    notebook.find(".lc-states .panel").get_by_text(moved).wait_for()
    notebook.check_requests()
