"""The page in a real browser: every image is drawn, and there are no network requests.

`make browser` installs a browser from npm; set ITR_BROWSER to use another Chromium. The Python package playwright is
part of the project's `dev` extra.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from itr.cli import main

FOLDER = Path(__file__).parents[2] / ".venv" / "browser"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")


def browser() -> tuple[str, dict[str, str]]:
    """Path of a Chromium, and the variables to add to its environment."""
    given = os.environ.get("ITR_BROWSER") or str(FOLDER / "chromium")
    path = given if Path(given).is_file() else next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("Chromium is not installed: run `make browser`, or set ITR_BROWSER to its path")
    libraries = Path(path).parent / "al2023" / "lib"  # shared libraries that minimal systems lack
    needed = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    return path, {"LD_LIBRARY_PATH": str(libraries)} if "not found" in needed and libraries.is_dir() else {}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_without_network_requests(run, scheme):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is part of the extra `dev`")
    path, environment = browser()
    assert main(["report", str(run), "--device", "cpu"]) == 0
    file = run / "report" / "index.html"
    requests: list[str] = []
    messages: list[str] = []
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(
            executable_path=path, args=["--no-sandbox"], env={**os.environ, **environment}
        )
        page = chromium.new_page(color_scheme=scheme, viewport={"width": 1200, "height": 900})
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(file.as_uri())
        widths = page.evaluate("[...document.images].map(image => [image.complete, image.naturalWidth, image.width])")
        assert len(widths) > 20
        assert all(complete and natural > 0 and shown > 0 for complete, natural, shown in widths)
        assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
        assert messages == []
        assert page.evaluate("document.querySelectorAll('figure.plot svg path').length") >= 10
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.get_by_role("heading", name="Recall", exact=True).is_visible()
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "wider than a phone"
        chromium.close()
