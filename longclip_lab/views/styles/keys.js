export default {
  render({ el }) {
    const keep = () => {
      const panel = el.closest(".lc-panel");
      if (panel) panel.addEventListener("keydown", (event) => event.stopPropagation());
      else requestAnimationFrame(keep);
    };
    keep();
  },
};
