
// --- what other recipes would make of every product ---------------------------------------------

const ANSWERS = {
  worst: "worst result, dB", output: "output, dB", grad_input: "gradient of the input, dB",
  grad_weight: "gradient of the weight, dB", sqnr: "lowest SQNR of an operand, dB",
  flushed: "largest share flushed to zero, %", saturated: "largest share saturated, %",
};
const WORTH_NAMING_DB = 3;

let answerKey = null, answerUp = true, answered = 0;

const asked = () => data.recordings[+$("run").value || 0]?.whatIf;

function setUpWhatIf() {
  options("answer", Object.entries(ANSWERS));
  $("answer").onchange = () => { answerKey = null; drawWhatIf(); };
  $("product-search").oninput = drawAnswers;
  $("run").addEventListener("change", () => { answered = 0; answerKey = null; drawWhatIf(); });
  drawWhatIf();
}

function drawWhatIf() {
  const found = asked();
  show("what-if", Boolean(found));
  if (!found) return;
  drawAnswers();
  drawAnswerHistory();
}

const median = (values) => {
  const known = values.filter((x) => typeof x === "number").sort((a, b) => a - b), half = known.length >> 1;
  return known.length === 0 ? null : known.length % 2 ? known[half] : (known[half - 1] + known[half]) / 2;
};

function drawAnswers() {
  const found = asked(), q = $("answer").value, isShare = q === "flushed" || q === "saturated";
  const text = $("product-search").value.trim().toLowerCase();
  const cell = (p, r) => {
    const why = found.whys[p][r];
    return why ? why : found.values[q]?.[p][r] ?? (q === "worst" ? "lost" : "–");
  };
  const usual = found.recipes.map((_, r) => median(found.products.map((_, p) => cell(p, r))));
  const value = (p, c) => (c === 0 ? found.products[p][0] : c === 1 ? found.products[p][1] : cell(p, c - 2));
  const rows = found.products.map((_, p) => p).filter((p) => found.products[p][0].toLowerCase().includes(text));
  if (answerKey !== null) {
    // What is no number comes last, either way.
    rows.sort((a, b) => {
      const [x, y] = [value(a, answerKey), value(b, answerKey)];
      if (answerKey > 0 && typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
      const order = typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return answerUp ? order : -order;
    });
  }
  const head = document.createElement("tr");
  ["Product", "Work, %", ...found.recipes].forEach((title, c) => {
    const th = document.createElement("th"), button = document.createElement("button");
    th.scope = "col";
    th.setAttribute("aria-sort", c === answerKey ? (answerUp ? "ascending" : "descending") : "none");
    button.type = "button";
    button.textContent = title + (c === answerKey ? (answerUp ? " ↑" : " ↓") : "");
    button.onclick = () => {
      answerUp = c === answerKey ? !answerUp : c !== 1 && !(isShare && c > 1);
      answerKey = c;
      drawAnswers();
      $("answers").tHead.querySelectorAll("button")[c].focus();
    };
    th.append(button);
    head.append(th);
  });
  $("answers").tHead.replaceChildren(head);
  $("answers").tBodies[0].replaceChildren(...rows.map((p) => {
    const row = document.createElement("tr");
    row.dataset.product = p;
    row.setAttribute("aria-selected", p === answered);
    const th = document.createElement("td"), button = document.createElement("button");
    button.type = "button";
    button.append(...found.products[p][0].split(/(?<=\.)/).flatMap((part) => [part, document.createElement("wbr")]));
    button.onclick = () => {
      $("answers").querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", false);
      answered = p;
      row.setAttribute("aria-selected", true);
      drawAnswerHistory();
    };
    th.append(button);
    const work = document.createElement("td");
    work.textContent = found.products[p][1];
    row.append(th, work, ...found.recipes.map((_, r) => {
      const td = document.createElement("td"), x = cell(p, r);
      td.textContent = x;
      const isBad = isShare ? x > 1 : x === "lost" || (usual[r] !== null && usual[r] - x >= WORTH_NAMING_DB);
      if (isBad) td.className = "bad";
      return td;
    }));
    return row;
  }));
  $("answer-count").textContent = `${rows.length} of ${found.products.length} products, ${found.stepCount} step${found.stepCount === 1 ? "" : "s"}, which count by the mean of their squares`;
}

function drawAnswerHistory() {
  const found = asked(), several = window.Plotly && found.steps.length > 1;
  show("answer-history", Boolean(several));
  if (!several) return;
  const traces = found.recipes.map((name, r) => ({
    x: found.steps, y: found.history[answered][r], name, mode: "lines", connectgaps: false,
    line: { color: CYCLE[r % CYCLE.length], width: 1.8, dash: r < CYCLE.length ? "solid" : "dot" },
    hovertemplate: "step %{x}: %{y} dB",
  })).filter((trace) => trace.y.some((y) => y !== null));
  plot("answer-history", traces, {
    height: phone() ? 340 : 300, xaxis: { title: { text: "step" } },
    yaxis: { title: { text: "worst result, dB" } },
    title: { text: found.products[answered][0], font: { size: 13 } },
    legend: phone() ? { orientation: "h", y: -0.3 } : {},
  });
}
