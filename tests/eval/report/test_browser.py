"""The page in a real browser: no error, charts drawn, the map answers pointer, keys and filters.

Actions are a script of the test that runs after the page's own and leaves what it saw in the
document, which headless Chromium prints.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from eval.report.__main__ import write_report
from eval.report.document import shown
from tests.helpers.report_runs import CLASSES, made, packed

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]

CAUGHT = """<script>
window.caught = [];
addEventListener("error", (event) => caught.push(event.message));
addEventListener("securitypolicyviolation", (event) => caught.push(event.violatedDirective));
for (const name of ["error", "warn"]) console[name] = (...words) => caught.push(words.join(" "));
</script>"""
ACTIONS = """<script>
addEventListener("load", () => setTimeout(() => {
  const found = { caught, scheme: document.documentElement.dataset.theme };
  const canvas = document.querySelector("canvas"), tip = document.querySelector(".tip");
  const key = (name) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key: name }));
  const inked = () => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height)
    .data.filter((value, i) => i % 4 === 3 && value > 0).length;
  found.all = canvas.dataset.drawn;
  found.ink = inked();
  key("ArrowRight");
  found.first = [...tip.querySelectorAll(".facts div")].map((div) => div.textContent);
  found.thumb = getComputedStyle(tip.querySelector(".thumb")).backgroundImage.slice(0, 21);
  const box = canvas.getBoundingClientRect();
  const data = JSON.parse(document.querySelector("[data-atlas] script").textContent);
  const at = (i) => data.runs[0].xy.slice(2 * i, 2 * i + 2).map((value) => value / data.grid);
  const gap = (i, j) => i === j ? 9 : Math.hypot(at(i)[0] - at(j)[0], at(i)[1] - at(j)[1]);
  const gaps = data.key.map((_, i) => Math.min(...data.key.map((_, j) => gap(i, j))));
  const alone = gaps.indexOf(Math.max(...gaps));  // no other patch is near
  const [x, y] = at(alone);
  const point = { clientX: box.left + 14 + x * (box.width - 28),
                  clientY: box.top + box.height - 14 - y * (box.height - 28) };
  canvas.dispatchEvent(new PointerEvent("pointermove", point));
  found.told = tip.querySelector(".facts").lastChild.textContent;
  found.key = data.key[alone];
  found.label = data.classes[data.class[0]];
  found.hidden = tip.hidden;
  document.querySelector('[data-filter="class"] input').click();
  found.filtered = canvas.dataset.drawn;
  document.getElementById("theme").click();
  found.theme = document.documentElement.dataset.theme;
  found.charts = [...document.querySelectorAll("svg")].filter((svg) =>
    svg.getBoundingClientRect().height > 100).length;
  found.pictures = [...document.images].every((image) => image.naturalWidth > 0);
  found.overflow = document.documentElement.scrollWidth - innerWidth;
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
}, 200));
</script>"""


def opened(page: Path, width: int) -> dict[str, Any]:
    """What the actions saw in a window of that many CSS pixels."""
    assert CHROMIUM is not None
    text = page.read_text()
    acted = page.with_name("acted.html")
    head, rest = text.split("<head>", 1)
    acted.write_text(f"{head}<head>{CAUGHT}{rest.replace('</body>', ACTIONS + '</body>')}")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom",
               f"--user-data-dir={page.parent / 'profile'}", acted.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    printed = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert printed, done.stdout[-2000:] + done.stderr
    found: dict[str, Any] = json.loads(html.unescape(printed.group(1)))
    return found


def test_the_page_works(tmp_path: Path) -> None:
    data = packed(tmp_path / "data")
    runs = [made(tmp_path / p, data, p, 0, 1.0) for p in ("eq-dvae", "dvae")]
    picture = (data.root.parent / "raw" / "test" / CLASSES[0]).glob("*.png")
    (runs[0] / "figures").mkdir()
    shutil.copy(next(picture), runs[0] / "figures" / "orbit.png")
    page = write_report(runs, tmp_path / "out").with_name("report.html")
    for width in (1280, 500):
        found = opened(page, width)
        assert found["caught"] == []
        assert (found["all"], found["filtered"]) == ("48", "24")
        assert found["ink"] > 500
        assert found["first"][0] == found["label"] in map(shown, CLASSES)
        assert found["thumb"] == 'url("data:image/jpeg;'[:21]
        assert found["told"] == found["key"] and not found["hidden"]
        assert {found["scheme"], found["theme"]} == {"light", "dark"}
        assert found["charts"] >= 10 and found["pictures"]
        assert found["overflow"] <= 0
