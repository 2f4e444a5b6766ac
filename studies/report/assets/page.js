"use strict";

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };

function template(isDark) {
  const axis = { gridcolor: isDark ? "#2d333d" : "#e9ecf0", linecolor: isDark ? "#4a525e" : "#c3c9d1",
    zerolinecolor: isDark ? "#3a414c" : "#d8dde3", automargin: true, exponentformat: "power",
    title: { standoff: 12 } };
  return { layout: {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: isDark ? "#c9d0d9" : "#3c4554" },
    annotationdefaults: { font: { color: isDark ? "#c9d0d9" : "#3c4554" } },
    colorway: ["#4a8ccb", "#e08e3c", "#37a377", "#d0453f", "#9a5bd6", "#8d939c"],
    margin: { l: 60, r: 20, t: 30, b: 50 }, hovermode: "closest",
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, xaxis: axis, yaxis: axis,
  } };
}

// The library stands in the page compressed. As a script it runs by its hash in the page's policy.
async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const unzipped = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unzipped).text();
  document.head.append(script);
}

// One after another, so that the page can be read and scrolled meanwhile.
async function drawAll() {
  const boxes = [...document.querySelectorAll(".plot")];
  if (boxes.length && typeof DecompressionStream === "undefined") {
    boxes.forEach((box) => { box.textContent = "This browser is older than 2023, and can't draw it."; });
    return;
  }
  if (boxes.length) await unpack(document.getElementById("plotly").textContent);
  const figures = JSON.parse(document.getElementById("figures").textContent);
  for (const box of boxes) {
    const { data, layout } = figures[box.id];
    await Plotly.newPlot(box, data, { ...layout, template: template(dark.matches) }, config);
    await new Promise((resolve) => setTimeout(resolve));
  }
  document.documentElement.dataset.drawn = "all";
}

function paint(isDark) {
  for (const box of document.querySelectorAll(".js-plotly-plot")) Plotly.relayout(box, { template: template(isDark) });
}

dark.addEventListener("change", () => paint(dark.matches));
window.addEventListener("beforeprint", () => { if (dark.matches) paint(false); });
window.addEventListener("afterprint", () => { if (dark.matches) paint(true); });

function sortable(table) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const key = (cell) => {
    const shown = cell.dataset.v ?? cell.textContent;
    const value = shown.trim() === "" ? NaN : Number(shown);
    return [Number.isNaN(value) ? null : value, shown];
  };
  // Numbers before text, and what is missing always at the end.
  const compare = ([a, x], [b, y]) => {
    if (a !== null && b !== null) return a - b;
    if (a !== null || b !== null) return a !== null ? -1 : 1;
    return x < y ? -1 : x > y ? 1 : 0;
  };
  const isMissing = ([value, shown]) => value === null && (shown === "–" || shown === "");
  headers.forEach((header, column) => header.addEventListener("click", () => {
    const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    headers.forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...body.rows].map((row) => [key(row.cells[column]), row]);
    rows.sort(([a], [b]) => isMissing(a) - isMissing(b) || sign * compare(a, b));
    body.append(...rows.map(([, row]) => row));
  }));
}

function filterable(table, input, matching) {
  const rows = [...table.tBodies[0].rows].map((row) => [row, row.textContent.toLowerCase()]);
  const all = matching.textContent;
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [row, text] of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    matching.textContent = words.length ? `${shown.toLocaleString("en")} of ${all}` : all;
  });
}

const table = document.getElementById("trials");
if (table) {
  sortable(table);
  filterable(table, document.getElementById("filter"), document.getElementById("matching"));
}
const copy = document.getElementById("copy");
if (copy && navigator.clipboard) {
  copy.hidden = false;
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById("command").textContent);
    copy.textContent = "Copied";
  });
}
drawAll();
