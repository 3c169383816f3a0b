// Widgets made with anywidget are loaded by require.js from this folder, not from a CDN.
require.config({ paths: { anywidget: document.currentScript.src.replace(/[^/]*$/, "anywidget") } });

// The widgets typeset their labels through MathJax 2's queue; the page has MathJax 3.
window.addEventListener("load", () => {
  if (window.MathJax) {
    window.MathJax.Hub = { Queue: ([, , element]) => MathJax.typesetPromise([element]) };
  }
});
