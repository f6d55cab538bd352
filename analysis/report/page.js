// Draws every chart of the page in the page's own colours and type.
(() => {
  "use strict";
  // A colour such as "@ink" in the page's scheme; other texts as they are.
  const palette = (text) => {
    if (!text.startsWith("@")) return text;
    return getComputedStyle(document.documentElement).getPropertyValue("--" + text.slice(1)).trim() || text;
  };

  const coloured = (value) => {
    if (typeof value === "string") return palette(value);
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, coloured(inner)]));
    }
    return value;
  };

  const template = () => {
    const axis = {
      gridcolor: palette("@line"), linecolor: palette("@muted"), zerolinecolor: palette("@muted"),
      zerolinewidth: 1, tickcolor: palette("@muted"), ticks: "outside", ticklen: 4, automargin: true,
      title: { standoff: 8, font: { size: 12 } }, tickfont: { size: 11, color: palette("@muted") },
    };
    return {
      layout: {
        font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: palette("@ink") },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        margin: { l: 48, r: 14, t: 10, b: 44 }, hovermode: "closest",
        xaxis: axis, yaxis: axis,
        hoverlabel: {
          bgcolor: palette("@paper"), bordercolor: palette("@muted"), align: "left",
          font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: palette("@ink") },
        },
      },
    };
  };

  const charts = new Map();
  for (const element of document.querySelectorAll("script.charts-data")) {
    for (const [key, spec] of Object.entries(JSON.parse(element.textContent))) charts.set(key, spec);
  }

  const draw = () => {
    for (const [key, spec] of charts) {
      const layout = { ...coloured(spec.layout), template: template() };
      Plotly.react(key, coloured(spec.data), layout, { displayModeBar: false, responsive: true });
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
