// Data, formats, and the step that is looked at.
const D = JSON.parse(document.getElementById("data").textContent);
const S = D.strings;
const PART = { kernel: 0, module: 1, op: 2, formula: 3, shapes: 4, category: 5, confidence: 6, times: 7, flops: 8, vector: 9, bytes: 10 };
const WAITS = { c: "compute", m: "memory", n: "network", l: "latency" };

const significant = (v, digits) => {
  const whole = String(Math.trunc(Math.abs(v))).length;
  return v.toLocaleString("en", { minimumFractionDigits: Math.max(digits - whole, 0), maximumFractionDigits: Math.max(digits - whole, 0) });
};
const si = (v, unit) => {
  for (const [scale, prefix] of [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(v) >= scale) return `${significant(v / scale, 4)} ${prefix}${unit}`;
  return `${Number.isInteger(v) ? v : significant(v, 4)} ${unit}`;
};
const seconds = v => {
  for (const [scale, unit] of [[1, "s"], [1e-3, "ms"], [1e-6, "us"]])
    if (Math.abs(v) >= scale) return `${significant(v / scale, 3)} ${unit}`;
  return v ? `${significant(v * 1e9, 3)} ns` : "0 s";
};
const percent = v => `${(100 * v).toFixed(1)}%`;
const mostOf = by => Object.keys(by).reduce((a, b) => by[b] > by[a] ? b : a, Object.keys(by)[0]);
const pattern = path => path.replace(/\.\d+(?=\.|$)/g, ".*") || "(top)";

// A step with its kernels and parts as objects, made when it is first looked at.
const views = new Map();
function view(number) {
  if (!views.has(number)) views.set(number, makeView(D.steps[number]));
  return views.get(number);
}
function makeView(step) {
  const ledger = D.ledgers[step.ledger];
  const kernels = ledger.kernels.map(([name, kind, pass, launches], i) => ({
    name: S[name], kind: S[kind], pass: S[pass], launches, seconds: step.seconds[i], waits: WAITS[step.waits[i]],
    flops: 0, bytes: 0, parts: [],
  }));
  const parts = ledger.parts.map(row => {
    const bytes = row.slice(PART.bytes);
    const part = {
      kernel: kernels[row[PART.kernel]], module: S[row[PART.module]], op: S[row[PART.op]], formula: D.formulas[row[PART.formula]],
      shapes: S[row[PART.shapes]], category: S[row[PART.category]], confidence: S[row[PART.confidence]], times: row[PART.times],
      flops: row[PART.flops], vector: row[PART.vector], roles: bytes, bytes: bytes.reduce((a, b) => a + b, 0),
    };
    part.kernel.parts.push(part);
    part.kernel.flops += part.flops;
    part.kernel.bytes += part.bytes;
    return part;
  });
  for (const kernel of kernels)
    for (const part of kernel.parts)
      part.seconds = kernel.seconds * (kernel.bytes ? part.bytes / kernel.bytes : 1 / kernel.parts.length);
  for (const kernel of kernels)
    kernel.main = kernel.parts.reduce((a, b) => (b.flops - a.flops || b.bytes - a.bytes) > 0 ? b : a, kernel.parts[0]);
  return { step, chip: D.chips[step.chip], kernels, parts, device: kernels.reduce((a, k) => a + k.seconds, 0) };
}

const stepName = s => `${s.phase}, ${s.exec}${D.chips.length > 1 ? `, ${D.chips[s.chip].id}` : ""}`;
const state = { step: Math.max(0, D.steps.findIndex(s => s.exec === "efficient" && s.phase !== "training")) };

const explorer = document.getElementById("widget-explorer");
// A panel that is only of use on a screen is left out in print.
const SCREEN = new Set(["Closed forms", "Behind the number"]);
const panel = (title, ...children) => explorer && explorer.appendChild(make("div", { class: SCREEN.has(title) ? "panel screen" : "panel" }, make("h4", {}, title), ...children));
if (explorer) {
  const pick = make("select", { id: "step", onchange: () => { state.step = Number(pick.value); changed(); } },
    ...D.steps.map((s, i) => make("option", { value: i }, stepName(s))));
  pick.value = state.step;
  const fact = make("span", { class: "muted" });
  const facts = () => {
    const s = D.steps[state.step];
    const spread = s.interval ? `, P10-P90 ${seconds(s.interval[0])} to ${seconds(s.interval[1])}` : "";
    const fits = s.chips > 1 ? `; needs at least ${s.chips} chips' memory, so one chip's time is hypothetical` : "";
    fact.textContent = `${D.chips[s.chip].name}: ${seconds(s.step)}${spread}, ideal ${seconds(s.ideal)}${fits}`;
  };
  explorer.appendChild(make("div", { class: "controls" }, make("label", {}, "step ", pick), fact));
  if (D.merged) explorer.appendChild(make("p", { class: "muted" }, "The trace is large: layers of one pattern are shown together."));
  follow(facts);
}
