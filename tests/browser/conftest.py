"""JupyterLab on loopback and a real browser, for the views that a reader plays with.

    pytest tests/browser

Screenshots go to `artifacts/screenshots/`, which CI keeps. The tests need a Chromium of the system
(`apt-get install chromium`); without one they are skipped. Nothing may leave loopback.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, sync_playwright

SCREENSHOTS = Path(__file__).parents[2] / "artifacts" / "screenshots"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SLOW = 120  # seconds; continuous integration shares its processors

# Waiting for an idle kernel in the status bar is not enough: it is idle before it is connected.
_OPEN = """async (path) => {
  const app = window.jupyterapp;
  await app.restored;
  const widget = await app.commands.execute('docmanager:open', { path });
  await widget.context.ready;
  await widget.sessionContext.ready;
  await widget.sessionContext.session.kernel.info;
}"""
# The kernel goes on as if it were a new one, without widgets and names. The notebook is not closed
# by its command, which would ask whether it is to be saved.
_CLEAN = "import ipywidgets\nipywidgets.Widget.close_all()\n%reset -f"
_CLOSE = """async (code) => {
  const widget = window.jupyterapp.shell.currentWidget;
  await widget?.sessionContext?.session?.kernel?.requestExecute({ code }).done;
  widget?.dispose();
}"""


@dataclass
class Lab:
    """A running JupyterLab: its address, its folder, its token."""

    address: str
    folder: Path
    token: str

    def ask(self, path: str, content: dict[str, Any] | None = None) -> bytes:
        """An answer of the server's interface, to content if there is any."""
        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        data = None if content is None else json.dumps(content).encode()
        asked = urllib.request.Request(f"{self.address}/{path}", data, headers)
        with urllib.request.urlopen(asked, timeout=SLOW) as answer:
            return answer.read()

    def start_kernel(self) -> str:
        """The id of a new kernel."""
        return json.loads(self.ask("api/kernels", {"name": "python3"}))["id"]

    def use_kernel(self, notebook: str, kernel: str) -> None:
        """Have a notebook that is opened next find this kernel running."""
        content = {"path": notebook, "name": notebook, "type": "notebook", "kernel": {"id": kernel}}
        self.ask("api/sessions", content)


@dataclass
class Notebook:
    """A notebook whose cells have run, in a page of the browser."""

    page: Page
    failed: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def find(self, selector: str) -> Locator:
        """What the selector finds in the output of the cells."""
        return self.page.locator(f".jp-OutputArea {selector}")

    def screenshot(self, name: str, selector: str = ".jp-OutputArea-output") -> Path:
        """Keep a picture of an output, or of anything else on the page."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        self.page.locator(selector).last.screenshot(path=path)
        return path

    def check_requests(self) -> None:
        """Nothing failed to load, nothing left this machine, no script of ours broke."""
        assert (self.failed, self.outside, self.errors) == ([], [], [])


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The system's Chromium, which cannot resolve any name."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium here; get it with: apt-get install chromium fonts-dejavu-core")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found,
            args=[
                *("--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"),
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab on a free port of loopback, with settings and runtime files of its own."""
    home = tmp_path_factory.mktemp("lab")
    folder = home / "notebooks"
    folder.mkdir()
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False}), encoding="utf-8"
    )
    token, port = secrets.token_hex(16), _free_port()
    own = {
        "JUPYTERLAB_SETTINGS_DIR": home / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": home / "workspaces",
        "JUPYTER_CONFIG_DIR": home / "config",
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "IPYTHONDIR": home / "ipython",
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
        *(f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"),
        *(f"--ServerApp.root_dir={folder}", "--expose-app-in-browser", "--LabApp.news_url=None"),
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    environment = {**os.environ, **{name: str(path) for name, path in own.items()}}
    with (home / "log.txt").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        running = Lab(address, folder, token)
        _wait_for(running, server, home / "log.txt")
        yield running
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="session")
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """One browser session, so that JupyterLab's own scripts are read once."""
    context = chromium.new_context(viewport={"width": 1440, "height": 1100})
    context.set_default_timeout(1000 * SLOW)
    yield context
    context.close()


@pytest.fixture(scope="session")
def window(context: BrowserContext, lab: Lab) -> Notebook:
    """JupyterLab in a page, which starts once."""
    window = _watched(context.new_page(), lab.address)
    window.page.goto(f"{lab.address}/lab?token={lab.token}&reset")
    window.page.wait_for_function("() => window.jupyterapp !== undefined")
    return window


@pytest.fixture(scope="session")
def kernel(lab: Lab) -> str:
    """One kernel for all notebooks, so that the lab is imported once."""
    return lab.start_kernel()


@pytest.fixture
def run_notebook(
    window: Notebook, lab: Lab, kernel: str, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Notebook]]:
    """A function that runs cells of Python in JupyterLab and returns the `Notebook`."""

    def run(*cells: str, until: str) -> Notebook:
        """Run the cells, until an element `until` is in the output."""
        name = f"{request.node.originalname}-{secrets.token_hex(2)}.ipynb"
        content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        content.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(content, lab.folder / name)
        lab.use_kernel(name, kernel)
        notebook = window
        notebook.page.evaluate(_OPEN, name)
        notebook.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        failed = ".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']"
        notebook.page.locator(f"{until}, {failed}").first.wait_for()
        traceback = notebook.page.locator(failed)
        assert traceback.count() == 0, traceback.all_inner_texts()
        return notebook

    yield run
    window.page.evaluate(_CLOSE, _CLEAN)
    for told in (window.failed, window.outside, window.errors):
        told.clear()


def _watched(page: Page, address: str) -> Notebook:
    notebook = Notebook(page)
    home = urlsplit(address).netloc

    def asked(request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != home:
            notebook.outside.append(request.url)

    def failed(request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page itself did not want it any more
            notebook.failed.append(f"{request.failure} {request.url}")

    page.on("request", asked)
    page.on("requestfailed", failed)
    page.on("pageerror", lambda error: notebook.errors.append(str(error)))
    return notebook


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(lab: Lab, server: subprocess.Popen, log: Path) -> None:
    """Wait until the server answers; its log is the message if it does not."""
    end = time.monotonic() + SLOW
    while time.monotonic() < end and server.poll() is None:
        try:
            lab.ask("api/status")
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text(encoding='utf-8')[-3000:]}")
