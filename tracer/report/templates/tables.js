// Tables sort by a click on a head; names of modules and ops lead to what is behind them.
for (const table of document.querySelectorAll("main table")) sortable(table);

function sortable(table) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = make("button", { type: "button" }, head.textContent);
    head.dataset.head = head.textContent;  // print repeats a head on every page, but no button in it
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map(row => [key(row.cells[column]), row]);
      rows.sort(([a], [b]) => order(a, b) * (down ? -1 : 1));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
function key(cell) {
  if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
  return cell.classList.contains("n") ? null : cell.textContent;
}
function order(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}

document.addEventListener("click", event => {
  const button = event.target.closest("button.trace");
  if (!button) return;
  const inTable = button.closest(".table");
  const found = D.steps.findIndex(s => inTable && inTable.id.includes(s.phase) && s.exec === "efficient");
  if (found >= 0) { state.step = found; const pick = document.getElementById("step"); if (pick) pick.value = found; changed(); }
  const { module, op } = button.dataset;
  behind(module !== undefined ? module : op, part => module !== undefined ? pattern(part.module) === module : part.op.includes(op));
});
