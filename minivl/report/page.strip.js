// The strip: one pixel on its way through patch, window and token to the answer.

const PIXEL = "#ff9a50"; // what is followed, in every station
const STATIONS = ["pixel", "patch", "window", "token", "answer"];
const still = matchMedia("(prefers-reduced-motion: reduce)");
let station = null, timer = null; // the station that is lit; null: all are

function drawStrip() {
  at("stations").replaceChildren(...STATIONS.map((name, i) => make("li", { "data-station": name },
    i < 4 ? make("canvas", { width: 320, height: 240, role: "img", "aria-label": name }) : make("div", { class: "bars" }), make("b", {}, `${i + 1} ${name}`), make("p", {}))));
  const first = at("stations").querySelector("canvas");
  first.addEventListener("click", (event) => {
    const one = followed().one, { x, y } = spot(first, event), [left, top, width, height] = fitted(one);
    keep(followed().picture, { x: clamp((x * 320 - left) / width, 0, 0.9999), y: clamp((y * 240 - top) / height, 0, 0.9999) });
  });
  at("play").addEventListener("click", () => (timer === null ? play() : light(null)));
  at("before").addEventListener("click", () => light(station === null ? 4 : Math.max(station - 1, 0)));
  at("after").addEventListener("click", () => light(station === null ? 0 : Math.min(station + 1, 4)));
  still.addEventListener("change", () => light(null));
  addEventListener("resize", () => light(station, timer !== null));
  light(null);
}

/** Light one station, or all of them; the ball moves there. */
function light(k, playing = false) {
  if (!playing) timer = clearInterval(timer) ?? null;
  station = k;
  at("play").hidden = still.matches; // without motion the buttons beside it go from station to station
  at("play").textContent = timer === null ? "Play" : "Stop";
  at("strip").classList.toggle("lit", k !== null);
  [...at("stations").children].forEach((node, i) => node.classList.toggle("on", i === k));
  const node = at("stations").children[k ?? 0], rail = at("ball").parentElement;
  if (k !== null) at("stations").scrollTo({ left: node.offsetLeft - at("stations").offsetLeft - 40, behavior: still.matches ? "instant" : "smooth" });
  at("ball").style.left = `${((node.offsetLeft + node.offsetWidth / 2 - rail.offsetLeft) / (rail.offsetWidth || 1)) * 100}%`;
}

function play() {
  timer = setInterval(() => (station < 4 ? light(station + 1, true) : light(null)), 1600);
  light(0, true);
}

/** The pixel that is followed: the middle of the first image until one is clicked. */
function followed() {
  const { picture, x, y } = state.pixel ?? { picture: 0, x: 0.5, y: 0.5 }, one = data.pictures[picture];
  const token = Math.floor(y * one.rows) * one.columns + Math.floor(x * one.columns);
  const at = { x: Math.floor(x * one.width), y: Math.floor(y * one.height) }, side = one.width / one.columns / data.merge;
  const inside = (Math.floor(at.y / side) % data.merge) * data.merge + (Math.floor(at.x / side) % data.merge);
  return { picture, one, token, at, side, inside, unit: data.merge ** 2, row: Math.floor(token / one.columns), column: token % one.columns };
}

/** Where an image lies on a canvas of 320 x 240: left, top, width, height. */
function fitted(one) {
  const scale = Math.min(320 / one.width, 240 / one.height);
  return [(320 - one.width * scale) / 2, (240 - one.height * scale) / 2, one.width * scale, one.height * scale];
}

function showStrip() {
  if (!data.pictures.length) return;
  const spot = followed(), image = document.querySelectorAll(".view img")[spot.picture];
  if (!image?.complete) return; // it calls again once it is there
  const items = [...at("stations").children], pens = items.slice(0, 4).map((item) => item.querySelector("canvas").getContext("2d"));
  pens.forEach((pen) => pen.clearRect(0, 0, 320, 240));
  const texts = [drawPixel(pens[0], image, spot), drawPatch(pens[1], image, spot), drawWindow(pens[2], image, spot), drawToken(pens[3], spot), drawAnswerBars(items[4].firstChild, spot)];
  texts.forEach((text, i) => { items[i].querySelector("p").textContent = text; });
}

function outline(pen, x, y, width, height) {
  for (const [tone, line] of [["#000", 5], [PIXEL, 3]]) {
    [pen.strokeStyle, pen.lineWidth] = [tone, line];
    pen.strokeRect(x, y, width, height);
  }
}

function drawPixel(pen, image, { one, at }) {
  const [left, top, width, height] = fitted(one), x = left + ((at.x + 0.5) / one.width) * width, y = top + ((at.y + 0.5) / one.height) * height;
  pen.drawImage(image, left, top, width, height);
  for (const [tone, line] of [["#000", 5], [PIXEL, 2.5]]) {
    [pen.strokeStyle, pen.lineWidth] = [tone, line];
    pen.beginPath();
    pen.arc(x, y, 9, 0, 7);
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) { pen.moveTo(x + 9 * dx, y + 9 * dy); pen.lineTo(x + 20 * dx, y + 20 * dy); }
    pen.stroke();
  }
  return `x ${at.x}, y ${at.y} of ${one.width} × ${one.height} pixels: three numbers, red, green and blue.`;
}

/** The pixels of the token, enlarged: its patches, with the pixel's own outlined. */
function drawPatch(pen, image, { one, at, side, inside, unit, row, column }) {
  const scale = image.naturalWidth / one.width, whole = side * data.merge, shown = 232, part = shown / data.merge, left = (320 - shown) / 2, dot = part / side;
  pen.imageSmoothingEnabled = false;
  pen.drawImage(image, column * whole * scale, row * whole * scale, whole * scale, whole * scale, left, 4, shown, shown);
  [pen.strokeStyle, pen.lineWidth] = ["#ffffffb0", 1.5];
  for (let i = 0; i < unit; i++) pen.strokeRect(left + (i % data.merge) * part, 4 + Math.floor(i / data.merge) * part, part, part);
  outline(pen, left + (inside % data.merge) * part, 4 + Math.floor(inside / data.merge) * part, part, part);
  pen.fillStyle = PIXEL;
  pen.fillRect(left + (at.x - column * whole) * dot, 4 + (at.y - row * whole) * dot, dot, dot);
  return `One of the ${unit} patches of a token: ${side} × ${side} pixels become one row of numbers.`;
}

function drawWindow(pen, image, { one, token, inside, unit }) {
  const [left, top, width, height] = fitted(one), number = one.window[token];
  pen.drawImage(image, left, top, width, height);
  for (const [other, [x0, y0, x1, y1], rgb] of one.windows) {
    const place = [left + (x0 / one.width) * width + 2, top + (y0 / one.height) * height + 2, ((x1 - x0) / one.width) * width - 4, ((y1 - y0) / one.height) * height - 4];
    if (other === number) outline(pen, ...place);
    else {
      [pen.strokeStyle, pen.lineWidth] = [`rgb(${rgb})`, 1.5];
      pen.strokeRect(...place);
    }
  }
  return `Window ${number}: in windowed blocks the patch attends to this window only. It is row ${one.slots[token] * unit + inside} of the tower, which goes window by window.`;
}

/** The prompt as a bar, the image's tokens shaded, and the token's place in it. */
function drawToken(pen, { one, token, row, column, unit }) {
  const own = getComputedStyle(document.body), total = sum(data.prompt.map((run) => run.count)), width = 304, at = (place) => 8 + (place / total) * width, place = one.prompt + token;
  let start = 0;
  for (const run of data.prompt) {
    pen.fillStyle = run.text_at === null ? "#e0a060" : "#8893a5";
    pen.fillRect(at(start), 96, Math.max(at(start + run.count) - at(start) - (total < 200 ? 0.6 : 0), 0.5), 34);
    start += run.count;
  }
  pen.fillStyle = own.color;
  pen.font = `15px ${own.fontFamily}`;
  pen.textAlign = "center";
  pen.fillText(`the prompt, ${total} tokens`, 160, 78);
  pen.fillText(`t ${one.position.t}   h ${one.position.h[row]}   w ${one.position.w[column]}`, 160, 206);
  outline(pen, at(place) - 3, 90, Math.max(at(place + 1) - at(place), 2) + 6, 46);
  pen.beginPath();
  pen.moveTo(at(place + 0.5), 140);
  pen.lineTo(160, 184);
  pen.stroke();
  return `The merger makes the ${unit} patches one row of the decoder: place ${place} of the prompt. Its position has time, row and column.`;
}

/** For the chosen token of the answer: the attention to this token, and what becomes of its probability with it hidden. */
function drawAnswerBars(box, { picture, one, token }) {
  const seen = sharesOf(word(), state.layer, state.head).pictures[one.first + token], run = runOfCell(picture, token), said = data.tokens[word()];
  const rows = [[`attention to it, ${maps.layers[state.layer]}, ${maps.heads[state.head]}`, seen]];
  if (run !== null) rows.push(["probability with it", causes.before[word()]], [causes.squares[state.side].side > 1 ? "with it and its neighbours hidden" : "with it hidden", afterOf(run)]);
  box.replaceChildren(make("strong", {}, quoted(said)), ...rows.flatMap(([text, share]) => [make("span", {}, `${text}: ${percent(share)}`), bar(share, "background: var(--full)")]));
  return run === null ? "Attention is where values were read from, not why the token was chosen." : "Attention is where values were read from; hiding the token measures what the answer depends on.";
}
