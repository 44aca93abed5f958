"use strict";
// Sorts every table of class "sortable" by its headings, and hides what the controls leave out.

const value = (row, column) => {
  const cell = row.cells[column];
  if (!("value" in cell.dataset)) return cell.textContent.trim();
  return cell.dataset.value === "" ? NaN : Number(cell.dataset.value);
};

const compared = (a, b, sign) => {
  if (typeof a !== "number") return sign * a.localeCompare(b, "en", { numeric: true });
  if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b); // what is not known comes last, whichever way
  return sign * (a - b);
};

const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const next = NEXT[head.getAttribute("aria-sort")], sign = next === "ascending" ? 1 : -1;
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", next);
      table.classList.toggle("sorted", next !== "none");
      const order = next === "none" ? rows : rows.toSorted((a, b) => compared(value(a, column), value(b, column), sign));
      body.append(...order);
    });
  });
}

const controls = document.getElementById("controls"), shown = document.getElementById("shown");
const items = [...document.querySelectorAll("[data-filter]")];
const lines = items.filter((item) => item.matches("tr"));
const texts = new Map(lines.map((line) => [line, line.textContent.toLowerCase()]));

const fits = (item, key, wanted) =>
  !wanted || !(key in item.dataset) || (key === "arm" ? item.dataset.arm.split(" ") : [item.dataset[key]]).includes(wanted);

const filter = () => {
  const { text = "", ...wanted } = Object.fromEntries(new FormData(controls));
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const item of items) {
    const content = texts.get(item);
    item.hidden = !(Object.entries(wanted).every(([key, choice]) => fits(item, key, choice))
      && (content === undefined || words.every((word) => content.includes(word))));
  }
  const left = lines.filter((line) => !line.hidden).length;
  shown.textContent = left < lines.length ? `${left} of ${lines.length} lines` : "";
};

for (const event of ["input", "change"]) controls.addEventListener(event, filter);
controls.addEventListener("submit", (event) => event.preventDefault());
controls.hidden = false;
filter(); // a browser may have kept what was typed before a reload
