"""The report in a browser: Chromium without a window, where one is installed."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.pages import Page

BROWSERS = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in BROWSERS if name and (path := shutil.which(name))), "")
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no Chromium: none of chromium, chromium-browser, google-chrome on PATH, and no $CHROMIUM"
)
OPTIONS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--enable-logging=stderr",
]  # fmt: skip
# Runs in a copy of the page without its policy, which forbids scripts.
PROBE = """<script>
addEventListener("load", () => {
  const images = [...document.images];
  document.body.dataset.seen = JSON.stringify({
    pictures: images.length,
    dark: images.filter(i => i.className === "dark" && i.checkVisibility()).length,
    light: images.filter(i => i.className === "light" && i.checkVisibility()).length,
    broken: images.filter(i => !i.complete || i.naturalWidth !== +i.getAttribute("width")).length,
    invisible: images.filter(i => i.checkVisibility() && i.getBoundingClientRect().width < 200).length,
    wide: document.documentElement.scrollWidth, window: innerWidth,
    requests: performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length,
    page: getComputedStyle(document.body).backgroundColor,
  });
});
</script></body>"""


def opened(page: Path, folder: Path, *options: str) -> str:
    """What the browser prints; no line of its console may be there."""
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    return done.stdout


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (400, True)])
def test_the_page_in_a_browser(
    width: int, dark: bool, digits_report: tuple[Page, list[Path]], tmp_path: Path
) -> None:
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    size = f"--window-size={width},2400"
    page, shot = digits_report[1][0], tmp_path / "shot.png"
    opened(page, tmp_path, scheme, size, f"--screenshot={shot}")
    with Image.open(shot) as image:
        drawn = np.asarray(image.convert("RGB"))
    assert drawn.shape == (2400, width, 3)
    page_colour = (22, 24, 28) if dark else (255, 255, 255)
    share = (drawn == page_colour).all(-1).mean()
    assert 0.3 < share < 0.97  # text and pictures on the page's colour
    copy = tmp_path / "probed.html"
    source = page.read_text(encoding="utf-8")
    copy.write_text(re.sub(r"<meta http-equiv[^>]*>", "", source).replace("</body>", PROBE), encoding="utf-8")
    told = opened(copy, tmp_path, scheme, size, "--dump-dom")
    found = re.search(r'data-seen="([^"]*)"', told)
    assert found is not None
    seen = json.loads(html.unescape(found[1]))
    assert seen["pictures"] > 16
    assert (seen["dark"] > 8, seen["light"] > 8) == (dark, not dark)
    assert min(seen["dark"], seen["light"]) == 0
    assert (seen["broken"], seen["invisible"], seen["requests"]) == (0, 0, 0)
    assert seen["wide"] <= seen["window"]  # nothing sticks out: what is wide scrolls in a box of its own
    assert seen["page"] == f"rgb{page_colour}"
