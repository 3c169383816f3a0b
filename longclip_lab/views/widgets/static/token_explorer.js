// The token explorer in the browser: draws a text and a picture, and lights up one for the other.
// The kernel is asked only for what is not here yet; the matrix of words and patches is.

const LEVELS = 255;
const HINT = "Point at a word, at a sentence’s number, or at a patch.";
const PATIENCE = 20000; // milliseconds without an answer after which the reader is told

const make = (tag, className = "", attributes = {}, ...children) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const strength = (place) => Math.abs(place) ** 1.4; // of the colour: the middle does not drown the top
const keyOf = (unit) => JSON.stringify(Object.entries(unit ?? {}).sort());
const short = (text, length = 60) =>
  text.length > length ? text.slice(0, length - 1).trimEnd() + "…" : text;
const number = (value) => {
  const digits = Math.abs(value) >= 0.1 || value === 0 ? 2 : 3;
  return value.toFixed(digits).replace("-", "−");
};

// Scores on the scale of their answer: from the least to the largest, 0 to 1, or, where a good part
// of them lies on either side of zero, from -1 to 1 around it.
function scaled({ scores, low, high }) {
  const signed = low < 0 && high > 0 && Math.min(-low, high) > 0.2 * Math.max(-low, high);
  const values = scores.map((level) => low + (level / LEVELS) * (high - low));
  const widest = signed ? Math.max(-low, high) : high - low;
  const zero = signed ? 0 : low;
  return { signed, widest, values, places: values.map((v) => (widest ? (v - zero) / widest : 0)) };
}

class Explorer {
  constructor(model, root) {
    this.model = model;
    this.root = root;
    this.answers = new Map();
    this.listeners = new AbortController();
    this.pointed = null; // what the pointer or the focus is on; else the kept unit is lit
    this.build();
    this.drawScene();
    const on = (name, run) => {
      model.on(name, run);
      this.listeners.signal.addEventListener("abort", () => model.off(name, run));
    };
    on("change:revision", () => {
      this.busy(false);
      this.light();
    });
    on("change:scene", () => this.drawScene());
    on("change:answer", () => {
      this.remember(model.get("answer"));
      this.light();
    });
    on("change:lit", () => this.light());
    for (const name of ["method", "layer", "head", "words_method", "words_layer", "words_head"])
      on(`change:${name}`, () => this.drawChoices());
    on("change:error", () => this.light());
    on("msg:custom", (message) => this.receive(message));
  }

  // ---- what stands in the view ----

  build() {
    this.root.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves our keys to us
    this.controls = make("div", "controls");
    this.summary = make("p", "summary");
    this.strip = make("div", "strip", { role: "group", "aria-label": "the text, word by word" });
    this.image = make("img", "", { alt: "the picture as the model saw it" });
    this.grid = make("div", "grid", { role: "grid", "aria-label": "patches of the picture" });
    this.status = make("p", "status", { role: "status", "aria-live": "polite" });
    this.legend = make("div", "legend");
    this.wholePicture = make("button", "whole", { type: "button" }, "whole picture");
    this.wholePicture.dataset.unit = JSON.stringify({ kind: "picture" });
    this.about = make("p", "about");
    const side = make("div", "side", {},
      make("div", "frame", {}, this.image, this.grid), this.wholePicture, this.about);
    this.root.append(
      this.controls,
      make("div", "bar", {}, this.status, this.legend),
      make("div", "stage", {}, make("div", "text", {}, this.strip, this.summary), side),
    );
    this.buildControls();
    if (this.model.get("offers").typing) this.buildTyping();
    const listen = (name, run) =>
      this.root.addEventListener(name, run, { signal: this.listeners.signal });
    listen("pointerover", ({ target }) => {
      const node = target.closest("[data-unit]");
      if (node || !target.closest(".strip, .grid")) this.point(node); // not in the gaps of words
    });
    listen("pointerleave", () => this.point(null));
    listen("focusin", (event) => this.point(event.target.closest("[data-unit]")));
    listen("focusout", () => this.point(null));
    listen("click", (event) => this.keep(event.target.closest("[data-unit]")));
    listen("keydown", (event) => this.press(event));
  }

  buildControls() {
    const offers = this.model.get("offers");
    this.selects = {};
    if (offers.pictures > 1)
      this.addSelect("picture", "Picture",
        [...Array(offers.pictures).keys()].map((i) => [i, `${i + 1} of ${offers.pictures}`]));
    const texts = this.model.get("texts");
    if (texts.length > 1)
      this.addSelect("text", "Text", [
        ...texts.map((text, i) => [text, `${i + 1}: ${short(text, 28)}`]), ["", "your own"],
      ]);

    for (const [prefix, side, tower, label] of [
      ["", "patch", "image", "Words light the picture by"],
      ["words_", "word", "text", "The whole picture lights the words by"],
    ]) {
      this.addSelect(`${prefix}method`, label, offers[side].map(({ name }) => [name, name]));
      const [layers, heads] = offers.sizes[tower] ?? [0, 0];
      const count = (n) => [...Array(n).keys()];
      this.addSelect(`${prefix}layer`, "layer",
        [["", "default"], ...count(layers).map((i) => [i, `${i + 1} of ${layers}`])]);
      this.addSelect(`${prefix}head`, "head",
        [["", "mean"], ...count(heads).map((i) => [i, `${i + 1} of ${heads}`])]);
    }
    this.drawChoices();
  }

  addSelect(trait, label, options) {
    const select = make("select", "", { name: trait });
    for (const [value, name] of options) select.append(make("option", "", { value }, name));
    select.lastElementChild.disabled = trait === "text"; // shown when a text was typed
    const isText = trait.endsWith("text") || trait.endsWith("method");
    select.addEventListener("change", () =>
      this.change({ [trait]: isText ? select.value : select.value === "" ? null : +select.value }));
    this.selects[trait] = select;
    this.controls.append(make("label", "", {}, make("span", "", {}, label), select));
  }

  buildTyping() {
    const box = make("textarea", "", { rows: 2, "aria-label": "a text of your own" });
    const button = make("button", "read", { type: "button" }, "Read it");
    button.addEventListener("click", () => box.value.trim() && this.change({ text: box.value.trim() }));
    this.root.append(make("details", "typing", {}, make("summary", "", {}, "Type a text of your own"),
      make("div", "", {}, box, button)));
  }

  drawChoices() {
    const offers = this.model.get("offers");
    for (const [trait, select] of Object.entries(this.selects)) {
      select.value = this.model.get(trait) ?? "";
      if (trait === "text" && select.selectedIndex < 0) select.value = ""; // a typed one
      const prefix = trait.startsWith("words_") ? "words_" : "";
      const name = trait.slice(prefix.length);
      if (name !== "layer" && name !== "head") continue;
      const offer = offers[prefix ? "word" : "patch"].find(
        (one) => one.name === this.model.get(`${prefix}method`));
      select.parentElement.hidden = !offer?.options.includes(name);
    }
    this.answers.clear();
    this.remember(this.model.get("answer"));
  }

  drawScene() {
    const scene = this.model.get("scene");
    this.scene = scene;
    this.answers.clear();
    const { buffer, byteOffset, byteLength } = this.model.get("matrix");
    this.matrix = new Uint8Array(buffer, byteOffset, byteLength);
    this.image.src = scene.image;
    this.drawStrip();
    this.drawGrid();
    const [read, all] = scene.tokens;
    const model = this.model.get("offers").model;
    this.summary.textContent =
      (read < all ? `${model} read ${read} of the ${all} tokens; grey words were never read. `
        : `${model} read all ${all} tokens. `) +
      `Cosine similarity of text and picture: ${number(scene.similarity)}.`;
    this.drawChoices();
    this.light();
  }

  drawStrip() {
    const { text, words, sentences, read } = this.scene;
    const whole = this.unitNode("button", "whole", { kind: "words", start: 0, end: text.length },
      "whole text");
    const rows = [whole];
    this.words = [];
    let at = 0;
    sentences.forEach(([start, end], index) => {
      const line = make("span", "line");
      let from = start;
      for (; at < words.length && words[at][0] < end; at++) {
        if (at === read) line.append(make("span", "cut", {}, "the model stops here"));
        line.append(text.slice(from, words[at][0]), this.wordNode(at));
        from = words[at][1];
      }
      line.append(text.slice(from, end));
      const handle = this.unitNode("button", "handle", { kind: "words", start, end }, `${index + 1}`);
      handle.setAttribute("aria-label", `sentence ${index + 1}: ${text.slice(start, end)}`);
      const row = make("div", "sentence", {}, handle, line);
      if (words[read] && words[read][0] <= start) handle.classList.add("unread");
      rows.push(row);
    });
    this.strip.replaceChildren(...rows);
    this.rove(this.strip, whole);
  }

  wordNode(index) {
    const [start, end] = this.scene.words[index];
    const node = this.unitNode("span", "word", { kind: "words", start, end },
      this.scene.text.slice(start, end));
    node.setAttribute("role", "button");
    if (index >= this.scene.read) node.classList.add("unread");
    this.words.push(node);
    return node;
  }

  drawGrid() {
    const [rows, columns] = this.scene.grid;
    this.grid.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
    this.patches = [];
    const lines = [...Array(rows).keys()].map((row) => {
      const line = make("div", "row", { role: "row" });
      for (let column = 0; column < columns; column++) {
        const patch = this.unitNode("div", "patch", { kind: "patch", row, column });
        patch.setAttribute("role", "gridcell");
        patch.setAttribute("aria-label", `row ${row + 1}, column ${column + 1}`);
        this.patches.push(patch);
        line.append(patch);
      }
      return line;
    });
    this.grid.replaceChildren(...lines);
    this.rove(this.grid, this.patches[0]);
  }

  unitNode(tag, className, unit, ...children) {
    const node = make(tag, className, { tabindex: -1 }, ...children);
    if (tag === "button") node.type = "button";
    node.dataset.unit = JSON.stringify(unit);
    return node;
  }

  // One stop of the Tab key for all units of a side; the arrow keys move it.
  rove(side, node) {
    side.querySelector("[tabindex='0']")?.setAttribute("tabindex", -1);
    node.setAttribute("tabindex", 0);
  }

  // ---- pointing and keeping ----

  unitOf(node) {
    return node ? JSON.parse(node.dataset.unit) : null;
  }

  point(node) {
    const unit = this.unitOf(node);
    if (keyOf(unit) === keyOf(this.pointed)) return;
    this.pointed = unit;
    this.light();
  }

  keep(node) {
    if (!node || node.classList.contains("unread")) return;
    const unit = this.unitOf(node);
    const same = keyOf(unit) === keyOf(this.model.get("lit"));
    this.pointed = same ? null : unit;
    this.change({ lit: same ? {} : unit });
  }

  press(event) {
    const node = event.target.closest("[data-unit]");
    if (event.key === "Escape") {
      this.pointed = null;
      this.change({ lit: {} });
    } else if (node && (event.key === "Enter" || event.key === " ")) {
      this.keep(node);
    } else if (node && this.move(node, event.key)) {
      // moved
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  move(node, key) {
    const inGrid = this.grid.contains(node);
    if (!inGrid && !this.strip.contains(node)) return false;
    const all = inGrid ? this.patches : [...this.strip.querySelectorAll("[data-unit]")];
    const at = all.indexOf(node);
    const columns = this.scene.grid[1];
    let to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[key];
    if (key === "ArrowUp" || key === "ArrowDown") {
      const step = key === "ArrowUp" ? -1 : 1;
      if (inGrid) to = at + step * columns;
      else {
        const isHead = (i) => !all[i].classList.contains("word");
        for (to = at + step; to >= 0 && to < all.length && !isHead(to); ) to += step;
      }
    }
    if (to === undefined) return false;
    const target = all[to];
    if (target) {
      this.rove(inGrid ? this.grid : this.strip, target);
      target.focus();
    }
    return true;
  }

  change(values) {
    for (const [name, value] of Object.entries(values)) this.model.set(name, value);
    this.model.save_changes();
    if (!("lit" in values)) this.busy(true); // what is kept was pointed at, and is known
    this.light();
  }

  // ---- asking and lighting ----

  isUnread(unit) {
    const { words, read } = this.scene;
    return unit.kind === "words" && read < words.length && unit.start >= words[read][0];
  }

  light() {
    const kept = this.model.get("lit") ?? {};
    const unit = this.pointed ?? (kept.kind ? kept : null);
    this.mark(unit, kept);
    if (!unit) return this.paint(null, this.model.get("error") || HINT);
    if (this.isUnread(unit))
      return this.paint(null, `“${this.wordsOf(unit)}” is behind the model’s cut: it was never read.`);
    const answer = this.answers.get(keyOf(unit)) ?? this.computed(unit);
    if (answer) this.paint(answer, this.says(unit, answer));
    else this.ask(unit);
  }

  // What the matrix already holds: the words for a patch, and the patches for a word in its text.
  computed(unit) {
    const [rows, columns] = this.scene.grid;
    const patches = rows * columns;
    const { low, high, words, read } = this.scene;
    if (unit.kind === "patch") {
      const at = unit.row * columns + unit.column;
      const scores = [...Array(read).keys()].map((word) => this.matrix[word * patches + at]);
      return this.narrowed({ unit, side: "words", scores, low, high, method: this.scene.matrix });
    }
    if (unit.kind !== "words" || this.model.get("method") !== this.scene.matrix) return null;
    const word = words.findIndex(([start, end]) => start === unit.start && end === unit.end);
    if (word < 0) return null;
    const scores = [...this.matrix.subarray(word * patches, (word + 1) * patches)];
    const { matrix: method, shift } = this.scene;
    return this.narrowed({ unit, side: "patches", scores, low, high, method, shift });
  }

  // The scale of the whole matrix, narrowed to what one answer needs of it.
  narrowed(answer) {
    const least = Math.min(...answer.scores);
    const most = Math.max(...answer.scores);
    const value = (level) => answer.low + (level / LEVELS) * (answer.high - answer.low);
    const scores = answer.scores.map((s) => (most > least ? ((s - least) / (most - least)) * LEVELS : 0));
    return { ...answer, scores, low: value(least), high: value(most) };
  }

  ask(unit) {
    this.wanted = unit;
    this.busy(true);
    if (this.asking) return; // the newest wish is sent when the answer is there
    this.asking = unit;
    this.model.send({ ask: unit });
  }

  receive({ answer, error, unit }) {
    this.asking = null;
    this.busy(false);
    if (answer) this.remember(answer);
    if (error && keyOf(unit) === keyOf(this.wanted)) return this.paint(null, error);
    this.light();
  }

  remember(answer) {
    if (answer?.unit) this.answers.set(keyOf(answer.unit), answer);
  }

  busy(on) {
    clearTimeout(this.sign);
    clearTimeout(this.patience);
    if (!on) return this.root.removeAttribute("aria-busy");
    this.sign = setTimeout(() => {
      this.root.setAttribute("aria-busy", "true");
      this.status.textContent = "computing …";
    }, 120);
    this.patience = setTimeout(() => {
      this.asking = null;
      this.busy(false);
      this.status.textContent = "No answer yet: the kernel is busy, or none is running.";
    }, PATIENCE);
  }

  mark(unit, kept) {
    for (const node of this.root.querySelectorAll("[data-unit]")) {
      const key = keyOf(this.unitOf(node));
      node.classList.toggle("pointed", unit !== null && key === keyOf(unit));
      const isKept = Boolean(kept.kind) && key === keyOf(kept);
      node.classList.toggle("kept", isKept);
      if (node.getAttribute("role") === "gridcell") node.setAttribute("aria-selected", isKept);
      else node.setAttribute("aria-pressed", isKept);
    }
    this.markInside(unit);
  }

  // The words of a sentence are pointed at together.
  markInside(unit) {
    const inside = (start, end) =>
      unit?.kind === "words" && start >= unit.start && end <= unit.end &&
      unit.end - unit.start < this.scene.text.length;
    this.words.forEach((node, i) => node.classList.toggle("inside", inside(...this.scene.words[i])));
  }

  paint(answer, message) {
    const error = this.model.get("error");
    this.status.textContent = error && answer ? error : message;
    this.status.classList.toggle("error", Boolean(error));
    this.root.dataset.side = answer?.side ?? "";
    const [right, down] = (answer?.shift ?? this.scene.shift).map((share) => `${100 * share}%`);
    this.grid.style.translate = `${right} ${down}`; // patches lie where their tokens look
    const scale = answer ? scaled(answer) : null;
    const best = scale ? scale.values.indexOf(Math.max(...scale.values)) : -1;
    for (const [side, nodes] of [["patches", this.patches], ["words", this.words]]) {
      nodes.forEach((node, i) => {
        const place = answer?.side === side ? (scale.places[i] ?? 0) : 0;
        node.style.setProperty("--lit", strength(place).toFixed(3));
        node.classList.toggle("below", place < 0);
        node.classList.toggle("strong", place > 0.55);
        node.classList.toggle("best", answer?.side === side && i === best && place > 0);
      });
    }
    this.drawLegend(scale);
    this.drawAbout(answer);
  }

  drawLegend(scale) {
    this.legend.hidden = !scale;
    if (!scale) return;
    const from = scale.signed ? -scale.widest : Math.min(...scale.values);
    const to = scale.signed ? scale.widest : Math.max(...scale.values);
    const ramp = make("span", "ramp");
    const start = scale.signed ? -1 : 0;
    for (let step = 0; step <= 12; step++) {
      const place = start + ((1 - start) * step) / 12;
      const cell = make("i", place < 0 ? "below" : "");
      cell.style.setProperty("--lit", strength(place).toFixed(3));
      ramp.append(cell);
    }
    this.legend.replaceChildren(number(from), ramp, number(to));
  }

  drawAbout(answer) {
    const offers = this.model.get("offers");
    const list = answer?.side === "words" && answer.unit.kind === "picture" ? offers.word : offers.patch;
    const offer = list.find(({ name }) => name === answer?.method);
    this.about.textContent = offer ? `${offer.name}: ${offer.about}` : "";
  }

  wordsOf(unit) {
    const words = this.scene.text.slice(unit.start, unit.end);
    return words === this.scene.text ? "the whole text" : short(words, 90);
  }

  says(unit, answer) {
    const { values } = scaled(answer);
    const order = [...values.keys()].sort((a, b) => values[b] - values[a]);
    if (answer.side === "patches") {
      const columns = this.scene.grid[1];
      const at = order[0];
      const name = this.wordsOf(unit);
      const quoted = name === "the whole text" ? "The whole text" : `“${name}”`;
      return `${quoted} lights up row ${Math.floor(at / columns) + 1}, ` +
        `column ${(at % columns) + 1} most (${number(values[at])}).`;
    }
    const top = new Map(); // each word once, however often it stands in the text
    for (const i of order) {
      const word = this.scene.text.slice(...this.scene.words[i]);
      if (top.size < 3 && !top.has(word)) top.set(word, `“${word}” (${number(values[i])})`);
    }
    const who = unit.kind === "picture" ? "The whole picture"
      : `The patch in row ${unit.row + 1}, column ${unit.column + 1}`;
    return `${who} lights up ${[...top.values()].join(", ")} most.`;
  }

  close() {
    this.listeners.abort();
    this.busy(false);
  }
}

export default {
  render({ model, el }) {
    const root = make("div", "lc-explorer");
    el.append(root);
    const explorer = new Explorer(model, root);
    return () => explorer.close();
  },
};
