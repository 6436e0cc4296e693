/* Brings every .cu-explorer to life: one real decoding step under a temperature and a cutoff.
   Plain JavaScript, no request, no id shared between two copies. Data: calib_utils/explorer.py. */
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
  const sizes = (n) => [...new Set(SIZES)].filter((k) => k < n).concat(n);
  const RULES = {
    none: { label: "no cutoff" },
    top_k: { label: "top-k", name: "k", values: (s) => sizes(s.n_vocab), start: 20 },
    top_p: { label: "top-p", name: "p", values: () => SHARES, start: 0.9 },
    min_p: { label: "min-p", name: "min-p", values: () => RATIOS, start: 0.1 },
    oracle_size: { label: "oracle size" },
  };

  /* ---- the numbers: same conventions as calib_utils/rules.py, temperature first ---- */

  class Step {
    constructor(data) {
      Object.assign(this, data);
      const top = data.tokens.slice(0, data.n_listed);
      this.bins = top.map((t) => ({ count: 1, first: t.gap, mean: t.gap })).concat(data.tail);
      this.firsts = this.bins.map((b) => b.first);
      this.valid = data.tokens.filter((t) => t.n_answers > 0);
      this.answers = this.valid.reduce((sum, t) => sum + t.n_answers, 0);
      this.start = [0]; // rank at which each bin starts
      for (const b of this.bins) this.start.push(this.start.at(-1) + b.count);
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
    measure(rule, value, T) {
      const d = this.at(T), n = this.kept(rule, value, d), mass = d.top(n);
      const hit = this.valid.filter((t) => t.rank < n);
      const out = { d, n, mass, recall: hit.reduce((s, t) => s + t.n_answers, 0) / this.answers };
      out.exact = this.start.includes(n);
      out.precision = hit.length / n;
      if (!hit.length) return { ...out, validity: 0, diversity: NaN };
      const best = hit[0].gap; // shifted, so that a low temperature does not underflow
      const weights = hit.map((t) => Math.exp((best - t.gap) / T));
      const sum = weights.reduce((a, b) => a + b);
      let kl = 0;
      hit.forEach((t, i) => {
        const logQ = (best - t.gap) / T - Math.log(sum);
        kl += (weights[i] / sum) * (logQ - Math.log(t.n_answers / this.answers));
      });
      const validity = Math.min(1, Math.exp(Math.log(sum) - best / T - Math.log(mass)));
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

  /* ---- the page ---- */

  const whole = (n) => n.toLocaleString("en");
  const three = (x) => (Number.isNaN(x) ? "–" : x === 0 ? "0" : x.toPrecision(3));
  const percent = (p) => (p < 1e-6 ? "below 0.0001 %" : `${Number((100 * p).toPrecision(3))} %`);
  const sum = (list, of) => list.reduce((total, x) => total + of(x), 0);
  const set = (node, attributes) =>
    Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
  function el(tag, attributes = {}, parent = null, text = null) {
    const svg = tag === "svg" || parent instanceof SVGElement;
    const node = document.createElementNS(`http://www.w3.org/${svg ? "2000/svg" : "1999/xhtml"}`, tag);
    set(node, attributes);
    if (text !== null) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }
  const slider = (parent) => el("input", { type: "range", min: 0, step: 1 }, parent);
  const HEAD = 18, FOOT = 84, LEFT = 36, BREAK = 14; // of the chart, in pixels
  let copies = 0;

  /* A label over a control, with the control's value at the right end of its line. */
  function field(parent, text) {
    const label = el("label", {}, parent), line = el("span", { class: "cu-name" }, label);
    return { label, line, name: el("span", {}, line, text), shown: el("b", {}, line) };
  }
  /* Says a text to screen readers once the controls rest. */
  function announcer(parent) {
    const live = el("p", { class: "cu-live", role: "status", "aria-live": "polite" }, parent);
    let timer = 0;
    return (text) => {
      clearTimeout(timer);
      timer = setTimeout(() => { live.textContent = text; }, 600);
    };
  }
  function asked(parent, step) {
    const line = el("p", { class: "cu-asked" }, parent, `${step.prompt} `);
    el("b", {}, line, step.prefix);
    el("span", { class: "cu-blank", role: "img", "aria-label": "next token" }, line, "?");
  }

  /* The picture of one step: numbers and plane into `panel`, the rest into `body`. */
  function figure(step, panel, body) {
    const hatch = `cu-hatch-${++copies}-${Math.random().toString(36).slice(2)}`;
    const state = { rule: "none", value: NaN, T: 1, picked: 0 };
    const numbers = el("dl", {}, panel), shown = {};
    for (const name of ["validity", "diversity", "kept", "local precision", "local recall"]) {
      const row = el("div", { class: name.endsWith("ity") ? "cu-main" : "" }, numbers);
      el("dt", {}, row, name);
      shown[name] = el("dd", { "data-number": name }, row);
    }
    const plane = el("svg", { class: "cu-plane", viewBox: "0 0 150 150", role: "img", "aria-label":
      "Validity across, diversity upwards; the curve is every temperature, the star calibration" }, panel);
    el("rect", { x: 18, y: 8, width: 122, height: 122, class: "cu-frame" }, plane);
    el("text", { x: 79, y: 145, "text-anchor": "middle" }, plane, "validity →");
    el("text", { x: -69, y: 12, "text-anchor": "middle", transform: "rotate(-90)" }, plane, "diversity →");
    el("text", { x: 140, y: 13.5, "text-anchor": "middle", class: "cu-star" }, plane, "★");
    const trail = el("polyline", { class: "cu-trail" }, plane);
    const dot = el("circle", { r: 6 }, plane);
    const across = (v) => 18 + 122 * v, upwards = (v) => 130 - 122 * v;

    const strip = el("div", { class: "cu-strip", role: "img" }, body);
    const parts = ["valid", "invalid", "valid cu-faded", "invalid cu-faded"]
      .map((kind) => el("span", { class: `cu-${kind}` }, strip));
    const legend = el("p", { class: "cu-legend" }, body);
    for (const kind of ["valid", "invalid", "dropped"]) {
      el("i", { class: `cu-${kind}` }, legend);
      el("span", {}, legend, kind);
    }
    const chart = el("svg", { class: "cu-chart", role: "img", "aria-label":
      "Probability of the next tokens by rank; the slider below reads them out" }, body);
    const look = el("label", { class: "cu-look" }, body);
    el("span", {}, look, "look at");
    const lookSlider = slider(look);
    const said = el("p", { class: "cu-said" }, body);
    let columns = [], line = {}, wide = 0, high = 0;

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
      set(lookSlider, { max: columns.length - 1 });
      state.picked = Math.min(state.picked, columns.length - 1);
      update();
    }

    function update() {
      const { rule, value, T } = state, m = (state.m = step.measure(rule, value, T)), { d, n } = m;
      const all = n === step.n_vocab;
      for (const name of ["validity", "diversity", "local precision", "local recall"]) {
        shown[name].textContent = three(m[name.replace("local ", "")]);
      }
      const count = m.exact ? whole(n) : `≈ ${whole(Number(n.toPrecision(3)))}`;
      shown.kept.textContent = `${count} of ${whole(step.n_vocab)}`;

      const valid = (from, to) => sum(step.valid.filter((t) => t.rank >= from && t.rank < to),
        (t) => Math.exp(-t.gap / T)) / d.total;
      const mass = (from, to) => {
        const good = valid(from, to), both = Math.max(0, d.top(to) - d.top(from)) / d.total;
        return { valid: good, invalid: Math.max(0, both - good) };
      };
      const kept = mass(0, n), gone = mass(n, step.n_vocab);
      const shares = [kept.valid, kept.invalid, gone.valid, gone.invalid];
      parts.forEach((part, i) => { part.style.flexGrow = shares[i]; });
      set(strip, { "aria-label": "Of the probability, kept: valid " + percent(shares[0]) + ", invalid " +
        percent(shares[1]) + "; dropped: valid " + percent(shares[2]) + ", invalid " + percent(shares[3]) });
      const none = Number.isNaN(m.diversity);
      set(dot, { class: none ? "cu-none" : "cu-dot" });
      if (!none) set(dot, { cx: across(m.validity), cy: upwards(m.diversity) });
      if (state.trail !== `${rule} ${value}`) {
        state.trail = `${rule} ${value}`;
        const path = TEMPERATURES.map((t) => step.measure(rule, value, t)).filter((p) => p.diversity > 0);
        set(trail, { points: path.map((p) => `${across(p.validity)},${upwards(p.diversity)}`).join(" ") });
      }

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
      pick(state.picked);
    }

    function pick(index) {
      state.picked = index;
      columns.forEach((one, i) => one.band.classList.toggle("cu-picked", i === index));
      const c = columns[index], p = c.mass.all.valid + c.mass.all.invalid, { m } = state;
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
      lookSlider.value = index;
      set(lookSlider, { "aria-valuetext": said.textContent });
    }

    function point(event) {
      const x = event.clientX - chart.getBoundingClientRect().left;
      const far = columns.map((c) => Math.abs(c.x + c.width / 2 - x));
      pick(far.indexOf(Math.min(...far)));
    }
    chart.addEventListener("pointerdown", point);
    chart.addEventListener("pointermove", point);
    lookSlider.addEventListener("input", () => pick(+lookSlider.value));
    new ResizeObserver(layout).observe(chart);

    return {
      show(rule, value, T) {
        Object.assign(state, { rule, value, T });
        if (wide) update();
        else layout();
        return step.measure(rule, value, T);
      },
      said: () => Object.entries(shown).map(([k, node]) => `${k} ${node.textContent}`).join(", "),
    };
  }

  function build(root) {
    const step = new Step(JSON.parse(root.querySelector("script").textContent));
    const state = { rule: "top_p", value: 0.9, T: 1, moved: {} };
    root.querySelector(".cu-fallback").remove();
    const body = el("div");
    root.prepend(body);
    asked(body, step);
    const panel = el("div", { class: "cu-panel" }, body);
    const controls = el("div", { class: "cu-controls" }, panel);
    const warm = field(controls, "temperature"), warmSlider = slider(warm.label);
    set(warmSlider, { max: TEMPERATURES.length - 1, value: TEMPERATURES.indexOf(state.T) });
    const select = el("select", {}, field(controls, "cutoff").line);
    for (const [key, rule] of Object.entries(RULES)) el("option", { value: key }, select, rule.label);
    select.value = state.rule;
    const cut = field(controls, ""), cutSlider = slider(cut.label);
    const view = figure(step, panel, body), say = announcer(body);

    function update() {
      const { rule, value, T } = state, { n } = view.show(rule, value, T);
      warm.shown.textContent = T;
      set(warmSlider, { "aria-valuetext": `temperature ${T}` });
      set(cutSlider, { "aria-valuetext": cutSlider.disabled ? "" : `${RULES[rule].name} ${value}` });
      cut.shown.textContent = { none: "", oracle_size: `${n}, as many as are valid` }[rule] ?? value;
      say(view.said());
    }
    function choose() {
      state.rule = select.value;
      const { name = "", values, start } = RULES[state.rule], list = values ? values(step) : [NaN];
      cut.name.textContent = name || (state.rule === "none" ? "" : "keeps");
      cutSlider.disabled = !values;
      set(cutSlider, { max: list.length - 1 });
      cutSlider.value = state.moved[state.rule] ?? Math.max(0, list.findIndex((v) => v >= start));
      state.value = list[cutSlider.value];
    }
    warmSlider.addEventListener("input", () => { state.T = TEMPERATURES[warmSlider.value]; update(); });
    cutSlider.addEventListener("input", () => { state.moved[state.rule] = cutSlider.value; choose(); update(); });
    select.addEventListener("change", () => { choose(); update(); });
    choose();
    update();
  }

  // The explorer page (explorer_page.js) shows steps with the same arithmetic and the same picture.
  globalThis.calibUtilsStep = { Step, RULES, TEMPERATURES, el, set, slider, field, announcer, asked,
    figure, three, percent, whole };
  const start = () => document.querySelectorAll(".cu-explorer:has(> script)").forEach(build);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
