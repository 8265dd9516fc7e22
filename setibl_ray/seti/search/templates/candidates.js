"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const PER_PAGE = 24;
const VERDICTS = { keep: "Keep", rfi: "RFI", unsure: "Unsure" };
const by = (id) => document.getElementById(id);
const STORED = "setibl_ray " + data.key;
let verdicts = {};
try { verdicts = JSON.parse(localStorage.getItem(STORED)) || {}; } catch { /* a browser that keeps nothing for files */ }
let shown = [], page = 0, at = 0;

const brightness = (c) => c.snr[0] + c.snr[2] + c.snr[4];
const ORDERS = {
  rank: (a, b) => a.rank - b.rank,
  f_start_mhz: (a, b) => a.f_start_mhz - b.f_start_mhz,
  drift: (a, b) => Math.abs(b.drift_hz_s) - Math.abs(a.drift_hz_s),
  snr: (a, b) => brightness(b) - brightness(a),
  score: (a, b) => a.score - b.score,
};

function select() {
  const find = by("find").value.trim().toLowerCase(), least = Number(by("least").value) || 0, show = by("show").value;
  const verdict = (c) => verdicts[c.id] || "open";
  shown = data.candidates.filter((c) =>
    c.score >= least
    && (!find || `${c.id} ${c.source} ${c.flags} ${c.f_start_mhz.toFixed(6)}`.toLowerCase().includes(find))
    && (show === "all" || (show === "clean" ? !c.flags : verdict(c) === show)));
  shown.sort(ORDERS[by("sort").value]);
  page = 0; at = 0;
  draw();
}

function draw() {
  const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
  page = Math.min(Math.max(page, 0), pages - 1);
  const own = shown.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  by("list").replaceChildren(...own.map(card));
  own.forEach((c) => picture(c, document.querySelector(`canvas[data-rank="${c.rank}"]`)));
  by("count").textContent = `${shown.length} of ${data.candidates.length}`;
  by("page").textContent = `${page + 1} of ${pages}`;
  by("before").disabled = page === 0;
  by("after").disabled = page === pages - 1;
  mark();
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function card(c) {
  const box = element("article", undefined, { class: "candidate", id: `c${c.rank}` });
  const title = element("h3");
  title.append(element("span", `${c.rank}. ${((c.f_start_mhz + c.f_end_mhz) / 2).toFixed(6)} MHz`), element("span", c.score.toFixed(3), { title: "score" }));
  const facts = element("dl", undefined, { class: "facts" });
  const snr = (k) => c.snr[k].toFixed(1);
  for (const [name, value] of [
    ["drift", `${c.drift_hz_s.toFixed(4)} Hz/s`], ["width", `${c.width_hz.toFixed(1)} Hz`],
    ["S/N ON", `${snr(0)}, ${snr(2)}, ${snr(4)}`], ["S/N OFF", `${snr(1)}, ${snr(3)}, ${snr(5)}`],
    ["windows, bin", `${c.n_windows}, ${c.bin}`], ["target", `${c.source} (${c.observation})`],
  ]) facts.append(element("dt", name), element("dd", value));
  const row = element("div", undefined, { class: "verdicts" });
  for (const [key, label] of Object.entries(VERDICTS)) {
    const button = element("button", label, { type: "button", "data-verdict": key, "aria-pressed": String(verdicts[c.id] === key) });
    button.onclick = () => judge(c, key);
    row.append(button);
  }
  box.append(title, element("canvas", undefined, { "data-rank": c.rank }), facts);
  if (c.flags) box.append(element("p", c.flags, { class: "how flags" }));
  box.append(row);
  return box;
}

function pixels(p) {
  const packed = atob(p.data), out = new Uint8Array(2 * packed.length);
  for (let i = 0; i < packed.length; i++) {
    const value = packed.charCodeAt(i);
    out[2 * i] = value >> 4;
    out[2 * i + 1] = value & 15;
  }
  return out;
}

// From deep blue over orange to white, as eyes find a faint line in it more easily than in grey.
const COLOURS = Array.from({ length: 16 }, (_, i) => {
  const x = i / 15;
  return [255 * Math.min(1, 1.9 * x), 255 * Math.max(0, Math.min(1, 1.6 * x - 0.25)), 255 * (x < 0.35 ? 0.18 + 0.9 * x : Math.max(0.1, 1.7 * x - 0.7))];
});

function picture(c, canvas) {
  const p = c.picture, times = data.times[c.observation], sources = data.sources[c.observation];
  const left = 66, right = 8, bottom = 14, gap = 3, panel = 40;
  const width = canvas.clientWidth || 360, height = 6 * (panel + gap) + bottom, scale = window.devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement), values = pixels(p);
  const colour = (name) => style.getPropertyValue(name).trim();
  pen.scale(scale, scale);
  pen.imageSmoothingEnabled = false;
  pen.font = "11px system-ui, sans-serif";
  const plot = width - left - right, span = p.columns * p.column_hz;
  const x = (hz) => left + (hz - p.left_hz) / span * plot;
  const raw = document.createElement("canvas");
  raw.width = p.columns;
  raw.height = p.rows;
  const start = Math.min(...times.flat());
  // Panels as they were observed; an observation that begins OFF its target is stored from its end.
  const order = times[0][0] <= times[5][0] ? [0, 1, 2, 3, 4, 5] : [5, 4, 3, 2, 1, 0];
  order.forEach((k, place) => {
    const image = new ImageData(p.columns, p.rows), reversed = order[0] === 5;
    for (let t = 0; t < p.rows; t++) {
      for (let f = 0; f < p.columns; f++) {
        const value = values[(k * p.rows + (reversed ? p.rows - 1 - t : t)) * p.columns + f];
        image.data.set([...COLOURS[value], 255], 4 * (t * p.columns + f));
      }
    }
    raw.getContext("2d").putImageData(image, 0, 0);
    const top = place * (panel + gap);
    pen.drawImage(raw, left, top, plot, panel);
    pen.fillStyle = colour(k % 2 ? "--rule" : "--needle");
    pen.fillRect(left - 4, top, 3, panel);
    pen.fillStyle = colour(k % 2 ? "--muted" : "--ink");
    pen.textAlign = "right";
    pen.fillText(fitted(pen, sources[k] || (k % 2 ? "OFF" : "ON"), left - 8), left - 8, top + 12);
    pen.fillStyle = colour("--muted");
    pen.fillText(`${Math.round(times[k][0] - start)} s`, left - 8, top + panel - 3);
    pen.strokeStyle = "#ffffff";
    pen.lineWidth = 1;
    pen.setLineDash([4, 4]);
    for (const side of [-9, 9]) {
      pen.beginPath();
      pen.moveTo(x(c.drift_hz_s * times[k][0]) + side, top);
      pen.lineTo(x(c.drift_hz_s * times[k][1]) + side, top + panel);
      pen.save();
      pen.globalAlpha = 0.75;
      pen.stroke();
      pen.restore();
    }
    pen.setLineDash([]);
  });
  const centre = (c.f_start_mhz + c.f_end_mhz) / 2, base = 6 * (panel + gap) + 10;
  pen.fillStyle = colour("--soft");
  pen.textAlign = "left";
  pen.fillText(`${(centre + p.left_hz / 1e6).toFixed(6)} MHz`, left, base);
  pen.textAlign = "right";
  pen.fillText(`+${span.toFixed(0)} Hz`, width - right, base);
}

function fitted(pen, text, room) {
  let short = text;
  while (short.length > 2 && pen.measureText(short).width > room) short = short.slice(0, -1);
  return short === text ? text : `${short.slice(0, -1)}…`;
}

function judge(c, verdict) {
  if (verdicts[c.id] === verdict) delete verdicts[c.id]; else verdicts[c.id] = verdict;
  try { localStorage.setItem(STORED, JSON.stringify(verdicts)); } catch { /* the export still has them */ }
  const own = by(`c${c.rank}`);
  own.querySelectorAll("[data-verdict]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.verdict === verdicts[c.id])));
}

function mark() {
  document.querySelectorAll(".candidate").forEach((box, i) => box.classList.toggle("at", i === at));
}

function exported() {
  const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
  const lines = data.candidates.map((c) => [c.rank, quoted(c.id), c.score, c.f_start_mhz, c.drift_hz_s, quoted(c.flags), verdicts[c.id] || ""].join(","));
  return ["rank,id,score,f_start_mhz,drift_hz_s,flags,verdict", ...lines].join("\n") + "\n";
}

by("export").onclick = () => {
  const link = element("a", undefined, { download: "verdicts.csv", href: URL.createObjectURL(new Blob([exported()], { type: "text/csv" })) });
  link.click();
  URL.revokeObjectURL(link.href);
};
for (const id of ["find", "least"]) by(id).oninput = select;
for (const id of ["sort", "show"]) by(id).onchange = select;
by("before").onclick = () => { page--; at = 0; draw(); };
by("after").onclick = () => { page++; at = 0; draw(); };
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const boxes = document.querySelectorAll(".candidate"), current = shown[page * PER_PAGE + at];
  const step = { j: 1, k: -1 }[event.key], verdict = { 1: "keep", 2: "rfi", 3: "unsure" }[event.key];
  if (step && boxes.length) {
    at = Math.min(Math.max(at + step, 0), boxes.length - 1);
    mark();
    boxes[at].scrollIntoView({ block: "nearest" });
  } else if (verdict && current) judge(current, verdict);
});
let width = window.innerWidth;
window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; draw(); } });
select();
document.documentElement.dataset.drawn = "true";
