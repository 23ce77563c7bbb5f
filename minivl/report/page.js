"use strict";
// The page's content is in #data; every text of it enters the page as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const maps = data.attention; // attention maps: one for each token of the answer, layer and head
const HEAT = data.heat; // colours from little to much
const bytes = Uint8Array.from(atob(maps.bytes), (c) => c.charCodeAt(0));
const state = { pinned: 0, hovered: null, layer: 0, head: 0, sort: null, down: false, shown: 100, touched: false };

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
const SHAPES = new Set(["rect", "path", "text"]);

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

const own = () => at("scale").value === "own"; // colours up to each map's largest, instead of 0 to 100 %
const CELL = 24, RIM = 3; // canvas pixels of a token, and of its frame

function drawPictures() {
  const box = at("pictures"), none = !data.pictures.length;
  at("pair").classList.toggle("words", none);
  for (const id of ["switches", "legend", "meaning", "heads", "written"]) at(id).hidden = none;
  at("heads").hidden ||= maps.layers.length * maps.heads.length < 2;
  at("omitted").textContent = maps.omitted;
  at("omitted").hidden = !maps.omitted;
  at("hidden").textContent = `${data.hidden} more images or pairs of frames are not shown; shares and words count them.`;
  at("hidden").hidden = !data.hidden;
  box.classList.toggle("many", data.pictures.length > 1);
  data.pictures.forEach((one, i) => {
    const svg = make("svg", {
      viewBox: `0 0 ${one.width} ${one.height}`, tabindex: 0, role: "application", "data-picture": i,
      "aria-label": `${one.name}, ${one.rows} rows of ${one.columns} tokens: arrow keys go from token to token`,
      onmousemove: (event) => point(i, cellAt(svg, event, one)), onmouseleave: () => point(i, null),
      onkeydown: (event) => walkCells(event, i), onblur: () => point(i, null),
    });
    const view = make("div", { class: "view", style: `aspect-ratio: ${one.width}/${one.height}; max-width: calc(var(--high) * ${one.width / one.height})` },
      make("img", { src: one.src, alt: one.name }), make("canvas", { width: one.columns * cellSize(one), height: one.rows * cellSize(one) }), svg);
    box.append(make("figure", {}, view, make("figcaption", {}, `${one.name} · ${one.rows} × ${one.columns} tokens · ${one.windows.length} windows`)));
  });
  const stops = HEAT.map((c) => `rgb(${c})`).join(", ");
  at("legend").querySelector("i").style.background = `linear-gradient(90deg, ${stops})`;
}

function cellAt(svg, event, one) {
  const box = svg.getBoundingClientRect();
  const column = clamp(Math.floor(((event.clientX - box.left) / box.width) * one.columns), 0, one.columns - 1);
  return clamp(Math.floor(((event.clientY - box.top) / box.height) * one.rows), 0, one.rows - 1) * one.columns + column;
}

let cursor = { picture: 0, cell: null };
function point(picture, cell) {
  cursor = { picture, cell };
  showPictures();
}

function walkCells(event, i) {
  const one = data.pictures[i], move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -one.columns, ArrowDown: one.columns }[event.key];
  if (move === undefined) return;
  event.preventDefault();
  event.stopPropagation();
  const from = cursor.cell, to = from === null ? 0 : from + move;
  const stays = Math.abs(move) === 1 && from !== null && Math.floor(to / one.columns) !== Math.floor(from / one.columns);
  if (to >= 0 && to < one.rows * one.columns && !stays) point(i, to);
}

function showPictures() {
  const seen = sharesOf(word(), state.layer, state.head), top = largest(seen.pictures, 0);
  const best = seen.pictures.indexOf(top), hot = at("heat").checked || state.hovered !== null;
  document.querySelectorAll(".view").forEach((view, i) => {
    const one = data.pictures[i], [img, canvas, svg] = view.children, pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    for (let c = 0; c < one.rows * one.columns; c++) frame(pen, cellSize(one), c % one.columns, Math.floor(c / one.columns), seen.pictures[one.first + c], top);
    view.classList.toggle("hot", hot);
    svg.replaceChildren(...overlay(one, i, best - one.first, top));
  });
  drawLegend(top);
  at("legend").classList.toggle("off", !hot);
  at("readout").textContent = readout(seen, best, top);
}

const cellSize = (one) => clamp(Math.floor(2400 / Math.max(one.rows, one.columns)), 6, CELL);

/** A frame inside a token's square: the middle of the image stays as it is. Little attention is transparent, none is no frame. */
function frame(pen, size, column, row, share, top) {
  const x = own() ? (top > 0 ? share / top : 0) : share, alpha = clamp(2.2 * Math.sqrt(x) - 0.1, 0, 1);
  if (alpha <= 0) return;
  const rim = Math.max(1, Math.round((RIM * size) / CELL)), line = Math.max(1, Math.round(size / CELL));
  pen.globalAlpha = alpha;
  pen.lineWidth = line;
  pen.strokeStyle = "#000";
  pen.strokeRect(column * size + rim + line / 2, row * size + rim + line / 2, size - 2 * rim - line, size - 2 * rim - line);
  pen.lineWidth = rim;
  pen.strokeStyle = `rgb(${colour(own() ? x : Math.sqrt(x))})`;
  pen.strokeRect(column * size + rim / 2, row * size + rim / 2, size - rim, size - rim);
}

/** Fixed: square roots of 0 to 100 %, so that a few per cent are seen. */
function drawLegend(top) {
  const ticks = own() ? [[0, "0"], [1, percent(top)]] : [0, 1, 10, 25, 50, 100].map((p) => [Math.sqrt(p / 100), `${p}`]).map(([x, p]) => [x, x === 1 ? `${p} %` : p]);
  at("ticks").replaceChildren(...ticks.map(([x, text]) => make("span", { style: `left: ${100 * x}%` }, text)));
}

function overlay(one, i, best, top) {
  const w = one.width / one.columns, h = one.height / one.rows, unit = Math.max(one.width, one.height) / 400, parts = [];
  const cell = (c, stroke, width, extra = {}) => make("rect", {
    x: (c % one.columns) * w, y: Math.floor(c / one.columns) * h, width: w, height: h, fill: "none", stroke, "stroke-width": width * unit, ...extra,
  });
  if (at("windows").checked) {
    one.windows.forEach(([number, [x0, y0, x1, y1], rgb]) => {
      const size = clamp(Math.min(x1 - x0, y1 - y0) / 3, 6 * unit, 14 * unit), inset = 2 * unit;
      for (const [tone, width] of [["#000", 4], [`rgb(${rgb})`, 2.2]]) {
        parts.push(make("rect", { x: x0 + inset, y: y0 + inset, width: x1 - x0 - 2 * inset, height: y1 - y0 - 2 * inset, fill: "none", stroke: tone, "stroke-width": width * unit }));
      }
      parts.push(make("text", { x: x0 + 6 * unit, y: y0 + size + 3 * unit, "font-size": size, fill: "#fff", stroke: "#000", "stroke-width": size / 5, "paint-order": "stroke" }, number));
    });
  }
  if (at("grid").checked) {
    let path = "";
    for (let c = 1; c < one.columns; c++) path += `M${c * w} 0V${one.height}`;
    for (let r = 1; r < one.rows; r++) path += `M0 ${r * h}H${one.width}`;
    parts.push(make("path", { d: path, stroke: "#000", "stroke-opacity": 0.55, "stroke-width": 1.6 * unit, fill: "none" }));
    parts.push(make("path", { d: path, stroke: "#fff", "stroke-opacity": 0.75, "stroke-width": 0.7 * unit, fill: "none" }));
  }
  if ((at("heat").checked || state.hovered !== null) && top > 0.005 && best >= 0 && best < one.rows * one.columns) {
    parts.push(cell(best, "#000", 4), cell(best, "#fff", 2, { class: "strongest", "data-cell": best }));
  }
  if (cursor.cell !== null && cursor.picture === i) parts.push(cell(cursor.cell, "#000", 3.5), cell(cursor.cell, "#5ad1ff", 2, { class: "cursor", "data-cell": cursor.cell }));
  return parts;
}

function describe(one, cell) {
  return `token ${one.first + cell} (row ${Math.floor(cell / one.columns)}, column ${cell % one.columns}, window ${one.window[cell]})`;
}

function readout(seen, best, top) {
  if (!data.pictures.length) return "There is no image in this part of the prompt. The prompt below is shaded by attention.";
  if (cursor.cell !== null) {
    const one = data.pictures[cursor.picture];
    return `${describe(one, cursor.cell)}: ${percent(seen.pictures[one.first + cursor.cell])} of the attention`;
  }
  const home = data.pictures.find((one) => best >= one.first && best < one.first + one.rows * one.columns);
  const many = data.pictures.length > 1, where = many && home ? ` of ${home.name.split(":")[0]}` : "";
  const most = top > 0 && home ? `; most on ${describe(home, best - home.first)}${where}, ${percent(top)}` : "";
  return `${maps.layers[state.layer]}, ${maps.heads[state.head]}: ${percent(seen.share)} of the attention is on the image${many ? "s" : ""}${most}.`;
}

// ---- likeliest tokens ----

const tinted = (x) => `background-color: color-mix(in srgb, var(--tint) ${(42 * x).toFixed(1)}%, transparent)`;
const bar = (share, style = "") => make("span", { class: "track" }, make("i", { style: `width: ${100 * share}%; ${style}` }));

function showWord() {
  const one = data.tokens[word()];
  at("looked").textContent = `Attention before ${quoted(one)}`;
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

function showMatrix() {
  const layers = maps.layers.length, heads = maps.heads.length, cells = [];
  const shares = Array.from({ length: layers }, (_, l) => Array.from({ length: heads }, (_, h) => maps.shares[place(word(), l, h)]));
  const top = own() ? Math.max(...shares.flat(), 1e-9) : 1;
  at("range").textContent = `empty 0, full colour ${percent(top)}`;
  for (let l = layers - 1; l >= 0; l--) {
    cells.push(make("span", { class: "side" }, l ? `layer ${l - 1}` : "mean"));
    for (let h = 0; h < heads; h++) {
      cells.push(make("button", {
        type: "button", tabindex: -1, class: l === state.layer && h === state.head ? "current" : null, "data-layer": l, "data-head": h,
        style: `background: color-mix(in srgb, var(--full) ${(100 * shares[l][h]) / top}%, var(--wash))`, title: `${maps.layers[l]}, ${maps.heads[h]}: ${percent(shares[l][h])}`,
        onclick: () => choose(l, h),
      }));
    }
  }
  cells.push(make("span", { class: "side" }, "head"), ...maps.heads.map((name, h) => make("span", {}, h ? name.replace("head ", "").replace(" of all heads", "") : "mean")));
  at("matrix").style.gridTemplateColumns = `auto repeat(${heads}, minmax(14px, 1fr))`;
  at("matrix").replaceChildren(...cells);
}

// ---- the prompt ----

function drawPrompt() {
  let first = 0; // of an image's tokens among those of all images
  const runs = data.prompt.map((one) => (one.text_at === null ? { ...one, from: first, to: (first += one.count) } : one));
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
}

function dark() {
  return (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
}

function start() {
  at("model").textContent = data.model;
  if (!data.question) at("question").textContent = "A prompt given as tokens";
  drawAnswer();
  drawPictures();
  drawPrompt();
  drawStages();
  for (const kind of ["layer", "head"]) {
    at(kind).append(...maps[`${kind}s`].map((name, i) => make("option", { value: i }, name)));
    at(kind).addEventListener("change", () => choose(Number(at("layer").value), Number(at("head").value)));
  }
  for (const id of ["heat", "grid", "windows"]) at(id).addEventListener("change", () => { state.touched ||= id === "heat"; showPictures(); });
  at("scale").addEventListener("change", () => { showPictures(); showMatrix(); });
  at("projector").addEventListener("click", () => {
    const large = document.documentElement.toggleAttribute("data-projector");
    at("projector").setAttribute("aria-pressed", large);
  });
  at("filter").addEventListener("input", () => { state.shown = 100; showTable(); });
  at("more").addEventListener("click", () => { state.shown += 400; showTable(); });
  const named = () => { at("theme").textContent = dark() ? "Light" : "Dark"; };
  at("theme").addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; named(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", named);
  named();
  const edits = data.edited.length ? ` Changed by hand: ${data.edited.join(", ")}.` : "";
  const parts = Object.entries(data.versions).map((one) => one.join(" ")).join(", ");
  at("foot").textContent = `${data.config}. ${data.finished ? "" : "The answer was cut at max_new_tokens. "}Probabilities are those of the logits, before temperature and penalties. Attention shows where values were read from, not why a token was chosen.${edits} Versions: ${parts}; backend ${data.backend}.`;
  document.addEventListener("keydown", keys);
  show();
  showTable();
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

start();
