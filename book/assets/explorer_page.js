/* The explorer page: the stored numbers of whole answers, and one step under the same setting.
   Data: the scripts that calib_utils/explorer_page.py writes, one a model, loaded when chosen; a page
   opened from a file may load scripts and nothing else. The step's arithmetic: explorer.js. */
(() => {
  "use strict";
  const { Step, RULES, TEMPERATURES, el, set, slider, field, announcer, asked, figure, three, percent,
    whole } = globalThis.calibUtilsStep;
  const HOME = new URL("explorer/", document.currentScript.src);
  const PARTS = {
    order: "invalid tokens rank above valid ones",
    shape: "valid tokens share their mass unevenly",
    size: "the cutoff keeps too many tokens, or too few",
  };
  const MEASURES = { validity: "validity", diversity: "diversity",
    sequence_precision: "sequence precision", sequence_recall: "sequence recall" };
  const SCALES = [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1e9]; // nats
  const SHOWN_TOKENS = 40;
  const SIDE = 340, BOX = { left: 46, top: 12, size: 280 }; // of the plane, in its own units
  const loaded = new Map();
  globalThis.calibUtilsModel = (key, data) => loaded.set(key, data);

  const number = (x) => (x === null ? "–" : three(x));
  const far = (a, b) => Math.abs(Math.log(a / b)); // settings are spread by ratio
  const nearest = (list, x) => list.reduce((best, y) => (far(y, x) < far(best, x) ? y : best));
  const ascending = (list) => [...new Set(list)].sort((a, b) => a - b);
  const id = (rule, value, T) => `${rule} ${value ?? ""} ${T}`;

  /* The stored rows of one model and task, as objects, to be found by setting. */
  class Rows {
    constructor(columns, rows) {
      this.all = rows.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));
      this.bySetting = new Map(this.all.map((r) => [id(r.rule, r.parameter, r.temperature), r]));
      this.rules = [...new Set(this.all.map((r) => r.rule))];
      this.temperatures = ascending(this.all.map((r) => r.temperature));
    }
    of(rule) { return this.all.filter((r) => r.rule === rule); }
    values(rule) { return ascending(this.of(rule).map((r) => r.parameter).filter((v) => v !== null)); }
    frontier(rule) {
      return this.of(rule).filter((r) => r.on_frontier).sort((a, b) => a.validity - b.validity);
    }
    get(setting) { return this.bySetting.get(id(setting.rule, setting.value, setting.T)); }
  }

  function build(root, index) {
    const labels = Object.fromEntries(Object.entries(index.rules).map(([key, r]) => [key, r.label]));
    const named = (rule, value) => (value === null ? labels[rule] : `${labels[rule]} ${value}`);
    const state = { model: index.models[0].key, task: "", step: 0, rule: "top_p", value: 0.9, T: 1,
      free: false, moved: {} };
    let rows, steps, data, view, step, stored, touched = false;
    root.replaceChildren();
    const page = el("div", { class: "cu-explorer cu-explorer-page" }, root);
    const [order, shape, size] = ["order", "shape", "size"].map((part) => index.causes[part]);
    page.setAttribute("style", `--cu-order: ${order}; --cu-shape: ${shape}; --cu-size: ${size}`);

    /* ---- controls ---- */
    const fieldset = (title, name) => {
      const box = el("fieldset", { class: name }, page);
      el("legend", {}, box, title);
      return box;
    };
    const choice = (parent, text) => el("select", {}, field(parent, text).line);
    const options = (select, entries) => select.replaceChildren(
      ...entries.map(([value, text]) => el("option", { value }, null, text)));
    const what = fieldset("What is asked", "cu-what");
    const how = fieldset("How the next token is drawn", "cu-how");
    const modelSelect = choice(what, "model"), taskSelect = choice(what, "task");
    const stepSelect = choice(what, "step"), ruleSelect = choice(how, "cutoff");
    const cut = field(how, ""), cutSlider = slider(cut.label);
    const warm = field(how, "temperature"), warmSlider = slider(warm.label);
    const told = el("p", { class: "cu-told", role: "alert", hidden: "" }, page);

    /* ---- the whole answer ---- */
    const answer = el("section", { "aria-label": "The whole answer" }, page);
    el("h2", {}, answer, "The whole answer");
    const place = el("p", { class: "cu-place" }, answer);
    const grid = el("div", { class: "cu-grid2" }, answer), left = el("div", {}, grid);
    const right = el("div", {}, grid);
    const plane = el("svg", { class: "cu-frontier", viewBox: `0 0 ${SIDE} ${SIDE}`, role: "img" }, left);
    const key = el("p", { class: "cu-legend" }, left);
    const along = field(left, "along the frontier"), alongSlider = slider(along.label);
    const list = el("dl", {}, right), shown = {};
    for (const [name, text] of Object.entries(MEASURES)) {
      const row = el("div", { class: name.endsWith("ity") ? "cu-main" : "" }, list);
      el("dt", {}, row, text);
      shown[name] = el("dd", { "data-stored": name }, row);
    }
    const split = el("table", { class: "cu-split" }, right);
    const caption = el("caption", {}, split, "loss −ln(Val × Div): ");
    shown.total = el("b", { "data-stored": "total" }, caption);
    caption.append(" nats");
    const tbody = el("tbody", {}, split), bars = {};
    for (const [part, why] of Object.entries(PARTS)) {
      const row = el("tr", {}, tbody), head = el("th", { scope: "row" }, row, part);
      el("small", {}, head, why);
      const track = el("div", { class: "cu-track", "aria-hidden": "true" }, el("td", {}, row));
      bars[part] = el("span", { class: `cu-${part}` }, track);
      shown[part] = el("td", { class: "cu-number", "data-stored": part }, row);
    }
    const scale = el("p", { class: "cu-scale", "aria-hidden": "true" }, right);
    const table = details(answer, "The frontier as a table", frontierTable);

    /* ---- one step ---- */
    const single = el("section", { "aria-label": "One step of the answer" }, page);
    const heading = el("h2", {}, single);
    const freeLabel = el("label", { class: "cu-free" }, single);
    const freeBox = el("input", { type: "checkbox" }, freeLabel);
    el("span", {}, freeLabel, "sliders stop between the stored settings too, and move this step alone");
    const stage = el("div", {}, single);
    const tokens = details(single, "The tokens as a table", tokenTable);
    const source = el("p", { class: "cu-source" }, page), say = announcer(page);

    /* A table that is made when it is opened, and while it is open. */
    function details(parent, title, make) {
      const box = el("details", {}, parent);
      el("summary", {}, box, title);
      const scroll = el("div", { class: "table-scroll", tabindex: 0, role: "region", "aria-label": title }, box);
      const update = () => { if (box.open) scroll.replaceChildren(make()); };
      box.addEventListener("toggle", update);
      return { box, update };
    }
    function tableOf(head, body, marked) {
      const made = el("table", { class: "numbers" });
      const line = el("tr", {}, el("thead", {}, made));
      for (const text of head) el("th", { scope: "col" }, line, text);
      const inside = el("tbody", {}, made);
      body.forEach((cells, i) => {
        const row = el("tr", marked(i) ? { class: "cu-here", "aria-current": "true" } : {}, inside);
        for (const text of cells) el("td", { class: "short" }, row, text);
      });
      return made;
    }
    function frontierTable() {
      const best = rows.frontier(state.rule);
      return tableOf(["cutoff", "temperature", ...Object.values(MEASURES), "loss in nats"],
        best.map((r) => [named(r.rule, r.parameter), r.temperature,
          ...Object.keys(MEASURES).map((name) => number(r[name])), number(r.total)]),
        (i) => best[i] === stored);
    }
    function tokenTable() {
      const m = step.measure(state.rule, state.value, state.T);
      const listed = step.tokens.filter((t) => t.rank < SHOWN_TOKENS || t.n_answers);
      return tableOf(["rank", "token", "answers it begins", "cutoff", "probability", "after the cutoff"],
        listed.map((t) => {
          const weight = Math.exp(-t.gap / state.T), kept = t.rank < m.n;
          return [whole(t.rank + 1), t.text, t.n_answers ? `${t.n_answers} (valid)` : "0 (invalid)",
            kept ? "kept" : "dropped", percent(weight / m.d.total), kept ? percent(weight / m.mass) : "–"];
        }), () => false);
    }

    /* ---- the plane of validity and diversity ---- */
    const across = (v) => BOX.left + BOX.size * v, upwards = (v) => BOX.top + BOX.size * (1 - v);
    let marker;
    function drawPlane() {
      const { label, colour } = index.rules[state.rule], own = rows.of(state.rule);
      const best = rows.frontier(state.rule);
      page.style.setProperty("--cu-rule", state.rule === "none" ? "var(--cu-muted)" : colour);
      plane.replaceChildren();
      set(plane, { "aria-label": `Validity across and diversity upwards, from 0 to 1: the ${own.length} ` +
        `stored settings of ${label}, ${best.length} of them on its frontier, and the chosen one. ` +
        "The table below has the frontier's numbers." });
      el("rect", { x: across(0), y: upwards(1), width: BOX.size, height: BOX.size, class: "cu-frame" }, plane);
      for (const tick of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
        const x = across(tick), y = upwards(tick);
        el("line", { x1: x, x2: x, y1: upwards(0), y2: upwards(1), class: "cu-grid" }, plane);
        el("line", { x1: across(0), x2: across(1), y1: y, y2: y, class: "cu-grid" }, plane);
        el("text", { x, y: upwards(0) + 15, "text-anchor": "middle", class: "cu-small" }, plane, tick);
        el("text", { x: across(0) - 6, y: y + 4, class: "cu-small cu-end" }, plane, tick);
      }
      el("text", { x: across(0.5), y: SIDE - 8, "text-anchor": "middle" }, plane, "validity →");
      el("text", { x: -upwards(0.5), y: 13, "text-anchor": "middle", transform: "rotate(-90)" }, plane,
        "diversity →");
      const path = (list) => list.map((r) => `${across(r.validity)},${upwards(r.diversity)}`).join(" ");
      for (const rule of rows.rules) {
        if (rule !== state.rule) el("polyline", { points: path(rows.frontier(rule)), class: "cu-other" }, plane);
      }
      for (const r of own) {
        if (r.diversity !== null) el("circle", { cx: across(r.validity), cy: upwards(r.diversity), r: 2.5,
          class: "cu-setting" }, plane);
      }
      el("polyline", { points: path(best), class: "cu-best" }, plane);
      for (const r of best) {
        const half = 3.6, x = across(r.validity), y = upwards(r.diversity);
        el("rect", { x: x - half, y: y - half, width: 2 * half, height: 2 * half, class: "cu-best-point",
          transform: `rotate(45 ${x} ${y})` }, plane);
      }
      el("text", { x: across(1), y: upwards(1) + 7, "text-anchor": "middle", class: "cu-star" }, plane, "★");
      marker = el("g", {}, plane);
      el("circle", { r: 10, class: "cu-halo" }, marker);
      el("circle", { r: 10, class: "cu-ring" }, marker);
      el("circle", { r: 3.5, class: "cu-dot" }, marker);
      key.replaceChildren();
      for (const [mark, text] of [["best", `frontier of ${label}`], ["setting", "its other settings"],
        ["other", "frontiers of the other cutoffs"], ["ring", "this setting"], ["star", "calibrated"]]) {
        const entry = el("span", {}, key);
        el("i", { class: `cu-key-${mark}` }, entry, mark === "star" ? "★" : "");
        entry.append(text);
      }
      set(alongSlider, { max: Math.max(0, best.length - 1) });
      alongSlider.disabled = best.length < 2;
    }
    plane.addEventListener("click", (event) => {
      const box = plane.getBoundingClientRect(), unit = SIDE / box.width;
      const x = (event.clientX - box.left) * unit, y = (event.clientY - box.top) * unit;
      const away = (r) => Math.hypot(across(r.validity) - x, upwards(r.diversity) - y);
      const own = rows.of(state.rule).filter((r) => r.diversity !== null);
      if (own.length) take(own.reduce((best, r) => (away(r) < away(best) ? r : best)));
    });
    alongSlider.addEventListener("input", () => take(rows.frontier(state.rule)[alongSlider.value]));
    function take(row) {
      Object.assign(state, { value: row.parameter, T: row.temperature });
      state.moved[state.rule] = state.value;
      change();
    }

    /* ---- from the state to the page ---- */
    const positions = () => {
      const own = rows.values(state.rule), offered = RULES[state.rule].values;
      return { values: state.free && offered ? ascending([...own, ...offered(step)]) : own,
        temperatures: state.free ? ascending([...rows.temperatures, ...TEMPERATURES]) : rows.temperatures };
    };
    function update() {
      const { rule, value, T } = state, { values, temperatures } = positions();
      cut.name.textContent = values.length ? labels[rule] : "";
      cutSlider.disabled = !values.length;
      set(cutSlider, { max: Math.max(0, values.length - 1),
        "aria-valuetext": values.length ? named(rule, value) : "" });
      cutSlider.value = Math.max(0, values.indexOf(value));
      cut.shown.textContent = values.length ? value : "";
      set(warmSlider, { max: temperatures.length - 1, "aria-valuetext": `temperature ${T}` });
      warmSlider.value = temperatures.indexOf(T);
      warm.shown.textContent = T;

      const own = rows.values(rule);
      const at = { rule, value: own.length ? nearest(own, value) : null, T: nearest(rows.temperatures, T) };
      stored = rows.get(at);
      const setting = `${named(rule, at.value)}, temperature ${at.T}`;
      const snapped = at.T === T && at.value === value ? "" : "nearest stored setting: ";
      const where = !stored ? "is not stored" : stored.diversity === null ? "reaches no valid answer"
        : stored.on_frontier ? `is on the frontier: no other setting of ${labels[rule]} is at least as valid and as diverse`
        : "lies inside the frontier: another setting is more valid or more diverse, and not less of the other";
      place.textContent = `${snapped}${setting} ${where}.`;
      for (const [name, node] of Object.entries(shown)) node.textContent = number(stored?.[name] ?? null);
      drawSplit();
      const visible = stored && stored.diversity !== null;
      set(marker, { class: visible ? "cu-marker" : "cu-none" });
      if (visible) set(marker, { transform: `translate(${across(stored.validity)} ${upwards(stored.diversity)})` });
      const best = rows.frontier(rule), nth = best.indexOf(stored);
      // From inside the frontier the slider starts at the point of it that is nearest.
      const off = (r) => Math.hypot(r.validity - (stored?.validity ?? 0), r.diversity - (stored?.diversity ?? 0));
      if (best.length) alongSlider.value = best.indexOf(best.reduce((a, b) => (off(b) < off(a) ? b : a)));
      along.shown.textContent = nth >= 0 ? `${nth + 1} of ${best.length}`
        : best.length ? `inside; ${best.length} points` : "no setting is valid";
      set(alongSlider, { "aria-valuetext": nth >= 0 ? `${nth + 1} of ${best.length}: ${setting}` : "inside the frontier" });
      table.update();

      let said = "";
      if (step) {
        const { n } = view.show(rule, value, T);
        if (rule === "oracle_size") [cut.name.textContent, cut.shown.textContent] = ["size here", n];
        said = `; this step: ${view.said()}`;
        tokens.update();
      }
      say(`${snapped}${setting}; whole answer: ` + Object.entries(MEASURES).map(([name, text]) =>
        `${text} ${shown[name].textContent}`).join(", ") + ", loss " + ["order", "shape", "size"].map((part) =>
        `${part} ${shown[part].textContent}`).join(", ") + said);
    }
    function drawSplit() {
      const parts = Object.keys(PARTS).map((part) => stored?.[part] ?? null);
      const known = parts.filter((x) => x !== null);
      const low = Math.min(0, ...known);
      const top = SCALES.find((s) => s >= Math.max(0, ...known, -low));
      const from = low < 0 ? -top : 0, share = (x) => (100 * (x - from)) / (top - from);
      Object.keys(PARTS).forEach((part, i) => {
        const x = parts[i] ?? 0, start = share(Math.min(0, x));
        bars[part].style.marginLeft = `${start}%`;
        bars[part].style.width = `${share(Math.max(0, x)) - start}%`;
        bars[part].parentElement.style.setProperty("--cu-zero", `${share(0)}%`);
      });
      scale.textContent = known.length ? `bars run from ${from} to ${top} nats` : "";
    }
    /* Another step: its picture is built anew. */
    function stageStep() {
      stage.replaceChildren();
      state.step = Math.min(state.step, Math.max(0, steps.length - 1));
      step = steps.length ? new Step(stepOf(steps[state.step])) : null;
      stepSelect.disabled = freeBox.disabled = !step;
      tokens.box.hidden = freeLabel.hidden = !step;
      if (!step) state.free = freeBox.checked = false;
      stepSelect.value = state.step;
      const where = step?.prefix ? `after “${step.prefix}”` : "first token";
      heading.textContent = step ? `One step of it: ${where}` : "One step of it";
      if (!step) {
        el("p", { class: "cu-asked" }, stage, data[state.task].prompt);
        el("p", {}, stage, "No step of this task is stored. The chapter on oracle cutoffs stores those of " +
          "us-states, rng-2, rng-3 and rng-3-sum-at-most-10.");
        return;
      }
      asked(stage, step);
      view = figure(step, el("div", { class: "cu-panel" }, stage), stage);
    }
    /* Tokens and bins as they travel, without the names of their fields. */
    const stepOf = (packed) => ({ ...packed,
      tokens: packed.tokens.map(([text, rank, gap, n_answers]) => ({ text, rank, gap, n_answers })),
      tail: packed.tail.map(([count, first, mean]) => ({ count, first, mean })) });
    function chooseTask() {
      data = loaded.get(state.model).tasks;
      if (!(state.task in data)) state.task = Object.keys(data)[0];
      options(taskSelect, Object.keys(data).map((name) => [name, name]));
      taskSelect.value = state.task;
      const one = data[state.task];
      rows = new Rows(index.columns, one.rows);
      steps = one.steps;
      options(stepSelect, steps.map((s, i) => [i, s.prefix ? `after “${s.prefix}”` : "first token"]));
      options(ruleSelect, rows.rules.map((rule) => [rule, labels[rule]]));
      if (!rows.rules.includes(state.rule)) state.rule = rows.rules[0];
      stageStep();
      chooseRule();
      source.textContent = `numbers from ${state.model}, SHA-256 of the weights ${one.weights.slice(0, 12)}…, ` +
        `${one.dtype}, end = ${one.end}, ${one.n_answers} answers, convention ${one.convention}`;
    }
    function chooseRule() {
      ruleSelect.value = state.rule;
      snap();
      drawPlane();
      update();
    }
    /* A value that the sliders have: what was last chosen for the rule, or the middle of its values. */
    function snap() {
      const { values, temperatures } = positions();
      const wanted = state.moved[state.rule] ?? state.value ?? values[values.length >> 1];
      const start = state.moved[state.rule] === undefined ? RULES[state.rule].start ?? wanted : wanted;
      state.value = values.length ? nearest(values, start) : null;
      state.T = nearest(temperatures, state.T);
    }
    function change() {
      touched = true;
      update();
      remember();
    }
    function chooseModel() {
      const key = state.model;
      modelSelect.value = key;
      const ready = () => {
        if (key !== state.model) return; // another was chosen meanwhile
        told.hidden = true;
        chooseTask();
      };
      if (loaded.has(key)) { ready(); return; }
      const script = document.createElement("script");
      script.src = new URL(`model-${encodeURIComponent(key)}.js`, HOME);
      script.addEventListener("load", ready);
      script.addEventListener("error", () => {
        told.hidden = false;
        told.textContent = `The numbers of ${key} could not be loaded: the file ${script.src} is missing. ` +
          "Build the book again.";
      });
      document.head.append(script);
    }

    /* ---- a link to what is shown, in the address once the controls rest ---- */
    let resting = 0;
    function remember() {
      clearTimeout(resting);
      resting = setTimeout(() => {
        const { model, task, step: nth, rule, value, T } = state;
        const link = new URLSearchParams({ model, task, step: nth, rule, value: value ?? "", T });
        if (touched) history.replaceState(null, "", `#${link}`);
      }, 600);
    }
    function recall() {
      const link = new URLSearchParams(location.hash.slice(1));
      const model = link.get("model"), rule = link.get("rule"), value = +link.get("value"), T = +link.get("T");
      if (index.models.some((one) => one.key === model)) state.model = model;
      if (Object.hasOwn(RULES, rule)) state.rule = rule;
      state.task = link.get("task") ?? "";
      state.step = Math.max(0, Math.floor(+link.get("step")) || 0);
      if (value > 0 && Number.isFinite(value)) state.moved[state.rule] = value;
      if (T > 0 && Number.isFinite(T)) state.T = T;
    }

    const when = (control, event, then) => control.addEventListener(event, () => {
      touched = true;
      then();
      remember();
    });
    when(modelSelect, "change", () => { state.model = modelSelect.value; chooseModel(); });
    when(taskSelect, "change", () => { state.task = taskSelect.value; state.step = 0; chooseTask(); });
    when(stepSelect, "change", () => { state.step = +stepSelect.value; stageStep(); update(); });
    when(ruleSelect, "change", () => { state.rule = ruleSelect.value; chooseRule(); });
    when(freeBox, "change", () => { state.free = freeBox.checked; snap(); update(); });
    when(warmSlider, "input", () => { state.T = positions().temperatures[warmSlider.value]; update(); });
    when(cutSlider, "input", () => {
      state.value = state.moved[state.rule] = positions().values[cutSlider.value];
      update();
    });
    options(modelSelect, index.models.map((one) =>
      [one.key, one.stage ? `${one.key} (${one.stage})` : one.key]));
    recall();
    chooseModel();
  }

  const root = document.querySelector(".cu-page"), index = globalThis.calibUtilsModels;
  if (root && index?.models.length) build(root, index);
})();
