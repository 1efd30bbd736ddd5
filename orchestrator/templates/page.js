"use strict";
function value(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace(/[,\u2009 ](?=\d)/g, ""));
  const unit = { k: 1e3, M: 1e6, G: 1e9, h: 3600, min: 60, d: 86400 };
  const word = text.match(/^[-\d.,]+\s*(min|[kMGhd])\b/);
  return { text, number: Number.isNaN(number) ? null : number * (word ? unit[word[1]] : 1) };
}
function sort(table, column, head) {
  const numeric = head.classList.contains("number");
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => ({ row, ...value(row, column) }));
  rows.sort((one, other) => {
    // What has no number stays at the end, whichever way.
    if (numeric && (one.number === null || other.number === null))
      return (one.number === null) - (other.number === null);
    const order = numeric
      ? one.number - other.number : one.text.localeCompare(other.text, "en", { numeric: true });
    return down ? -order : order;
  });
  body.append(...rows.map((each) => each.row));
}
function prepare() {
  for (const table of document.querySelectorAll("table")) {
    if (table.tBodies[0].rows.length < 2) continue;
    Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
      if ("fixed" in head.dataset) return;
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, column, head));
      head.append(button);
    });
  }
  for (const input of document.querySelectorAll(".filter input")) {
    const rows = input.closest(".table").querySelectorAll("tbody tr");
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }
}
prepare();
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("article details")) details.open = true;
});
