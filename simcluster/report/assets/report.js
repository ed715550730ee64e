"use strict";
(function () {
  const root = document.documentElement;
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const started = performance.now();

  function theme() {
    const style = getComputedStyle(root);
    const of = (name) => style.getPropertyValue(name).trim();
    return { ink: of("--ink"), rule: of("--rule"), paper: of("--paper"), panel: of("--panel") };
  }

  // The colour of the text stands for "ink" wherever a trace or shape asks for it.
  function inked(value, colours) {
    if (Array.isArray(value)) return value.map((one) => inked(one, colours));
    if (value === null || typeof value !== "object") return value;
    const out = {};
    for (const [key, one] of Object.entries(value)) {
      out[key] = /color$/.test(key) && one === "ink" ? colours.ink : inked(one, colours);
    }
    return out;
  }

  function layoutOf(chart, choice, colours) {
    const layout = Object.assign(
      {
        autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        margin: { l: 64, r: 16, t: 10, b: 48 }, hovermode: "closest",
        legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, xanchor: "left" },
      },
      chart.layout, choice.layout
    );
    layout.font = { color: colours.ink, family: getComputedStyle(document.body).fontFamily, size: 13 };
    layout.hoverlabel = { namelength: -1, bgcolor: colours.panel, bordercolor: colours.rule, font: { color: colours.ink } };
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis/.test(key)) {
        layout[key] = Object.assign(
          { gridcolor: colours.rule, linecolor: colours.rule, zerolinecolor: colours.rule, automargin: true },
          layout[key]
        );
      }
    }
    return inked(layout, colours);
  }

  function draw(name) {
    const chart = charts[name];
    const select = document.querySelector('select[data-chart="' + name + '"]');
    const choice = chart.choices[select ? Number(select.value) : chart.first];
    const colours = theme();
    return Plotly.react(name, inked(choice.traces, colours), layoutOf(chart, choice, colours), {
      responsive: true, displaylogo: false, showLink: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    });
  }

  function drawAll() {
    return Promise.all(Object.keys(charts).map(draw));
  }

  const button = document.getElementById("theme");
  function setTheme(dark) {
    root.dataset.theme = dark ? "dark" : "light";
    button.textContent = dark ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(dark));
  }
  setTheme(window.matchMedia("(prefers-color-scheme: dark)").matches);
  button.addEventListener("click", function () {
    setTheme(root.dataset.theme !== "dark");
    drawAll();
  });

  for (const select of document.querySelectorAll("select[data-chart]")) {
    select.addEventListener("change", () => draw(select.dataset.chart));
  }

  // Empty cells (a dash) stay at the end in both orders.
  function compare(a, b, sign) {
    if (a === "" || b === "") return (a === "") - (b === "");
    const x = Number(a), y = Number(b);
    if (!Number.isNaN(x) && !Number.isNaN(y)) return sign * (x - y);
    return sign * a.localeCompare(b);
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const falls = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : head.classList.contains("number");
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", falls ? "descending" : "ascending");
        const body = table.tBodies[0];
        Array.from(body.rows)
          .sort((a, b) => compare(a.cells[column].dataset.key, b.cells[column].dataset.key, falls ? -1 : 1))
          .forEach((row) => body.appendChild(row));
      });
    });
  }

  // On paper: light, and nothing folded away but the scenario.
  let before = null;
  window.addEventListener("beforeprint", function () {
    before = root.dataset.theme;
    setTheme(false);
    for (const one of document.querySelectorAll("details")) one.open = true;
    drawAll();
  });
  window.addEventListener("afterprint", function () {
    setTheme(before === "dark");
    drawAll();
  });

  drawAll().then(function () {
    root.dataset.drawnMs = String(Math.round(performance.now() - started));
  });
})();
