// The module tree with inclusive sums, and what is behind any number: ops, formulas, source lines.
const sums = () => ({ flops: 0, vector: 0, bytes: 0, seconds: 0, by: {} });
function addTo(node, part) {
  node.flops += part.flops; node.vector += part.vector; node.bytes += part.bytes; node.seconds += part.seconds;
  node.by[part.kernel.waits] = (node.by[part.kernel.waits] || 0) + part.seconds;
}

function treeOf(v) {
  const root = { path: "", name: "(model)", children: new Map(), parameters: 0, ...sums() };
  const along = path => {
    const nodes = [root];
    let at = "";
    for (const name of path ? path.split(".") : []) {
      at = at ? `${at}.${name}` : name;
      const above = nodes[nodes.length - 1];
      if (!above.children.has(name)) above.children.set(name, { path: at, name, children: new Map(), parameters: 0, ...sums() });
      nodes.push(above.children.get(name));
    }
    return nodes;
  };
  for (const part of v.parts) for (const node of along(part.module)) addTo(node, part);
  for (const [path, count] of Object.entries(D.parameters)) for (const node of along(path)) node.parameters += count;
  return root;
}

let behind = () => {};
(() => {
  if (!explorer) return;
  const open = new Set(["", "model"]);
  let chosen = null;
  const body = make("tbody");
  const heads = ["module", "class", "parameters", "FLOPs", "vector", "bytes", "FLOP/B", "time", "of the step", "waits for"];
  const table = make("table", { class: "tree" },
    make("thead", {}, make("tr", {}, ...heads.map((h, i) => make("th", { class: i > 1 && i < 9 ? "n" : "t" }, h)))), body);
  panel("Module tree", make("p", { class: "muted" }, "Sums of a module and all below it, all layers that it stands for. Open a row with its arrow; click its name for the ops."),
    make("div", { class: "scroll" }, table));
  const detail = make("div", {});
  panel("Behind the number", detail);
  const hint = () => detail.replaceChildren(make("p", { class: "muted" }, "Click a module in the tree, a point in the roofline, a kernel in the timeline or a name in a table: its ops appear here with the formula that counts them and the line of the module that ran them."));
  hint();
  follow(draw);

  // The rows are made anew: who came with the keyboard stays where they were.
  function again(kind, path) { body.querySelector(`${kind}[data-path="${CSS.escape(path)}"]`)?.focus({ preventScroll: true }); }

  function draw() {
    const v = view(state.step), root = treeOf(v), rows = [];
    const walk = (node, depth) => {
      const kids = [...node.children.values()], shown = open.has(node.path);
      const [kind, layers] = D.modules[node.path] || ["", 1];
      const twist = kids.length ? make("button", { class: "twist", type: "button", "aria-expanded": String(shown), "aria-label": `open ${node.name}`, "data-path": node.path,
        onclick: () => { shown ? open.delete(node.path) : open.add(node.path); draw(); again(".twist", node.path); } }, shown ? "\u25be" : "\u25b8") : make("span", { class: "twist" });
      const n = text => make("td", { class: "n" }, text);
      rows.push(make("tr", { "aria-selected": node.path === chosen },
        make("td", { style: `padding-left:${0.4 + depth * 1.1}rem` }, twist, make("button", { class: "pick trace-like trace", type: "button", "data-path": node.path,
          onclick: e => { e.stopPropagation(); chosen = node.path; draw(); again(".pick", node.path); behind(node.path || "(model)", p => node.path === "" || p.module === node.path || p.module.startsWith(`${node.path}.`)); } },
          node.name), layers > 1 ? make("span", { class: "muted" }, ` x ${layers}`) : ""),
        make("td", {}, make("span", { title: D.sources[kind] || "" }, kind)),
        n(node.parameters ? node.parameters.toLocaleString("en") : "-"), n(node.flops ? si(node.flops, "FLOP") : "-"), n(node.vector ? si(node.vector, "FLOP") : "-"),
        n(si(node.bytes, "B")), n(node.bytes ? significant(node.flops / node.bytes, 4) : "-"), n(seconds(node.seconds)),
        make("td", { class: "n" }, percent(node.seconds / v.device), make("span", { class: "bar", style: `width:${(4 * node.seconds / v.device).toFixed(2)}rem` })),
        make("td", {}, node.seconds ? make("span", { class: "tag", style: `background:${D.colours.waits[mostOf(node.by)]}` }, `${mostOf(node.by)} ${percent(node.by[mostOf(node.by)] / node.seconds)}`) : "")));
      if (shown) for (const kid of kids) walk(kid, depth + 1);
    };
    walk(root, 0);
    body.replaceChildren(...rows);
  }

  behind = (title, test) => {
    const v = view(state.step);
    const groups = new Map();
    for (const p of v.parts.filter(test)) {
      const id = [pattern(p.module), p.op, p.kernel.pass, p.formula[0], p.shapes, p.confidence].join("\n");
      if (!groups.has(id)) groups.set(id, { ...sums(), part: p, times: 0, roles: p.roles.map(() => 0) });
      const g = groups.get(id);
      addTo(g, p);
      g.times += p.times;
      p.roles.forEach((b, i) => { g.roles[i] += b; });
    }
    const rows = [...groups.values()].sort((a, b) => b.seconds - a.seconds);
    const used = D.roles.map((r, i) => [r, i]).filter(([, i]) => rows.some(g => g.roles[i]));
    const kinds = new Map();
    for (const p of v.parts.filter(test)) {
      const kind = (D.modules[p.module] || [""])[0];
      if (kind && D.sources[kind]) kinds.set(kind, D.sources[kind]);
    }
    const most = 60;
    const total = rows.reduce((a, g) => ({ flops: a.flops + g.flops, bytes: a.bytes + g.bytes, seconds: a.seconds + g.seconds }), sums());
    const columns = [
      ["module", g => make("td", {}, make("code", {}, pattern(g.part.module)))],
      ["op", g => make("td", {}, make("code", {}, g.part.op))],
      ["time", g => num(g.seconds, seconds(g.seconds))],
      ["FLOPs", g => num(g.flops, g.flops ? si(g.flops, "FLOP") : "-")],
      ["vector", g => num(g.vector, g.vector ? si(g.vector, "FLOP") : "-")],
      ...used.map(([r, i]) => [`${r} bytes`, g => num(g.roles[i], g.roles[i] ? si(g.roles[i], "B") : "-")]),
      ["times", g => num(g.times, g.times.toLocaleString("en"))],
      ["kernel waits for", g => make("td", {}, mostOf(g.by) || "")],
      ["counted by", g => make("td", {}, make("code", { title: `${g.part.formula[1]} (${g.part.formula[2]})` }, g.part.formula[0]))],
      ["trust", g => make("td", {}, g.part.confidence)],
      ["pass", g => make("td", {}, g.part.kernel.pass)],
      ["shapes", g => make("td", {}, make("code", {}, g.part.shapes))],
    ];
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...columns.map(([head]) => make("th", {}, head)))),
      make("tbody", {}, ...rows.slice(0, most).map(g => make("tr", {}, ...columns.map(([, cell]) => cell(g))))));
    const formulas = new Map(rows.slice(0, most).map(g => [g.part.formula[0] + g.part.formula[2], g.part.formula]));
    detail.replaceChildren(
      make("p", {}, make("b", {}, title), ` in ${stepName(v.step)}: ${si(total.flops, "FLOP")}, ${si(total.bytes, "B")}, ${seconds(total.seconds)} (${percent(total.seconds / v.device)} of the kernels' time)`,
        rows.length > most ? `; the ${most} longest of ${rows.length} lines:` : ":"),
      make("div", { class: "scroll" }, table),
      make("p", { class: "caption" }, "Formulas:"),
      make("ul", {}, ...[...formulas.values()].map(([name, text, place]) => make("li", {}, make("code", {}, name), `: ${text} `, make("span", { class: "muted" }, place)))),
      kinds.size ? make("p", { class: "caption" }, "Where the modules are written:") : null,
      kinds.size ? make("ul", {}, ...[...kinds].slice(0, 20).map(([kind, place]) => make("li", {}, make("code", {}, kind), " ", make("span", { class: "muted" }, place)))) : null);
    sortable(table);
    detail.parentElement.scrollIntoView({ block: "nearest", behavior: "smooth" });
  };
  function num(raw, text) { return make("td", { class: "n", "data-v": raw }, text); }
  follow(() => { chosen = null; hint(); });
})();

// After the first paint: the report is there to be read, the explorer takes a moment.
requestAnimationFrame(() => setTimeout(changed));

// Names of modules and ops in tables lead to what is behind them.
document.addEventListener("click", event => {
  const button = event.target.closest("button.trace");
  if (!button) return;
  const inTable = button.closest(".table");
  const found = D.steps.findIndex(s => inTable && inTable.id.includes(s.phase) && s.exec === "efficient");
  if (found >= 0) { state.step = found; const pick = document.getElementById("step"); if (pick) pick.value = found; changed(); }
  const { module, op } = button.dataset;
  behind(module !== undefined ? module : op, part => module !== undefined ? pattern(part.module) === module : part.op.includes(op));
});
