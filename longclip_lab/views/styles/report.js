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

  function draw(dark) {
    const template = JSON.stringify(shared.template);
    for (const { box, source } of plots) {
      const figure = JSON.parse(dark ? darkened(source) : source);
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
  const resized = () => plots.forEach(({ box }) => Plotly.Plots.resize(box));
  addEventListener("beforeprint", () => {
    draw(false);
    resized();
  });
  addEventListener("afterprint", () => {
    draw(isDark());
    resized();
  });
})();
