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
  const sums = by => Object.entries(by).map(([name, text]) => [name, evaluator(text)]);
  const rows = D.closed_forms.map(f => ({ ...f, step: `${f.phase}, ${f.execution}`, flopsOf: evaluator(f.flops), againOf: evaluator(f.again), vectorOf: evaluator(f.vector), bytesOf: sums(f.bytes) }));
  const ranges = D.closed_ranges.map(r => ({ step: `${r.phase}, ${r.execution}`, conditions: r.conditions.map(([words, text]) => [words, evaluator(text)]), heldOf: sums(r.held) }));
  const steps = [...new Set(D.steps.map(s => `${s.phase}, ${s.exec}`))].filter(name => rows.some(r => r.step === name));
  const first = D.steps[state.step];
  const values = { B: first.batch, S: first.seq, L: first.context };
  const names = step => Object.keys(values).filter(name => D.closed_forms.some(f => `${f.phase}, ${f.execution}` === step
    && new RegExp(`\\b${name}\\b`).test([f.flops, f.again, f.vector, ...Object.values(f.bytes)].join(" "))));
  const used = Object.fromEntries(steps.map(step => [step, names(step)]));
  const pick = (list, label, chosen) => make("select", { "aria-label": label, onchange: draw }, ...list.map((x, i) => make("option", i === chosen ? { value: i, selected: "" } : { value: i }, x)));
  const phase = pick(steps, "phase", Math.max(0, steps.indexOf(`${first.phase}, ${first.exec}`)));
  const chip = pick(D.chips.map(c => c.name), "chip", first.chip);
  const sliders = Object.keys(values).filter(name => steps.some(step => used[step].includes(name))).map(name => {
    const shown = make("output", {}, values[name].toLocaleString("en"));
    const slider = make("input", { type: "range", min: 0, max: 20, step: 0.25, value: Math.log2(values[name]), "aria-label": name,
      oninput: () => { values[name] = Math.round(2 ** slider.value); shown.textContent = values[name].toLocaleString("en"); draw(); } });
    return [name, make("label", {}, `${name} `, slider, shown)];
  });
  const result = make("div", { class: "scroll" });
  const without = [...new Set(D.steps.map(s => `${s.phase}, ${s.exec}`))].filter(name => !steps.includes(name));
  const missing = without.length ? ` They cover ${steps.join("; ")}; not ${without.join("; ")}, whose formulas do not exist or take longer than a report should.` : "";
  panel("Closed forms", make("p", { class: "muted" }, `FLOPs, bytes and memory at any size from expressions that the trace produced; seconds are the roofline's at datasheet peaks, not the kernel model's.${missing}`),
    make("div", { class: "controls" }, make("label", {}, "step ", phase), make("label", {}, "chip ", chip), ...sliders.map(([, label]) => label)), result);
  draw();

  function draw() {
    const step = steps[phase.value], range = ranges.find(r => r.step === step);
    for (const [name, label] of sliders) label.hidden = !used[step].includes(name);
    const broken = range && range.conditions.find(([, holds]) => !(holds(values) > 0));
    if (broken) { result.replaceChildren(make("p", { class: "muted" }, `Outside of these formulas' range: they were traced for ${broken[0]}.`)); return; }
    const c = D.chips[chip.value], total = { flops: 0, bytes: 0, matrix: 0, vector: 0, memory: 0, sum: 0 }, waits = { compute: 0, memory: 0 };
    for (const r of rows.filter(x => x.step === step)) {
      const flops = r.times * r.flopsOf(values), bytes = r.times * r.bytesOf.reduce((a, [, f]) => a + f(values), 0);
      const work = flops + r.times * r.againOf(values), vector = c.vector ? r.times * r.vectorOf(values) / c.vector : 0;
      const matrix = work ? work / c.peak[r.precision] : 0, memory = bytes / c.bandwidth, compute = Math.max(matrix, vector);
      total.flops += flops; total.bytes += bytes; total.matrix += matrix; total.vector += vector; total.memory += memory; total.sum += Math.max(compute, memory);
      waits[compute >= memory ? "compute" : "memory"] += Math.max(compute, memory);
    }
    const compute = Math.max(total.matrix, total.vector);
    const fact = (name, text) => make("tr", {}, make("th", { scope: "row" }, name), make("td", { class: "n" }, text));
    const facts = [
      fact("FLOPs", si(total.flops, "FLOP")), fact("bytes", si(total.bytes, "B")), fact("FLOP/B", significant(total.flops / total.bytes, 4)),
      fact("compute at peak", seconds(compute)), fact("memory at full bandwidth", seconds(total.memory)),
      fact("ideal: the larger of both", seconds(Math.max(compute, total.memory))),
      fact("sum over ops of the larger", seconds(total.sum)),
      fact("most of that waits for", `${mostOf(waits)} ${percent(waits[mostOf(waits)] / total.sum)}`)];
    if (range && range.heldOf.length) {
      const held = range.heldOf.reduce((a, [, f]) => a + f(values), 0), chips = Math.ceil(held / c.capacity);
      facts.push(fact("memory held", si(held, "B")), fact("fits in one chip", chips <= 1 ? "yes" : `no: at least ${chips.toLocaleString("en")} chips`));
    }
    result.replaceChildren(make("table", {}, make("tbody", {}, ...facts)));
  }
})();
