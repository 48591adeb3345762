"use strict";
const status = document.createElement("p");
status.className = "unseen";
status.setAttribute("role", "status");
document.querySelector("main").append(status);

function button(text, label) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  return made;
}

function valueOf(row, place) {
  const cell = row.cells[place];
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  return cell.textContent.trim();
}

// Numbers before texts, and what is missing last, in either direction.
function order(one, other, down) {
  const missing = [one, other].map((value) => value === "–" || value === "");
  if (missing[0] || missing[1]) return missing[0] - missing[1];
  const numbers = typeof one === "number" ? typeof other === "number" : false;
  const by = numbers ? one - other : String(one).localeCompare(String(other), "en");
  return down ? -by : by;
}

function sort(table, head) {
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) {
    other.removeAttribute("aria-sort");
    other.querySelector("button").textContent = "↕";
  }
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  head.querySelector("button").textContent = down ? "↓" : "↑";
  const rows = Array.from(table.tBodies[0].rows);
  rows.sort((one, other) => order(valueOf(one, head.cellIndex), valueOf(other, head.cellIndex), down));
  table.tBodies[0].append(...rows);
}

async function copy(table) {
  const line = (row) => Array.from(row.cells, (cell) => (cell.dataset.copy ?? cell.textContent).trim().replace(/\s+/g, " ")).join("\t");
  const text = Array.from(table.rows, line).join("\n");
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  status.textContent = "The table was copied.";
}

for (const table of document.querySelectorAll("table")) {
  for (const head of table.tHead.rows[0].cells) {
    const name = head.textContent;
    head.dataset.copy = name;
    const by = button("↕", "Sort by " + name);
    head.append(by);
    head.addEventListener("click", (event) => {
      if (!event.target.closest("a")) sort(table, head);
    });
  }
  const whole = button("Copy table", "Copy table: " + table.caption.textContent);
  whole.className = "copy";
  whole.addEventListener("click", () => copy(table));
  table.closest(".scroll").before(whole);
}
