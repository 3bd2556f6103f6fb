"use strict";
// Draws curves of several charts that have the same x axis in one chart. Nothing is computed anew: each curve is a copy,
// moved by the linear map from its own axes to the common ones.

// Both axes of a chart: where they are in the drawing, and their limits (logarithms, if the scale is logarithmic).
function axesOf(chart) {
  const [xScale, left, right, yScale, bottom, top] = chart.querySelector("svg").dataset.axes.split(" ");
  const [x, y, width, height] = ["x", "y", "width", "height"].map((name) =>
    Number(chart.querySelector("clipPath rect").getAttribute(name)));
  return {
    x: { label: chart.dataset.x, scale: xScale, from: Number(left), to: Number(right), start: x, length: width },
    y: { label: chart.dataset.y, scale: yScale, from: Number(top), to: Number(bottom), start: y, length: height },
  };
}
function sameUnit(a, b) {
  return a.label === b.label && a.scale === b.scale;
}
// The first axis with limits that hold all of them. A y axis runs from its largest value down.
function widened(axes) {
  const [first] = axes, [from, to] = first.from < first.to ? [Math.min, Math.max] : [Math.max, Math.min];
  return { ...first, from: from(...axes.map((axis) => axis.from)), to: to(...axes.map((axis) => axis.to)) };
}
function placeOn(axis, value) {
  return axis.start + (value - axis.from) / (axis.to - axis.from) * axis.length;
}
// Scale and shift of the map from an axis to another.
function mapTo(other, axis) {
  const scale = (placeOn(other, axis.to) - placeOn(other, axis.from)) / axis.length;
  return [scale, placeOn(other, axis.from) - scale * axis.start];
}

function written(value, digits) {
  return value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: digits }).replace("-", "\u2212");
}
function limitsOf(axis) {
  return [Math.min(axis.from, axis.to), Math.max(axis.from, axis.to)];
}
// Round numbers on an axis, as [place, text].
function ticks(axis) {
  const [low, high] = limitsOf(axis), values = [];
  if (axis.scale === "log") {
    const parts = high - low < 2 ? [1, 2, 5] : [1];
    for (let power = Math.floor(low); power <= high; power++) values.push(...parts.map((part) => part * 10 ** power));
  } else {
    const rough = (high - low) / 5, size = 10 ** Math.floor(Math.log10(rough));
    const step = size * ([1, 2, 2.5, 5].find((part) => part * size >= rough) ?? 10);
    for (let count = Math.ceil(low / step); count * step <= high; count++) values.push(count * step || 0); // not -0
  }
  const places = values.map((value) => (axis.scale === "log" ? Math.log10(value) : value));
  return values.map((value, index) => [places[index], written(value, 6)])
    .filter(([place]) => low <= place && place <= high).map(([place, text]) => [placeOn(axis, place), text]);
}
function grid(x, y) { // of numbers alone, so that no words can become markup
  const right = x.start + x.length, bottom = y.start + y.length;
  const rule = (at) => `<line class="axis" x1="${x.start}" x2="${right}" y1="${at}" y2="${at}"/>`;
  return [
    rule(bottom),
    ...ticks(y).map(([at, text]) => rule(at) +
      `<text x="${x.start - 4}" y="${at}" text-anchor="end" dominant-baseline="central">${text}</text>`),
    ...ticks(x).map(([at, text]) => `<text x="${at}" y="${bottom + 14}" text-anchor="middle">${text}</text>`),
    `<text x="${right}" y="${bottom + 27}" text-anchor="end"></text>`,
  ].join("");
}

// The colour and the dash of a curve, as theme.py chooses them.
const NUM_HUES = 6;
const hue = (index) => `--series-${index % NUM_HUES}`;
const dash = (index) => `var(--dash-${(index + Math.floor(index / NUM_HUES)) % NUM_HUES})`;

// The curves of a chart: their index there, their name in the chart and on the page, and their axes.
function curvesOf(chart) {
  const panel = chart.closest("section"), names = [...panel.querySelectorAll(".legend li")];
  const stage = chart.closest("details.stage")?.querySelector("h3"), title = panel.querySelector("h4");
  const label = [stage, title].filter(Boolean).map((heading) => heading.textContent).join(" \u00b7 ");
  return (names.length ? names : [title]).map(({ textContent }, index) => {
    const name = textContent.trim(), fullName = name === title.textContent ? label : `${label}: ${name}`;
    return { chart, index, label, name, fullName, ...axesOf(chart) };
  });
}
function copyOf(drawn, curve, index, x, y) {
  const copy = drawn.cloneNode(true), line = copy.querySelector(":scope > path"); // a band has none
  const [xScale, xShift] = mapTo(x, curve.x), [yScale, yShift] = mapTo(y, curve.y);
  copy.dataset.curve = index;
  copy.style.display = "";
  copy.setAttribute("transform", `translate(${xShift} ${yShift}) scale(${xScale} ${yScale})`);
  if (hue(index) !== hue(curve.index)) copy.style.setProperty(hue(curve.index), `var(${hue(index)})`);
  for (const clipped of copy.querySelectorAll("[clip-path]")) clipped.removeAttribute("clip-path");
  if (line) {
    Object.assign(line.style, { strokeDasharray: dash(index), strokeLinecap: "butt" });
    for (const marker of copy.querySelectorAll("use")) { // markers stay round
      const at = `${marker.getAttribute("x")} ${marker.getAttribute("y")}`, back = at.replace(/[\d.]+/g, "-$&");
      marker.setAttribute("transform", `translate(${at}) scale(${1 / xScale} ${1 / yScale}) translate(${back})`);
    }
  }
  return copy;
}
// A legend and a chart of curves, all over the x axis of the first. Those that have its unit share its y axis; each other
// unit is stretched to the height of the chart, and the legend has its limits.
function overlay(curves) {
  const [first] = curves, x = widened(curves.map((curve) => curve.x));
  const yOf = (curve) => ({
    ...widened(curves.map((other) => other.y).filter((axis) => sameUnit(axis, curve.y))),
    start: first.y.start, length: first.y.length,
  });
  const chart = first.chart.cloneNode(), svg = first.chart.querySelector("svg").cloneNode();
  svg.innerHTML = grid(x, yOf(first));
  svg.lastElementChild.textContent = x.label;
  const legend = document.createElement("ul");
  legend.className = "legend";
  curves.forEach((curve, index) => {
    const y = yOf(curve);
    for (const drawn of curve.chart.querySelectorAll(`[data-curve="${curve.index}"]`)) {
      svg.append(copyOf(drawn, curve, index, x, y));
    }
    legend.insertAdjacentHTML("beforeend", `<li data-curve="${index}"><button type="button" aria-pressed="true">` +
      `<svg aria-hidden="true"><line x1="0" x2="22" y1="4" y2="4" stroke-width="2" ` +
      `style="stroke: var(${hue(index)}); stroke-dasharray: ${dash(index)}"/></svg></button></li>`);
    const limits = limitsOf(y).map((limit) => written(y.scale === "log" ? 10 ** limit : limit, 2)).join(" to ");
    const scale = sameUnit(curve.y, first.y) ? "" : ` (own scale, ${limits})`;
    legend.lastElementChild.firstElementChild.append(curve.fullName + scale);
  });
  chart.append(svg);
  return [legend, chart];
}
