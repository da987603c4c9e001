// What every page has: elements, a tip beside the pointer, light and dark. Text reaches the page as
// text nodes only.
function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "rect", "text", "polyline"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter(c => c !== null && c !== undefined));
  return node;
}

const tip = document.getElementById("tip");
function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const x = Math.min((event.clientX ?? 0) + 14, innerWidth - box.width - 8);
  const y = Math.min((event.clientY ?? 0) + 14, innerHeight - box.height - 8);
  tip.style.left = `${Math.max(x, 4)}px`;
  tip.style.top = `${Math.max(y, 4)}px`;
}
const hideTip = () => { tip.hidden = true; };
addEventListener("scroll", hideTip, { passive: true });

const followers = [];
const follow = update => { followers.push(update); };
function changed() { for (const update of followers) update(); }

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch (e) { /* storage is off */ }
  changed();
});
let before;  // a canvas is drawn in the colours of the screen: paper is light
addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; document.documentElement.dataset.theme = "light"; changed(); });
addEventListener("afterprint", () => {
  if (before) document.documentElement.dataset.theme = before; else delete document.documentElement.dataset.theme;
  changed();
});
// Sections far down are laid out once the first screen stands; only then do links know where they are.
(window.requestIdleCallback ?? setTimeout)(() => {
  document.documentElement.classList.add("whole");
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
});
if (innerWidth < 960) document.querySelector("nav details").open = false;
