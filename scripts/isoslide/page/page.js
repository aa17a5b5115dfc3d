// Click on a head of a table sorts by that column: numbers by their value, the rest as text.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th").forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        const numeric = x !== "" && y !== "" && !isNaN(x) && !isNaN(y);
        return numeric ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
      };
      const body = table.tBodies[0];
      const rows = [...body.rows].sort(compare);
      body.append(...(down ? rows.reverse() : rows));
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  });
}
// What is folded away on the screen belongs on paper.
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
// A link into a folded section opens it.
const unfold = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  const inside = target && target.querySelector(":scope > details.fold");
  if (inside) inside.open = true;
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", unfold);
unfold();
// Pages of single slides are made by another target, and do not travel with this page: say where there is none.
for (const image of document.querySelectorAll(".viewers img")) {
  const absent = () => image.closest("a").replaceWith("not made yet, or not beside this page: ");
  if (image.complete && !image.naturalWidth) absent();
  else image.addEventListener("error", absent);
}
