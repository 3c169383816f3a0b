(() => {
  const root = document.documentElement;
  const shared = JSON.parse(document.getElementById("shared").textContent);
  const plots = [...document.querySelectorAll(".plot")].map((box) => ({
    box,
    source: box.querySelector("script").textContent,
  }));
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);

  // Figures are made for white paper; in the dark each of their colours has a lighter sibling.
  const darkened = (text) =>
    Object.entries(shared.dark).reduce((all, [from, to]) => all.replaceAll(from, to), text);

  // A browser lays a page out for paper only after it has asked the page to get ready.
  const PAPER_WIDTH = 640;

  function draw(dark, width) {
    const template = JSON.stringify(shared.template);
    for (const { box, source } of plots) {
      const figure = JSON.parse(dark ? darkened(source) : source);
      if (width) Object.assign(figure.layout, { width, autosize: false });
      figure.layout.template = JSON.parse(dark ? darkened(template) : template);
      Plotly.react(box, figure.data, figure.layout, shared.config);
    }
    document.getElementById("theme").textContent = dark ? "Light" : "Dark";
  }

  plots.forEach(({ box }) => box.replaceChildren());
  draw(isDark());
  prefersDark.addEventListener("change", () => draw(isDark()));
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    draw(isDark());
  });
  addEventListener("beforeprint", () => draw(false, PAPER_WIDTH));
  addEventListener("afterprint", () => draw(isDark()));
})();
