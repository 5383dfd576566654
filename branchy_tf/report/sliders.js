// The sliders of report.html: what other thresholds would do to the validation rows.
"use strict";

(() => {
  const found = document.getElementById("scores");
  if (!found) return;
  const data = JSON.parse(found.textContent);
  const byId = (id) => document.getElementById(id);

  // ---- The packed rows ----

  /** Bytes from base64. */
  function unpack(text) {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;
  }

  const Classes = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array }[data.class_bytes];
  const scores = data.scores.map((text) => new Float32Array(unpack(text)));
  const answers = data.answers.map((text) => new Classes(unpack(text)));
  const labels = new Classes(unpack(data.labels));
  const rows = data.rows;
  const last = data.exits.length - 1;
  const final = answers[last];

  // The smallest normal float32: the package treats smaller thresholds as 0.
  const SMALLEST = 2 ** -126;

  /** A threshold as the package compares it with scores: a float32. */
  function asLimit(threshold) {
    const limit = Math.fround(threshold);
    return limit < SMALLEST ? 0 : limit;
  }

  /** The exit of each row, 0-based: the first with a score strictly below its threshold.
      A NaN score is below no threshold. */
  function exitIndices(thresholds) {
    const exits = new Uint16Array(rows).fill(last);
    for (let k = last - 1; k >= 0; k--) {
      const score = scores[k];
      const limit = asLimit(thresholds[k]);
      for (let i = 0; i < rows; i++) if (score[i] < limit) exits[i] = k;
    }
    return exits;
  }

  /** What the rows do with these exits. */
  function count(exits) {
    const classes = data.classes;
    const at = new Float64Array(last + 1);
    const correctAt = new Float64Array(last + 1);
    const correctOf = new Float64Array(classes);
    const earlyOf = new Float64Array(classes);
    const agreement = [0, 0, 0, 0]; // early correct or wrong, times final correct or wrong
    const differing = new Map(); // class by early exit * classes + class by final exit
    let correct = 0;
    for (let i = 0; i < rows; i++) {
      const k = exits[i];
      const label = labels[i];
      const answer = answers[k][i];
      const is = answer === label;
      at[k]++;
      if (k < last) earlyOf[label]++;
      if (is) {
        correct++;
        correctAt[k]++;
        correctOf[label]++;
      }
      agreement[(is ? 0 : 2) + (final[i] === label ? 0 : 1)]++;
      if (answer !== final[i]) {
        const pair = answer * classes + final[i];
        differing.set(pair, (differing.get(pair) || 0) + 1);
      }
    }
    const rates = Array.from(at, (n) => n / rows);
    return {
      accuracy: correct / rows,
      rates,
      early: 1 - rates[last],
      correctAt: Array.from(correctAt, (n, k) => n / at[k]),
      macs: rates.reduce((sum, rate, k) => sum + rate * data.macs[k], 0),
      correctOf,
      earlyOf,
      agreement,
      differing,
    };
  }

  /** Expected milliseconds per image: the share of rows that reach each stage, times it. */
  function milliseconds(rates, stages) {
    let reach = 1;
    let sum = 0;
    for (let k = 0; k <= last; k++) {
      sum += reach * stages[k];
      reach -= rates[k];
    }
    return sum;
  }

  // ---- Numbers and words ----

  const percent = (share, digits = 2) =>
    Number.isFinite(share) ? `${(100 * share).toFixed(digits)} %` : "–";
  const whole = (number) => Math.round(number).toLocaleString("en-US");
  const className = (index) =>
    data.class_names && index < data.class_names.length
      ? data.class_names[index]
      : String(index);

  /** A number as JSON in the package writes it, infinity as "inf". */
  const parse = (value) => (value === "inf" ? Infinity : value);

  /** The shortest decimal number that is the same float32. */
  function shortest(limit) {
    for (let digits = 1; digits <= 9; digits++) {
      const number = Number(limit.toPrecision(digits));
      if (Math.fround(number) === limit) return number;
    }
    return limit;
  }

  const written = (threshold) => (threshold === Infinity ? "inf" : String(threshold));
  /** A threshold for reading: short, and the same float32. */
  const brief = (threshold) => written(shortest(asLimit(threshold)));

  // ---- Slider positions ----

  // Positions are spread evenly over the rows, not over the scores: most scores lie close
  // to 0. The first position lets no row exit, the last but one all finite scores, the
  // last is infinity.
  const MOST_POSITIONS = 1000;
  const sorted = scores.map((score) =>
    score.filter(Number.isFinite).sort().filter((x, i, all) => i === 0 || x !== all[i - 1]),
  );
  const steps = sorted.map((values) => Math.min(values.length, MOST_POSITIONS));

  /** The next larger float32 of a number that is not negative. */
  function nextUp(number) {
    const bits = new Float32Array([number]);
    new Int32Array(bits.buffer)[0]++;
    return bits[0];
  }

  /** The threshold at a position: between two neighbouring scores. */
  function atPosition(k, position) {
    if (position > steps[k]) return Infinity;
    const values = sorted[k];
    const below = Math.round((position / (steps[k] || 1)) * values.length);
    if (below === 0) return 0;
    const lower = values[below - 1];
    const upper = below < values.length ? values[below] : nextUp(lower);
    const middle = Math.fround((lower + upper) / 2);
    const limit = middle > lower && middle >= SMALLEST ? middle : upper;
    return shortest(Math.max(limit, SMALLEST));
  }

  /** The position closest to a threshold. */
  function positionOf(k, threshold) {
    if (threshold === Infinity) return steps[k] + 1;
    const values = sorted[k];
    const limit = asLimit(threshold);
    let low = 0;
    let high = values.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (values[middle] < limit) low = middle + 1;
      else high = middle;
    }
    return values.length ? Math.round((low / values.length) * steps[k]) : 0;
  }

  // ---- State ----

  const calibrated = data.thresholds.map(parse);
  const frontier = data.frontier.map((point) => ({
    ...point,
    thresholds: point.thresholds.map(parse),
  }));
  let thresholds = calibrated.slice();
  let exits = exitIndices(thresholds);
  let reference = exits;
  let moved = 0; // the exit whose threshold moved last
  const known = {
    calibrated: count(exits),
    final: count(exitIndices(calibrated.map(() => 0))),
  };

  // ---- What is shown ----

  const sliders = calibrated.map((_, k) => byId(`slider-${k + 1}`));
  const fields = calibrated.map((_, k) => byId(`field-${k + 1}`));
  const told = data.exits.map((_, k) => byId(`told-${k + 1}`));
  const bars = data.exits.map((_, k) => byId(`bar-${k + 1}`));
  const budget = byId("budget");

  function element(name, text = "", attributes = {}) {
    const made = document.createElement(name);
    made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  /** A table row with a header cell; the other cells are returned to be filled. */
  function addRow(body, head, number) {
    const row = body.appendChild(element("tr"));
    const first = row.appendChild(element("th", head, { scope: "row" }));
    const cells = [];
    for (let i = 0; i < number; i++) cells.push(row.appendChild(element("td")));
    return { row, first, cells };
  }

  /** Sets a text only if it changed, which spares the browser a layout. */
  function put(node, text) {
    if (node.textContent !== text) node.textContent = text;
  }

  // Figures: a row each, with a function from counts to text.
  const perImage = "multiply-adds per image";
  const figures = [
    ["accuracy", (c) => percent(c.accuracy), (t) => percent(t.accuracy)],
    ["exit early", (c) => percent(c.early, 1), (t) => percent(1 - t.exit_rates[last], 1)],
    [perImage, (c) => whole(c.macs), (t) => whole(t.macs)],
    [
      "gain over the network without branches",
      (c) => `${(data.full_macs / c.macs).toFixed(2)}×`,
      (t) => `${t.gain.toFixed(2)}×`,
    ],
    ...data.times.map((time) => [
      `ms per image, batches of ${time.batch}`,
      (c) => milliseconds(c.rates, time.stages).toPrecision(3),
      (t) => milliseconds(t.exit_rates, time.stages).toPrecision(3),
    ]),
  ];
  const figureCells = figures.map(([head, ofCounts, ofTest]) => {
    const { cells } = addRow(byId("figures").tBodies[0], head, 4);
    cells[1].textContent = ofCounts(known.calibrated);
    cells[2].textContent = ofCounts(known.final);
    cells[3].textContent = data.test ? ofTest(data.test) : "not evaluated";
    return cells[0];
  });

  function showFigures(counts) {
    figures.forEach(([, ofCounts], i) => put(figureCells[i], ofCounts(counts)));
    data.exits.forEach((name, k) => {
      const here = counts.rates[k] ? `, ${percent(counts.correctAt[k], 1)} of them correct` : "";
      put(
        told[k],
        `${percent(counts.rates[k], 1)} exit here${here}; ${whole(data.macs[k])} multiply-adds`,
      );
      bars[k].style.width = `${100 * counts.rates[k]}%`;
    });
  }

  // Plot: accuracy against cost, the frontier and the thresholds now.
  const plot = { width: 440, height: 220, left: 58, right: 16, top: 12, bottom: 40 };

  function svg(name, attributes, text = "") {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  }

  let dot = null;
  let place = null;

  function drawPlot() {
    const points = [...frontier, known.calibrated, known.final];
    const costs = [...points.map((p) => p.macs), data.macs[0], data.macs[last]];
    const heights = points.map((p) => p.accuracy);
    const [left, right] = [Math.min(...costs), Math.max(...costs)];
    const most = Math.max(...heights);
    // Thresholds below the frontier may be less accurate than all of its points.
    const least = Math.max(0, Math.min(...heights) - 0.25 * (most - Math.min(...heights)) - 0.005);
    const x = (cost) =>
      plot.left + ((cost - left) / (right - left || 1)) * (plot.width - plot.left - plot.right);
    const y = (accuracy) =>
      plot.height -
      plot.bottom -
      (Math.max(0, accuracy - least) / (most - least || 1)) *
        (plot.height - plot.top - plot.bottom);
    place = (counts) => [x(counts.macs), y(counts.accuracy)];
    const drawing = svg("svg", {
      viewBox: `0 0 ${plot.width} ${plot.height}`,
      role: "img",
      "aria-label": "Accuracy against multiply-adds: the frontier, and the thresholds now.",
    });
    const base = plot.height - plot.bottom;
    const axis = `M${plot.left},${plot.top} V${base} H${plot.width - plot.right}`;
    drawing.append(svg("path", { d: axis, class: "axis" }));
    if (frontier.length > 1) {
      const line = frontier.map((p) => `${x(p.macs).toFixed(1)},${y(p.accuracy).toFixed(1)}`);
      drawing.append(svg("polyline", { points: line.join(" "), class: "line" }));
    }
    const label = (at, text, anchor = "end") =>
      drawing.append(svg("text", { x: at[0], y: at[1], "text-anchor": anchor }, text));
    label([plot.left - 4, y(most) + 5], percent(most, 1));
    label([plot.left - 4, base], percent(least, 1));
    label([plot.left, base + 16], whole(left), "start");
    label([plot.width - plot.right, base + 16], whole(right));
    label([plot.width / 2, base + 32], perImage, "middle");
    const [cx, cy] = place(known.calibrated);
    drawing.append(
      svg("rect", { x: cx - 6, y: cy - 6, width: 12, height: 12, class: "chosen" }),
    );
    dot = drawing.appendChild(svg("circle", { r: 7, class: "now" }));
    const words = "The line is the frontier, the square the calibrated thresholds, and the dot the thresholds now.";
    byId("plot").append(drawing, element("figcaption", words));
  }

  function showPlot(counts) {
    const [x, y] = place(counts);
    dot.setAttribute("cx", x);
    dot.setAttribute("cy", y);
  }

  // Classes: all of a few, the least accurate of many.
  const MOST_CLASSES = 20;
  const sizes = new Float64Array(data.classes);
  for (let i = 0; i < rows; i++) sizes[labels[i]]++;
  const present = Array.from(sizes.keys()).filter((c) => sizes[c]);
  const classRows = present
    .slice(0, MOST_CLASSES)
    .map(() => addRow(byId("classes").tBodies[0], "", 4));
  if (present.length > MOST_CLASSES) {
    byId("classes-note").textContent =
      `The ${MOST_CLASSES} of ${present.length} classes that lose the most correct answers to early exits.`;
  }

  function showClasses(counts) {
    let shown = present;
    if (present.length > MOST_CLASSES) {
      const change = (c) => counts.correctOf[c] - known.final.correctOf[c];
      shown = present.slice().sort((a, b) => change(a) - change(b) || a - b);
    }
    classRows.forEach(({ first, cells }, i) => {
      const c = shown[i];
      put(first, className(c));
      put(cells[0], whole(sizes[c]));
      put(cells[1], percent(counts.correctOf[c] / sizes[c], 1));
      put(cells[2], percent(known.final.correctOf[c] / sizes[c], 1));
      put(cells[3], percent(counts.earlyOf[c] / sizes[c], 1));
    });
  }

  // Early answer against final answer: a matrix of a few classes, the commonest pairs of many.
  const MOST_SQUARE = 12;
  const MOST_PAIRS = 10;
  const square = data.classes <= MOST_SQUARE;
  const confusion = byId("confusion");
  let confusionCells = [];
  if (square) {
    confusion.caption.textContent =
      "Rows whose answer (down) differs from the final exit's (across)";
    const head = confusion.tHead.appendChild(element("tr"));
    head.append(element("td", "answer"));
    for (let c = 0; c < data.classes; c++) {
      head.append(element("th", className(c), { scope: "col" }));
    }
    for (let c = 0; c < data.classes; c++) {
      confusionCells.push(addRow(confusion.tBodies[0], className(c), data.classes).cells);
    }
  } else {
    confusion.caption.textContent = "The commonest answers that differ from the final exit's";
    const head = confusion.tHead.appendChild(element("tr"));
    for (const text of ["answer", "final exit's", "rows"]) {
      head.append(element("th", text, { scope: "col" }));
    }
    for (let i = 0; i < MOST_PAIRS; i++) {
      confusionCells.push(addRow(confusion.tBodies[0], "", 2));
    }
  }

  function showConfusion(counts) {
    const cells = byId("agreement").querySelectorAll("td");
    counts.agreement.forEach((n, i) => put(cells[i], percent(n / rows)));
    if (square) {
      confusionCells.forEach((line, early) =>
        line.forEach((cell, end) => {
          const n = counts.differing.get(early * data.classes + end) || 0;
          put(cell, early === end ? "" : n ? String(n) : "·");
        }),
      );
      return;
    }
    const pairs = [...counts.differing].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
    confusionCells.forEach(({ row, first, cells: [end, number] }, i) => {
      row.hidden = i >= pairs.length;
      if (row.hidden) return;
      const [pair, n] = pairs[i];
      put(first, className(Math.floor(pair / data.classes)));
      put(end, className(pair % data.classes));
      put(number, String(n));
    });
  }

  // Images whose exit or answer differs from the reference.
  const MOST_SHOWN = 24;
  const pictures = data.pictures;
  const pictured = pictures ? new Uint32Array(unpack(pictures.rows)) : new Uint32Array(0);
  const frames = [];
  for (let i = 0; i < Math.min(MOST_SHOWN, pictured.length); i++) {
    const frame = byId("thumbnails").appendChild(element("figure", "", { hidden: "" }));
    const image = frame.appendChild(element("span", "", { class: "thumbnail" }));
    frame.append(element("figcaption"));
    const { columns } = pictures;
    const lines = Math.ceil(pictured.length / columns);
    image.style.backgroundSize = `${100 * columns}% ${100 * lines}%`;
    frames.push({ frame, image, caption: frame.lastChild, lines });
  }

  /** Where a picture lies in the sheet, as a CSS background position. */
  function positionInSheet(index, lines) {
    const { columns } = pictures;
    const share = (at, all) => (all > 1 ? (100 * at) / (all - 1) : 0);
    return `${share(index % columns, columns)}% ${share(Math.floor(index / columns), lines)}%`;
  }

  function showChanges() {
    let other = 0;
    let different = 0;
    let gained = 0;
    let lost = 0;
    for (let i = 0; i < rows; i++) {
      if (exits[i] === reference[i]) continue;
      other++;
      const before = answers[reference[i]][i];
      const after = answers[exits[i]][i];
      if (before === after) continue;
      different++;
      if (after === labels[i]) gained++;
      if (before === labels[i]) lost++;
    }
    const pictureless = pictures ? "" : " This report has no pictures of them.";
    const text = other
      ? `${whole(other)} of ${whole(rows)} rows take another exit; ${whole(different)} of them get another answer: ${whole(gained)} become correct, ${whole(lost)} become wrong.${pictureless}`
      : "No row takes another exit.";
    put(byId("changes"), text);
    // Changed answers first, then the rows closest to the threshold that moved.
    const limit = asLimit(thresholds[moved]);
    const shown = [];
    pictured.forEach((row, index) => {
      if (exits[row] === reference[row]) return;
      const same = answers[exits[row]][row] === answers[reference[row]][row];
      const far = scores.length ? Math.abs(scores[moved][row] - limit) : 0;
      shown.push({ row, index, same, far: Number.isNaN(far) ? Infinity : far });
    });
    shown.sort((a, b) => a.same - b.same || a.far - b.far || a.row - b.row);
    frames.forEach(({ frame, image, caption, lines }, i) => {
      frame.hidden = i >= shown.length;
      if (frame.hidden) return;
      const { row, index } = shown[i];
      const [before, after] = [reference[row], exits[row]];
      const says = (k) =>
        `${data.exits[k]}: ${className(answers[k][row])}${answers[k][row] === labels[row] ? "" : " (wrong)"}`;
      image.style.backgroundPosition = positionInSheet(index, lines);
      put(caption, `${className(labels[row])}. ${says(before)} → ${says(after)}`);
    });
  }

  // The policy to copy.
  const numbers = (values, infinity) =>
    values.map((v) => (v === Infinity ? infinity : String(v))).join(", ");

  const forms = {
    flags: () =>
      [
        `--criterion=${data.criterion}`,
        `--thresholds=${thresholds.map(written).join(",")}`,
        `--temperatures=${data.temperatures.join(",")}`,
      ].join(" \\\n"),
    json: () =>
      JSON.stringify(
        {
          criterion: data.criterion,
          exits: data.exits,
          thresholds: thresholds.map((t) => (t === Infinity ? "inf" : t)),
          validation: {},
          frontier: [],
          temperatures: data.temperatures,
          weights: data.weights,
        },
        null,
        2,
      ),
    python: () =>
      [
        "ExitPolicy(",
        `    criterion="${data.criterion}",`,
        `    thresholds=[${numbers(thresholds, 'float("inf")')}],`,
        `    temperatures=[${numbers(data.temperatures, 'float("inf")')}],`,
        ")",
      ].join("\n"),
  };

  function showPolicy() {
    byId("policy").value = forms[byId("form").value]();
    put(byId("copied"), "");
  }

  function showControls(counts) {
    sliders.forEach((slider, k) => {
      slider.value = positionOf(k, thresholds[k]);
      slider.setAttribute(
        "aria-valuetext",
        `threshold ${brief(thresholds[k])}, ${percent(counts.rates[k], 1)} exit here`,
      );
      if (document.activeElement !== fields[k]) fields[k].value = brief(thresholds[k]);
    });
    if (!budget) return;
    if (document.activeElement !== budget) {
      const within = frontier.filter((point) => point.macs <= counts.macs * (1 + 1e-9)).length;
      budget.value = Math.max(0, within - 1);
    }
    const text = `${whole(counts.macs)} multiply-adds`;
    budget.setAttribute("aria-valuetext", `${text}, accuracy ${percent(counts.accuracy)}`);
    put(byId("budget-cost"), text);
  }

  /** Counts everything anew and shows it. */
  function update() {
    exits = exitIndices(thresholds);
    const counts = count(exits);
    showControls(counts);
    showFigures(counts);
    showPlot(counts);
    showChanges();
    showConfusion(counts);
    showClasses(counts);
    showPolicy();
    return counts;
  }

  /** Says the result to a screen reader, once a movement has ended. */
  function announce() {
    const counts = count(exits);
    put(
      byId("status"),
      `Accuracy ${percent(counts.accuracy)}, ${whole(counts.macs)} ${perImage}, ${percent(counts.early, 1)} exit early.`,
    );
  }

  function refuse(text) {
    byId("refused").hidden = !text;
    put(byId("refused"), text);
  }

  function set(values) {
    thresholds = values.slice();
    fields.forEach((field) => field.removeAttribute("aria-invalid"));
    refuse("");
    update();
  }

  // ---- Controls ----

  sliders.forEach((slider, k) => {
    slider.max = steps[k] + 1;
    slider.addEventListener("input", () => {
      moved = k;
      set(thresholds.map((t, j) => (j === k ? atPosition(k, Number(slider.value)) : t)));
    });
    slider.addEventListener("change", announce);
  });

  fields.forEach((field, k) => {
    field.addEventListener("input", () => {
      const text = field.value.trim();
      const value = /^\+?(inf|infinity|∞)$/i.test(text) ? Infinity : Number(text);
      if (text === "" || Number.isNaN(value) || value < 0) {
        field.setAttribute("aria-invalid", "true");
        refuse(`${data.exits[k]}: a threshold is a number of at least 0, or inf.`);
        return;
      }
      moved = k;
      set(thresholds.map((t, j) => (j === k ? value : t)));
    });
    field.addEventListener("change", announce);
    field.addEventListener("blur", () => {
      field.value = brief(thresholds[k]);
      field.removeAttribute("aria-invalid");
      refuse("");
    });
  });

  if (budget) {
    budget.addEventListener("input", () => set(frontier[Number(budget.value)].thresholds));
    budget.addEventListener("change", announce);
  }

  function setAndAnnounce(values) {
    set(values);
    announce();
  }

  byId("calibrated").addEventListener("click", () => setAndAnnounce(calibrated));
  byId("none").addEventListener("click", () => setAndAnnounce(calibrated.map(() => 0)));

  function compare(withExits, isNow) {
    reference = withExits;
    byId("compare-now").setAttribute("aria-pressed", isNow);
    byId("compare-calibrated").setAttribute("aria-pressed", !isNow);
    showChanges();
  }

  byId("compare-now").addEventListener("click", () => compare(exits, true));
  byId("compare-calibrated").addEventListener("click", () =>
    compare(exitIndices(calibrated), false),
  );

  byId("form").addEventListener("change", showPolicy);
  byId("copy").addEventListener("click", async () => {
    const area = byId("policy");
    let done = true;
    try {
      await navigator.clipboard.writeText(area.value);
    } catch {
      // Pages from disk may not reach the clipboard in this way.
      area.select();
      done = document.execCommand("copy");
    }
    put(byId("copied"), done ? "Copied." : "Press Ctrl-C to copy the selected text.");
  });

  drawPlot();
  byId("sliders").hidden = false;
  update();

  // For the console.
  globalThis.sliders = { exitIndices, set, update, thresholds: () => thresholds.slice() };
})();
