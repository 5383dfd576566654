// The page of the command play: asks about an image, and shows what each exit says.
"use strict";

(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const byId = (id) => document.getElementById(id);
  const last = facts.exits.length - 1;
  const MOST_BYTES = 64 * 2 ** 20;

  // ---- Thresholds ----

  // Scores of confident answers are close to 0, so positions are closest there.
  const POSITIONS = 1000;
  const highest = facts.criterion === "entropy" || !facts.criterion ? Math.log(facts.classes) : 1;
  const atPosition = (p) =>
    p > POSITIONS ? Infinity : Number((highest * (p / POSITIONS) ** 3).toPrecision(4));
  const positionOf = (t) =>
    t === Infinity ? POSITIONS + 1 : Math.min(POSITIONS, Math.round(POSITIONS * Math.cbrt(t / highest)));
  const written = (t) => (t === Infinity ? "inf" : String(t));
  /** A threshold for reading. */
  const brief = (t, digits = 8) => written(Number(t.toPrecision(digits)));

  const calibrated = facts.thresholds?.map((t) => (t === "inf" ? Infinity : t));
  // Null asks for the calibrated thresholds, which some servers keep to themselves.
  let thresholds = null;
  const sliders = facts.exits.slice(0, -1).map((_, k) => byId(`slider-${k + 1}`));
  const fields = sliders.map((_, k) => byId(`field-${k + 1}`));

  function refuse(text) {
    byId("refused").hidden = !text;
    byId("refused").textContent = text;
  }

  function showThresholds() {
    const shown = thresholds || calibrated;
    sliders.forEach((slider, k) => {
      slider.value = shown ? positionOf(shown[k]) : 0;
      slider.setAttribute("aria-valuetext", shown ? `threshold ${brief(shown[k])}` : "calibrated");
      if (document.activeElement !== fields[k]) fields[k].value = shown ? brief(shown[k]) : "";
      fields[k].placeholder = shown ? "" : "calibrated";
      fields[k].removeAttribute("aria-invalid");
    });
    byId("calibrated").setAttribute("aria-pressed", thresholds === null);
  }

  function setThreshold(k, value) {
    const before = thresholds || calibrated || sliders.map(() => 0);
    thresholds = before.map((t, j) => (j === k ? value : t));
    refuse("");
    showThresholds();
    ask();
  }

  sliders.forEach((slider, k) =>
    slider.addEventListener("input", () => setThreshold(k, atPosition(Number(slider.value)))),
  );
  fields.forEach((field, k) => {
    field.addEventListener("input", () => {
      const text = field.value.trim();
      const value = /^\+?(inf|infinity|∞)$/i.test(text) ? Infinity : Number(text);
      if (text === "" || Number.isNaN(value) || value < 0) {
        field.setAttribute("aria-invalid", "true");
        refuse(`${facts.exits[k]}: a threshold is a number of at least 0, or inf.`);
        return;
      }
      setThreshold(k, value);
    });
    field.addEventListener("blur", () => {
      refuse("");
      showThresholds();
    });
  });
  byId("calibrated").addEventListener("click", () => {
    thresholds = null;
    refuse("");
    showThresholds();
    ask();
  });

  // ---- Questions ----

  // The image that is asked about: {query, body}, where body() is the content. Only one
  // request is under way; what changes meanwhile is asked once it is answered.
  let image = null;
  let underWay = false;
  let again = false;

  async function ask() {
    if (!image) return;
    if (underWay) {
      again = true;
      return;
    }
    underWay = true;
    const query = new URLSearchParams(image.query);
    if (thresholds) query.set("thresholds", thresholds.map(written).join(","));
    const start = performance.now();
    let server = 0;
    try {
      const response = await fetch(`answer?${query}`, { method: "POST", body: image.body() });
      const answer = await response.json();
      server = Number(response.headers.get("Server-Timing")?.split("dur=")[1]);
      if (response.ok) show(answer, query.has("thresholds"));
      else fail(answer.error);
    } catch {
      fail("The server does not answer. Is the command still running?");
    }
    // For the console: milliseconds from the question to the shown answer.
    globalThis.play = {
      answered: (globalThis.play?.answered || 0) + 1,
      roundTrip: performance.now() - start,
      server,
    };
    underWay = false;
    if (again) {
      again = false;
      ask();
    }
  }

  function askAbout(query, body = () => "") {
    image = { query, body };
    ask();
  }

  // ---- Answers ----

  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const className = (c) =>
    facts.class_names && c < facts.class_names.length ? facts.class_names[c] : String(c);
  const milliseconds = (ms) => `${ms < 10 ? ms.toPrecision(2) : Math.round(ms)} ms`;
  /** An exit, and in a cascade its unit. */
  const place = (k) => (facts.units ? `${facts.exits[k]} (${facts.units[k]})` : facts.exits[k]);

  function element(name, text = "", attributes = {}) {
    const made = document.createElement(name);
    made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  function fail(text) {
    byId("summary").textContent = text;
    byId("summary").className = "bad";
    byId("degraded").hidden = true;
    byId("spent").replaceChildren();
    byId("notes").textContent = "";
    byId("seen").hidden = true;
    byId("answers").replaceChildren();
  }

  function show(answer, own) {
    const best = answer.exits[answer.exit].classes[0]?.[0];
    const wrong = answer.label !== null && answer.label !== best;
    byId("summary").className = wrong ? "bad" : "";
    byId("summary").textContent =
      `${place(answer.exit)} answers ${best === undefined ? "nothing" : className(best)}` +
      (answer.label === null ? "." : `; the label is ${className(answer.label)}.`);
    byId("degraded").hidden = !answer.degraded;
    byId("spent").replaceChildren(...spent(answer));
    byId("notes").textContent = answer.notes.length ? `The image: ${answer.notes.join(", ")}.` : "";
    byId("seen").src = answer.seen;
    byId("seen").hidden = false;
    const limits = own ? thresholds : calibrated;
    byId("answers").replaceChildren(...answer.exits.map((exit, k) => box(exit, k, answer, limits)));
  }

  /** Time and multiply-adds spent and saved, as entries of a list of terms. */
  function spent(answer) {
    const [here, whole] = [facts.milliseconds[answer.exit], facts.milliseconds[last]];
    const rules = [];
    if (here !== null) rules.push(`${milliseconds(here)} at this exit as a rule`);
    if (whole !== null && answer.exit < last) rules.push(`${milliseconds(whole)} at the final one`);
    const told = [["time", [`${milliseconds(answer.milliseconds)} now`, ...rules].join("; ")]];
    if (facts.macs) {
      const count = facts.macs[answer.exit];
      told.push(["multiply-adds", count.toLocaleString("en-US")]);
      if (facts.full_macs) {
        const saved = 1 - count / facts.full_macs;
        const words = `${percent(Math.abs(saved))} ${saved >= 0 ? "less" : "more"} than`;
        told.push(["", `${words} the network without branches`]);
      }
    }
    return told.flatMap(([term, text]) => [element("dt", term), element("dd", text)]);
  }

  /** What one exit says. */
  function box(exit, k, answer, limits) {
    const taken = answer.exit;
    const made = element("section", "", { class: k === taken ? "answer taken" : "answer" });
    const here = answer.degraded ? ": the best answer so far" : ": the image left here";
    const where = k === taken ? here : k > taken ? ": not reached" : ": passed";
    made.append(element("h3", place(k) + where));
    if (facts.units && !exit.classes.length) {
      made.append(element("div", `The unit ${facts.units[k]} does not answer.`, { class: "bad" }));
      return made;
    }
    const score = exit.score === null ? "not a number" : exit.score.toPrecision(4);
    let told = `score ${score}`;
    if (k < last) {
      const sign = exit.score !== null && limits && exit.score < limits[k] ? "<" : "≥";
      told += limits ? ` ${sign} threshold ${brief(limits[k], 4)}` : "; the threshold is the server's";
    } else {
      told += "; the final exit takes what is left";
    }
    made.append(element("div", told, { class: "quiet" }));
    const list = made.appendChild(element("ul"));
    for (const [c, probability] of exit.classes) {
      const line = list.appendChild(element("li"));
      const bar = element("span", "", { class: "bar" });
      bar.appendChild(element("span")).style.width = `${100 * probability}%`;
      line.append(element("span", className(c)), bar, element("span", percent(probability)));
    }
    return made;
  }

  // ---- Drawing ----

  const board = byId("board");
  if (board) {
    const pen = board.getContext("2d", { willReadFrequently: true });
    const side = board.width;
    Object.assign(pen, { lineWidth: side / 12, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
    let from = null;

    function clear() {
      pen.fillStyle = "#000";
      pen.fillRect(0, 0, side, side);
    }

    function line(a, b) {
      pen.beginPath();
      pen.moveTo(...a);
      // Without the offset, browsers draw nothing from a point to itself.
      pen.lineTo(b[0] + 0.01, b[1]);
      pen.stroke();
      askAbout({ kind: "drawing" }, strokes);
    }

    /** The board, one byte a pixel. */
    function strokes() {
      const pixels = pen.getImageData(0, 0, side, side).data;
      const grey = new Uint8Array(side * side);
      for (let i = 0; i < grey.length; i++) grey[i] = pixels[4 * i];
      return grey;
    }

    function at(event) {
      const box = board.getBoundingClientRect();
      const scale = side / box.width;
      return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    }

    board.addEventListener("pointerdown", (event) => {
      board.setPointerCapture(event.pointerId);
      from = at(event);
      line(from, from);
    });
    board.addEventListener("pointermove", (event) => {
      if (!from) return;
      const to = at(event);
      line(from, to);
      from = to;
    });
    for (const end of ["pointerup", "pointercancel"]) {
      board.addEventListener(end, () => (from = null));
    }
    byId("clear").addEventListener("click", () => {
      clear();
      // There is nothing left to ask about.
      if (image?.query.kind === "drawing") image = null;
    });

    // With keys: arrows move the pen, space puts it down or lifts it.
    const STEP = side / 20;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    let place = [side / 2, side / 2];
    let down = false;
    board.addEventListener("keydown", (event) => {
      if (event.key === " ") {
        down = !down;
        if (down) line(place, place);
      } else if (moves[event.key]) {
        const to = place.map((v, i) => Math.min(side, Math.max(0, v + STEP * moves[event.key][i])));
        if (down) line(place, to);
        place = to;
      } else {
        return;
      }
      event.preventDefault();
    });
    clear();
  }

  // ---- Files ----

  function askAboutFile(file) {
    if (!file) return;
    if (file.size > MOST_BYTES) {
      image = null;
      fail(`${file.name} has ${file.size.toLocaleString("en-US")} bytes; expected at most ${MOST_BYTES.toLocaleString("en-US")}.`);
      return;
    }
    askAbout({ kind: "file", name: file.name }, () => file);
  }

  byId("file").addEventListener("change", (event) => askAboutFile(event.target.files[0]));
  document.addEventListener("paste", (event) => askAboutFile(event.clipboardData.files[0]));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    byId("drop").classList.add("over");
  });
  document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("drop").classList.remove("over");
    askAboutFile(event.dataTransfer.files[0]);
  });

  // ---- Samples of the test split ----

  if (facts.samples) {
    const PER_PAGE = 24;
    let first = 0;

    async function list() {
      const response = await fetch(`samples?first=${first}`);
      const { samples } = await response.json();
      byId("samples").replaceChildren(
        ...samples.map(({ row, label, picture }) => {
          const button = element("button", "", { type: "button", class: "plain" });
          button.append(
            element("img", "", { src: picture, alt: `Test image ${row}` }),
            element("span", className(label)),
          );
          button.addEventListener("click", () => askAbout({ sample: row }));
          return button;
        }),
      );
      byId("before").disabled = first === 0;
      byId("after").disabled = first + PER_PAGE >= facts.samples;
    }

    byId("before").addEventListener("click", () => {
      first = Math.max(0, first - PER_PAGE);
      list();
    });
    byId("after").addEventListener("click", () => {
      first += PER_PAGE;
      list();
    });
    byId("from-test").addEventListener("toggle", list, { once: true });
  }

  showThresholds();
})();
