/* What a judge that errs makes of a perfect and of a random order: precision against recall, as
   expected over many candidates. Same formulas as calib_utils/openended/precision_recall.py
   simulates; the authors' points come from noise-points.js, written when the book is built. */
(() => {
  "use strict";
  const NS = "http://www.w3.org/2000/svg";
  const WIDTH = 460, HEIGHT = 300, LEFT = 46, BOTTOM = 38, TOP = 8, RIGHT = 10;
  const SLIDERS = [
    ["prevalence", "valid candidates", 0.2],
    ["falsePositive", "invalid ones called valid", 0.19],
    ["falseNegative", "valid ones called invalid", 0.19],
  ];
  const x = (recall) => LEFT + recall * (WIDTH - LEFT - RIGHT);
  const y = (precision) => TOP + (1 - precision) * (HEIGHT - TOP - BOTTOM);
  const percent = (value) => `${Math.round(value * 100)} %`;

  /* Candidates in falling order of truth: the share kept runs from 0 to 1. */
  function perfect({ prevalence, falsePositive, falseNegative }) {
    const hit = prevalence * (1 - falseNegative);
    const seen = hit + (1 - prevalence) * falsePositive;
    const points = [];
    for (let i = 1; i <= 1000; i += 1) {
      const kept = i / 1000;
      const called = kept <= prevalence
        ? kept * (1 - falseNegative) : hit + (kept - prevalence) * falsePositive;
      points.push([called / seen, called / kept]);
    }
    /* The frontier: the best precision of any cutoff that has at least this recall. */
    for (let i = points.length - 2; i >= 0; i -= 1) {
      points[i][1] = Math.max(points[i][1], points[i + 1][1]);
    }
    let area = 0, before = 0, reached = 0;
    for (const [recall, precision] of points) {
      area += (recall - before) * precision;
      before = recall;
      if (precision >= 0.8) reached = recall;
    }
    return { points, area, reached, seen };
  }

  const element = (name, attributes, text) => {
    const made = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const path = (points, style) => element("polyline", {
    points: points.map(([recall, precision]) => `${x(recall).toFixed(1)},${y(precision).toFixed(1)}`).join(" "),
    fill: "none", ...style,
  });

  function draw(svg, settings) {
    svg.replaceChildren();
    for (const t of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
      const line = { stroke: "currentColor", "stroke-opacity": 0.15 };
      svg.append(element("line", { x1: x(0), x2: x(1), y1: y(t), y2: y(t), ...line }));
      svg.append(element("text", { x: LEFT - 6, y: y(t) + 4, "text-anchor": "end" }, t.toFixed(1)));
      svg.append(element("text", { x: x(t), y: HEIGHT - 20, "text-anchor": "middle" }, t.toFixed(1)));
    }
    svg.append(element("text", { x: x(0.5), y: HEIGHT - 4, "text-anchor": "middle" }, "recall"));
    svg.append(element("text", { x: 12, y: y(0.5), "text-anchor": "middle", transform: `rotate(-90 12 ${y(0.5)})` }, "precision"));
    for (const { points } of window.calibPublishedPoints || []) {
      svg.append(path(points, { stroke: "currentColor", "stroke-opacity": 0.45, "stroke-width": 1 }));
    }
    const found = perfect(settings);
    svg.append(path([[0, found.seen], [1, found.seen]], { stroke: "var(--cu-invalid)", "stroke-width": 2, "stroke-dasharray": "7 4" }));
    svg.append(path([[0, found.points[0][1]], ...found.points], { stroke: "var(--cu-valid)", "stroke-width": 2.5 }));
    return found;
  }

  function start(place) {
    const settings = {};
    const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    const said = document.createElement("p");
    said.className = "cu-said";
    said.setAttribute("role", "status");
    const update = () => {
      const { area, reached, seen } = draw(svg, settings);
      said.textContent = `A perfect ranking seems to have area ${area.toFixed(2)} and recall ` +
        `${reached.toFixed(2)} at precision 0.8; a random one has area ${seen.toFixed(2)}, the share ` +
        "of candidates that the judge calls valid.";
      svg.setAttribute("aria-label", said.textContent);
    };
    const controls = document.createElement("fieldset");
    controls.append(Object.assign(document.createElement("legend"), { textContent: "What is true, and how the judge errs" }));
    for (const [name, title, value] of SLIDERS) {
      settings[name] = value;
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "range", min: 1, max: 99, value: value * 100 });
      const shown = Object.assign(document.createElement("b"), { textContent: percent(value) });
      const line = document.createElement("span");
      line.className = "cu-name";
      line.append(Object.assign(document.createElement("span"), { textContent: title }), shown);
      input.addEventListener("input", () => {
        settings[name] = input.value / 100;
        shown.textContent = percent(settings[name]);
        update();
      });
      label.append(line, input);
      controls.append(label);
    }
    const key = document.createElement("p");
    key.className = "cu-scale";
    key.textContent = "Solid: a perfect ranking as this judge sees it. Dashed: a random one. Thin: the authors' eight published curves.";
    place.classList.add("cu-explorer");
    place.replaceChildren(controls, svg, key, said);
    update();
  }

  const begin = () => document.querySelectorAll(".cu-noise").forEach(start);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
