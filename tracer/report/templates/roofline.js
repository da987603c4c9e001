// A roofline to hover: steps, or the categories or kernels of one step, under the roofs of its chip.
const roofline = (() => {
  if (!explorer) return null;
  let W = 860, H = 430;
  const M = { left: 70, right: 20, top: 16, bottom: 44 };
  const chart = make("svg", { class: "chart", role: "img", "aria-label": "roofline" });
  const what = make("select", { onchange: draw }, ...["steps", "categories", "kernels"].map(x => make("option", { value: x }, x)));
  const filters = make("div", { class: "controls" });
  const off = new Set();
  panel("Roofline", make("div", { class: "controls" }, make("label", {}, "points ", what),
    make("span", { class: "muted" }, "hover for figures, click for the ops behind a point; sizes are shares of the time")), filters, chart);
  follow(draw);
  addEventListener("resize", draw);

  function points() {
    if (what.value === "steps")
      return D.steps.filter(s => s.chip === D.steps[state.step].chip).map(s => {
        return { name: `${s.phase}, ${s.exec}`, groups: [s.phase, s.exec], flops: s.flops, bytes: s.bytes, time: s.step, share: 0.2,
          colour: D.colours.phases[s.phase] || "#888", hollow: s.exec === "naive", waits: top(s.shares), pick: () => { state.step = D.steps.indexOf(s); document.getElementById("step").value = state.step; changed(); } };
      });
    const v = view(state.step);
    const items = what.value === "kernels" ? v.kernels.map(k => ({
      name: k.name, group: k.main.category, parts: k.parts, flops: k.flops, bytes: k.bytes, time: k.seconds, waits: k.waits,
    })) : grouped(v.parts);
    return items.map(x => ({ ...x, groups: [x.group], share: x.time / v.device, colour: D.colours.categories[x.group] || "#888",
      pick: () => behind(x.name, p => x.parts.includes(p)) }));
  }
  function grouped(parts) {
    const found = new Map();
    for (const p of parts) {
      if (!found.has(p.category)) found.set(p.category, { name: p.category, group: p.category, parts: [], flops: 0, bytes: 0, time: 0, by: {} });
      const g = found.get(p.category);
      g.parts.push(p); g.flops += p.flops; g.bytes += p.bytes; g.time += p.seconds;
      g.by[p.kernel.waits] = (g.by[p.kernel.waits] || 0) + p.seconds;
    }
    return [...found.values()].map(g => ({ ...g, waits: top(g.by) }));
  }
  function top(shares) { return Object.entries(shares).reduce((a, b) => b[1] > a[1] ? b : a)[0]; }

  function draw() {
    W = Math.max(320, chart.clientWidth || 860); H = Math.round(Math.min(430, Math.max(260, W * 0.6)));
    chart.setAttribute("viewBox", `0 0 ${W} ${H}`);
    const all = points().filter(p => p.flops > 0 && p.bytes > 0 && p.time > 0);
    const colour = g => D.colours.phases[g] || D.colours.categories[g];
    const groups = [...new Set(all.flatMap(p => p.groups))].sort((a, b) => !colour(a) - !colour(b));
    filters.replaceChildren(...groups.map(g => make("label", {},
      make("input", { type: "checkbox", ...(off.has(g) ? {} : { checked: "" }), onchange: e => { e.target.checked ? off.delete(g) : off.add(g); draw(); } }),
      ...(colour(g) ? [make("span", { class: "swatch", style: `background:${colour(g)}` })] : []), g)));
    const shown = all.filter(p => !p.groups.some(g => off.has(g)));
    const chip = D.chips[D.steps[state.step].chip];
    const precisions = Object.keys(chip.peak).filter(p => chip.used.includes(p) || ["bf16", "fp16", "fp8", "fp4"].includes(p));
    const rates = new Map();
    for (const p of precisions.length ? precisions : Object.keys(chip.peak)) rates.set(chip.peak[p], [...(rates.get(chip.peak[p]) || []), p]);
    const roofs = [...rates].map(([peak, names]) => [names.join(", "), peak]);
    const xs = [...all.map(p => p.flops / p.bytes), ...roofs.map(r => r[1] / chip.bandwidth)];
    const ys = [...all.map(p => p.flops / p.time), ...roofs.map(r => r[1])];
    const x0 = Math.floor(Math.log10(Math.min(...xs)) - 0.2), x1 = Math.ceil(Math.log10(Math.max(...xs)) + 0.2);
    const y0 = Math.floor(Math.log10(Math.min(...ys)) - 0.1), y1 = Math.ceil(Math.log10(Math.max(...ys)) + 0.1);
    const X = v => M.left + (Math.log10(v) - x0) / (x1 - x0) * (W - M.left - M.right);
    const Y = v => H - M.bottom - (Math.log10(v) - y0) / (y1 - y0) * (H - M.top - M.bottom);
    const parts = [];
    for (let e = x0; e <= x1; e++) parts.push(make("line", { class: "axis", x1: X(10 ** e), x2: X(10 ** e), y1: M.top, y2: H - M.bottom }),
      make("text", { x: X(10 ** e), y: H - M.bottom + 16, "text-anchor": "middle" }, 10 ** e >= 1e4 || e < -2 ? `1e${e}` : String(+(10 ** e).toPrecision(1))));
    for (let e = y0; e <= y1; e++) parts.push(make("line", { class: "axis", x1: M.left, x2: W - M.right, y1: Y(10 ** e), y2: Y(10 ** e) }),
      make("text", { x: M.left - 6, y: Y(10 ** e) + 4, "text-anchor": "end" }, si(10 ** e, "").replace(/\.0+ /, " ").trim()));
    parts.push(make("text", { x: (W + M.left) / 2, y: H - 6, "text-anchor": "middle" }, "FLOP/B of memory traffic"),
      make("text", { x: -H / 2 + 15, y: 13, transform: "rotate(-90)", "text-anchor": "middle" }, "matrix FLOP/s"));
    for (const [name, peak] of roofs) {
      const knee = peak / chip.bandwidth, left = 10 ** x0, right = 10 ** x1;
      parts.push(make("polyline", { class: "roof", points: [[left, left * chip.bandwidth], [knee, peak], [right, peak]].filter(p => p[0] >= left && p[0] <= right)
        .map(([x, y]) => [X(x), Math.min(Y(y), H - M.bottom)].join(",")).join(" ") }),
        make("text", { x: W - M.right - 4, y: Y(peak) - 4, "text-anchor": "end" }, `${name} ${si(peak, "FLOP/s")}, ridge ${significant(knee, 3)}`));
    }
    for (const p of [...shown].sort((a, b) => b.share - a.share)) {
      const x = p.flops / p.bytes, y = p.flops / p.time;
      const text = `${p.name}\n${si(p.flops, "FLOP")}, ${si(p.bytes, "B")}: ${significant(x, 4)} FLOP/B\n${seconds(p.time)}: ${si(y, "FLOP/s")}\nwaits for ${p.waits}`;
      parts.push(make("circle", { class: "dot", cx: X(x), cy: Y(y), r: 4 + 16 * Math.sqrt(Math.min(p.share, 1)), tabindex: 0,
        fill: p.hollow ? "none" : p.colour, ...(p.hollow ? { style: `stroke:${p.colour};stroke-width:2;pointer-events:all` } : {}),
        onmousemove: e => showTip(e, text), onmouseleave: hideTip, onblur: hideTip,
        onfocus: e => { const b = e.target.getBoundingClientRect(); showTip({ clientX: b.right, clientY: b.bottom }, text); },
        onclick: p.pick, onkeydown: e => { if (e.key === "Enter") p.pick(); } }));
    }
    chart.replaceChildren(...parts);
  }
  return { draw };
})();
