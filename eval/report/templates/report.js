"use strict";
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const maps = [];

  function paint() {
    const dark = chosen === null ? system.matches : chosen;
    if (chosen !== null) root.dataset.theme = dark ? "dark" : "light";
    button.setAttribute("aria-pressed", String(dark));
    maps.forEach((draw) => draw());
  }
  button.addEventListener("click", () => {
    chosen = !(chosen === null ? system.matches : chosen);
    paint();
  });
  system.addEventListener("change", paint);

  function map(figure) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const canvas = figure.querySelector("canvas"), stage = figure.querySelector(".stage");
    const form = figure.querySelector("form"), tip = figure.querySelector(".tip");
    const thumb = tip.querySelector(".thumb"), facts = tip.querySelector(".facts");
    const count = data.key.length, margin = 14;
    let visible = [], places = [], current = -1;

    const ticked = (name) => new Set([...form.querySelectorAll(
      `[data-filter=${name}] input:checked`)].map((box) => Number(box.value)));

    function resolved(colour) {
      canvas.style.color = colour;
      return getComputedStyle(canvas).color;
    }

    function draw() {
      const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
      canvas.width = width * ratio;
      canvas.height = height * ratio;
      const pen = canvas.getContext("2d");
      pen.scale(ratio, ratio);
      const xy = data.runs[Number(form.elements.run.value)].xy;
      const classes = ticked("class"), sites = ticked("site");
      visible = [];
      places = new Array(count);
      pen.globalAlpha = 0.7;
      const colours = [...Array(8).keys()].map((i) => resolved(`var(--c${i})`));
      for (let i = 0; i < count; i++) {
        if (!classes.has(data.class[i]) || !sites.has(data.site[i])) continue;
        const x = margin + xy[2 * i] / data.grid * (width - 2 * margin);
        const y = height - margin - xy[2 * i + 1] / data.grid * (height - 2 * margin);
        visible.push(i);
        places[i] = [x, y];
        pen.fillStyle = colours[data.class[i] % 8];
        pen.beginPath();
        pen.arc(x, y, 3, 0, 7);
        pen.fill();
      }
      if (current >= 0 && places[current]) {
        pen.globalAlpha = 1;
        pen.strokeStyle = resolved("var(--ink)");
        pen.lineWidth = 2;
        pen.beginPath();
        pen.arc(...places[current], 7, 0, 7);
        pen.stroke();
      }
      canvas.dataset.drawn = String(visible.length);
      form.querySelector("output").textContent = `${visible.length} of ${count} patches`;
    }

    function tell(i) {
      current = i;
      draw();
      tip.hidden = i < 0;
      if (i < 0) return;
      if (data.sheet) {
        const column = i % data.columns, row = Math.floor(i / data.columns);
        thumb.style.backgroundImage = `url(${data.sheet})`;
        thumb.style.backgroundSize = `${data.columns * 96}px auto`;
        thumb.style.backgroundPosition = `${-96 * column}px ${-96 * row}px`;
      }
      const lines = [data.classes[data.class[i]], data.source[i], data.key[i]];
      if (data.sites.length > 1) lines.splice(1, 0, data.sites[data.site[i]]);
      facts.replaceChildren(...lines.map((line) => {
        const div = document.createElement("div");
        div.textContent = line;
        return div;
      }));
      const [x, y] = places[i], wide = stage.clientWidth;
      tip.style.left = `${Math.max(0, Math.min(x + 14, wide - tip.offsetWidth))}px`;
      tip.style.top = `${Math.max(0, y - (y > stage.clientHeight / 2 ? tip.offsetHeight + 12 : -14))}px`;
    }

    function nearest(event) {
      const box = canvas.getBoundingClientRect();
      const x = event.clientX - box.left, y = event.clientY - box.top;
      let best = -1, least = 24 ** 2;
      for (const i of visible) {
        const d = (places[i][0] - x) ** 2 + (places[i][1] - y) ** 2;
        if (d < least) [best, least] = [i, d];
      }
      return best;
    }

    canvas.addEventListener("pointermove", (event) => tell(nearest(event)));
    canvas.addEventListener("pointerdown", (event) => tell(nearest(event)));
    canvas.addEventListener("pointerleave", () => tell(-1));
    canvas.addEventListener("blur", () => tell(-1));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") tell(-1);
      if (!step || !visible.length) return;
      event.preventDefault();
      const at = visible.indexOf(current);
      tell(visible[at < 0 ? 0 : (at + step + visible.length) % visible.length]);
    });
    form.addEventListener("input", () => tell(-1));
    form.addEventListener("submit", (event) => event.preventDefault());
    new ResizeObserver(draw).observe(canvas);
    maps.push(draw);
  }

  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => {
    part.open = true;
  }));
  document.querySelectorAll("[data-atlas]").forEach(map);
  paint();
})();
