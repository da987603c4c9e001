// Kernels in order on one stream, as long as all their launches together; wheel or buttons zoom.
(() => {
  if (!explorer) return;
  const canvas = make("canvas", { height: 120, tabindex: 0, role: "img", "aria-label": "timeline of kernels" });
  const by = make("select", { onchange: draw }, make("option", { value: "category" }, "category"), make("option", { value: "waits" }, "what it waits for"));
  const legend = make("div", { class: "controls" });
  let from = 0, to = 1;
  const button = (text, go) => make("button", { type: "button", onclick: () => { go(); draw(); } }, text);
  panel("Timeline", make("div", { class: "controls" }, make("label", {}, "colour ", by), button("+", () => zoom(0.5, 0.5)), button("-", () => zoom(2, 0.5)),
    button("\u2190", () => move(-0.3)), button("\u2192", () => move(0.3)), button("all", () => { from = 0; to = 1; }),
    make("span", { class: "muted" }, "a folded layer's kernel is drawn once, as long as in all the layers it stands for")), canvas, legend);
  follow(() => { from = 0; to = 1; draw(); });
  addEventListener("resize", draw);

  function zoom(factor, at) {
    const middle = from + at * (to - from), width = Math.min(1, Math.max(1e-5, (to - from) * factor));
    from = Math.min(Math.max(0, middle - at * width), 1 - width);
    to = from + width;
  }
  function move(share) {
    const width = to - from;
    from = Math.min(Math.max(0, from + share * width), 1 - width);
    to = from + width;
  }
  function colour(k) { return (by.value === "waits" ? D.colours.waits[k.waits] : D.colours.categories[k.main.category]) || "#888"; }

  function draw() {
    const v = view(state.step), scale = devicePixelRatio || 1, width = canvas.clientWidth || 800, height = 120;
    canvas.width = width * scale; canvas.height = height * scale;
    canvas.style.height = `${height}px`;
    const ink = getComputedStyle(document.body).color, g = canvas.getContext("2d");
    g.scale(scale, scale);
    g.clearRect(0, 0, width, height);
    const span = v.device * (to - from), start = v.device * from;
    let clock = 0;
    g.font = "11px system-ui, sans-serif";
    for (const k of v.kernels) {
      const x = (clock - start) / span * width, w = k.seconds / span * width;
      clock += k.seconds;
      if (x + w < 0 || x > width) continue;
      g.fillStyle = colour(k);
      g.fillRect(x, 10, Math.max(w - (w > 3 ? 0.6 : 0), 0.4), 62);
      if (w > 46) {
        g.save();
        g.beginPath(); g.rect(Math.max(x, 0), 10, Math.min(w, width) - 4, 62); g.clip();
        g.fillStyle = "#fff";
        g.fillText(k.name, Math.max(x, 0) + 4, 34);
        g.fillText(`${pattern(k.main.module)}`, Math.max(x, 0) + 4, 50);
        g.restore();
      }
    }
    g.fillStyle = ink;
    for (let i = 0; i <= 4; i++) {
      const x = i / 4 * width;
      g.textAlign = i === 0 ? "left" : i === 4 ? "right" : "center";
      g.fillRect(Math.min(x, width - 1), 76, 1, 6);
      g.fillText(seconds(start + span * i / 4), x, 96);
    }
    const names = new Map(v.kernels.map(k => [by.value === "waits" ? k.waits : k.main.category, colour(k)]));
    legend.replaceChildren(...[...names].map(([name, c]) => make("span", {}, make("span", { class: "swatch", style: `background:${c}` }), ` ${name}`)));
  }
  function at(event) {
    const v = view(state.step), box = canvas.getBoundingClientRect();
    const time = v.device * (from + (event.clientX - box.left) / box.width * (to - from));
    let clock = 0;
    for (const k of v.kernels) { if (time < clock + k.seconds) return [k, clock]; clock += k.seconds; }
    return null;
  }
  let grabbed = null, moved = false;
  canvas.addEventListener("wheel", e => { e.preventDefault(); const box = canvas.getBoundingClientRect(); zoom(e.deltaY > 0 ? 1.3 : 0.77, (e.clientX - box.left) / box.width); draw(); }, { passive: false });
  canvas.addEventListener("pointerdown", e => { grabbed = e.clientX; moved = false; });
  addEventListener("pointerup", () => { grabbed = null; });
  canvas.addEventListener("pointermove", e => {
    if (grabbed !== null && Math.abs(e.clientX - grabbed) > 2) { move((grabbed - e.clientX) / canvas.clientWidth); grabbed = e.clientX; moved = true; draw(); return; }
    const hit = at(e);
    if (hit) showTip(e, `${hit[0].name}\n${pattern(hit[0].main.module)}, ${hit[0].pass}\nfrom ${seconds(hit[1])}, ${seconds(hit[0].seconds)} in ${hit[0].launches.toLocaleString("en")} launches\n${si(hit[0].flops, "FLOP")}, ${si(hit[0].bytes, "B")}\nwaits for ${hit[0].waits}`);
  });
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("click", e => { const hit = at(e); if (hit && !moved) behind(hit[0].name, p => p.kernel === hit[0]); });
  canvas.addEventListener("keydown", e => {
    const go = { "+": () => zoom(0.5, 0.5), "-": () => zoom(2, 0.5), ArrowLeft: () => move(-0.2), ArrowRight: () => move(0.2) }[e.key];
    if (go) { go(); draw(); }
  });
})();
