// Draws what the server sends: a picture, who is where in it, and who sounded when. Masks are blended here, so that a
// viewer can hide an identity at once.
"use strict";

const $ = (id) => document.getElementById(id);
const picture = $("picture"), timeline = $("timeline");
const hidden = new Set();            // ids whose masks are not wanted
const known = new Map();             // id -> {label, color, seen, row and what is in it}
let history = [], historySeconds = 60, now = 0, last = null, socket = null, retry = 500;
let session = null, ended = null;    // of the last hello: which session it is, and how it ended, if it has
let source = new URLSearchParams(location.search).get("source"); // an id of /api/sources; null: the first

function connect() {
  state("waiting", "connecting");
  const own = socket = new WebSocket((location.protocol === "https:" ? "wss://" : "ws://") + location.host
    + "/ws" + (source === null ? "" : `?source=${encodeURIComponent(source)}`));
  socket.binaryType = "arraybuffer";
  socket.onmessage = async (event) => {
    try {
      if (typeof event.data === "string") told(JSON.parse(event.data));
      else await shown(event.data);
    } finally {
      if (own.readyState === WebSocket.OPEN) own.send("ok"); // one message on its way at a time
    }
  };
  socket.onclose = () => {
    state("lost", "no connection");
    setTimeout(() => listSources().finally(connect), retry = Math.min(5000, retry * 1.5));
  };
}

// Programs add and remove sources; with more than one there is a choice.
async function listSources() {
  const answer = await fetch("api/sources");
  if (!answer.ok) return;
  const { sources } = await answer.json();
  if (source !== null && !sources.some((one) => one.id === source)) { source = null; forget(); }
  $("choice").hidden = sources.length < 2;
  $("choice").replaceChildren(...sources.map((one, n) => {
    const option = new Option(one.video, one.id);
    option.selected = source === null ? n === 0 : one.id === source;
    return option;
  }));
}

function forget() {
  for (const one of known.values()) one.row.remove();
  known.clear();
  hidden.clear();
  history = [];
  noNews();
  $("empty").hidden = false;
}

function noNews() {
  const item = document.createElement("li");
  item.textContent = "no news";
  $("events").replaceChildren(item);
  delete $("events").dataset.any;
}

$("choice").addEventListener("change", (event) => {
  source = event.target.value;
  forget();
  retry = 50;
  socket.close();
});

function state(kind, text) {
  $("state").className = kind;
  $("state").textContent = text;
}

function told(message) {
  if (message.hello) {
    if (message.session !== session) forget(); // its identities are others, though their numbers are the same
    session = message.session;
    ended = message.over ? "ended" + (message.error ? `: ${message.error}` : "") : null;
    noNews(); // a hello tells all of it
    history = message.history;
    historySeconds = message.history_seconds;
    $("source").textContent = message.sources.join(", ");
    if (history.length) now = history[history.length - 1][0];
    for (const [pts, sounding] of history) for (const [id, label, color] of sounding) identity(id, label, color, pts);
    retry = 500;
    listSources();
    drawTimeline();
  }
  if ((message.events || []).length && !$("events").dataset.any) {
    $("events").replaceChildren();
    $("events").dataset.any = "yes";
  }
  for (const event of message.events || []) {
    const item = document.createElement("li");
    const at = new Date(event.at * 1000).toLocaleTimeString();
    item.textContent = `${at} ${event.kind.replaceAll("_", " ")}` + (event.gap ? ` after ${event.gap.toFixed(1)} s` : "")
      + (event.detail ? `: ${event.detail}` : "");
    $("events").prepend(item);
    while ($("events").children.length > 20) $("events").lastChild.remove();
  }
  // Not told by the events: those of a hello are old.
  if (ended) state("lost", ended);
  else if (message.away) state("waiting", "source is away");
}

async function shown(data) {
  const lengths = new DataView(data, 0, 12), sizes = [0, 4, 8].map((at) => lengths.getUint32(at));
  const parts = [];
  let at = 12;
  for (const size of sizes) { parts.push(data.slice(at, at + size)); at += size; }
  const record = JSON.parse(new TextDecoder().decode(parts[0]));
  const [image, ids] = await Promise.all([
    createImageBitmap(new Blob([parts[1]], { type: "image/jpeg" })),
    createImageBitmap(new Blob([parts[2]], { type: "image/png" }), { colorSpaceConversion: "none" }),
  ]);
  if (last) { last.image.close(); }
  last = { record, image, ids: pixels(ids) };
  ids.close();
  now = record.pts;
  history.push([record.pts, record.tracks.filter((t) => t.sounding).map((t) => [t.id, t.label, t.color])]);
  while (history.length && history[0][0] < now - historySeconds) history.shift();
  if (!ended) state("live", "live");
  $("notice").hidden = true;
  update(record);
  drawPicture();
  drawTimeline();
}

function pixels(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(bitmap, 0, 0);
  return pen.getImageData(0, 0, bitmap.width, bitmap.height);
}

function drawPicture() {
  const { record, image, ids } = last, { width, height } = image;
  if (picture.width !== width || picture.height !== height) { picture.width = width; picture.height = height; }
  const pen = picture.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  const colors = record.tracks.map((t) => (t.sounding && !hidden.has(t.id) ? t.color : null));
  if (colors.some((c) => c)) {
    const canvas = pen.getImageData(0, 0, width, height), out = canvas.data, id = ids.data, row = width * 4;
    for (let n = 0; n < id.length; n += 4) {
      const color = id[n] ? colors[id[n] - 1] : null;
      if (!color) continue;
      // An outline of two pixels where the mask ends; the edge of the picture is none.
      const edge = (n >= 2 * row && id[n - 2 * row] !== id[n]) || (n + 2 * row < id.length && id[n + 2 * row] !== id[n])
        || (n >= 8 && id[n - 8] !== id[n]) || (n + 8 < id.length && id[n + 8] !== id[n]);
      const share = edge ? 1 : 0.4;
      for (let c = 0; c < 3; c++) out[n + c] += (color[c] - out[n + c]) * share;
    }
    pen.putImageData(canvas, 0, 0);
  }
  drawLabels(record, colors);
}

// On a canvas of their own, as sharp as the screen, however small the picture is.
function drawLabels(record, colors) {
  const labels = $("labels"), ratio = window.devicePixelRatio || 1, box = picture.getBoundingClientRect();
  const scale = Math.min(box.width / record.width, box.height / record.height);
  const width = record.width * scale, height = record.height * scale, stage = $("stage").getBoundingClientRect();
  Object.assign(labels.style, { width: `${width}px`, height: `${height}px`,
    left: `${box.left - stage.left + (box.width - width) / 2}px`,
    top: `${box.top - stage.top + (box.height - height) / 2}px` });
  labels.width = width * ratio;
  labels.height = height * ratio;
  const pen = labels.getContext("2d"), high = 24;
  pen.scale(ratio, ratio);
  pen.font = '600 14px system-ui, "DejaVu Sans", sans-serif';
  pen.textBaseline = "middle";
  for (const [n, track] of record.tracks.entries()) {
    if (!colors[n] || !track.bbox) continue;
    const text = `#${track.id} ${track.label.replaceAll("_", " ")}`, wide = pen.measureText(text).width + 12;
    const x = Math.max(0, Math.min(track.bbox[0] * scale, width - wide));
    const above = track.bbox[1] * scale - high - 2, y = above >= 0 ? above : track.bbox[1] * scale + 2;
    pen.fillStyle = css(track.color);
    pen.fillRect(x, y, wide, high);
    pen.fillStyle = "#101010";
    pen.fillText(text, x + 6, y + high / 2 + 1);
  }
}

const css = (color) => `rgb(${color.join(",")})`;

// The identity of an id, as it was seen at a time.
function identity(id, label, color, pts) {
  const one = known.get(id) || added(id);
  Object.assign(one, { label, color, seen: pts });
  one.name.textContent = `#${id} ${label.replaceAll("_", " ")}`;
  one.swatch.style.background = one.bar.style.background = css(color);
  return one;
}

function added(id) {
  const row = document.createElement("li"), line = document.createElement("label");
  row.dataset.id = id;
  line.innerHTML = '<input type="checkbox" checked><span class="swatch"></span><span class="name"></span>'
    + '<span class="score"></span><span class="meter"><span class="status"></span><span class="bar"><i></i></span></span>';
  row.append(line);
  const find = (name) => line.querySelector(name);
  find("input").addEventListener("change", (event) => {
    event.target.checked ? hidden.delete(id) : hidden.add(id);
    if (last) drawPicture();
  });
  find("input").setAttribute("aria-label", `show #${id}`);
  const one = { row, name: find(".name"), swatch: find(".swatch"), score: find(".score"), status: find(".status"),
    bar: find(".bar i") };
  known.set(id, one);
  $("tracks").append(row);
  $("empty").hidden = true;
  return one;
}

function update(record) {
  const present = new Set();
  for (const track of record.tracks) {
    present.add(track.id);
    const one = identity(track.id, track.label, track.color, record.pts);
    one.score.textContent = track.score.toFixed(2);
    one.status.textContent = track.sounding ? "sounding" : "silent";
    one.row.className = track.sounding ? "sounding" : "";
    one.bar.style.width = track.sounding ? `${Math.round(record.level * 100)}%` : "0";
  }
  for (const [id, one] of known) {
    if (present.has(id)) continue;
    one.status.textContent = "away";
    one.row.className = "gone";
    one.bar.style.width = "0";
    if (record.pts - one.seen > 120) { one.row.remove(); known.delete(id); hidden.delete(id); }
  }
  const s = record.stats, figures = [
    ["camera", `${s.fps_in.toFixed(1)} fps`], ["masks", `${s.masks_hz.toFixed(1)} Hz`],
    ["tracker", `${s.steps_hz.toFixed(1)} Hz`],
    ["latency, p95", record.latency_ms === null ? "on demand" : `${Math.round(s.latency_p95_ms)} ms`],
    ["sound heard", `${Math.round(record.audio_valid * 100)} %`],
    ["frames dropped", s.dropped], ["reconnects", s.reconnects],
  ];
  $("figures").replaceChildren(...figures.flatMap(([name, value]) => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = value;
    return [dt, dd];
  }));
}

function drawTimeline() {
  const ids = [...new Set(history.flatMap(([, sounding]) => sounding.map(([id]) => id)))].slice(-8);
  const ratio = window.devicePixelRatio || 1, wide = Math.max(200, timeline.clientWidth), rowHigh = 20;
  const high = Math.max(1, ids.length) * rowHigh + 18, left = 130;
  timeline.style.height = `${high}px`;
  timeline.width = wide * ratio;
  timeline.height = high * ratio;
  const pen = timeline.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = '12px system-ui, "DejaVu Sans", sans-serif';
  pen.textBaseline = "middle";
  const x = (pts) => left + (1 - (now - pts) / historySeconds) * (wide - left - 8);
  pen.strokeStyle = "#333842";
  pen.fillStyle = "#9aa1ad";
  pen.textAlign = "center";
  for (let back = 0; back <= historySeconds; back += 10) {
    pen.beginPath();
    pen.moveTo(x(now - back), 0);
    pen.lineTo(x(now - back), high - 16);
    pen.stroke();
    pen.textAlign = back === 0 ? "right" : "center";
    pen.fillText(back === 0 ? "now" : `-${back} s`, x(now - back), high - 7);
  }
  pen.textAlign = "left";
  if (!ids.length) pen.fillText("nothing has made a sound", 4, rowHigh / 2);
  ids.forEach((id, n) => {
    const one = known.get(id), y = n * rowHigh;
    pen.fillStyle = "#e8eaee";
    pen.fillText(`#${id} ${one ? one.label.replaceAll("_", " ") : ""}`.slice(0, 18), 4, y + rowHigh / 2);
    pen.fillStyle = one ? css(one.color) : "#888";
    history.forEach(([pts, sounding], k) => {
      if (!sounding.some(([other]) => other === id)) return;
      // Up to the next result, but not over a gap.
      const end = k + 1 < history.length ? Math.min(history[k + 1][0], pts + 1.5) : pts + 0.1;
      const from = Math.floor(x(pts)); // whole pixels: fractions would leave seams
      pen.fillRect(from, y + 4, Math.max(1, Math.floor(x(end)) - from), rowHigh - 8);
    });
  });
}

window.addEventListener("resize", () => {
  drawTimeline();
  if (last) drawPicture();
});
connect();
