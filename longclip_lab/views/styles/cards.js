box => {
  const data = JSON.parse(box.querySelector("script").textContent);
  const filters = [...box.querySelectorAll("select")];
  const [back, on] = box.querySelectorAll("button");
  const panel = box.querySelector(".panel");
  let chosen = data.cards, at = 0;
  const show = () => {
    box.querySelector(".count").textContent = chosen.length
      ? `${at + 1} of ${chosen.length}` : "no question is left";
    back.disabled = at === 0;
    on.disabled = at >= chosen.length - 1;
    panel.innerHTML = chosen.length ? chosen[at].html : "";
    for (const image of panel.querySelectorAll("[data-picture]"))
      image.src = data.pictures[image.dataset.picture];
  };
  const move = step => { at += step; show(); };
  const filter = () => {
    chosen = data.cards.filter(card => filters.every(
      choice => !choice.value || card.tags[choice.name] === choice.value));
    at = 0;
    show();
  };
  back.addEventListener("click", () => move(-1));
  on.addEventListener("click", () => move(1));
  filters.forEach(choice => choice.addEventListener("change", filter));
  show();
}
