box => {
  const data = JSON.parse(box.querySelector("script").textContent);
  const inputs = [...box.querySelectorAll("input")];
  const panel = box.querySelector(".panel");
  const show = () => {
    let at = 0;
    inputs.forEach((input, i) => {
      const names = data.controls[i];
      at = at * names.length + Number(input.value);
      input.parentElement.querySelector("output").textContent = names[input.value];
      input.setAttribute("aria-valuetext", names[input.value]);
    });
    panel.innerHTML = data.states[at].map(line => data.lines[line]).join("\n");
    for (const image of panel.querySelectorAll("[data-picture]"))
      image.setAttribute(
        image.tagName === "image" ? "href" : "src", data.pictures[image.dataset.picture]);
  };
  inputs.forEach(input => input.addEventListener("input", show));
  show();
}
