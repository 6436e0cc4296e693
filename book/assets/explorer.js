/* Brings every explorer to life: one real decoding step under a temperature and a cutoff. In a
   notebook page the figure's data are inside it (calib_utils/figures/explorer.py). On the explorer page the
   stored numbers of whole answers stand above the step, read from one script a model
   (calib_utils/figures/explorer.py): a page opened from a file may load scripts and nothing else.
   Plain JavaScript, no id shared between two copies. */
(() => {
  "use strict";
  const span = (from, to, by) =>
    Array.from({ length: Math.round((to - from) / by) + 1 }, (_, i) => +(from + i * by).toFixed(3));
  // Sliders run over round numbers, so that an arrow key is a step that a person would take.
  const TEMPERATURES = [...span(0.1, 0.95, 0.05), ...span(1, 3, 0.1), ...span(3.25, 5, 0.25)];
  const SHARES = [...span(0.05, 0.95, 0.05), 0.96, 0.97, 0.98, 0.99, 0.995, 0.999, 1];
  const RATIOS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, ...span(0.1, 1, 0.05)];
  const MANTISSAS = [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9];
  const SIZES = [0, 1, 2, 3, 4, 5].flatMap((e) => MANTISSAS.map((m) => Math.floor(m * 10 ** e)));
  const RULES = {
    none: { label: "temperature alone", values: () => [] },
    top_k: { label: "top-k", values: (n) => ascending(SIZES.filter((k) => k < n).concat(n)), start: 20 },
    top_p: { label: "top-p", values: () => SHARES, start: 0.9 },
    min_p: { label: "min-p", values: () => RATIOS, start: 0.1 },
    oracle_size: { label: "oracle size", values: () => [] },
  };
  const STEP_NUMBERS = ["validity", "diversity", "kept", "local_precision", "local_recall"];
  const MEASURES = ["validity", "diversity", "sequence_precision", "sequence_recall"];
  const PARTS = {
    order: "invalid tokens rank above valid ones",
    shape: "valid tokens share their mass unevenly",
    size: "the cutoff keeps too many tokens, or too few",
  };
  const SCALES = [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1e9]; // nats
  const LISTED = 40; // tokens in the table, beside the valid ones
  const REST = 600; // milliseconds after which controls are at rest
  const HOME = new URL("explorer/", document.currentScript.src);

  const sum = (list, of) => list.reduce((total, x) => total + of(x), 0);
  const least = (list, of) => list.reduce((best, x) => (of(x) < of(best) ? x : best), list[0]);
  // Settings are spread by ratio.
  const nearest = (list, x) => least(list, (y) => Math.abs(Math.log(y / x)));
  const ascending = (list) => [...new Set(list)].sort((a, b) => a - b);
  /* Rows travel without the names of their fields. */
  const named = (rows, names) => rows.map((row) => Object.fromEntries(names.map((name, i) => [name, row[i]])));

  /* ---- the numbers: same conventions as calib_utils/core/rules.py, temperature first ---- */

  class Step {
    constructor(data) {
      Object.assign(this, data);
      this.tokens = named(data.tokens, ["text", "rank", "gap", "n_answers"]);
      const top = this.tokens.slice(0, data.n_listed);
      this.bins = top.map((t) => ({ count: 1, first: t.gap, mean: t.gap }))
        .concat(named(data.tail, ["count", "first", "mean"]));
      this.firsts = this.bins.map((b) => b.first);
      this.valid = this.tokens.filter((t) => t.n_answers > 0);
      this.answers = sum(this.valid, (t) => t.n_answers);
      this.start = [0]; // rank at which each bin starts
      for (const b of this.bins) this.start.push(this.start.at(-1) + b.count);
      this.place = this.prefix ? `after “${this.prefix}”` : "first token";
    }
    /* Masses relative to the top token: cumulative at every bin's start, and within any rank. */
    at(T) {
      const upto = [0];
      for (const b of this.bins) upto.push(upto.at(-1) + b.count * Math.exp(-b.mean / T));
      const top = (n) => {
        const i = lastAtMost(this.start, n);
        if (i >= this.bins.length) return upto.at(-1);
        return upto[i] + ((upto[i + 1] - upto[i]) * (n - this.start[i])) / this.bins[i].count;
      };
      return { T, upto, top, total: upto.at(-1) };
    }
    /* How many of the top-ranked tokens survive. */
    kept(rule, value, d) {
      if (rule === "none" || (rule === "top_p" && value >= 1)) return this.n_vocab;
      if (rule === "oracle_size") return this.valid.length;
      if (rule === "top_k") return Math.min(value, this.n_vocab);
      if (rule === "top_p") {
        const target = value * d.total;
        const i = Math.min(lastAtMost(d.upto, target), this.bins.length - 1);
        const share = (target - d.upto[i]) / (d.upto[i + 1] - d.upto[i]);
        return this.start[i] + Math.min(this.bins[i].count, Math.ceil(share * this.bins[i].count));
      }
      const limit = -Math.log(value) * d.T + 1e-9;
      const i = lastAtMost(this.firsts, limit);
      const { count, first, mean } = this.bins[i];
      const end = this.firsts[i + 1] ?? 2 * mean - first;
      const share = end > first ? Math.min(1, (limit - first) / (end - first)) : 1;
      return this.start[i] + Math.max(1, Math.floor(share * count));
    }
    /* Validity and diversity at this prefix (Def. 3.1), local precision and recall (Def. 4.1). */
    measure({ rule, value, T }) {
      const d = this.at(T), n = this.kept(rule, value, d), mass = d.top(n);
      const hit = this.valid.filter((t) => t.rank < n);
      const out = { d, n, mass, exact: this.start.includes(n), validity: 0, diversity: NaN,
        local_precision: hit.length / n, local_recall: sum(hit, (t) => t.n_answers) / this.answers };
      if (!hit.length) return out;
      const best = hit[0].gap; // shifted, so that a low temperature does not underflow
      const logs = hit.map((t) => (best - t.gap) / T);
      const logSum = Math.log(sum(logs, Math.exp));
      const kl = sum(hit.map((t, i) => [logs[i] - logSum, t.n_answers / this.answers]),
        ([logQ, p]) => Math.exp(logQ) * (logQ - Math.log(p)));
      const validity = Math.min(1, Math.exp(logSum - best / T - Math.log(mass)));
      return { ...out, validity, diversity: Math.min(1, Math.exp(-kl)) };
    }
  }
  /* Index of the last entry <= value in an ascending list. */
  function lastAtMost(list, value) {
    let low = 0, high = list.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (list[middle] <= value) low = middle + 1; else high = middle;
    }
    return low - 1;
  }

  /* ---- words and elements ---- */

  const whole = (n) => n.toLocaleString("en");
  const three = (x) => (x === null || Number.isNaN(x) ? "–" : x === 0 ? "0" : x.toPrecision(3));
  const percent = (p) => (p < 1e-6 ? "below 0.0001 %" : `${Number((100 * p).toPrecision(3))} %`);
  const words = (name) => name.replace("_", " ");
  const cutoff = (rule, value) => (value === null ? RULES[rule].label : `${RULES[rule].label} ${value}`);
  const set = (node, attributes) => Object.entries(attributes).forEach((entry) => node.setAttribute(...entry));
  function el(tag, attributes = {}, parent = null, text = null) {
    const svg = tag === "svg" || parent instanceof SVGElement;
    const node = document.createElementNS(`http://www.w3.org/${svg ? "2000/svg" : "1999/xhtml"}`, tag);
    set(node, attributes);
    if (text !== null) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }
  /* A label over a control, with the control's value at the right end of its line. */
  function field(parent, text) {
    const label = el("label", {}, parent), line = el("span", { class: "cu-name" }, label);
    return { label, line, name: el("span", {}, line, text), shown: el("b", {}, line) };
  }
  const slider = (label) => el("input", { type: "range", min: 0, step: 1 }, label);
  /* Puts a slider to one of its stops and says which it is. */
  function stop(input, count, at, text) {
    set(input, { max: Math.max(0, count - 1), "aria-valuetext": text });
    input.value = Math.max(0, at);
    input.disabled = count < 2;
  }
  const choice = (parent, text) => el("select", {}, field(parent, text).line);
  function options(select, entries, chosen) {
    select.replaceChildren(...entries.map(([value, text]) => el("option", { value }, null, text)));
    select.value = chosen;
  }
  /* Runs `then` once the controls rest. */
  function resting(then) {
    let timer = 0;
    return (...args) => {
      clearTimeout(timer);
      timer = setTimeout(then, REST, ...args);
    };
  }
  /* Says a text to screen readers. */
  function announcer(parent) {
    const live = el("p", { class: "cu-live", role: "status", "aria-live": "polite" }, parent);
    return resting((text) => { live.textContent = text; });
  }
  function legend(parent, entries) {
    parent.replaceChildren();
    for (const [mark, text] of entries) {
      const entry = el("span", {}, parent);
      el("i", { class: `cu-${mark}` }, entry, mark === "star" ? "★" : "");
      entry.append(text);
    }
  }
  /* A list of named numbers: the nodes that hold them, by name. */
  function numbers(parent, names, attribute) {
    const list = el("dl", {}, parent);
    return Object.fromEntries(names.map((name) => {
      const row = el("div", {}, list);
      el("dt", {}, row, words(name));
      return [name, el("dd", { [attribute]: name }, row)];
    }));
  }
  const read = (shown) =>
    Object.entries(shown).map(([name, node]) => `${words(name)} ${node.textContent}`).join(", ");
  /* A table that is made when it is opened, and while it is open. */
  function details(parent, title, make) {
    const box = el("details", {}, parent);
    el("summary", {}, box, title);
    const scroll = el("div", { class: "table-scroll", tabindex: 0, role: "region", "aria-label": title }, box);
    const update = () => { if (box.open) scroll.replaceChildren(make()); };
    box.addEventListener("toggle", update);
    return { box, update };
  }
  function table(head, body, marked = -1) {
    const made = el("table", { class: "numbers" });
    const line = el("tr", {}, el("thead", {}, made));
    for (const text of head) el("th", { scope: "col" }, line, text);
    const inside = el("tbody", {}, made);
    body.forEach((cells, i) => {
      const row = el("tr", i === marked ? { class: "cu-here", "aria-current": "true" } : {}, inside);
      for (const text of cells) el("td", { class: "short" }, row, text);
    });
    return made;
  }
  /* Validity across and diversity upwards, from 0 to 1. Callers draw into `marks`; `mark(point)`
     moves the marker, which consists of `circles`. */
  function plane(parent, name, { side, left, top, size, ticks, circles }) {
    const x = (v) => left + size * v, y = (v) => top + size * (1 - v);
    const svg = el("svg", { class: name, viewBox: `0 0 ${side} ${side}`, role: "img" }, parent);
    el("rect", { x: x(0), y: y(1), width: size, height: size, class: "cu-frame" }, svg);
    for (const tick of ticks) {
      el("line", { x1: x(tick), x2: x(tick), y1: y(0), y2: y(1), class: "cu-grid" }, svg);
      el("line", { x1: x(0), x2: x(1), y1: y(tick), y2: y(tick), class: "cu-grid" }, svg);
      el("text", { x: x(tick), y: y(0) + 15, class: "cu-small cu-middle" }, svg, tick);
      el("text", { x: x(0) - 6, y: y(tick) + 4, class: "cu-small cu-end" }, svg, tick);
    }
    el("text", { x: x(0.5), y: side - 6, class: "cu-middle" }, svg, "validity →");
    el("text", { x: -y(0.5), y: 12, class: "cu-middle", transform: "rotate(-90)" }, svg, "diversity →");
    const marks = el("g", {}, svg);
    el("text", { x: x(1), y: y(1) + 6, class: "cu-star cu-middle" }, svg, "★");
    const marker = el("g", {}, svg);
    for (const [kind, r] of circles) el("circle", { r, class: `cu-${kind}` }, marker);
    return { svg, marks, x, y,
      path: (points) => points.map((p) => `${x(p.validity)},${y(p.diversity)}`).join(" "),
      mark(point) {
        const known = point && Number.isFinite(point.diversity);
        set(marker, { class: known ? "cu-marker" : "cu-none" });
        if (known) set(marker, { transform: `translate(${x(point.validity)} ${y(point.diversity)})` });
      } };
  }

  /* ---- the controls: cutoff, its value, temperature ---- */

  /* Sliders stop where `stops()` says; `changed()` is called when `state` has moved. */
  function controls(parent, state, stops, changed) {
    const select = choice(parent, "cutoff");
    const cut = field(parent, ""), cutSlider = slider(cut.label);
    const warm = field(parent, "temperature"), warmSlider = slider(warm.label);
    const when = (control, event, then) => control.addEventListener(event, () => { then(); changed(); });
    when(select, "change", () => { state.rule = select.value; snap(); });
    when(cutSlider, "input", () => { state.value = state.moved[state.rule] = stops().values[cutSlider.value]; });
    when(warmSlider, "input", () => { state.T = stops().temperatures[warmSlider.value]; });
    /* To a stop of the sliders: what was last chosen for the cutoff, or where it starts. */
    function snap() {
      const { values, temperatures } = stops(), { start } = RULES[state.rule];
      state.value = values.length ? nearest(values, state.moved[state.rule] ?? start) : null;
      state.T = nearest(temperatures, state.T);
    }
    return {
      snap,
      offer(rules) {
        options(select, rules.map((rule) => [rule, RULES[rule].label]), state.rule);
        snap();
      },
      /* `size`: what the oracle keeps at the step in sight, if there is one. */
      show(size) {
        const { rule, value, T } = state, { values, temperatures } = stops();
        const oracle = rule === "oracle_size" && size !== undefined;
        cut.name.textContent = oracle ? "size here" : values.length ? RULES[rule].label : "";
        cut.shown.textContent = oracle ? size : value ?? "";
        stop(cutSlider, values.length, values.indexOf(value), cutoff(rule, value));
        stop(warmSlider, temperatures.length, temperatures.indexOf(T), `temperature ${T}`);
        warm.shown.textContent = T;
      },
    };
  }

  /* ---- the picture of one step ---- */

  const HEAD = 18, FOOT = 84, LEFT = 36, BREAK = 14; // of the chart, in pixels
  let copies = 0;

  function picture(step, body) {
    const hatch = `cu-hatch-${++copies}-${Math.random().toString(36).slice(2)}`;
    const asked = el("p", { class: "cu-asked" }, body, `${step.prompt} `);
    el("b", {}, asked, step.prefix);
    el("span", { class: "cu-blank", role: "img", "aria-label": "next token" }, asked, "?");
    const panel = el("div", { class: "cu-panel" }, body);
    const shown = numbers(panel, STEP_NUMBERS, "data-number");
    const small = plane(panel, "cu-plane",
      { side: 150, left: 18, top: 8, size: 122, ticks: [], circles: [["dot", 6]] });
    set(small.svg, { "aria-label":
      "Validity across, diversity upwards; the curve is every temperature, the star calibration" });
    const trail = el("polyline", { class: "cu-trail" }, small.marks);

    const strip = el("div", { class: "cu-strip", role: "img" }, body);
    const parts = ["valid", "invalid", "valid cu-faded", "invalid cu-faded"]
      .map((kind) => el("span", { class: `cu-${kind}` }, strip));
    legend(el("p", { class: "cu-legend" }, body), ["valid", "invalid", "dropped"].map((kind) => [kind, kind]));
    const chart = el("svg", { class: "cu-chart", role: "img", "aria-label":
      "Probability of the next tokens by rank; the slider below reads them out" }, body);
    const look = el("label", { class: "cu-look" }, body);
    el("span", {}, look, "look at");
    const lookSlider = slider(look);
    const said = el("p", { class: "cu-said" }, body);
    let setting, m, columns = [], line = {}, wide = 0, high = 0, picked = 0;

    /* Columns for the width at hand: single tokens by rank, then the rest in powers of ten. */
    function arrange() {
      const tens = [100, 1000, 10000].filter((b) => b < step.n_vocab);
      const [bar, group] = wide < 480 ? [14, 26] : [15, 40];
      const room = wide - LEFT - BREAK - (tens.length + 1) * group;
      const n = Math.max(4, Math.min(40, Math.floor(room / bar), step.n_listed));
      const width = Math.min(1.5 * bar, room / n), first = LEFT + n * width + BREAK;
      const single = step.tokens.slice(0, n).map((token, i) =>
        ({ token, from: i, to: i + 1, x: LEFT + i * width, width, text: token.text }));
      const edges = n < step.n_vocab ? [n, ...tens, step.n_vocab] : [];
      const short = (r) => (r < 1000 ? r : `${Math.round(r / 1000)}k`);
      return single.concat(edges.slice(1).map((to, i) => ({ from: edges[i], to, x: first + i * group,
        width: group, text: `${short(edges[i] + (edges[i] < 1000))}–${short(to)}` })));
    }
    function layout() {
      const width = Math.floor(chart.getBoundingClientRect().width);
      if (!width || width === wide) return;
      wide = width;
      high = wide < 480 ? 160 : 210;
      const base = HEAD + high;
      set(chart, { viewBox: `0 0 ${wide} ${base + FOOT}`, height: base + FOOT });
      chart.replaceChildren();
      const pattern = el("pattern", { id: hatch, width: 5, height: 5, patternUnits: "userSpaceOnUse",
        patternTransform: "rotate(45)" }, chart);
      el("rect", { width: 5, height: 5, class: "cu-hatch-ground" }, pattern);
      el("rect", { width: 2.4, height: 5, class: "cu-hatch-line" }, pattern);
      el("text", { y: 10, class: "cu-small" }, chart, "probability (square-root scale)");
      for (const level of [0.01, 0.1, 0.25, 0.5, 1]) {
        const y = base - high * Math.sqrt(level);
        el("line", { x1: LEFT, x2: wide, y1: y, y2: y, class: "cu-grid" }, chart);
        el("text", { x: LEFT - 4, y: y + 4, class: "cu-small cu-end" }, chart, `${level * 100}%`);
      }
      columns = arrange();
      for (const c of columns) {
        c.band = el("rect", { x: c.x, y: HEAD, width: c.width, height: high, class: "cu-band" }, chart);
        const kinds = c.token ? [c.token.n_answers ? "valid" : "invalid"] : ["valid", "invalid"];
        const side = c.token ? 1.5 : 4, width = (c.width - 2 * side) / kinds.length;
        c.bars = kinds.map((kind, i) => {
          const at = { x: c.x + side + i * width, width, y: base, height: 0,
            style: kind === "invalid" ? `fill: url(#${hatch})` : "" };
          const bar = (more) => el("rect", { ...at, class: `cu-bar cu-${kind} ${more}` }, chart);
          return { kind, all: bar("cu-faded"), kept: bar("") };
        });
        const x = c.x + c.width / 2 + 4, y = base + 10;
        c.label = el("text", { x, y, transform: `rotate(-60 ${x} ${y})`, class: "cu-token cu-end" }, chart,
          c.text.length > 9 ? `${c.text.slice(0, 8)}…` : c.text);
        c.label.classList.toggle("cu-good", Boolean(c.token?.n_answers));
      }
      el("line", { x1: LEFT, x2: wide, y1: base, y2: base, class: "cu-axis" }, chart);
      el("text", { x: wide, y: base + FOOT - 3, class: "cu-small cu-end" }, chart, "rest of the vocabulary by rank");
      line = { rule: el("line", { y1: HEAD - 6, y2: base }, chart),
        kept: el("text", { y: HEAD + 13 }, chart, "◂ kept"),
        gone: el("text", { y: HEAD + 13 }, chart, "dropped ▸") };
      picked = Math.min(picked, columns.length - 1);
      drawBars();
    }

    /* Probability of the valid and the invalid tokens from one rank to another. */
    function mass(from, to) {
      const inside = step.valid.filter((t) => t.rank >= from && t.rank < to);
      const valid = sum(inside, (t) => Math.exp(-t.gap / setting.T)) / m.d.total;
      const both = Math.max(0, m.d.top(to) - m.d.top(from)) / m.d.total;
      return { valid, invalid: Math.max(0, both - valid) };
    }
    function show(next) {
      setting = next;
      m = step.measure(setting);
      for (const [name, node] of Object.entries(shown)) if (name in m) node.textContent = three(m[name]);
      const count = m.exact ? whole(m.n) : `≈ ${whole(Number(m.n.toPrecision(3)))}`;
      shown.kept.textContent = `${count} of ${whole(step.n_vocab)}`;
      const kept = mass(0, m.n), gone = mass(m.n, step.n_vocab);
      const shares = [kept.valid, kept.invalid, gone.valid, gone.invalid];
      parts.forEach((part, i) => { part.style.flexGrow = shares[i]; });
      set(strip, { "aria-label": "Of the probability, kept: valid " + percent(shares[0]) + ", invalid " +
        percent(shares[1]) + "; dropped: valid " + percent(shares[2]) + ", invalid " + percent(shares[3]) });
      small.mark(m);
      const every = TEMPERATURES.map((T) => step.measure({ ...setting, T }));
      set(trail, { points: small.path(every.filter((p) => p.diversity > 0)) });
      if (wide) drawBars(); else layout();
      return m;
    }
    function drawBars() {
      const { n } = m, all = n === step.n_vocab;
      for (const c of columns) {
        const end = Math.max(c.from, Math.min(c.to, n));
        c.mass = { all: mass(c.from, c.to), kept: mass(c.from, end) };
        for (const b of c.bars) for (const part of ["all", "kept"]) {
          const height = high * Math.sqrt(Math.min(1, c.mass[part][b.kind]));
          set(b[part], { y: HEAD + high - height, height });
        }
        c.label.classList.toggle("cu-out", c.from >= n);
      }
      const c = columns.find((one) => n <= one.to);
      const x = c.x + c.width * (c.token ? 1 : Math.log(n / c.from) / Math.log(c.to / c.from));
      set(line.rule, { x1: x, x2: x, class: all ? "cu-none" : "cu-cut" });
      set(line.kept, { x: x - 4, class: x < LEFT + 45 || all ? "cu-none" : "cu-end" });
      set(line.gone, { x: x + 4, class: x > wide - 65 || all ? "cu-none" : "" });
      pick(picked);
    }
    function pick(index) {
      picked = index;
      columns.forEach((one, i) => one.band.classList.toggle("cu-picked", i === index));
      const c = columns[index], p = c.mass.all.valid + c.mass.all.invalid;
      const left = (c.mass.kept.valid + c.mass.kept.invalid) * (m.d.total / m.mass);
      const after = c.from >= m.n ? ", dropped" : m.n < step.n_vocab ? `, after the cutoff ${percent(left)}` : "";
      if (c.token) {
        const answers = c.token.n_answers;
        const role = answers ? `valid, begins ${answers} of ${step.answers} answers` : "invalid";
        said.textContent = `“${c.text}”: ${role}; rank ${c.from + 1}, ${percent(p)}${after}`;
      } else {
        const inside = step.valid.filter((t) => t.rank >= c.from && t.rank < c.to);
        const some = inside.slice(0, 4).map((t) => `“${t.text}”`).join(" ") + (inside.length > 4 ? " …" : "");
        said.textContent = `ranks ${whole(c.from + 1)} to ${whole(c.to)}: ${inside.length} of ` +
          `${whole(c.to - c.from)} valid ${some}; ${percent(p)}${after}`;
      }
      stop(lookSlider, columns.length, index, said.textContent);
    }
    function point(event) {
      const x = event.clientX - chart.getBoundingClientRect().left;
      pick(columns.indexOf(least(columns, (c) => Math.abs(c.x + c.width / 2 - x))));
    }
    chart.addEventListener("pointerdown", point);
    chart.addEventListener("pointermove", point);
    lookSlider.addEventListener("input", () => pick(+lookSlider.value));
    new ResizeObserver(() => m && layout()).observe(chart);
    return { show, said: () => read(shown) };
  }

  /* ---- the whole answer: stored numbers, their place on the plane, the split of the loss ---- */

  /* The stored rows of one model and task by cutoff: all, the values of its parameter, the best. */
  const byRule = (rows) => Object.fromEntries([...new Set(rows.map((r) => r.rule))].map((rule) => {
    const own = rows.filter((r) => r.rule === rule);
    return [rule, { own, values: ascending(own.map((r) => r.parameter).filter((v) => v !== null)),
      best: own.filter((r) => r.on_frontier).sort((a, b) => a.validity - b.validity) }];
  }));

  /* Names at the diverse end of each line, as low as they have to be not to overlap. */
  function labels(parent, lines, { x, y, right }) {
    let free = 0;
    for (const { name, end, kind, style } of lines.sort((a, b) => b.end.diversity - a.end.diversity)) {
      const at = Math.max(y(end.diversity) - 6, free), over = x(end.validity) + 7.2 * name.length > right;
      el("text", { x: x(end.validity) + (over ? -5 : 5), y: at, style,
        class: `cu-line-name ${kind} ${over ? "cu-end" : ""}` }, parent, name);
      free = at + 12;
    }
  }

  /* `take(row)` is called when the reader picks a stored setting, of any cutoff. */
  function wholeAnswer(parent, take) {
    el("h2", {}, parent, "The whole answer");
    const place = el("p", { class: "cu-place" }, parent);
    const drawn = el("div", { class: "cu-drawn" }, parent), count = el("p", {}, drawn);
    const chips = el("ul", { "aria-label": "Answers drawn at this setting" }, drawn);
    const grid = el("div", { class: "cu-halves" }, parent);
    const left = el("div", {}, grid), right = el("div", {}, grid);
    const big = plane(left, "cu-frontier", { side: 340, left: 46, top: 12, size: 280,
      ticks: span(0, 1, 0.2), circles: [["halo", 10], ["ring", 10], ["dot", 3.5]] });
    const reading = el("p", { class: "cu-reading" }, left), key = el("p", { class: "cu-legend" }, left);
    const along = field(left, "along the frontier"), alongSlider = slider(along.label);
    const shown = numbers(right, MEASURES, "data-stored"), losses = {}, bars = {};
    const split = el("table", { class: "cu-split" }, right);
    const caption = el("caption", {}, split, "loss −ln(Val × Div): ");
    losses.total = el("b", { "data-stored": "total" }, caption);
    caption.append(" nats");
    const tbody = el("tbody", {}, split);
    for (const [part, why] of Object.entries(PARTS)) {
      const row = el("tr", {}, tbody);
      el("small", {}, el("th", { scope: "row" }, row, part), why);
      const track = el("div", { class: "cu-track", "aria-hidden": "true" }, el("td", {}, row));
      bars[part] = el("span", { class: `cu-${part}` }, track);
      losses[part] = el("td", { class: "cu-number", "data-stored": part }, row);
    }
    const scale = el("p", { class: "cu-scale", "aria-hidden": "true" }, right);
    const compared = el("p", { class: "cu-compared", hidden: "" }, right);
    let own, best, stored; // settings of the cutoff, its frontier, the one that is shown
    let near = []; // what the pointer can read: settings of the cutoff, other frontiers, another model's
    const frontier = details(parent, "The frontier as a table", () => table(
      ["cutoff", "temperature", ...MEASURES.map(words), "loss in nats"],
      best.map((r) => [cutoff(r.rule, r.parameter), r.temperature,
        ...[...MEASURES, "total"].map((name) => three(r[name]))]), best.indexOf(stored)));

    /* `other`: another model's name and its `byRule` of the same task, or nothing. `written`: the texts
       drawn for the task, the `n_valid` valid ones first. */
    function show(rules, rule, row, setting, snapped, other, written) {
      stored = row;
      const { label } = RULES[rule];
      ({ own, best } = rules[rule]);
      set(big.svg, { "aria-label": `Validity across and diversity upwards, from 0 to 1: the ${own.length} ` +
        `stored settings of ${label}, ${best.length} of them on its frontier, and the chosen one. ` +
        "The table below has the frontier's numbers." });
      own = own.filter((r) => r.diversity !== null);
      big.marks.replaceChildren();
      const lines = [], theirs = other?.rules[rule];
      near = own.map((r) => ({ r }));
      const line = (points, kind, name, style, of) => {
        if (!points.length) return;
        el("polyline", { points: big.path(points), class: kind, style }, big.marks);
        lines.push({ name, kind, style, end: points.reduce((a, b) => (b.diversity > a.diversity ? b : a)) });
        near.push(...points.map((r) => ({ r, of })));
      };
      for (const name of Object.keys(rules).filter((name) => name !== rule)) {
        line(rules[name].best, "cu-other", RULES[name].label,
          `--cu-own: var(--cu-${name === "none" ? "muted" : name})`);
      }
      if (theirs) line(theirs.best, "cu-their", `${label}, ${other.name}`, "", other.name);
      for (const r of own) {
        el("circle", { cx: big.x(r.validity), cy: big.y(r.diversity), r: 2.5, class: "cu-setting" }, big.marks);
      }
      line(best, "cu-best", label, "");
      for (const r of best) {
        el("rect", { x: -3.6, y: -3.6, width: 7.2, height: 7.2, class: "cu-best-point",
          transform: `translate(${big.x(r.validity)} ${big.y(r.diversity)}) rotate(45)` }, big.marks);
      }
      labels(big.marks, lines, { ...big, right: big.x(1) });
      legend(key, [["key-best", `frontier of ${label}`], ["key-setting", "its other settings"],
        ["key-other", "frontiers of the other cutoffs"], ["key-ring", "this setting"], ["star", "calibrated"]]);
      const same = theirs?.own.find((r) => r.parameter === row?.parameter && r.temperature === row?.temperature);
      compared.hidden = !other;
      compared.textContent = !other ? "" : same ? `${other.name} at the same setting: ${told(same)}.`
        : `${other.name} has no row of this setting.`;
      reading.textContent = "Point at the plane to read a setting; click or tap to choose it.";
      const nth = best.indexOf(stored);
      big.mark(stored);
      const where = !stored ? "is not stored" : stored.diversity === null ? "reaches no valid answer"
        : nth >= 0 ? `is on the frontier: no other setting of ${label} is at least as valid and as diverse`
        : "lies inside the frontier: another setting is more valid or more diverse, and not less of the other";
      place.textContent = `${snapped}${setting} ${where}.`;
      for (const [name, node] of Object.entries({ ...shown, ...losses })) {
        node.textContent = three(stored?.[name] ?? null);
      }
      showLosses();
      showDraws(written);
      along.shown.textContent = nth >= 0 ? `${nth + 1} of ${best.length}`
        : best.length ? `inside; ${best.length} points` : "no setting is valid";
      // From inside the frontier the slider starts at the point of it that is nearest.
      const off = (r) => Math.hypot(r.validity - (stored?.validity ?? 0), r.diversity - (stored?.diversity ?? 0));
      stop(alongSlider, best.length, best.indexOf(least(best, off)),
        nth >= 0 ? `${along.shown.textContent}: ${setting}` : "inside the frontier");
      frontier.update();
    }
    function showLosses() {
      const known = Object.keys(PARTS).map((part) => stored?.[part] ?? null).filter((x) => x !== null);
      const low = Math.min(0, ...known);
      const top = SCALES.find((s) => s >= Math.max(0, ...known, -low));
      const from = low < 0 ? -top : 0, share = (x) => (100 * (x - from)) / (top - from);
      for (const [part, bar] of Object.entries(bars)) {
        const x = stored?.[part] ?? 0, start = share(Math.min(0, x));
        bar.style.marginLeft = `${start}%`;
        bar.style.width = `${share(Math.max(0, x)) - start}%`;
        bar.parentElement.style.setProperty("--cu-zero", `${share(0)}%`);
      }
      scale.textContent = known.length ? `bars run from ${from} to ${top} nats` : "";
    }
    function showDraws({ texts, n_valid: valid }) {
      const numbers = stored?.draws ?? [], hits = numbers.filter((n) => n < valid).length;
      drawn.hidden = !numbers.length;
      count.textContent = `${numbers.length} answers drawn at this setting, ${hits} of them valid` +
        (hits < numbers.length ? " (✗: not valid, … cut there)." : ".") +
        ` The exact validity is ${three(stored?.validity ?? null)}; ${numbers.length} draws only sample it.`;
      chips.replaceChildren(...numbers.map((n) => {
        const chip = el("li", n < valid ? {} : { class: "cu-wrong" });
        if (n >= valid) el("b", { role: "img", "aria-label": "not valid:" }, chip, "✗");
        chip.append(texts[n]);
        return chip;
      }));
    }
    const told = (r) => `validity ${three(r.validity)}, diversity ${three(r.diversity)}`;
    function under(event) {
      const box = big.svg.getBoundingClientRect(), unit = big.svg.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * unit, y = (event.clientY - box.top) * unit;
      return near.length &&
        least(near, ({ r }) => Math.hypot(big.x(r.validity) - x, big.y(r.diversity) - y));
    }
    big.svg.addEventListener("pointermove", (event) => {
      const { r, of } = under(event);
      if (r) reading.textContent = `${of ? `${of}, ` : ""}${cutoff(r.rule, r.parameter)}, ` +
        `temperature ${r.temperature}: ${told(r)}`;
    });
    big.svg.addEventListener("click", (event) => {
      const { r } = under(event);
      if (r) take(r);
    });
    alongSlider.addEventListener("input", () => take(best[alongSlider.value]));
    const draws = () => [...chips.children].map((chip) =>
      (chip.className ? "not valid: " : "") + chip.lastChild.textContent).join(", ");
    return { show, said: () => `${read(shown)}, loss ${read(losses)}` +
      (drawn.hidden ? "" : `, drawn: ${draws()}`) };
  }

  /* ---- the figure in a notebook page ---- */

  const fresh = () => ({ rule: "top_p", value: 0.9, T: 1, moved: {} });

  function buildFigure(root) {
    const step = new Step(JSON.parse(root.querySelector("script").textContent));
    root.querySelector(".cu-fallback").remove();
    const body = el("div"), state = fresh();
    root.prepend(body);
    const stops = () => ({ values: RULES[state.rule].values(step.n_vocab), temperatures: TEMPERATURES });
    const control = controls(el("div", { class: "cu-controls" }, body), state, stops, update);
    const view = picture(step, body), say = announcer(body);
    function update() {
      control.show(view.show(state).n);
      say(view.said());
    }
    control.offer(Object.keys(RULES));
    update();
  }

  /* ---- the explorer page ---- */

  const loaded = new Map();
  globalThis.calibUtilsModel = (key, data) => loaded.set(key, data);
  function fetchScript(name, then, failed = () => {}) {
    const script = el("script", { src: new URL(name, HOME) }, document.head);
    script.addEventListener("load", then);
    script.addEventListener("error", () => failed(script.src));
  }

  function buildPage(root, index) {
    const brief = root.dataset.part === "answer"; // on a page about something else
    const own = index.models.find((one) => one.key === root.dataset.model) ?? index.models[0];
    const state = { ...fresh(), model: own.key, other: "", task: "", step: 0, free: false };
    let rules, temperatures, steps, step, view;
    root.replaceChildren();
    const page = el("div", { class: "cu-explorer cu-explorer-page" }, root);
    for (const [name, colour] of Object.entries(index.colours)) page.style.setProperty(`--cu-${name}`, colour);
    const fieldset = (title, name) => {
      const box = el("fieldset", { class: `cu-controls ${name}` }, page);
      el("legend", {}, box, title);
      return box;
    };
    const what = fieldset("What is asked", "cu-what");
    const modelSelect = choice(what, "model"), taskSelect = choice(what, "task"), stepSelect = choice(what, "step");
    const otherSelect = choice(what, "compare with");
    const control = controls(fieldset("How the next token is drawn", "cu-how"), state, stops, change);
    const told = el("p", { class: "cu-told", role: "alert", hidden: "" }, page);
    const answer = wholeAnswer(el("section", { "aria-label": "The whole answer" }, page), (row) => {
      const another = row.rule !== state.rule;
      Object.assign(state, { rule: row.rule, value: row.parameter, T: row.temperature });
      state.moved[state.rule] = state.value;
      if (another) control.offer(Object.keys(rules));
      change();
    });
    const single = el("section", { "aria-label": "One step of the answer" }, page);
    const heading = el("h2", {}, single);
    const freeLabel = el("label", { class: "cu-free" }, single);
    const freeBox = el("input", { type: "checkbox" }, freeLabel);
    el("span", {}, freeLabel, "sliders stop between the stored settings too, and move this step alone");
    const stage = el("div", {}, single);
    const tokens = details(single, "The tokens as a table", tokenTable);
    const source = el("p", { class: "cu-source" }, page), say = announcer(page);
    const copy = el("button", { type: "button", class: "cu-copy", hidden: "" }, page, "copy a link to this setting");
    single.hidden = stepSelect.closest("label").hidden = brief;
    copy.hidden = brief || !navigator.clipboard;
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(new URL(address(), location.href).href);
      copy.textContent = "copied";
      setTimeout(() => { copy.textContent = "copy a link to this setting"; }, 4 * REST);
    });

    function stops() {
      const { values } = rules[state.rule];
      if (!state.free) return { values, temperatures };
      return { values: ascending([...values, ...RULES[state.rule].values(step.n_vocab)]),
        temperatures: ascending([...temperatures, ...TEMPERATURES]) };
    }
    function tokenTable() {
      const m = step.measure(state);
      const listed = step.tokens.filter((t) => t.rank < LISTED || t.n_answers);
      return table(["rank", "token", "answers it begins", "cutoff", "probability", "after the cutoff"],
        listed.map((t) => {
          const weight = Math.exp(-t.gap / state.T), kept = t.rank < m.n;
          return [whole(t.rank + 1), t.text, t.n_answers ? `${t.n_answers} (valid)` : "0 (invalid)",
            kept ? "kept" : "dropped", percent(weight / m.d.total), kept ? percent(weight / m.mass) : "–"];
        }));
    }
    function update() {
      const { rule, value, T } = state, { own, values } = rules[rule];
      const m = step && view.show(state);
      control.show(m?.n);
      page.style.setProperty("--cu-rule", `var(--cu-${rule === "none" ? "muted" : rule})`);
      const at = { value: values.length ? nearest(values, value) : null, T: nearest(temperatures, T) };
      const setting = `${cutoff(rule, at.value)}, temperature ${at.T}`;
      const snapped = at.T === T && at.value === value ? "" : "nearest stored setting: ";
      const row = own.find((r) => r.parameter === at.value && r.temperature === at.T);
      answer.show(rules, rule, row, setting, snapped, other(), loaded.get(state.model)[state.task]);
      if (step) tokens.update();
      say(`${snapped}${setting}; whole answer: ${answer.said()}` + (step ? `; this step: ${view.said()}` : ""));
    }
    function change() {
      update();
      remember();
    }

    const nameOf = (key) => index.models.find((one) => one.key === key).name ?? key;
    /* The model to compare with and its rows of this task, where it has any. */
    function other() {
      const one = loaded.get(state.other)?.[state.task];
      return one && { name: nameOf(state.other), rules: byRule(named(one.rows, index.columns)) };
    }
    /* Another model, task or step; each shows what hangs on it. */
    function showModel() {
      options(otherSelect, [["", "no other model"], ...index.models.filter((one) => one.key !== state.model)
        .map(({ key }) => [key, nameOf(key)])], state.other = state.other === state.model ? "" : state.other);
      load(state.model, () => state.model, showTask);
    }
    function showOther() {
      if (state.other) load(state.other, () => state.other, update); else update();
    }
    /* Calls `then` once a model's numbers are here, if it is still the one that is `wanted`. */
    function load(key, wanted, then) {
      const ready = () => {
        if (key !== wanted()) return;
        told.hidden = true;
        then();
      };
      if (loaded.has(key)) ready();
      else fetchScript(`model-${encodeURIComponent(key)}.js`, ready, (address) => {
        told.hidden = false;
        told.textContent = `The numbers of ${key} could not be loaded: the file ${address} is missing. ` +
          "Build the book again.";
      });
    }
    function showTask() {
      const tasks = loaded.get(state.model);
      if (!Object.hasOwn(tasks, state.task)) state.task = Object.keys(tasks)[0];
      options(taskSelect, Object.keys(tasks).map((name) => [name, index.tasks?.[name] ?? name]), state.task);
      const one = tasks[state.task];
      const rows = named(one.rows, index.columns);
      rules = byRule(rows);
      temperatures = ascending(rows.map((r) => r.temperature));
      steps = one.steps.map((data) => new Step(data));
      state.step = Math.min(state.step, Math.max(0, steps.length - 1));
      options(stepSelect, steps.map((s, i) => [i, s.place]), state.step);
      if (!Object.hasOwn(rules, state.rule)) [state.rule] = Object.keys(rules);
      source.textContent = `numbers from ${one.source}`;
      showStep(one.prompt);
    }
    function showStep(prompt) {
      stage.replaceChildren();
      step = steps[state.step];
      stepSelect.disabled = freeBox.disabled = tokens.box.hidden = freeLabel.hidden = !step;
      if (!step) state.free = freeBox.checked = false;
      heading.textContent = step ? `One step of it: ${step.place}` : "One step of it";
      if (step) view = picture(step, stage);
      else {
        el("p", { class: "cu-asked" }, stage, prompt);
        el("p", {}, stage, "No step of this task is stored. The chapter on oracle cutoffs stores those of " +
          "us-states, rng-2, rng-3 and rng-3-sum-at-most-10.");
      }
      control.offer(Object.keys(rules));
      update();
    }

    /* ---- a link to what is shown, in the address once the controls rest ---- */
    const remember = resting(() => {
      if (brief) return; // the address is that of the page around it
      history.replaceState(null, "", address());
    });
    function address() {
      const { model, other, task, step: nth, rule, value, T } = state;
      const shown = { model, ...(other && { other }), task, step: nth, rule, value: value ?? "", T };
      return `#${new URLSearchParams(shown)}`;
    }
    function recall() {
      const link = new URLSearchParams(location.hash.slice(1));
      const model = link.get("model"), rule = link.get("rule"), value = +link.get("value"), T = +link.get("T");
      if (index.models.some((one) => one.key === model)) state.model = model;
      if (index.models.some((one) => one.key === link.get("other"))) state.other = link.get("other");
      if (Object.hasOwn(RULES, rule)) state.rule = rule;
      state.task = link.get("task") ?? "";
      state.step = Math.max(0, Math.floor(+link.get("step")) || 0);
      if (value > 0 && Number.isFinite(value)) state.moved[state.rule] = value;
      if (T > 0 && Number.isFinite(T)) state.T = T;
    }

    const when = (box, then) => box.addEventListener("change", () => {
      then();
      remember();
    });
    when(modelSelect, () => { state.model = modelSelect.value; showModel(); });
    when(otherSelect, () => { state.other = otherSelect.value; showOther(); });
    when(taskSelect, () => { Object.assign(state, { task: taskSelect.value, step: 0 }); showTask(); });
    when(stepSelect, () => { state.step = +stepSelect.value; showStep(); });
    when(freeBox, () => { state.free = freeBox.checked; control.snap(); update(); });
    if (!brief) recall();
    options(modelSelect, index.models.map(({ key, stage }) =>
      [key, stage ? `${nameOf(key)} (${stage})` : nameOf(key)]), state.model);
    showModel();
    if (state.other) showOther();
  }

  function start() {
    document.querySelectorAll(".cu-explorer:has(> script)").forEach(buildFigure);
    const root = document.querySelector(".cu-page");
    if (!root) return;
    const begin = () => fetchScript("index.js", () => {
      const index = globalThis.calibUtilsModels;
      if (index.models.length) buildPage(root, index);
    });
    if (root.dataset.part !== "answer") { begin(); return; }
    // A model's numbers are some hundred kilobytes: on another page, only once they are in sight.
    const watch = new IntersectionObserver((seen) => {
      if (!seen.some((one) => one.isIntersecting)) return;
      watch.disconnect();
      begin();
    }, { rootMargin: "400px" });
    watch.observe(root);
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
