// Draws every chart of the page in the page's own colours and type.
(() => {
  "use strict";
  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const names = ["ink", "muted", "line", "paper"];
    return Object.fromEntries(names.map((name) => ["@" + name, style.getPropertyValue("--" + name).trim()]));
  };

  const coloured = (value, palette) => {
    if (typeof value === "string") return palette[value] ?? value;
    if (Array.isArray(value)) return value.map((inner) => coloured(inner, palette));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, coloured(inner, palette)]));
    }
    return value;
  };

  const template = (palette) => {
    const axis = {
      gridcolor: palette["@line"], linecolor: palette["@muted"], zerolinecolor: palette["@muted"],
      zerolinewidth: 1, tickcolor: palette["@muted"], ticks: "outside", ticklen: 4, automargin: true,
      title: { standoff: 8, font: { size: 12 } }, tickfont: { size: 11, color: palette["@muted"] },
    };
    return {
      layout: {
        font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: palette["@ink"] },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        margin: { l: 48, r: 14, t: 10, b: 44 }, hovermode: "closest",
        xaxis: axis, yaxis: axis,
        hoverlabel: {
          bgcolor: palette["@paper"], bordercolor: palette["@muted"], align: "left",
          font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: palette["@ink"] },
        },
      },
    };
  };

  const charts = new Map();
  for (const element of document.querySelectorAll("script.charts-data")) {
    for (const [key, spec] of Object.entries(JSON.parse(element.textContent))) charts.set(key, spec);
  }

  const draw = () => {
    const palette = colours();
    for (const [key, spec] of charts) {
      const layout = { ...coloured(spec.layout, palette), template: template(palette) };
      Plotly.react(key, coloured(spec.data, palette), layout, { displayModeBar: false, responsive: true });
    }
  };

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  // Paper has another width, and is white.
  matchMedia("print").addEventListener("change", draw);
  addEventListener("beforeprint", () => {
    for (const element of document.querySelectorAll("details")) element.open = true;
    draw();
  });
})();
