// Tables sort by a click on a head.
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
