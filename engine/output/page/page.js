"use strict";
// Draws the map of the data beside this script. A night has layers, a layer pieces: rectangles of pixels, the later
// the finer. Places are in HR pixels of the whole map, (column, row) from its upper left corner.
const page = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const stage = at("stage"), map = at("map"), swipe = at("swipe"), context = map.getContext("2d");
const view = { zoom: 1, x: page.width / 2, y: page.height / 2, swipe: 0.5, night: 0, cross: null };
const LEFT = "lr", RIGHT = "hr";

// ---- pixels ----------------------------------------------------------------------------------------------------------

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const colours = bytes(page.colours);
const value = (code) => (code === 0 ? NaN : page.codes.soft * Math.sinh(page.codes.low + (code - 1) * page.codes.step));

function table() {
  // code → the four bytes of its colour: what Stretch does in Python
  const rgba = new Uint8ClampedArray(4 * 65536), most = Math.asinh(page.stretch.top / page.stretch.soft);
  const last = colours.length / 3 - 1;
  for (let code = 0; code < 65536; code++) {
    const share = code ? Math.asinh(value(code) / page.stretch.soft) / most : 0;
    const k = 3 * Math.round(Math.min(1, Math.max(0, share)) * last);
    rgba.set(code ? [colours[k], colours[k + 1], colours[k + 2], 255] : [...page.nodata, 255], 4 * code);
  }
  return new Uint32Array(rgba.buffer);
}
const palette = table();

async function decoded(piece) {
  // bytes: all high bytes of the codes, then all low ones; codes are differences along their row
  const stream = new Blob([bytes(piece.data)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer()), n = piece.h * piece.w;
  const codes = new Uint16Array(n), image = new ImageData(piece.w, piece.h), pixels = new Uint32Array(image.data.buffer);
  for (let k = 0; k < n; k++) {
    const before = k % piece.w ? codes[k - 1] : 0;
    codes[k] = before + 256 * raw[k] + raw[n + k];
    pixels[k] = palette[codes[k]];
  }
  const canvas = document.createElement("canvas");
  canvas.width = piece.w;
  canvas.height = piece.h;
  canvas.getContext("2d").putImageData(image, 0, 0);
  return Object.assign(piece, { codes, canvas, data: null });
}

const loading = new Map();
function night(k) {
  if (!loading.has(k)) {
    const { lr, hr } = page.nights[k];
    loading.set(k, Promise.all([...lr, ...hr].map(decoded)));
  }
  return loading.get(k);
}

function read(layer, x, y) {
  // the value of the finest piece there; null beyond all
  for (const p of [...page.nights[view.night][layer]].reverse()) {
    const col = Math.floor((x - p.col) / p.factor), row = Math.floor((y - p.row) / p.factor);
    if (p.codes && col >= 0 && row >= 0 && col < p.w && row < p.h) return { value: value(p.codes[row * p.w + col]), piece: p };
  }
  return null;
}

// ---- drawing ---------------------------------------------------------------------------------------------------------

const size = () => [stage.clientWidth, stage.clientHeight];
const toScreen = (x, y) => { const [w, h] = size(); return [(x - view.x) * view.zoom + w / 2, (y - view.y) * view.zoom + h / 2]; };
const toMap = (x, y) => { const [w, h] = size(); return [(x - w / 2) / view.zoom + view.x, (y - h / 2) / view.zoom + view.y]; };
const fitting = (w = page.width, h = page.height) => Math.min(size()[0] / w, size()[1] / h) * 0.96;

let asked = false;
function draw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; paint(); });
}

function paint() {
  const [w, h] = size(), ratio = window.devicePixelRatio || 1;
  if (map.width !== Math.round(w * ratio) || map.height !== Math.round(h * ratio)) {
    map.width = Math.round(w * ratio);
    map.height = Math.round(h * ratio);
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, w, h);
  const line = view.swipe * w;
  for (const [layer, from, to] of [[LEFT, 0, line], [RIGHT, line, w]]) {
    context.save();
    context.beginPath();
    context.rect(from, 0, to - from, h);
    context.clip();
    for (const p of page.nights[view.night][layer]) if (p.canvas) paintPiece(p);
    context.restore();
  }
  for (const p of page.nights[view.night].hr.slice(1)) frame(p);
  if (view.cross) cross(...view.cross);
  swipe.style.left = `${line}px`;
  swipe.setAttribute("aria-valuenow", Math.round(100 * view.swipe));
  swipe.setAttribute("aria-valuetext", `input on ${Math.round(100 * view.swipe)} % of the map`);
}

function paintPiece(p) {
  const [left, top] = toScreen(p.col, p.row), scale = p.factor * view.zoom;
  context.imageSmoothingEnabled = scale < 1;
  context.imageSmoothingQuality = "high";
  context.drawImage(p.canvas, left, top, p.w * scale, p.h * scale);
}

function frame(p) {
  const [left, top] = toScreen(p.col, p.row);
  context.strokeStyle = "#5adcff";
  context.lineWidth = 1;
  context.strokeRect(left - 0.5, top - 0.5, p.w * p.factor * view.zoom + 1, p.h * p.factor * view.zoom + 1);
}

function cross(x, y) {
  // around the HR pixel that is read
  const [left, top] = toScreen(Math.floor(x), Math.floor(y)), side = Math.max(view.zoom, 1);
  context.lineWidth = 1.5;
  for (const [colour, grow] of [["#000", 2], ["#fff", 0.5]]) {
    context.strokeStyle = colour;
    context.strokeRect(left - grow, top - grow, side + 2 * grow, side + 2 * grow);
  }
  context.beginPath();
  const [cx, cy] = [left + side / 2, top + side / 2], inner = side / 2 + 4, outer = inner + 8;
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    context.moveTo(cx + dx * inner, cy + dy * inner);
    context.lineTo(cx + dx * outer, cy + dy * outer);
  }
  context.stroke();
}

// ---- what is told ----------------------------------------------------------------------------------------------------

const number = (v) => (Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en") : Number(v.toPrecision(3)).toString());

function tell() {
  const [x, y] = view.cross || [-1, -1];
  for (const layer of [LEFT, RIGHT]) {
    const found = read(layer, x, y), mean = found && found.piece.factor > (layer === LEFT ? page.scale : 1);
    const text = !found ? "–" : Number.isNaN(found.value) ? "nodata" : `${number(found.value)} ${page.unit}`;
    at(layer).textContent = text + (mean && !Number.isNaN(found.value) ? " (mean)" : "");
  }
  at("place").textContent = x < 0 || y < 0 || x >= page.width || y >= page.height ? "–" : place(Math.floor(x) + 0.5, Math.floor(y) + 0.5);
}

function place(x, y) {
  const [a, b, c, d, e, f] = page.transform, u = a * x + b * y + c, v = d * x + e * y + f;
  if (!page.degrees) return `x ${Math.round(u).toLocaleString("en")}, y ${Math.round(v).toLocaleString("en")}`;
  return `${Math.abs(v).toFixed(4)}° ${v < 0 ? "S" : "N"}, ${Math.abs(u).toFixed(4)}° ${u < 0 ? "W" : "E"}`;
}

function legend() {
  const bar = at("bar"), pen = bar.getContext("2d"), n = colours.length / 3;
  bar.width = n;
  const image = pen.createImageData(n, 14);
  for (let k = 0; k < n * 14; k++) image.data.set([...colours.slice(3 * (k % n), 3 * (k % n) + 3), 255], 4 * k);
  pen.putImageData(image, 0, 0);
  page.ticks.forEach(([v, share], k) => {
    const tick = document.createElement("span");
    tick.textContent = k === page.ticks.length - 1 ? `${v}+` : `${v}`;
    tick.className = k === 0 ? "first" : k === page.ticks.length - 1 ? "last" : "";
    tick.style.left = `${100 * share}%`;
    at("ticks").append(tick);
  });
  at("unit").textContent = page.unit;
  at("gap").firstChild.style.background = `rgb(${page.nodata.join(",")})`;
}

function facts() {
  const rows = page.nights[view.night].facts.map(([name, text]) => {
    const row = document.createElement("tr");
    for (const cell of [name, text]) row.append(Object.assign(document.createElement("td"), { textContent: cell }));
    return row;
  });
  at("facts").tBodies[0].replaceChildren(...rows);
}

async function show(k) {
  view.night = Math.min(page.nights.length - 1, Math.max(0, k));
  at("night").value = view.night;
  at("when").textContent = page.nights[view.night].name;
  at("night").setAttribute("aria-valuetext", page.nights[view.night].name);
  facts();
  const wanted = view.night;
  await night(wanted);
  if (view.night !== wanted) return;
  at("busy").hidden = true;
  paint();
  tell();
  document.body.dataset.night = wanted;
}

// ---- by hand ---------------------------------------------------------------------------------------------------------

function zoomBy(factor, x = size()[0] / 2, y = size()[1] / 2) {
  const [mx, my] = toMap(x, y), least = Math.min(fitting(), 1);
  view.zoom = Math.min(64, Math.max(least, view.zoom * factor));
  const [nx, ny] = toMap(x, y);
  view.x += mx - nx;
  view.y += my - ny;
  keep();
}

function keep() {
  view.x = Math.min(page.width, Math.max(0, view.x));
  view.y = Math.min(page.height, Math.max(0, view.y));
  draw();
}

function fit() {
  Object.assign(view, { zoom: fitting(), x: page.width / 2, y: page.height / 2 });
  draw();
}

function detail() {
  const p = page.nights[view.night].hr.at(-1), w = p.w * p.factor, h = p.h * p.factor;
  Object.assign(view, { zoom: fitting(w, h), x: p.col + w / 2, y: p.row + h / 2 });
  draw();
}

function read_at(event) {
  const box = stage.getBoundingClientRect();
  view.cross = toMap(event.clientX - box.left, event.clientY - box.top);
  tell();
  draw();
}

const fingers = new Map();
map.addEventListener("pointerdown", (event) => {
  map.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, [event.clientX, event.clientY]);
  if (event.pointerType !== "mouse") read_at(event);
});
map.addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId);
  if (!before) return read_at(event);
  const now = [event.clientX, event.clientY];
  if (fingers.size === 1) {
    view.x -= (now[0] - before[0]) / view.zoom;
    view.y -= (now[1] - before[1]) / view.zoom;
    keep();
  } else {
    const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    const apart = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]), box = stage.getBoundingClientRect();
    zoomBy(apart(now) / Math.max(apart(before), 1), (now[0] + other[0]) / 2 - box.left, (now[1] + other[1]) / 2 - box.top);
  }
  fingers.set(event.pointerId, now);
});
for (const name of ["pointerup", "pointercancel"]) map.addEventListener(name, (event) => fingers.delete(event.pointerId));
map.addEventListener("wheel", (event) => {
  event.preventDefault();
  const box = stage.getBoundingClientRect();
  zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX - box.left, event.clientY - box.top);
}, { passive: false });
map.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (steps) {
    const far = event.shiftKey ? page.scale : 1, [x, y] = view.cross || [view.x, view.y];
    view.cross = [Math.min(page.width - 1, Math.max(0, x + far * steps[0])), Math.min(page.height - 1, Math.max(0, y + far * steps[1]))];
    const [sx, sy] = toScreen(...view.cross), [w, h] = size();
    if (sx < 0 || sy < 0 || sx > w || sy > h) [view.x, view.y] = view.cross;
    tell();
    draw();
  } else if (event.key === "+" || event.key === "=") zoomBy(1.5);
  else if (event.key === "-") zoomBy(1 / 1.5);
  else if (event.key === "0") fit();
  else if (event.key === "," || event.key === ".") show(view.night + (event.key === "." ? 1 : -1));
  else return;
  event.preventDefault();
});

function swipeTo(share) {
  view.swipe = Math.min(1, Math.max(0, share));
  draw();
}
swipe.addEventListener("pointerdown", (event) => { swipe.setPointerCapture(event.pointerId); event.preventDefault(); swipe.focus({ preventScroll: true }); });
swipe.addEventListener("pointermove", (event) => {
  if (!swipe.hasPointerCapture(event.pointerId)) return;
  const box = stage.getBoundingClientRect();
  swipeTo((event.clientX - box.left) / box.width);
});
swipe.addEventListener("keydown", (event) => {
  const to = { ArrowLeft: view.swipe - 0.02, ArrowDown: view.swipe - 0.02, ArrowRight: view.swipe + 0.02, ArrowUp: view.swipe + 0.02,
    PageDown: view.swipe - 0.1, PageUp: view.swipe + 0.1, Home: 0, End: 1 }[event.key];
  if (to === undefined) return;
  swipeTo(to);
  event.preventDefault();
});
at("night").addEventListener("input", (event) => show(Number(event.target.value)));
at("in").addEventListener("click", () => zoomBy(1.5));
at("out").addEventListener("click", () => zoomBy(1 / 1.5));
at("fit").addEventListener("click", fit);
at("detail").addEventListener("click", detail);

// ---- at the start ----------------------------------------------------------------------------------------------------

// until somebody moves it, the map fills its place, which may change while the page is laid out
let moved = false;
for (const name of ["pointerdown", "wheel", "keydown"]) stage.addEventListener(name, () => { moved = true; }, { passive: true });
new ResizeObserver(() => {
  if (!moved) fit();
  paint();
}).observe(stage);
at("title").textContent = page.title;
at("shown").textContent = [page.nights.length === 1 ? page.nights[0].name : "", page.shown].filter(Boolean).join(" · ");
at("nights").hidden = page.nights.length < 2;
at("night").max = page.nights.length - 1;
at("detail").hidden = page.nights[0].hr.length < 2;
if (window.matchMedia("(max-width: 760px)").matches) at("about").open = false;
legend();
if (typeof DecompressionStream === "undefined") {
  at("busy").textContent = "this browser is too old for this page: use one of 2023 or later";
} else {
  show(0).catch((error) => { at("busy").hidden = false; at("busy").textContent = `the page is damaged: ${error.message}`; });
}
