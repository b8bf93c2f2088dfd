"use strict";

// The page's data come from page.py; charts are Plotly's. State lives in the controls.

const $ = (id) => document.getElementById(id);
const show = (id, on = true) => { $(id).hidden = !on; };
const phone = () => window.innerWidth < 640;

const QUANTITIES = {
  range: "RMS within the range",
  lost: "share lost (flushed or saturated)",
  flushed: "share flushed to zero",
  subnormal: "share held as subnormals",
  saturated: "share saturated",
  sqnr: "signal to quantization noise, dB",
  rms: "RMS, octaves",
  amax: "largest magnitude, octaves",
  crest: "largest magnitude over RMS, octaves",
  kurtosis: "kurtosis (3 is Gaussian), octaves",
  drift: "drift since the first sample, octaves",
};
const NEEDS_SHARES = ["lost", "flushed", "subnormal", "saturated", "sqnr"];

// From lost to zero over subnormal, the middle of the range, to saturated.
const RANGE_COLORS = [
  [0, "#4a1486"], [0.166, "#4a1486"], [0.167, "#9e9ac8"], [0.499, "#dddaf0"],
  [0.5, "#cfe8f3"], [0.667, "#2b8cbe"], [0.833, "#cfe8f3"], [0.834, "#d94801"], [1, "#8c2d04"],
];

let data, run, chosen = 0, sortKey = null, sortUp = true;

async function unpack(id) {
  const bytes = Uint8Array.from(atob($(id).textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  $(id).remove();
  return new Response(stream).text();
}

async function start() {
  setUpTheme();
  const packed = $("plotly").textContent.trim();
  data = JSON.parse(await unpack("data"));
  if (packed) {
    const script = document.createElement("script");
    script.textContent = await unpack("plotly");
    document.head.append(script);
  }
  if (packed && data.curves.length) { show("losses"); drawLosses(); }
  if (packed && data.recordings.length) setUpTensors();
  if (data.recordings.some((r) => r.whatIf)) setUpWhatIf();
  document.documentElement.dataset.ready = "yes";
}

// --- theme ---------------------------------------------------------------------------------------

function setUpTheme() {
  const kept = recall("theme") || "auto";
  applyTheme(kept);
  $("theme").onclick = () => {
    const order = ["auto", "light", "dark"];
    const next = order[(order.indexOf($("theme").dataset.theme) + 1) % 3];
    applyTheme(next);
    try { localStorage.setItem("unitscale-theme", next); } catch { /* a file may have no storage */ }
    redraw();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

function recall() {
  try { return localStorage.getItem("unitscale-theme"); } catch { return null; }
}

function applyTheme(theme) {
  $("theme").dataset.theme = theme;
  $("theme").textContent = `Theme: ${theme}`;
  $("theme").setAttribute("aria-label", `Color theme: ${theme}`);
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

function color(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function layout(extra) {
  const axis = { gridcolor: color("line"), zerolinecolor: color("line"), automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: color("ink"), size: 12, family: "system-ui, sans-serif" },
    margin: { l: 8, r: 8, t: 28, b: 36 }, hoverlabel: { namelength: -1 }, dragmode: phone() ? false : "zoom",
    ...extra,
    xaxis: { ...axis, ...extra.xaxis }, yaxis: { ...axis, ...extra.yaxis },
  };
}

function plot(id, traces, extra) {
  return Plotly.react(id, traces, layout(extra), {
    responsive: true, displaylogo: false, displayModeBar: false,
  });
}

function redraw() {
  if (window.Plotly && data?.curves.length) drawLosses();
  if (run) drawTensors();
  if (data?.recordings.some((r) => r.whatIf)) drawWhatIf();
}

// --- losses --------------------------------------------------------------------------------------

const CYCLE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#a0522d", "#8f6ed5"];

function drawLosses() {
  const recipes = [...new Set(data.curves.map((c) => c.recipe))];
  const others = recipes.filter((r) => r !== "fp32");
  const pen = (r) => (r === "fp32" ? color("ink") : CYCLE[others.indexOf(r) % CYCLE.length]);
  const seen = new Set();
  const traces = data.curves.map((c) => {
    const first = !seen.has(c.recipe);
    seen.add(c.recipe);
    const end = c.losses.findLastIndex((x) => x !== null);
    return {
      x: c.losses.map((_, i) => i * c.stride + 1), y: c.losses, name: c.recipe, legendgroup: c.recipe,
      showlegend: first, mode: c.diverged ? "lines+markers" : "lines",
      line: { color: pen(c.recipe), dash: c.unitScaled ? "solid" : "dash", width: 1.8 + ((others.indexOf(c.recipe) + 1) >> 3) },
      marker: { symbol: "x", color: pen(c.recipe), size: c.losses.map((_, i) => (i === end ? 11 : 0)) },
      hovertemplate: "step %{x}: %{y:.3f}",
    };
  });
  const all = data.curves.flatMap((c) => c.losses).filter((x) => x !== null);
  const firsts = data.curves.map((c) => c.losses[0]).filter((x) => x !== null);
  const low = all.reduce((a, b) => Math.min(a, b), Infinity), high = Math.max(...firsts);
  const pad = 0.05 * (high - low) + 0.01;
  plot("loss-chart", traces, {
    height: phone() ? 340 : 400, xaxis: { title: { text: "step" } },
    yaxis: { title: { text: "nats a byte" }, range: all.length ? [low - pad, high + pad] : undefined },
    legend: phone() ? { orientation: "h", y: -0.25 } : {},
  });
}

// --- tensors: controls ---------------------------------------------------------------------------

function options(id, entries) {
  $(id).replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
}

function setUpTensors() {
  ["tensors", "detail", "depth", "list"].forEach((id) => show(id));
  options("run", data.recordings.map((r, i) => [i, r.label || `recording ${i + 1}`]));
  show("run-control", data.recordings.length > 1);
  $("run").onchange = () => { setRun(); drawTensors(); };
  for (const id of ["quantity", "format", "direction", "order"]) $(id).onchange = drawHeat;
  $("search").oninput = () => { drawHeat(); drawTable(); };
  $("direction").addEventListener("change", drawTable);
  $("step").oninput = drawDetail;
  $("true-values").onchange = drawDetail;
  $("previous").onclick = () => move(-1);
  $("next").onclick = () => move(1);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) {
      event.preventDefault();
      $("search").focus();
    }
  });
  setRun();
  drawTensors();
}

function setRun() {
  run = data.recordings[+$("run").value || 0];
  const names = Object.keys(run.formats);
  const first = names[0], last = names[names.length - 1];
  const judged = first === last ? [] : [["", `values ${first}, gradients ${last}`]];
  options("format", [...judged, ...names.map((n) => [n, n])]);
  const hasShares = run.shares[first].flushed.some((row) => row.some((x) => x !== null));
  const keys = Object.keys(QUANTITIES).filter((q) => hasShares || !NEEDS_SHARES.includes(q));
  options("quantity", keys.filter((q) => run.steps.length > 1 || q !== "drift").map((q) => [q, QUANTITIES[q]]));
  show("tensors", run.steps.length > 0);
  show("history", run.steps.length > 1);
  show("step-control", run.histogramSteps.length > 1);
  $("step").max = Math.max(run.histogramSteps.length - 1, 0);
  $("step").value = $("step").max;
  chosen = run.focus;
}

const tenth = (x) => Math.round(10 * x) / 10;
const formatOf = (t) => {
  const names = Object.keys(run.formats);
  return $("format").value || (run.tensors[t][2] === "gradient" ? names[names.length - 1] : names[0]);
};
const label = (t) => run.tensors[t][0] + (run.tensors[t][2] === "value" ? "" : ` · ${run.tensors[t][2]}`);
const held = (t, i) => (run.rms[t][i] === null ? null : tenth(run.rms[t][i] + (run.held[t][i] ?? 0)));

const crest = (t, i) => (run.rms[t][i] === null || run.amax[t][i] === null ? null : tenth(run.amax[t][i] - run.rms[t][i]));

function lost(t, i) {
  const shares = run.shares[formatOf(t)];
  return shares.flushed[t][i] === null ? null : shares.flushed[t][i] + shares.saturated[t][i];
}

function worst(t) {
  return run.steps.reduce((m, _, i) => Math.max(m, lost(t, i) ?? 0), 0);
}

// Where an RMS lies in a format: 0 the smallest value, 1 the smallest normal, 2 the largest.
function position(x, [low, normal, high]) {
  if (x === null) return null;
  const p = x < low ? (x - low) / 16 : x < normal ? (x - low) / Math.max(normal - low, 1e-9)
    : x < high ? 1 + (x - normal) / (high - normal) : 2 + (x - high) / 16;
  return Math.max(-1, Math.min(3, p));
}

function quantity(t, i) {
  const q = $("quantity").value;
  if (q === "range") return position(held(t, i), run.formats[formatOf(t)]);
  if (q === "lost") return lost(t, i);
  if (NEEDS_SHARES.includes(q)) return run.shares[formatOf(t)][q][t][i];
  if (q === "drift") {
    const first = run.rms[t].find((x) => x !== null);
    return run.rms[t][i] === null ? null : run.rms[t][i] - first;
  }
  if (q === "crest") return crest(t, i);
  if (q === "kurtosis") return run.kurtosis[t][i] === null ? null : Math.log2(run.kurtosis[t][i]);
  return run[q][t][i];
}

function matching() {
  const text = $("search").value.trim(), direction = $("direction").value;
  let test = (name) => name.toLowerCase().includes(text.toLowerCase());
  try { const r = new RegExp(text, "i"); test = (name) => r.test(name); } catch { /* not one: as text */ }
  return run.tensors.map((_, t) => t).filter(
    (t) => (!direction || run.tensors[t][2] === direction) && (!text || test(label(t))));
}

function ordered() {
  const found = matching();
  if ($("order").value === "worst") {
    const by = new Map(found.map((t) => [t, worst(t)]));
    // What no product rounds comes last, however much of it a format would lose.
    return found.sort((a, b) => run.operands[b] - run.operands[a] || by.get(b) - by.get(a));
  }
  if ($("order").value === "name") return found.sort((a, b) => label(a).localeCompare(label(b), undefined, { numeric: true }));
  return found;
}

// --- tensors: charts -----------------------------------------------------------------------------

function drawTensors() {
  drawHeat();
  drawDetail();
  drawDepth();
  drawTable();
}

function drawHeat() {
  const rows = ordered(), q = $("quantity").value;
  $("count").textContent = `${rows.length} of ${run.tensors.length} tensors, ${run.steps.length} step${run.steps.length === 1 ? "" : "s"}`;
  const z = rows.map((t) => run.steps.map((_, i) => quantity(t, i)));
  const names = rows.map(label);
  const shared = { type: "heatmap", z, x: run.steps.map(String), y: names, hoverongaps: false };
  const bar = { thickness: 12, len: 1, outlinewidth: 0 };
  const trace = q === "range" ? {
    ...shared, zmin: -1, zmax: 3, colorscale: spread(RANGE_COLORS),
    customdata: rows.map((t) => run.steps.map((_, i) => held(t, i))),
    hovertemplate: "%{y}<br>step %{x}: RMS 2^%{customdata:.1f} as held<extra></extra>",
    colorbar: { ...bar, tickvals: [-0.5, 0, 1, 1.5, 2, 2.5], ticktext: ["lost", "smallest", "first normal", "middle", "largest", "saturated"] },
  } : {
    ...shared, hovertemplate: "%{y}<br>step %{x}: %{z:.3g}<extra></extra>", colorbar: bar,
    ...(q === "drift" ? { colorscale: "RdBu", zmid: 0 } : { colorscale: "Viridis" }),
    ...(["lost", "flushed", "subnormal", "saturated"].includes(q) ? { zmin: 0, zmax: 1, reversescale: true } : {}),
  };
  const wide = !phone() && rows.length <= 60;
  const height = Math.max(220, Math.min(rows.length * (wide ? 15 : 6) + 80, 820));
  plot("heat", [trace], {
    height,
    xaxis: { title: { text: "step" }, type: "category", nticks: phone() ? 5 : 12, gridcolor: "rgba(0,0,0,0)" },
    yaxis: {
      autorange: "reversed", type: "category", ticksuffix: " ", gridcolor: "rgba(0,0,0,0)",
      ...(wide ? {} : phone() || $("order").value !== "graph" ? { showticklabels: false, ticks: "" } : layerTicks(rows, (height - 80) / rows.length)),
    },
  });
  $("legend").textContent = q === "range"
    ? "Dark purple: below the smallest value; light purple: among the subnormals. Blue: the normal range, darkest in its middle. Orange: above the largest value. Click a cell to see its histogram."
    : "Click a cell to see its histogram.";
  $("heat").removeAllListeners?.("plotly_click");
  $("heat").on?.("plotly_click", ({ points: [p] }) => {
    chosen = rows[p.pointIndex[0]];
    const step = run.steps[p.pointIndex[1]], steps = run.histogramSteps;
    $("step").value = steps.reduce((b, s, i) => (Math.abs(s - step) < Math.abs(steps[b] - step) ? i : b), 0);
    drawDetail();
  });
}

// The module that a person would name: the path up to the first number in it.
function layer(t) {
  const parts = run.tensors[t][0].split("#")[0].split(":")[0].split(".");
  const at = parts.findIndex((part) => /^\d+$/.test(part));
  return parts.slice(0, at >= 0 ? at + 1 : Math.max(parts.length - 1, 1)).join(".");
}

// Ticks where a layer begins, or as soon after it as its name fits.
function layerTicks(rows, pixels) {
  const vals = [], texts = [];
  let before = null, named = true, last = -Infinity;
  rows.forEach((t, i) => {
    const direction = run.tensors[t][2], here = `${layer(t)}${direction === "value" ? "" : ` · ${direction}`}`;
    if (here !== before) named = false;
    if (!named && (i - last) * pixels >= 13) { vals.push(i); texts.push(here); last = i; named = true; }
    before = here;
  });
  return { tickmode: "array", tickvals: vals, ticktext: texts, ticks: "outside", tickfont: { size: 10 } };
}

// The scale is over positions -1 to 3; the listed stops are over -0.5 to 2.5.
function spread(stops) {
  const inner = stops.map(([at, c]) => [(at * 3 - 0.5 + 1) / 4, c]);
  return [[0, stops[0][1]], ...inner, [1, stops[stops.length - 1][1]]];
}

function limitLines(name, horizontal = false) {
  return run.formats[name].map((at, i) => ({
    type: "line", layer: "above", line: { color: ["#7b5cb8", "#3f8fc0", "#d94801"][i], width: 1.5, dash: i === 1 ? "dot" : "dash" },
    ...(horizontal ? { xref: "paper", x0: 0, x1: 1, y0: at, y1: at } : { yref: "paper", y0: 0, y1: 1, x0: at, x1: at }),
  }));
}

function limitNotes(name, horizontal = false) {
  return run.formats[name].map((at, i) => ({
    text: ["smallest", "normal", "largest"][i], showarrow: false, font: { size: 10, color: color("soft") },
    ...(horizontal ? { xref: "paper", x: 1, xanchor: "right", y: at, yanchor: i === 0 ? "top" : "bottom" }
      : { yref: "paper", y: i === 1 ? 0.93 : 1, yanchor: "bottom", x: at }),
  }));
}

function drawDetail() {
  const [name, op, direction] = run.tensors[chosen], format = formatOf(chosen);
  $("detail-title").textContent = label(chosen);
  const k = +$("step").value, step = run.histogramSteps[k];
  $("step-value").textContent = step ?? "";
  const i = run.steps.indexOf(step), shift = run.held[chosen][i] ?? 0;
  const [low, counts] = run.histograms[chosen][k] ?? [0, []];
  const total = counts.reduce((a, b) => a + b, 0) || 1;
  const bars = (offset, extra) => ({
    type: "bar", x: counts.map((_, j) => low + j + offset + 0.5), y: counts.map((c) => c / total), width: 1,
    customdata: counts.map((_, j) => low + j + offset), hovertemplate: "2^%{customdata}: %{y:.2%}", ...extra,
  });
  const traces = [bars(shift, { name: shift ? "as held" : "values", marker: { color: "#2b8cbe" } })];
  const before = shift !== 0 && $("true-values").checked;
  if (before) traces.push(bars(0, { name: "before units", marker: { color: color("soft") }, opacity: 0.5 }));
  show("histogram", counts.length > 0);
  plot("histogram", traces, {
    height: 300, barmode: "overlay", bargap: 0, showlegend: before, legend: { orientation: "h", y: -0.3 },
    title: { text: `Exponents at step ${step}, limits of ${format}`, font: { size: 13 }, y: 0.99, yanchor: "top" }, margin: { l: 8, r: 8, t: 48, b: 36 },
    xaxis: { title: { text: "floor(log2 |x|)" } }, yaxis: { tickformat: ".0%" },
    shapes: limitLines(format), annotations: limitNotes(format),
  });
  const line = (values, extra) => ({ x: run.steps, y: values, mode: "lines+markers", marker: { size: 4 }, hovertemplate: "step %{x}: 2^%{y:.1f}", ...extra });
  const lift = (row) => row.map((x, j) => (x === null ? null : tenth(x + (run.held[chosen][j] ?? 0))));
  if (run.steps.length > 1) plot("history", [
    line(lift(run.rms[chosen]), { name: "RMS", line: { color: "#2b8cbe" } }),
    line(lift(run.amax[chosen]), { name: "largest", line: { color: "#d94801", dash: "dot" } }),
    line(run.steps.map((_, j) => crest(chosen, j)), { name: "largest over RMS", visible: "legendonly", line: { color: "#009e73" } }),
    line(run.kurtosis[chosen].map((x) => (x > 0 ? tenth(Math.log2(x)) : null)), { name: "kurtosis", visible: "legendonly", line: { color: "#8f6ed5" } }),
  ], {
    height: 300, legend: { orientation: "h", y: -0.3 }, margin: { l: 8, r: 8, t: 48, b: 36 },
    title: { text: "As held, by step", font: { size: 13 }, y: 0.99, yanchor: "top" },
    xaxis: { title: { text: "step" } }, yaxis: { title: { text: "log2 magnitude" } },
    shapes: limitLines(format, true), annotations: limitNotes(format, true),
  });
  const percent = (x) => (x === null || x === undefined ? "–" : `${+(100 * x).toPrecision(2)} %`);
  const part = (kind) => percent(run.shares[format][kind][chosen][i]);
  $("detail-text").textContent = `${op}, ${direction}; at step ${step} in ${format}: ` + (run.ownScale[chosen]
    ? "its scale is computed; its what-if says what is lost"
    : `${part("flushed")} flushed to zero, ${part("subnormal")} subnormal, ${part("saturated")} saturated`) + (shift ? `; held times 2^${shift}` : "") + ".";
  for (const row of $("table").tBodies[0].rows) row.setAttribute("aria-selected", +row.dataset.tensor === chosen);
}

function drawDepth() {
  const last = run.steps.length - 1;
  const traces = [], shapes = [], annotations = [], inRange = { before: 0, after: 0, all: 0 };
  const place = new Map();
  for (const [name] of run.tensors) if (!place.has(name)) place.set(name, place.size);
  // A panel each, above one another: a direction has limits of its own.
  const panels = [["value", "#2b8cbe"], ["gradient", "#d94801"]].map(([direction, tone]) => {
    const found = run.tensors.map((_, t) => t).filter((t) => run.tensors[t][2] === direction && run.rms[t][last] !== null);
    return { direction, tone, found };
  }).filter(({ found }) => found.length);
  const axes = {};
  panels.forEach(({ direction, tone, found }, i) => {
    const axis = i ? "y2" : "y", height = 1 / panels.length;
    const common = {
      x: found.map((t) => place.get(run.tensors[t][0])), text: found.map(label), mode: "markers", yaxis: axis,
      hovertemplate: "%{text}: 2^%{y:.1f}<extra></extra>",
    };
    const isHeld = found.some((t) => run.held[t][last]);
    if (isHeld) {
      traces.push({ ...common, y: found.map((t) => run.rms[t][last]), name: `${direction}, before units`, marker: { color: tone, symbol: "circle-open", size: 5, opacity: 0.7 } });
    }
    traces.push({ ...common, y: found.map((t) => held(t, last)), name: isHeld ? `${direction}, as held` : direction, marker: { color: tone, size: 5 } });
    const format = formatOf(found[0]);
    shapes.push(...limitLines(format, true).map((line) => ({ ...line, yref: axis })));
    annotations.push(...limitNotes(format, true).map((note) => ({ ...note, yref: axis })));
    axes[i ? "yaxis2" : "yaxis"] = {
      title: { text: `log2 RMS<br>${direction}s, ${format}` }, automargin: true, gridcolor: color("line"), zerolinecolor: color("line"),
      domain: [1 - (i + 1) * height + (i + 1 < panels.length ? 0.05 : 0), 1 - i * height],
    };
    for (const t of found) {
      inRange.all += 1;
      inRange.before += Math.abs(run.rms[t][last]) <= 1;
      inRange.after += Math.abs(held(t, last)) <= 1;
    }
  });
  plot("depth-chart", traces, {
    height: 120 + 220 * panels.length, legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
    ...axes, xaxis: { title: { text: "tensor, in the order of the model" }, anchor: panels.length > 1 ? "y2" : "y" }, shapes, annotations,
  });
  $("depth-text").textContent = `RMS within [1/2, 2] at step ${run.steps[last]}: ${inRange.before} of ${inRange.all} tensors` +
    (inRange.after === inRange.before ? "." : ` before units, ${inRange.after} as held.`) + " Lines are the limits of the format named at each axis.";
}

// --- tensors: table ------------------------------------------------------------------------------

const last = () => run.steps.length - 1;
const COLUMNS = [
  ["Tensor", label], ["Op", (t) => run.tensors[t][1]],
  ["log2 RMS", (t) => run.rms[t][last()]], ["as held", (t) => held(t, last())],
  ["log2 largest", (t) => run.amax[t][last()]], ["over RMS", (t) => crest(t, last())], ["Kurtosis", (t) => run.kurtosis[t][last()]],
  ["Drift", (t) => { const f = run.rms[t].find((x) => x !== null), e = run.rms[t][last()]; return e === null || f === undefined ? null : +(e - f).toFixed(1); }],
  ["Lost, %", (t) => { const x = lost(t, last()); return x === null ? null : +(100 * x).toPrecision(2); }],
  ["Worst, %", (t) => +(100 * worst(t)).toPrecision(2)],
  ["SQNR, dB", (t) => run.shares[formatOf(t)].sqnr[t][last()]],
];

function drawTable() {
  const rows = matching();
  if (sortKey !== null) {
    const value = COLUMNS[sortKey][1], by = new Map(rows.map((t) => [t, value(t)]));
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
    rows.sort((a, b) => {
      const [x, y] = [by.get(a), by.get(b)];
      if (x === null || y === null) return (x === null) - (y === null); // what is missing comes last
      return sortUp ? compare(x, y) : compare(y, x);
    });
  }
  const head = document.createElement("tr");
  COLUMNS.forEach(([title], c) => {
    const th = document.createElement("th"), button = document.createElement("button");
    th.scope = "col";
    th.setAttribute("aria-sort", c === sortKey ? (sortUp ? "ascending" : "descending") : "none");
    button.type = "button";
    button.textContent = title + (c === sortKey ? (sortUp ? " ↑" : " ↓") : "");
    button.onclick = () => {
      sortUp = c === sortKey ? !sortUp : c < 2;
      sortKey = c;
      drawTable();
      $("table").tHead.querySelectorAll("button")[c].focus();
    };
    th.append(button);
    head.append(th);
  });
  $("table").tHead.replaceChildren(head);
  $("table").tBodies[0].replaceChildren(...rows.map(tableRow));
}

function tableRow(t) {
  const row = document.createElement("tr");
  row.dataset.tensor = t;
  row.setAttribute("aria-selected", t === chosen);
  COLUMNS.forEach(([title, value], c) => {
    const td = document.createElement("td"), x = value(t);
    if (c === 0) {
      const button = document.createElement("button");
      button.type = "button";
      // A long name may break after a dot.
      button.append(...x.split(/(?<=\.)/).flatMap((part) => [part, document.createElement("wbr")]));
      button.onclick = () => { chosen = t; drawDetail(); };
      button.onkeydown = (event) => {
        const to = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
        if (to && row[to]) { event.preventDefault(); row[to].querySelector("button").focus(); }
      };
      td.append(button);
    } else td.textContent = x ?? "–";
    if (title.endsWith("%") && x > 1 && run.operands[t]) td.className = "bad";
    row.append(td);
  });
  return row;
}

function move(by) {
  const rows = ordered(), at = rows.indexOf(chosen);
  if (rows.length) chosen = rows[(Math.max(at, 0) + (at < 0 ? 0 : by) + rows.length) % rows.length];
  drawDetail();
}

start().catch((error) => {
  $("failure").textContent = `The charts could not be drawn (${error.message}); the tables are complete. A browser of 2024 or later is needed.`;
  show("failure");
  console.error(error);
});
