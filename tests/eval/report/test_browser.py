"""The page in a real browser: no error, charts drawn, the map answers pointer, keys and filters.

The test appends a script of actions, which leaves what it saw in the document that headless
Chromium prints.
"""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from eval.report.document import shown
from eval.report.report import write_report
from tests.helpers.report_runs import CLASSES, pack_noise, write_run

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
addEventListener("load", () => {
document.querySelectorAll("details").forEach((part) => { part.open = true; });
setTimeout(() => {
  const scheme = () => getComputedStyle(document.body).backgroundColor;
  const seen = { caught, scheme: scheme() };
  const canvas = document.querySelector("canvas"), tip = document.querySelector(".tip");
  const key = (name) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key: name }));
  const inked = () => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height)
    .data.filter((value, i) => i % 4 === 3 && value > 0).length;
  seen.all = canvas.dataset.drawn;
  seen.ink = inked();
  key("ArrowRight");
  seen.first = [...tip.querySelectorAll(".facts div")].map((div) => div.textContent);
  seen.thumb = getComputedStyle(tip.querySelector(".thumb")).backgroundImage.slice(0, 21);
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
  seen.told = tip.querySelector(".facts").lastChild.textContent;
  seen.key = data.key[alone];
  seen.label = data.classes[data.class[0]];
  seen.hidden = tip.hidden;
  document.querySelector('[data-filter="class"] input').click();
  seen.filtered = canvas.dataset.drawn;
  document.getElementById("theme").click();
  seen.theme = scheme();
  const rect = (part) => part.getBoundingClientRect();
  const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top
    || b.bottom <= a.top;
  seen.rows = document.querySelectorAll(".forest .row").length;
  seen.overlaps = [...document.querySelectorAll(".forest .row:not(.axis)")].filter((row) =>
    [...row.children].some((a, i) => [...row.children].some((b, j) =>
      i < j && !apart(rect(a), rect(b))))).length;
  seen.charts = [...document.querySelectorAll("svg")].filter((svg) =>
    svg.getBoundingClientRect().height > 100).length;
  seen.pictures = [...document.images].every((image) => image.naturalWidth > 0);
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
}, 200); });
</script>"""


def open_page(page: Path, width: int) -> dict[str, Any]:
    """Run the actions in a window `width` CSS pixels wide, and return what they saw."""
    assert CHROMIUM is not None
    before, after = page.read_text().split("<head>", 1)
    acted = page.with_name("acted.html")
    acted.write_text(f"{before}<head>{CAUGHT}{after.replace('</body>', ACTIONS + '</body>')}")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--window-size={width},900",
        "--virtual-time-budget=5000",
        "--dump-dom",
        f"--user-data-dir={page.parent / 'profile'}",
        acted.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    printed = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert printed, done.stdout[-2000:] + done.stderr
    seen: dict[str, Any] = json.loads(html.unescape(printed.group(1)))
    return seen


def test_the_page_works(tmp_path: Path) -> None:
    data = pack_noise(tmp_path / "data")
    runs = [write_run(tmp_path / p, data, p, 0, 1.0) for p in ("eq-dvae", "dvae")]
    picture = (data.root.parent / "raw" / "test" / CLASSES[0]).glob("*.png")
    (runs[0] / "figures").mkdir()
    shutil.copy(next(picture), runs[0] / "figures" / "orbit.png")
    page = write_report(runs, tmp_path / "out").with_name("report.html")
    for width in (1280, 500):
        seen = open_page(page, width)
        assert seen["caught"] == []
        assert (seen["all"], seen["filtered"]) == ("48", "24")
        assert seen["ink"] > 500
        assert seen["first"][0] == seen["label"] in map(shown, CLASSES)
        assert seen["thumb"] == 'url("data:image/jpeg;'[:21]
        assert seen["told"] == seen["key"] and not seen["hidden"]
        assert {seen["scheme"], seen["theme"]} == {"rgb(255, 255, 255)", "rgb(22, 24, 28)"}
        assert seen["rows"] >= 6 and seen["overlaps"] == 0
        assert seen["charts"] >= 10 and seen["pictures"]
        assert seen["overflow"] <= 0
