"use strict";
// The page's content is in #data; every text of it enters the page as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const maps = data.attention; // attention maps: one for each token of the answer, layer and head
const HEAT = data.heat; // colours from little to much
const bytes = Uint8Array.from(atob(maps.bytes), (c) => c.charCodeAt(0));
const causes = data.causes === null ? null : { ...data.causes, bytes: Uint8Array.from(atob(data.causes.after), (c) => c.charCodeAt(0)) };
const state = {
  tab: "attention", pinned: 0, hovered: null, layer: 0, head: 0, block: 0, side: 0, run: null, query: null, sort: null, down: false, shown: 100, touched: false,
};

const GROUP = ["#7c8799", "#3f8fd2", "#d9822b", "#9a6fd0"]; // of the timeline

const at = (id) => document.getElementById(id);
const percent = (x) => (x >= 0.0995 ? `${(100 * x).toFixed(0)} %` : x >= 0.0005 ? `${(100 * x).toFixed(1)} %` : x > 0 ? "< 0.1 %" : "0 %");
const visible = (text) => (text === "" ? "∅" : text.replace(/\n/g, "↵").replace(/\t/g, "→").replace(/ /g, "␣"));
const sum = (values) => values.reduce((a, b) => a + b, 0);
const largest = (values, least) => values.reduce((a, b) => Math.max(a, b), least); // of a long prompt, too many for Math.max(...)
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

function make(tag, properties = {}, ...children) {
  const node = tag === "svg" || SHAPES.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "style") node.style.cssText = value; // allowed by the page's policy, as markup's style="" is
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
const SHAPES = new Set(["rect", "path", "text"]); // of SVG

// ---- attention ----

const word = () => state.hovered ?? state.pinned;
const quoted = (one) => (one.ends ? "the end" : `“${visible(one.text.trim() || one.text)}”`);
const place = (k, layer, head) => (k * maps.layers.length + layer) * maps.heads.length + head;

/** Attention before token k of the answer: shares of each image token and each text token, and of all images together. */
function sharesOf(k, layer, head) {
  const map = place(k, layer, head), start = map * maps.columns;
  const of = (from, to, top) => Array.from(bytes.subarray(start + from, start + to), (b) => (b / 255) * top);
  return {
    pictures: of(0, maps.tokens, maps.tops[0][map]),
    text: of(maps.tokens, maps.columns, maps.tops[1][map]),
    share: maps.shares[map],
  };
}

function colour(x) {
  const spot = clamp(x, 0, 1) * (HEAT.length - 1), low = Math.min(Math.floor(spot), HEAT.length - 2);
  return HEAT[low].map((c, i) => Math.round(c + (spot - low) * (HEAT[low + 1][i] - c)));
}

// ---- the answer ----

function drawAnswer() {
  const box = at("answer");
  box.classList.toggle("long", data.tokens.length > 60);
  box.replaceChildren(...data.tokens.flatMap((one, k) => [one.text.match(/^\s*/)[0], make("button", {
    type: "button", "data-word": k, class: one.ends ? "ends" : null,
    "aria-label": `token ${k + 1}: ${one.text}, ${percent(one.chance)}`,
    title: `token ${k + 1}, id ${one.id}: ${percent(one.chance)}`,
    onclick: () => pin(k), onfocus: () => pin(k),
    onmouseenter: () => { state.hovered = k; show(); },
  }, one.text.trimStart() || visible(one.text))]));
  box.addEventListener("mouseleave", () => { state.hovered = null; show(); });
}

function pin(k, focus = false) {
  touch();
  state.pinned = clamp(k, 0, data.tokens.length - 1);
  state.hovered = null;
  show();
  if (focus) document.querySelector(`[data-word="${state.pinned}"]`).focus();
}

// ---- the images ----

/** The page opens with the image as it is; the first choice of a token, layer or head turns attention on. */
function touch() {
  if (!state.touched) at("heat").checked = true;
  state.touched = true;
}

// colours up to each map's largest instead of 0 to 100 %; in the tower always, for a share among hundreds of patches is small
const own = () => at("scale").value === "own" || state.tab === "tower";
const CELL = 24, RIM = 3; // canvas pixels of a token, and of its frame

function drawPictures() {
  const box = at("pictures"), none = !data.pictures.length;
  at("pair").classList.toggle("words", none);
  for (const id of ["switches", "legend", "written", "strip"]) at(id).hidden = none;
  document.querySelector("[data-tab=tower]").hidden = none;
  at("omitted").textContent = maps.omitted;
  at("hidden").textContent = `${data.hidden} more images or pairs of frames are not shown; shares and words count them.`;
  at("hidden").hidden = !data.hidden;
  box.classList.toggle("many", data.pictures.length > 1);
  data.pictures.forEach((one, i) => {
    const svg = make("svg", {
      viewBox: `0 0 ${one.width} ${one.height}`, tabindex: 0, role: "application", "data-picture": i,
      "aria-label": `${one.name}, ${one.rows} rows of ${one.columns} tokens: arrow keys go from square to square`,
      onmousemove: (event) => point(i, cellAt(svg, event, one)), onmouseleave: () => point(i, null), onclick: (event) => keep(i, spot(svg, event)),
      onkeydown: (event) => walkCells(event, i), onblur: () => point(i, null),
    });
    const view = make("div", { class: "view", style: `aspect-ratio: ${one.width}/${one.height}; max-width: calc(var(--high) * ${one.width / one.height})` },
      make("img", { src: one.src, alt: one.name, onload: () => showStrip() }), make("canvas"), svg);
    box.append(make("figure", {}, view, make("figcaption", {}, `${one.name} · ${one.columns} × ${one.rows} tokens · ${one.windows.length} windows`)));
  });
  const stops = HEAT.map((c) => `rgb(${c})`).join(", ");
  at("legend").querySelector("i").style.background = `linear-gradient(90deg, ${stops})`;
}

/** Where on an image the pointer is, from 0 to 1. */
function spot(node, event) {
  const box = node.getBoundingClientRect();
  return { x: clamp((event.clientX - box.left) / box.width, 0, 0.9999), y: clamp((event.clientY - box.top) / box.height, 0, 0.9999) };
}

function cellAt(svg, event, one) {
  const { x, y } = spot(svg, event), { fine } = VIEWS[state.tab]();
  return Math.floor(y * one.rows * fine) * one.columns * fine + Math.floor(x * one.columns * fine);
}

let cursor = { picture: 0, cell: null };
function point(picture, cell) {
  cursor = { picture, cell };
  showPictures();
}

/** A click: the strip follows this pixel; in the tower, the maps stay those of this square. */
function keep(picture, { x, y }) {
  state.pixel = { picture, x, y };
  if (state.tab === "tower") state.query = state.query !== null && state.query.picture === picture && state.query.cell === cursor.cell ? null : { picture, cell: cursor.cell };
  showPictures();
  showStrip();
}

function walkCells(event, i) {
  const one = data.pictures[i], { fine } = VIEWS[state.tab](), columns = one.columns * fine, rows = one.rows * fine;
  if (event.key === "Enter" && cursor.cell !== null) keep(i, { x: ((cursor.cell % columns) + 0.5) / columns, y: (Math.floor(cursor.cell / columns) + 0.5) / rows });
  const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (move === undefined) return;
  event.preventDefault();
  event.stopPropagation();
  const from = cursor.cell, to = from === null ? 0 : from + move;
  const stays = Math.abs(move) === 1 && from !== null && Math.floor(to / columns) !== Math.floor(from / columns);
  if (to >= 0 && to < rows * columns && !stays) point(i, to);
}

function showPictures() {
  const view = VIEWS[state.tab]();
  document.querySelectorAll(".view").forEach((node, i) => {
    const one = data.pictures[i], [, canvas, svg] = node.children, pen = canvas.getContext("2d");
    const rows = one.rows * view.fine, columns = one.columns * view.fine, size = clamp(Math.floor(2400 / Math.max(rows, columns)), 6, CELL);
    if (canvas.width !== columns * size || canvas.height !== rows * size) Object.assign(canvas, { width: columns * size, height: rows * size });
    pen.clearRect(0, 0, canvas.width, canvas.height);
    for (let c = 0; c < rows * columns; c++) frame(pen, size, c % columns, Math.floor(c / columns), view.value(i, c), view.top);
    node.classList.toggle("hot", view.on);
    svg.replaceChildren(...overlay(one, i, view));
  });
  drawLegend(view);
  at("readout").textContent = view.readout();
  shareChoices();
}

/** A frame inside a square: the middle of the image stays as it is. Little is transparent, nothing is no frame; blue is below 0. */
function frame(pen, size, column, row, share, top) {
  const x = own() ? (top > 0 ? Math.abs(share) / top : 0) : Math.abs(share), alpha = clamp(2.2 * Math.sqrt(x) - 0.1, 0, 1);
  if (!(alpha > 0)) return;
  const rim = Math.max(1, Math.round((RIM * size) / CELL)), line = Math.max(1, Math.round(size / CELL));
  pen.globalAlpha = alpha;
  pen.lineWidth = line;
  pen.strokeStyle = "#000";
  pen.strokeRect(column * size + rim + line / 2, row * size + rim + line / 2, size - 2 * rim - line, size - 2 * rim - line);
  pen.lineWidth = rim;
  pen.strokeStyle = share < 0 ? "#4cc3ff" : `rgb(${colour(own() ? x : Math.sqrt(x))})`;
  pen.strokeRect(column * size + rim / 2, row * size + rim / 2, size - rim, size - rim);
}

/** Fixed: square roots of 0 to 100 %, so that a few per cent are seen. */
function drawLegend(view) {
  const ticks = own() ? [[0, "0"], [1, percent(view.top)]] : [0, 1, 10, 25, 50, 100].map((p) => [Math.sqrt(p / 100), `${p}`]).map(([x, p]) => [x, x === 1 ? `${p} %` : p]);
  at("ticks").replaceChildren(...ticks.map(([x, text]) => make("span", { style: `left: ${100 * x}%` }, text)));
  at("unit").textContent = view.unit;
  at("legend").classList.toggle("off", !view.on);
}

function overlay(one, i, view) {
  const w = one.width / one.columns, h = one.height / one.rows, unit = Math.max(one.width, one.height) / 400, parts = [], fine = view.fine;
  const cell = (c, stroke, width, extra = {}) => make("rect", {
    x: ((c % (one.columns * fine)) * w) / fine, y: (Math.floor(c / (one.columns * fine)) * h) / fine, width: w / fine, height: h / fine,
    fill: "none", stroke, "stroke-width": width * unit, ...extra,
  });
  const box = ([x0, y0, x1, y1], stroke, width, inset) => make("rect", { x: x0 + inset, y: y0 + inset, width: x1 - x0 - 2 * inset, height: y1 - y0 - 2 * inset, fill: "none", stroke, "stroke-width": width * unit });
  if (at("windows").checked) {
    one.windows.forEach(([number, corners, rgb]) => {
      const [x0, y0, x1, y1] = corners, size = clamp(Math.min(x1 - x0, y1 - y0) / 3, 6 * unit, 14 * unit);
      parts.push(box(corners, "#000", 4, 2 * unit), box(corners, `rgb(${rgb})`, 2.2, 2 * unit));
      parts.push(make("text", { x: x0 + 6 * unit, y: y0 + size + 3 * unit, "font-size": size, fill: "#fff", stroke: "#000", "stroke-width": size / 5, "paint-order": "stroke" }, number));
    });
  }
  if (at("grid").checked) parts.push(...lines(one, 1, 1.6, unit), ...(fine > 1 ? lines(one, fine, 0.8, unit) : []));
  if (view.segment && view.segment.picture === i) parts.push(box(view.segment.box, "#000", 4, unit), box(view.segment.box, "#fff", 2, unit));
  if (view.best && view.best.picture === i) parts.push(cell(view.best.cell, "#000", 4), cell(view.best.cell, "#fff", 2, { class: "strongest", "data-cell": view.best.cell }));
  if (view.query && view.query.picture === i) parts.push(cell(view.query.cell, "#000", 4.5), cell(view.query.cell, "#ff9a50", 2.5, { class: "query", "data-cell": view.query.cell }));
  if (cursor.cell !== null && cursor.picture === i) parts.push(cell(cursor.cell, "#000", 3.5), cell(cursor.cell, "#5ad1ff", 2, { class: "cursor", "data-cell": cursor.cell }));
  return parts;
}

/** The lines between tokens, or between so many patches along a token. */
function lines(one, fine, width, unit) {
  let path = "";
  for (let c = 1; c < one.columns * fine; c++) path += `M${(c * one.width) / one.columns / fine} 0V${one.height}`;
  for (let r = 1; r < one.rows * fine; r++) path += `M0 ${(r * one.height) / one.rows / fine}H${one.width}`;
  return [["#000", 0.55, width], ["#fff", 0.75, width * 0.44]].map(([stroke, opacity, wide]) => make("path", { d: path, stroke, "stroke-opacity": opacity, "stroke-width": wide * unit, fill: "none" }));
}

function describe(one, cell) {
  return `token ${one.first + cell} (row ${Math.floor(cell / one.columns)}, column ${cell % one.columns}, window ${one.window[cell]})`;
}

// ---- what a tab draws on the images: squares along a token, the value of each, the largest, what is outlined, a sentence ----

const VIEWS = {
  attention() {
    const seen = sharesOf(word(), state.layer, state.head), top = largest(seen.pictures, 0), best = seen.pictures.indexOf(top);
    const on = at("heat").checked || state.hovered !== null, home = data.pictures.findIndex((one) => best >= one.first && best < one.first + one.rows * one.columns);
    return {
      on, fine: 1, top, unit: "share of attention",
      value: (i, c) => seen.pictures[data.pictures[i].first + c],
      best: on && top > 0.005 && home >= 0 ? { picture: home, cell: best - data.pictures[home].first } : null,
      readout: () => attentionReadout(seen, best, top, home),
    };
  },
  causes() {
    const values = data.pictures.map((one, i) => Array.from({ length: one.rows * one.columns }, (_, c) => lossOf(runOfCell(i, c))));
    const run = cursor.cell !== null ? runOfCell(cursor.picture, cursor.cell) : state.run;
    return {
      on: causes !== null && causes.squares.length > 0, fine: 1, top: largest([...values.flat(), ...headRuns().map(lossOf)].map(Math.abs), 0), unit: "percentage points lost; blue: gained",
      value: (i, c) => values[i][c], best: null, readout: () => causesReadout(run),
    };
  },
  tower() {
    const fine = tower && tower.level === "patches" ? data.merge : 1, query = tower && tower.level !== "received" ? (cursor.cell !== null ? cursor : state.query) : null;
    const values = data.pictures.map((_, i) => towerValues(i, fine, query)), top = largest(values.flat(), 0);
    const window = query !== null && tower && !tower.full[state.block] ? data.pictures[query.picture].window[tokenOfCell(query.picture, query.cell, fine)] : null;
    return {
      on: Boolean(tower), fine, top, unit: "share of attention", value: (i, c) => values[i][c], best: null, query: state.query,
      segment: window === null ? null : { picture: query.picture, box: data.pictures[query.picture].windows.find(([number]) => number === window)[1] },
      readout: () => towerReadout(query, values, fine),
    };
  },
};

function attentionReadout(seen, best, top, home) {
  if (!data.pictures.length) return "There is no image in this part of the prompt. The prompt below is shaded by attention.";
  if (cursor.cell !== null) {
    const one = data.pictures[cursor.picture];
    return `${describe(one, cursor.cell)}: ${percent(seen.pictures[one.first + cursor.cell])} of the attention`;
  }
  const one = data.pictures[home], many = data.pictures.length > 1, where = many && one ? ` of ${one.name.split(":")[0]}` : "";
  const most = top > 0 && one ? `; most on ${describe(one, best - one.first)}${where}, ${percent(top)}` : "";
  return `${maps.layers[state.layer]}, ${maps.heads[state.head]}: ${percent(seen.share)} of the attention is on the image${many ? "s" : ""}${most}.`;
}

// ---- causes: runs with one thing changed, the heads first, then the squares of the images ----

const headRuns = () => (causes ? Array.from({ length: causes.layers * causes.heads }, (_, run) => run) : []);

/** The run in which the square with this token was hidden; null if none was. */
function runOfCell(i, c) {
  if (!causes || !causes.squares.length) return null;
  const { first, side } = causes.squares[state.side], one = data.pictures[i];
  return first[i] + Math.floor(Math.floor(c / one.columns) / side) * Math.ceil(one.columns / side) + Math.floor((c % one.columns) / side);
}

/** The smallest squares without which some token of the answer loses 10 percentage points; the first if there are none. */
function firstSide() {
  const squares = causes?.squares ?? [], count = data.tokens.length;
  const runs = squares.map(({ first }, s) => causes.bytes.subarray(first[0] * count, (squares[s + 1]?.first[0] ?? causes.runs) * count));
  return Math.max(runs.findIndex((bytes) => bytes.some((byte, i) => causes.before[i % count] - byte / 255 > 0.1)), 0);
}

const afterOf = (run) => causes.bytes[run * data.tokens.length + word()] / 255;
/** How much less probable the token of the answer is in a run. subtle: a byte holds steps of 0.4 %, less is no difference. */
function lossOf(run) {
  if (run === null) return 0;
  const loss = causes.before[word()] - afterOf(run);
  return Math.abs(loss) < 0.003 ? 0 : loss;
}

function nameOfRun(run) {
  if (run < causes.layers * causes.heads) {
    const layer = Math.floor(run / causes.heads);
    return causes.heads > 1 ? `head ${run % causes.heads} of layer ${layer}` : `the attention of layer ${layer}`;
  }
  const { side, first } = causes.squares.findLast((some) => some.first[0] <= run), i = first.findLastIndex((start) => start <= run), one = data.pictures[i];
  const across = Math.ceil(one.columns / side), row = Math.floor((run - first[i]) / across) * side, column = ((run - first[i]) % across) * side;
  const where = data.pictures.length > 1 ? ` of ${one.name.split(":")[0]}` : "";
  return side > 1 ? `the ${side} × ${side} tokens from row ${row}, column ${column}${where}` : `${describe(one, row * one.columns + column)}${where}`;
}

function causesReadout(run) {
  if (causes === null) return "";
  const runs = Array.from({ length: causes.runs }, (_, k) => k), most = runs.reduce((a, b) => (lossOf(b) > lossOf(a) ? b : a), 0);
  if (run === null && lossOf(most) < 0.005) return `None of ${causes.runs} changes lowers the probability of ${quoted(data.tokens[word()])}, ${percent(causes.before[word()])}.`;
  const lead = run === null ? `Of ${causes.runs} changes, the largest loss is ` : "";
  const k = run ?? most, other = causes.others.find(([r, token]) => r === k && token === word());
  const then = other ? `; likeliest is then “${visible(other[2].trim() || other[2])}”` : "";
  return `${lead}${lead ? "without" : "Without"} ${nameOfRun(k)}: the probability of ${quoted(data.tokens[word()])} is ${percent(afterOf(k))}, with it ${percent(causes.before[word()])}${then}.`;
}

// ---- the tower: maps of each block, segment by segment in window order ----

const tower = data.tower === null ? null : unpackTower(data.tower);

function unpackTower(packed) {
  const starts = [0], sizes = (bounds) => bounds.slice(1).map((end, i) => end - bounds[i]);
  for (const full of packed.full) {
    const lengths = sizes(full ? packed.frames : packed.windows);
    starts.push(starts.at(-1) + sum(lengths.map((n) => (packed.level === "received" ? n : n * n))));
  }
  return { ...packed, starts, bytes: Uint8Array.from(atob(packed.bytes), (c) => c.charCodeAt(0)) };
}

function tokenOfCell(i, c, fine) {
  const one = data.pictures[i], columns = one.columns * fine;
  return Math.floor(Math.floor(c / columns) / fine) * one.columns + Math.floor((c % columns) / fine);
}

/** The row of a square in the tower's order: its token's slot, and inside it the patches row by row. */
function slotOfCell(i, c, fine) {
  const one = data.pictures[i], columns = one.columns * fine, inside = (Math.floor(c / columns) % fine) * fine + ((c % columns) % fine);
  return one.slots[tokenOfCell(i, c, fine)] * fine * fine + inside;
}

/** For each square of an image what the query attends to there; without a query, what each square receives, by the mean of all. */
function towerValues(i, fine, query) {
  const one = data.pictures[i], values = new Array(one.rows * one.columns * fine * fine).fill(0);
  if (!tower) return values;
  const bounds = tower.full[state.block] ? tower.frames : tower.windows, share = (at) => (tower.bytes[at] / 255) ** 2;
  const cells = values.map((_, c) => slotOfCell(i, c, fine)), row = query === null ? null : slotOfCell(query.picture, query.cell, fine);
  for (let s = 0, start = tower.starts[state.block]; s + 1 < bounds.length; s++) {
    const [low, high] = [bounds[s], bounds[s + 1]], n = high - low;
    const here = row === null || (row >= low && row < high);
    if (here) cells.forEach((slot, c) => {
      if (slot < low || slot >= high) return;
      if (tower.level === "received") values[c] = share(start + slot - low);
      else if (row !== null) values[c] = share(start + (row - low) * n + slot - low);
      else { for (let q = 0; q < n; q++) values[c] += share(start + q * n + slot - low) / n; }
    });
    start += tower.level === "received" ? n : n * n;
  }
  return values;
}

function towerReadout(query, values, fine) {
  if (!tower) return "";
  const what = tower.level === "patches" ? "patch" : "token", full = tower.full[state.block], where = full ? "its whole frame (full attention)" : "its window, outlined";
  if (query === null) return `visual.blocks.${state.block}, ${full ? "full attention" : "attention inside windows"}: what each ${what} receives, mean of all that attend to it.`;
  const one = data.pictures[query.picture], columns = one.columns * fine, mine = values[query.picture], best = mine.indexOf(largest(mine, 0));
  const at = (c) => `row ${Math.floor(c / columns)}, column ${c % columns}`;
  return `visual.blocks.${state.block}: the ${what} at ${at(query.cell)} attends to ${where}; most to ${at(best)}, ${percent(mine[best])}. Mean of all heads.`;
}

// ---- tabs ----

function openTab(name, focus = false) {
  if (name !== "attention" || state.tab !== "attention") touch();
  [state.tab, cursor, state.run] = [name, { picture: 0, cell: null }, null];
  for (const tab of document.querySelectorAll("[data-tab]")) {
    tab.setAttribute("aria-selected", tab.dataset.tab === name);
    tab.tabIndex = tab.dataset.tab === name ? 0 : -1;
    if (focus && tab.dataset.tab === name) tab.focus();
  }
  for (const node of document.querySelectorAll("[data-for]")) node.hidden = !node.dataset.for.split(" ").includes(name);
  at("omitted").hidden ||= !maps.omitted;
  at("hide").hidden ||= !causes || !causes.squares.length;
  at("meaning").hidden ||= !data.pictures.length;
  show();
}

function tabKeys(event) {
  const tabs = [...document.querySelectorAll("[data-tab]")].filter((tab) => !tab.hidden), at = tabs.findIndex((tab) => tab.dataset.tab === state.tab);
  const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  event.stopPropagation();
  openTab(tabs[(to + tabs.length) % tabs.length].dataset.tab, true);
}

function drawTabs() {
  at("measured").textContent = causes === null
    ? "No causes were measured for this page: minivl report --causes 200, or causes=200 in Python, measures them."
    : `Measured in ${causes.runs} runs of the decoder, each with one change: ${[causes.layers && (causes.heads > 1 ? "one head ablated" : "the attention of one layer ablated"), causes.squares.length && "tokens of the image replaced by the mean of all"].filter(Boolean).join(", or ")}. The answer's earlier tokens were kept. Without effect does not mean unused: others may take its place.`;
  at("towered").textContent = tower === null
    ? "The maps of the tower are not in this page: its trace does not hold them, or the images are too large."
    : `In the tower, ${tower.level === "patches" ? "patches" : "tokens"} attend to each other, before the question is read. Point at the image to see what that square attends to, mean of all heads; click to keep it.`;
  at("side").append(...(causes?.squares ?? []).map(({ side }, s) => make("option", { value: s }, side > 1 ? `${side} × ${side} tokens` : "1 token")));
  state.side = firstSide();
  at("side").value = state.side;
  at("side").addEventListener("change", () => { state.side = Number(at("side").value); show(); });
  at("block").append(...(tower ? tower.full : []).map((full, b) => make("option", { value: b }, `block ${b}, ${full ? "full" : "windows"}`)));
  at("block").addEventListener("change", () => { state.block = Number(at("block").value); showPictures(); });
  for (const tab of document.querySelectorAll("[data-tab]")) tab.addEventListener("click", () => openTab(tab.dataset.tab));
  at("tabs").addEventListener("keydown", tabKeys);
}

// ---- likeliest tokens ----

const tinted = (x) => `background-color: color-mix(in srgb, var(--tint) ${(42 * x).toFixed(1)}%, transparent)`;
const bar = (share, style = "") => make("span", { class: "track" }, make("i", { style: `width: ${100 * share}%; ${style}` }));

function showWord() {
  const one = data.tokens[word()];
  at("looked").textContent = { attention: `Attention before ${quoted(one)}`, causes: `What ${quoted(one)} depends on`, tower: "Attention in the tower" }[state.tab];
  at("said").textContent = `Next token: ${quoted(one)}`;
  const best = one.rank < one.best.length ? one.best : [...one.best, [one.text, one.id, one.chance]];
  at("best").replaceChildren(...best.map(([text, id, share]) => make("li", { class: id === one.id ? "chosen" : null },
    make("span", { class: "word", title: `id ${id}` }, visible(text)), bar(share), make("span", { class: "number" }, percent(share)))));
  document.querySelectorAll("[data-word]").forEach((button, k) => {
    button.setAttribute("aria-pressed", k === word());
    button.tabIndex = k === state.pinned ? 0 : -1;
  });
}

function showLens() {
  const one = data.tokens[word()], rows = one.lens.map((best, layer) => make("tr", { class: layer === state.layer - 1 ? "current" : null },
    make("th", { scope: "row" }, `layer ${layer}`),
    ...best.map(([text, id, share]) => make("td", { style: tinted(share) },
      make(id === one.id ? "b" : "span", { title: `id ${id}` }, visible(text)), " ", make("small", {}, percent(share))))));
  at("lens").replaceChildren(make("tbody", {}, ...rows.reverse()));
}

/** Rows of layers, the last one above: each head's attention to the image, or in the tab of causes what is lost without it. */
function showMatrix() {
  const lost = state.tab === "causes", none = lost ? !causes || !causes.layers : !data.pictures.length || maps.layers.length * maps.heads.length < 2;
  at("heads").hidden = none || state.tab === "tower";
  if (none) return;
  const layers = lost ? causes.layers : maps.layers.length, heads = lost ? causes.heads : maps.heads.length, cells = [];
  const value = (l, h) => (lost ? lossOf(l * heads + h) : maps.shares[place(word(), l, h)]);
  const table = Array.from({ length: layers }, (_, l) => Array.from({ length: heads }, (_, h) => value(l, h)));
  const top = own() ? Math.max(...table.flat().map(Math.abs), 1e-9) : 1;
  at("heading").textContent = lost ? `Probability lost without each ${heads > 1 ? "head" : "layer's attention"}` : "Each head's attention to the image";
  at("range").textContent = lost ? `empty 0, full colour ${percent(top)}; blue: gained` : `empty 0, full colour ${percent(top)}`;
  const names = lost ? Array.from({ length: heads }, (_, h) => (heads > 1 ? `${h}` : "all")) : maps.heads.map((name, h) => (h ? name.replace("head ", "").replace(" of all heads", "") : "mean"));
  for (let l = layers - 1; l >= 0; l--) {
    cells.push(make("span", { class: "side" }, lost ? `layer ${l}` : l ? `layer ${l - 1}` : "mean"));
    for (let h = 0; h < heads; h++) {
      const current = lost ? state.run === l * heads + h : l === state.layer && h === state.head, share = table[l][h];
      cells.push(make("button", {
        type: "button", tabindex: -1, class: current ? "current" : null, "data-layer": l, "data-head": h,
        style: `background: color-mix(in srgb, var(${share < 0 ? "--gain" : "--full"}) ${(100 * Math.abs(share)) / top}%, var(--wash))`,
        title: lost ? `without ${nameOfRun(l * heads + h)}: ${percent(afterOf(l * heads + h))} instead of ${percent(causes.before[word()])}` : `${maps.layers[l]}, ${maps.heads[h]}: ${percent(share)}`,
        onclick: () => { if (lost) { state.run = l * heads + h; show(); } else choose(l, h); },
      }));
    }
  }
  cells.push(make("span", { class: "side" }, "head"), ...names.map((name) => make("span", {}, name)));
  at("matrix").style.gridTemplateColumns = `auto repeat(${heads}, minmax(14px, 1fr))`;
  at("matrix").replaceChildren(...cells);
}

// ---- the prompt ----

function drawPrompt() {
  const runs = data.prompt.map((one) => (one.text_at === null ? { ...one, to: one.from + one.count } : one));
  const own = data.tokens.slice(0, -1).map((one, k) => ({ text: one.text, at: null, text_at: maps.columns - maps.tokens - data.tokens.length + k, count: 1, own: k }));
  at("prompt").replaceChildren(...[...runs, ...own].map((one) => make("span", {
    class: one.text_at === null ? "picture" : one.own !== undefined ? "own" : null, "data-text": one.text_at, "data-own": one.own, "data-from": one.from, "data-to": one.to,
    "data-label": one.count > 1 ? `${one.text} × ${one.count}` : visible(one.text),
  })));
}

function showPrompt() {
  const seen = sharesOf(word(), state.layer, state.head), top = largest(seen.text, 1e-9), all = sum(seen.pictures) || 1;
  at("textmost").textContent = percent(top);
  for (const node of at("prompt").children) {
    const index = node.dataset.text, share = index === undefined ? null : seen.text[index];
    node.hidden = node.dataset.own !== undefined && Number(node.dataset.own) >= word();
    node.textContent = share === null ? `${node.dataset.label}: ${percent((sum(seen.pictures.slice(node.dataset.from, node.dataset.to)) / all) * seen.share)}` : node.dataset.label;
    node.title = share === null ? "" : percent(share);
    node.style.cssText = share === null ? "" : tinted(share / top);
  }
}

// ---- stage by stage ----

function drawStages() {
  const size = (one) => (data.measured ? one.seconds : one.values), total = sum(data.stages.map(size)) || 1;
  const longest = largest(data.stages.map(size), 0) || 1, groups = data.groups.map((_, g) => data.stages.filter((one) => one.group === g));
  const said = (value) => (data.measured ? seconds(value) : `${count(value)} values`);
  at("total").textContent = data.measured
    ? `${seconds(total)} in all, measured in this run without the time that collecting this page took. Open a stage to read what it does.`
    : `${count(total)} numbers in the tensors that this trace kept; it measured no time. Open a stage to read what it does.`;
  at("parts").append(...groups.map((stages, g) => make("i", { style: `background: ${GROUP[g]}; flex: ${(100 * sum(stages.map(size))) / total} 0 0` })));
  groups.forEach((stages, g) => {
    if (!stages.length) return;
    const part = sum(stages.map(size));
    at("timeline").append(make("div", { class: "group" }, make("i", { style: `background: ${GROUP[g]}` }), data.groups[g],
      make("span", { class: "soft" }, `${said(part)} · ${percent(part / total)}`)));
    at("timeline").append(...stages.map((one) => make("details", {},
      make("summary", {}, make("code", {}, one.name), make("span", { class: "soft what" }, one.sentence),
        bar(size(one) / longest, `background: ${GROUP[g]}`), make("span", { class: "number" }, said(size(one)).replace(" values", ""))),
      make("p", {}, one.text),
      make("p", { class: "soft" }, `${one.tensors} tensors up to and with this one, [${one.shape.join(", ")}]`))));
  });
}

const seconds = (t) => (t >= 1 ? `${t.toFixed(2)} s` : t >= 1e-3 ? `${(1e3 * t).toPrecision(3)} ms` : `${(1e6 * t).toFixed(0)} µs`);
const count = (n) => (n >= 1e9 ? `${(n / 1e9).toFixed(1)} G` : n >= 1e6 ? `${(n / 1e6).toFixed(1)} M` : n >= 1e4 ? `${Math.round(n / 1e3)} k` : `${n}`);

// ---- tensors ----

const COLUMNS = ["name", "shape", "dtype", "min", "max", "mean", "rms", "NaN", "inf", "outlier channels"];
const key = (row, column) => (column === 1 ? row[1].reduce((a, b) => a * b, 1) : row[column]);

function showTable() {
  const words = at("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = data.table.rows.filter((row) => words.every((one) => row[0].toLowerCase().includes(one)));
  if (state.sort !== null) {
    const sign = state.down ? -1 : 1, last = (value) => value === null || value === "";
    rows.sort((a, b) => {
      const [x, y] = [key(a, state.sort), key(b, state.sort)];
      if (last(x) || last(y)) return last(x) - last(y);
      return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
    });
  }
  const left = data.table.skipped ? `; ${data.table.skipped} of later steps left out` : "";
  at("count").textContent = `${rows.length} of ${data.table.rows.length} tensors${left}`;
  const head = COLUMNS.map((name, i) => make("th", {
    scope: "col", class: i > 2 && i < 9 ? "right" : null, "aria-sort": state.sort === i ? (state.down ? "descending" : "ascending") : null,
  }, make("button", { type: "button", "data-column": i, onclick: () => sortBy(i) }, name, state.sort === i ? (state.down ? " ↓" : " ↑") : "")));
  at("table").replaceChildren(make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows.slice(0, state.shown).map(tensorRow)));
  at("more").hidden = rows.length <= state.shown;
}

function tensorRow(row) {
  const number = (value) => (value === null ? "" : Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2) : `${Number(value.toPrecision(4))}`);
  return make("tr", {}, make("td", {}, make("button", { type: "button", "aria-expanded": "false", onclick: tell }, row[0])),
    make("td", {}, `[${row[1].join(", ")}]`), make("td", {}, row[2]),
    ...row.slice(3, 7).map((value) => make("td", { class: "right" }, number(value))),
    ...row.slice(7, 9).map((value, i) => make("td", { class: value && !(i && masked(row[0])) ? "right bad" : "right" }, value ? `${value}` : "")),
    make("td", { class: "wide" }, row[9]));
}

const masked = (name) => name.endsWith(".scores"); // -inf masks what a query may not attend to

function tell(event) {
  const button = event.currentTarget, row = button.closest("tr"), open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  if (open) return row.nextSibling.remove();
  const name = button.textContent, step = name.match(/^steps\.(\d+)\.(.*)/);
  const text = data.table.texts[name.replace(/^(steps|chunks)\.\d+\./, "")] ?? "";
  const before = step ? `The same tensor as for the prompt, here for token ${Number(step[1]) + 1} of the answer alone. For the prompt: ` : "";
  row.after(make("tr", {}, make("td", { class: "told", colspan: COLUMNS.length }, make("p", {}, before + text))));
}

function sortBy(column) {
  [state.sort, state.down] = state.sort !== column ? [column, column > 2] : state.down === column > 2 ? [column, !state.down] : [null, false];
  showTable();
  document.querySelector(`[data-column="${column}"]`).focus();
}

// ---- beside another run: what is chosen in one page is chosen in the other ----

const beside = document.documentElement.hasAttribute("data-beside");
const SWITCHES = ["heat", "grid", "windows"];
let shared = "", adopting = false;

function choices() {
  const { tab, pinned, layer, head, block, side, pixel = null, touched } = state, root = document.documentElement;
  return { tab, pinned, layer, head, block, side, pixel, touched, switches: SWITCHES.map((id) => at(id).checked), scale: at("scale").value, large: root.hasAttribute("data-projector"), theme: root.dataset.theme ?? null };
}

function shareChoices() {
  const now = JSON.stringify(choices());
  if (beside && !adopting && now !== shared && shared !== "") parent.postMessage({ choices: choices() }, "*");
  shared = now;
}

/** Take the choices of the other run, as far as they exist here; they are not sent back. */
function adopt(other) {
  const last = (list) => Math.max(list.length - 1, 0), picture = data.pictures[other.pixel?.picture];
  Object.assign(state, {
    pinned: clamp(other.pinned, 0, last(data.tokens)), layer: clamp(other.layer, 0, last(maps.layers)), head: clamp(other.head, 0, last(maps.heads)),
    block: clamp(other.block, 0, last(tower?.full ?? [])), side: clamp(other.side, 0, last(causes?.squares ?? [])), pixel: picture ? other.pixel : state.pixel, touched: other.touched,
  });
  SWITCHES.forEach((id, i) => { at(id).checked = other.switches[i]; });
  for (const id of ["layer", "head", "block", "side"]) at(id).value = state[id];
  at("scale").value = other.scale;
  setProjector(other.large);
  if (other.theme !== null) setTheme(other.theme);
  const tab = document.querySelector(`[data-tab="${other.tab}"]`);
  adopting = true;
  if (state.tab !== other.tab && tab && !tab.hidden) openTab(other.tab);
  else show();
  adopting = false;
}

function setProjector(large) {
  document.documentElement.toggleAttribute("data-projector", large);
  at("projector").setAttribute("aria-pressed", large);
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  at("theme").textContent = dark() ? "Light" : "Dark";
}

function joinOther() {
  if (!beside) return;
  addEventListener("message", (event) => { if (event.source === parent && event.data?.choices) adopt(event.data.choices); });
  new ResizeObserver(() => parent.postMessage({ height: document.body.offsetHeight + 2 }, "*")).observe(document.body);
}

// ---- all of it ----

function choose(layer, head) {
  touch();
  state.layer = clamp(layer, 0, maps.layers.length - 1);
  state.head = clamp(head, 0, maps.heads.length - 1);
  at("layer").value = state.layer;
  at("head").value = state.head;
  show();
}

function show() {
  showWord();
  showPictures();
  showLens();
  showMatrix();
  showPrompt();
  showStrip();
}

function dark() {
  return (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
}

function start() {
  at("model").textContent = data.model;
  if (!data.question) at("question").textContent = "A prompt given as tokens";
  drawAnswer();
  drawPictures();
  drawTabs();
  drawStrip();
  drawPrompt();
  drawStages();
  for (const kind of ["layer", "head"]) {
    at(kind).append(...maps[`${kind}s`].map((name, i) => make("option", { value: i }, name)));
    at(kind).addEventListener("change", () => choose(Number(at("layer").value), Number(at("head").value)));
  }
  for (const id of ["heat", "grid", "windows"]) at(id).addEventListener("change", () => { state.touched ||= id === "heat"; showPictures(); });
  at("scale").addEventListener("change", () => { showPictures(); showMatrix(); });
  at("projector").addEventListener("click", () => {
    setProjector(!document.documentElement.hasAttribute("data-projector"));
    shareChoices();
  });
  at("filter").addEventListener("input", () => { state.shown = 100; showTable(); });
  at("more").addEventListener("click", () => { state.shown += 400; showTable(); });
  const named = () => { at("theme").textContent = dark() ? "Light" : "Dark"; };
  at("theme").addEventListener("click", () => { setTheme(dark() ? "light" : "dark"); shareChoices(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", named);
  named();
  const edits = data.edited.length ? ` Changed by hand: ${data.edited.join(", ")}.` : "";
  const parts = Object.entries(data.versions).map((one) => one.join(" ")).join(", ");
  at("foot").textContent = `${data.config}. ${data.finished ? "" : "The answer was cut at max_new_tokens. "}Probabilities are those of the logits, before temperature and penalties. Attention shows where values were read from, not why a token was chosen.${edits} Versions: ${parts}; backend ${data.backend}.`;
  document.addEventListener("keydown", keys);
  if (location.hash === "#projector") at("projector").click();
  openTab("attention");
  showTable();
  joinOther();
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=search]")) return;
  const inAnswer = event.target.matches("[data-word]"), body = event.target === document.body;
  const words = { ArrowLeft: state.pinned - 1, ArrowRight: state.pinned + 1, Home: 0, End: data.tokens.length - 1 };
  if (event.key in words && (inAnswer || (body && event.key.startsWith("Arrow")))) pin(words[event.key], true);
  else if (event.key === "[" || (inAnswer && event.key === "ArrowDown")) choose(state.layer - 1, state.head);
  else if (event.key === "]" || (inAnswer && event.key === "ArrowUp")) choose(state.layer + 1, state.head);
  else if (event.key === "{") choose(state.layer, state.head - 1);
  else if (event.key === "}") choose(state.layer, state.head + 1);
  else return;
  event.preventDefault();
}
