"use strict";
// Everything here adds to a page that is whole without it: sorting, the photos of a cell, figures under the pointer.
document.documentElement.classList.add("scripted");
const data = JSON.parse(document.getElementById("data").textContent);
const element = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)} %`);
const picture = (tile, label) =>
  element("span", { class: `pic ${tile >= 0 ? `p${tile}` : "gone"}`, role: "img", "aria-label": label });

// Tables whose heads sort them.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, place) =>
    head.firstElementChild.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const sign = before === "none" ? 1 : before === "ascending" ? -1 : 1;
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const value = (row) => Number(row.cells[place].dataset.v);
      body.append(...[...body.rows].sort((a, b) => sign * (value(a) - value(b))));
    }),
  );
}

// The matrix: a cell shows its photos; arrow keys go from cell to cell.
const shown = document.getElementById("cell");
const cells = [...document.querySelectorAll("[data-cell]")];
const card = (row) => {
  const [tile, label, prediction, probability, path] = data.images[row];
  const right = label === prediction;
  return element("figure", { class: "shot" }, element("div", { class: "pics" }, picture(tile, data.names[label])),
    element("figcaption", {}, element("b", { title: data.names[label] }, data.names[label]),
      element("span", { class: right ? "good" : "wrong" }, `${right ? "✓" : "→"} ${data.names[prediction]}`),
      element("small", { title: path }, `${percent(probability)} · ${path.split("/").pop()}`)));
};
for (const cell of cells) {
  cell.addEventListener("click", () => {
    const open = cell.getAttribute("aria-pressed") === "true";
    cells.forEach((other) => other.setAttribute("aria-pressed", "false"));
    shown.hidden = open;
    if (open) return;
    cell.setAttribute("aria-pressed", "true");
    const rows = data.cells[cell.dataset.cell] || [], n = Number(cell.dataset.n);
    const [label, prediction] = [data.names[cell.dataset.of], data.names[cell.dataset.as]];
    const what = label === prediction ? ["", element("b", {}, label), " recognised"] : ["", element("b", {}, label), " taken for ", element("b", {}, prediction)];
    const more = rows.length < n ? `, of which ${rows.length} with the highest loss are shown` : "";
    const text = element("p", {}, ...what, `: ${n.toLocaleString("en")} ${n === 1 ? "image" : "images"}${more}.`);
    shown.replaceChildren(text, element("div", { class: "shots" }, ...rows.map(card)));
  });
  cell.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    let [i, j] = cell.dataset.cell.split(",").map(Number);
    for (let k = 0; k < 100; k++) {
      [i, j] = [i + step[0], j + step[1]];
      const next = document.querySelector(`[data-cell="${i},${j}"]`);
      if (next) return next.focus();
    }
  });
}

// Curves: the figures of the epoch under the pointer.
for (const figure of document.querySelectorAll("[data-chart]")) {
  const chart = data.charts[figure.dataset.chart], svg = figure.querySelector("svg"), output = figure.querySelector("output");
  if (!chart || !svg) continue;
  const [left, right, top, bottom] = [46, 12, 26, 28], { width, height } = svg.viewBox.baseVal;
  const hair = document.createElementNS("http://www.w3.org/2000/svg", "line");
  hair.setAttribute("class", "hair");
  let at = 0;
  const show = (place) => {
    const count = Math.max(...chart.lines.map(([, values]) => values.length));
    at = Math.min(Math.max(place, 0), count - 1);
    const epoch = 1 + at * chart.step;
    const x = left + (width - left - right) * (chart.epochs > 1 ? (epoch - 1) / (chart.epochs - 1) : 0.5);
    for (const [name, value] of [["x1", x], ["x2", x], ["y1", top], ["y2", height - bottom]]) hair.setAttribute(name, value);
    svg.append(hair);
    const said = chart.lines.map(([name, values]) => values[at] == null ? null : `${name} ${chart.percent ? percent(values[at]) : values[at]}`);
    output.textContent = `epoch ${epoch}: ${said.filter(Boolean).join(", ")}`;
  };
  const hide = () => { hair.remove(); output.textContent = ""; };
  const move = (event) => {
    const box = svg.getBoundingClientRect();
    const share = (((event.clientX - box.left) / box.width) * width - left) / (width - left - right);
    show(Math.round((share * (chart.epochs - 1)) / chart.step));
  };
  figure.addEventListener("pointermove", move);
  figure.addEventListener("pointerdown", move);
  figure.addEventListener("pointerleave", hide);
  figure.addEventListener("blur", hide);
  figure.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    show(output.textContent ? at + (event.key === "ArrowLeft" ? -1 : 1) : 0);
  });
}

// The map of embeddings.
const canvas = document.getElementById("points");
if (canvas && data.map) {
  const tip = document.getElementById("tip"), legend = document.getElementById("legend");
  const { rows, at } = data.map, images = rows.map((row) => data.images[row]);
  const order = [...new Set(images.map((image) => image[1]))];
  const tally = new Map(order.map((label) => [label, 0]));
  images.forEach((image) => tally.set(image[1], tally.get(image[1]) + 1));
  order.sort((a, b) => tally.get(b) - tally.get(a) || a - b);
  const place = new Map(order.map((label, k) => [label, k]));
  const colour = (label) => {
    const k = place.get(label);
    if (k < 8 && order.length <= 8) return getComputedStyle(document.documentElement).getPropertyValue(`--c${k}`);
    return `hsl(${(k * 137.508) % 360} 60% ${matchMedia("(prefers-color-scheme: dark)").matches ? 66 : 42}%)`;
  };
  let chosen = -1, alone = null, size = [0, 0];
  const spot = (k) => {
    const pad = 14, span = Math.min(size[0], size[1]) - 2 * pad, wide = size[0] - 2 * pad, high = size[1] - 2 * pad;
    return [pad + at[2 * k] * wide, pad + (1 - at[2 * k + 1]) * high, span];
  };
  const draw = () => {
    const ratio = window.devicePixelRatio || 1;
    size = [canvas.clientWidth, canvas.clientHeight];
    [canvas.width, canvas.height] = size.map((side) => Math.round(side * ratio));
    const context = canvas.getContext("2d"), colours = new Map(order.map((label) => [label, colour(label)]));
    context.scale(ratio, ratio);
    images.forEach(([, label, prediction], k) => {
      const [x, y] = spot(k);
      context.globalAlpha = alone === null || alone === label ? 0.85 : 0.08;
      context.fillStyle = context.strokeStyle = colours.get(label);
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, y, label === prediction ? 3.5 : 4, 0, 7);
      if (label === prediction) context.fill(); else context.stroke();
    });
    if (chosen >= 0) {
      const [x, y] = spot(chosen);
      context.globalAlpha = 1;
      context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--text");
      context.beginPath();
      context.arc(x, y, 8, 0, 7);
      context.stroke();
    }
  };
  const choose = (k) => {
    chosen = k;
    tip.hidden = k < 0;
    draw();
    if (k < 0) return;
    const [tile, label, prediction, probability, path] = images[k], [x, y] = spot(k), right = label === prediction;
    tip.replaceChildren(...(tile >= -1 ? [picture(tile, data.names[label])] : []), element("b", {}, data.names[label]),
      element("span", { class: right ? "good" : "wrong" }, `${right ? "✓" : "→"} ${data.names[prediction]} ${percent(probability)}`),
      element("span", { class: "soft" }, path.split("/").pop()));
    tip.style.left = `${Math.max(0, Math.min(x + 14, size[0] - tip.offsetWidth))}px`;
    const below = y + 14 + tip.offsetHeight < size[1] + 60;
    tip.style.top = `${below ? y + 14 : y - 14 - tip.offsetHeight}px`;
  };
  const nearest = (event) => {
    const box = canvas.getBoundingClientRect(), [px, py] = [event.clientX - box.left, event.clientY - box.top];
    let best = -1, least = event.pointerType === "touch" ? 900 : 200;
    images.forEach(([, label], k) => {
      const [x, y] = spot(k), far = (x - px) ** 2 + (y - py) ** 2;
      if (far < least && (alone === null || alone === label)) [best, least] = [k, far];
    });
    if (best !== chosen) choose(best);
  };
  canvas.addEventListener("pointermove", nearest);
  canvas.addEventListener("pointerdown", nearest);
  canvas.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && choose(-1));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") choose(-1);
    if (!step) return;
    event.preventDefault();
    choose((chosen + step + images.length + (chosen < 0 && step < 0 ? 1 : 0)) % images.length);
  });
  for (const label of order.slice(0, 20)) {
    const button = element("button", { type: "button", "aria-pressed": "false", title: data.names[label] },
      element("span", { class: "spot" }), element("span", {}, data.names[label]));
    button.addEventListener("click", () => {
      alone = alone === label ? null : label;
      [...legend.querySelectorAll("button")].forEach((other) => other.setAttribute("aria-pressed", String(other === button && alone !== null)));
      choose(-1);
    });
    legend.append(button);
  }
  if (order.length > 20) legend.append(element("span", {}, `and ${order.length - 20} more classes`));
  const paint = () => {
    [...legend.querySelectorAll(".spot")].forEach((node, k) => { node.style.color = colour(order[k]); });
    draw();
  };
  new ResizeObserver(paint).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
}
