// Sliders over closed forms, where the report has any: rows of arithmetic in B, S and L.
// Only numbers, names, + - * / ** ( ) and min max ceil floor round sqrt log2 are understood; nothing is run as code.
function evaluator(text) {
  const tokens = text.match(/\d+\.?\d*(?:[eE][-+]?\d+)?|\*\*|[-+*/(),]|[A-Za-z_]\w*/g) || [];
  if (tokens.join("") !== text.replace(/\s/g, "")) throw new Error(`cannot read ${text}`);
  let at = 0;
  const known = { min: Math.min, max: Math.max, ceil: Math.ceil, floor: Math.floor, round: Math.round, sqrt: Math.sqrt, log2: Math.log2 };
  const take = expected => { if (tokens[at] !== expected) throw new Error(`${expected} expected in ${text}`); at++; };
  const chain = (lower, operators) => () => {
    let left = lower();
    while (operators[tokens[at]]) { const go = operators[tokens[at++]], a = left, b = lower(); left = names => go(a(names), b(names)); }
    return left;
  };
  const atom = () => {
    const token = tokens[at++];
    if (token === "(") { const inner = sum(); take(")"); return inner; }
    if (token === "-") { const inner = power(); return names => -inner(names); }
    if (/^\d/.test(token || "")) { const value = Number(token); return () => value; }
    if (known[token] && tokens[at] === "(") {
      take("(");
      const inner = [sum()];
      while (tokens[at] === ",") { at++; inner.push(sum()); }
      take(")");
      return names => known[token](...inner.map(x => x(names)));
    }
    if (!/^[A-Za-z_]/.test(token || "")) throw new Error(`a value expected in ${text}`);
    return names => { if (!(token in names)) throw new Error(`${token} is not given`); return names[token]; };
  };
  const power = () => {
    const base = atom();
    if (tokens[at] !== "**") return base;
    at++;
    const exponent = power();
    return names => base(names) ** exponent(names);
  };
  const product = chain(power, { "*": (a, b) => a * b, "/": (a, b) => a / b });
  const sum = chain(product, { "+": (a, b) => a + b, "-": (a, b) => a - b });
  const whole = sum();
  if (at !== tokens.length) throw new Error(`cannot read ${text}`);
  return whole;
}

(() => {
  if (!explorer || !D.closed_forms.length) return;
  const rows = D.closed_forms.map(f => ({ ...f, flopsOf: evaluator(f.flops), bytesOf: Object.entries(f.bytes).map(([role, text]) => [role, evaluator(text)]) }));
  const limits = D.closed_ranges.map(r => ({ name: `${r.phase}, ${r.execution}`, conditions: r.conditions.map(([words, text]) => [words, evaluator(text)]) }));
  const phases = [...new Set(rows.map(r => `${r.phase}, ${r.execution}`))];
  const first = D.steps[state.step];
  const values = { B: first.batch, S: first.seq, L: first.context };
  const used = Object.keys(values).filter(name => D.closed_forms.some(f => new RegExp(`\\b${name}\\b`).test([f.flops, ...Object.values(f.bytes)].join(" "))));
  const pick = (list, label) => make("select", { "aria-label": label, onchange: draw }, ...list.map((x, i) => make("option", { value: i }, x)));
  const phase = pick(phases, "phase"), chip = pick(D.chips.map(c => c.name), "chip");
  const sliders = used.map(name => {
    const shown = make("output", {}, values[name].toLocaleString("en"));
    const slider = make("input", { type: "range", min: 0, max: 20, step: 0.25, value: Math.log2(values[name]), "aria-label": name,
      oninput: () => { values[name] = Math.round(2 ** slider.value); shown.textContent = values[name].toLocaleString("en"); draw(); } });
    return make("label", {}, `${name} `, slider, shown);
  });
  const result = make("div", { class: "scroll" });
  const without = [...new Set(D.steps.map(s => `${s.phase}, ${s.exec}`))].filter(name => !phases.includes(name));
  const missing = without.length ? ` Not here: ${without.join("; ")}. Deriving those takes longer than a report should.` : "";
  panel("Closed forms", make("p", { class: "muted" }, `FLOPs and bytes at any size from expressions that the trace produced; seconds are the roofline's at datasheet peaks, op by op, not the kernel model's.${missing}`),
    make("div", { class: "controls" }, make("label", {}, "step ", phase), make("label", {}, "chip ", chip), ...sliders), result);
  draw();

  function draw() {
    const broken = limits.filter(r => r.name === phases[phase.value]).flatMap(r => r.conditions).find(([, holds]) => !(holds(values) > 0));
    if (broken) { result.replaceChildren(make("p", { class: "muted" }, `Outside of these formulas' range: they were traced for ${broken[0]}.`)); return; }
    const c = D.chips[chip.value], total = { flops: 0, bytes: 0, compute: 0, memory: 0, sum: 0 }, waits = { compute: 0, memory: 0 };
    for (const r of rows.filter(x => `${x.phase}, ${x.execution}` === phases[phase.value])) {
      const flops = r.times * r.flopsOf(values), bytes = r.times * r.bytesOf.reduce((a, [, f]) => a + f(values), 0);
      const compute = flops ? flops / c.peak[r.precision] : 0, memory = bytes / c.bandwidth;
      total.flops += flops; total.bytes += bytes; total.compute += compute; total.memory += memory; total.sum += Math.max(compute, memory);
      waits[compute >= memory ? "compute" : "memory"] += Math.max(compute, memory);
    }
    const fact = (name, text) => make("tr", {}, make("th", { scope: "row" }, name), make("td", { class: "n" }, text));
    result.replaceChildren(make("table", {}, make("tbody", {},
      fact("FLOPs", si(total.flops, "FLOP")), fact("bytes", si(total.bytes, "B")), fact("FLOP/B", significant(total.flops / total.bytes, 4)),
      fact("compute at peak", seconds(total.compute)), fact("memory at full bandwidth", seconds(total.memory)),
      fact("sum of max(compute, memory)", seconds(total.sum)), fact("waits for", `${mostOf(waits)} ${percent(waits[mostOf(waits)] / total.sum)}`))));
  }
})();
