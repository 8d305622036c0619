"use strict";
(() => {
  const table = document.querySelector("table.numbers");
  if (!table) return;
  const body = table.tBodies[0];
  const status = document.getElementById("sorted");
  const heads = [...table.tHead.querySelectorAll("th")];

  // A cell's data-v is what it is sorted by; a cell without one has nothing measured and stays last in both directions.
  const key = (row, column) => row.cells[column].dataset.v;
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? String(a).localeCompare(String(b)) : x - y;
  };

  function sort(column, direction) {
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...body.rows];
    rows.sort((p, q) => {
      const [a, b] = [key(p, column), key(q, column)];
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return sign * compare(a, b);
    });
    body.append(...rows);
    heads.forEach((head, index) => {
      if (index === column) head.setAttribute("aria-sort", direction);
      else head.removeAttribute("aria-sort");
    });
    status.textContent = `Sorted by ${heads[column].innerText.replace(/\s+/g, " ").trim()}, ${direction}.`;
  }

  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const current = head.getAttribute("aria-sort");
      const first = head.dataset.first || "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      sort(column, current === first ? other : first);
    });
  });
})();
