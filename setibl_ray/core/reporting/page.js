// Draws the figures of the page with the colours of the reader's theme, and again when the theme changes.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const narrow = () => window.innerWidth < 640;

  function colour(name) {
    const [key, alpha] = name.slice(1).split("/");
    const hex = getComputedStyle(document.documentElement).getPropertyValue(`--${key}`).trim();
    if (alpha === undefined) return hex;
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return `rgba(${r}, ${g}, ${b}, ${alpha})`;
  }

  // "@needle" or "@needle/0.3" anywhere in a figure is a colour of the page.
  function painted(value) {
    if (typeof value === "string") return /^@\w+(\/[\d.]+)?$/.test(value) ? colour(value) : value;
    if (Array.isArray(value)) return value.map(painted);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, painted(item)]));
    return value;
  }

  function axis(own) {
    const line = { gridcolor: colour("@rule"), linecolor: colour("@rule"), zeroline: false, automargin: true };
    const title = { ...own.title, font: { size: 12, color: colour("@soft") }, standoff: 8 };
    return { ...line, tickfont: { color: colour("@soft"), size: 11 }, ...own, title };
  }

  function layout(own) {
    const base = {
      height: 380,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("@ink") },
      margin: { l: 52, r: 14, t: own.updatemenus ? 40 : 12, b: 44 },
      legend: { orientation: "h", y: -0.2, yanchor: "top", x: 0, font: { size: 11, color: colour("@soft") } },
      hoverlabel: { bgcolor: colour("@card"), bordercolor: colour("@rule"), font: { color: colour("@ink") } },
      dragmode: window.matchMedia("(pointer: coarse)").matches || narrow() ? false : "zoom",
    };
    const merged = { ...base, ...own, legend: { ...base.legend, ...own.legend } };
    for (const key of Object.keys(own).filter((key) => /^[xy]axis\d*$/.test(key))) merged[key] = axis(own[key]);
    const button = { bgcolor: colour("@card"), bordercolor: colour("@rule"), font: { size: 11, color: colour("@soft") } };
    const place = { type: "buttons", direction: "right", x: 1, xanchor: "right", y: 1.02, yanchor: "bottom", pad: { t: 0, b: 4 } };
    if (own.updatemenus) merged.updatemenus = own.updatemenus.map((menu) => ({ ...place, ...button, showactive: false, ...menu }));
    return merged;
  }

  function draw() {
    const config = { responsive: true, displaylogo: false, displayModeBar: false };
    const drawn = Object.entries(figures).map(([name, figure]) => {
      const own = painted(figure);
      return Plotly.react(`figure-${name}`, own.data, layout(own.layout), config);
    });
    return Promise.all(drawn).then(() => (document.documentElement.dataset.drawn = drawn.length));
  }

  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
