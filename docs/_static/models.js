// Filters above the table of all models: one choice for each of task, data, family and weights, kept in the address.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const section = document.getElementById("all-models");
  const table = section && section.querySelector("table");
  if (!table) return;

  const titles = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
  const column = (row, title) => row.cells[titles.indexOf(title)].textContent.trim();
  const FAMILIES = [
    ["videomamba", "VideoMamba"],
    ["vivim", "Video Mamba Suite"],
    ["timemamba", "Video Mamba Suite"],
    ["muse", "MUSE"],
    ["clip4clip", "CLIP4Clip"],
    ["mambavl", "MambaVL"],
  ];
  const WEIGHTS = { "-": "not released", shipped: "shipped" };
  const facts = {
    task: (row) => column(row, "task"),
    data: (row) => column(row, "data"),
    family: (row) => (FAMILIES.find(([start]) => column(row, "name").startsWith(start)) || ["", "other"])[1],
    weights: (row) => {
      const source = column(row, "source");
      return WEIGHTS[source] || (source.includes("/") ? "downloaded" : source);
    },
  };

  const rows = [...table.tBodies[0].rows];
  const form = document.createElement("form");
  form.className = "filters";
  const chosen = new URLSearchParams(location.search);
  for (const [name, fact] of Object.entries(facts)) {
    const label = document.createElement("label");
    label.textContent = name;
    const select = document.createElement("select");
    select.name = name;
    select.append(new Option("all", ""));
    for (const value of [...new Set(rows.map(fact))].sort()) select.append(new Option(value, value));
    select.value = chosen.get(name) || "";
    if (select.selectedIndex < 0) select.value = "";
    label.append(select);
    form.append(label);
  }
  const count = document.createElement("output");
  form.append(count);

  const apply = () => {
    const wanted = [...new FormData(form)].filter(([, value]) => value);
    let shown = 0;
    for (const row of rows) {
      row.hidden = !wanted.every(([name, value]) => facts[name](row) === value);
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} models`;
    const query = new URLSearchParams(wanted).toString();
    try {
      history.replaceState(null, "", (query ? `?${query}` : location.pathname) + location.hash);
    } catch {
      // a page opened as a file has no address to keep them in
    }
  };
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  (table.closest(".table-wrapper") || table).before(form);
  apply();
});
