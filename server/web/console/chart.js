/**
 * Charts by day, drawn anew for the width there is, so that their words keep their size. What they show is also said in words, and stands in
 * a table beside them.
 *
 * @typedef {{ name: string, className: string, values: Array<number | null>, mark: "bar" | "below" | "line" | "dashed" }} Series
 *   `below`: a bar under the axis; the others stand on it
 * @typedef {{ title: string, summary: string, days: string[], series: Series[], top: number, bottom?: number, format: (value: number) => string }} Plot
 *   `top` and `bottom`: the largest value above and below the axis, the same for all that are to be compared
 */

import { h, svg } from "./dom.js";

const HEIGHT = 190;
const MARGIN = { top: 10, right: 10, bottom: 24, left: 54 };
const MOST_TICKS = 4;
const LABEL_PX = 58;
const MARKER_PX = 5;
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", timeZone: "UTC" });

/** A day as people read it. @param {string} iso */
export function dayInWords(iso) {
  return day.format(new Date(`${iso}T00:00:00Z`));
}

/** @param {Plot} plot */
export function chart(plot) {
  const host = h("div", { class: "plot" });
  let drawnFor = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry?.contentRect.width ?? 0);
    if (width === 0 || width === drawnFor) return;
    drawnFor = width;
    host.replaceChildren(draw(plot, width));
  }).observe(host);
  return h("figure", { class: "chart" }, h("figcaption", {}, h("h3", {}, plot.title), legend(plot.series)), host);
}

/** @param {Series[]} series */
function legend(series) {
  const entries = series.map(({ name, className, mark }) => {
    const sample = svg("svg", { viewBox: "0 0 22 12", class: "sample", "aria-hidden": "true" });
    if (mark === "line" || mark === "dashed") sample.append(svg("path", { d: "M1 6H21", class: `${className} ${mark}` }), marker(11, 6, mark, className));
    else sample.append(svg("rect", { x: 4, y: 1, width: 14, height: 10, class: className }));
    return h("li", {}, sample, name);
  });
  return h("ul", { class: "legend" }, ...entries);
}

/** Round whole values from zero to at least `top`. @param {number} top */
function ticks(top) {
  const raw = Math.max(1, top / MOST_TICKS);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw && Number.isInteger(candidate)) ?? raw;
  return Array.from({ length: Math.ceil(top / step) + 1 }, (_, n) => n * step).filter((tick) => tick === 0 || tick < top + step);
}

/** @param {Plot} plot @param {number} width */
function draw({ title, summary, days, series, top, bottom = 0, format }, width) {
  const above = ticks(top);
  const below = bottom > 0 ? ticks(bottom).filter((tick) => tick > 0) : [];
  const [highest, lowest] = [above.at(-1) ?? 1, below.at(-1) ?? 0];
  const plotHeight = HEIGHT - MARGIN.top - MARGIN.bottom;
  // A page that is not laid out yet may be narrower than the axis.
  const band = Math.max(1, (width - MARGIN.left - MARGIN.right) / Math.max(1, days.length));
  /** @param {number} value */
  const y = (value) => MARGIN.top + ((highest - value) / (highest + lowest)) * plotHeight;
  /** @param {number} index */
  const x = (index) => MARGIN.left + (index + 0.5) * band;
  const lines = thinned([...below.map((tick) => -tick), ...above], y);
  const grid = lines.flatMap((tick) => [
    svg("line", { x1: MARGIN.left, x2: MARGIN.left + band * days.length, y1: y(tick), y2: y(tick), class: tick === 0 ? "axis" : "grid" }),
    svg("text", { x: MARGIN.left - 7, y: y(tick), class: "tick tick-y" }, format(Math.abs(tick))),
  ]);
  const every = Math.max(1, Math.ceil(LABEL_PX / band));
  const names = days.flatMap((iso, n) => (n % every === Math.floor(every / 2) || days.length === 1 ? [svg("text", { x: x(n), y: HEIGHT - 6, class: "tick tick-x" }, dayInWords(iso))] : []));
  const bars = series.filter(({ mark }) => mark === "bar");
  const drawn = series.map((one) => drawSeries(one, { x, y, band, index: bars.indexOf(one), numBars: bars.length }));
  const hints = days.map((iso, n) => hint(iso, series, n, { x: x(n) - band / 2, width: band, format }));
  return svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": `${title}. ${summary}` }, ...grid, ...names, ...drawn, ...hints);
}

/** Where lines would stand too close only some stay. @param {number[]} values @param {(value: number) => number} y */
function thinned(values, y) {
  /** @type {number[]} */ const kept = [0];
  for (const value of values) if (kept.every((other) => Math.abs(y(other) - y(value)) >= 18)) kept.push(value);
  return kept;
}

/** @param {Series} series @param {{ x: (n: number) => number, y: (v: number) => number, band: number, index: number, numBars: number }} scale */
function drawSeries({ values, className, mark }, { x, y, band, index, numBars }) {
  const group = svg("g", { class: `series ${className}` });
  if (mark === "line" || mark === "dashed") {
    let d = "";
    values.forEach((value, n) => {
      if (value === null) return;
      d += `${d && values[n - 1] !== null ? "L" : "M"}${x(n).toFixed(1)} ${y(value).toFixed(1)}`;
    });
    group.append(svg("path", { d, class: `${className} ${mark}` }));
    if (band >= 8) values.forEach((value, n) => value !== null && group.append(marker(x(n), y(value), mark, className)));
    return group;
  }
  const width = Math.max(1.5, (band * 0.72) / (mark === "bar" ? Math.max(1, numBars) : 1));
  values.forEach((value, n) => {
    if (!value) return;
    const left = mark === "bar" ? x(n) - band * 0.36 + index * width : x(n) - width / 2;
    const [upper, lower] = mark === "below" ? [y(0), y(-value)] : [y(value), y(0)];
    group.append(svg("rect", { x: left.toFixed(1), y: upper.toFixed(1), width: Math.max(1, width - 1).toFixed(1), height: Math.max(1, lower - upper).toFixed(1), class: className }));
  });
  return group;
}

/** @param {number} x @param {number} y @param {string} mark @param {string} className */
function marker(x, y, mark, className) {
  const half = MARKER_PX / 2;
  if (mark === "dashed") return svg("rect", { x: x - half, y: y - half, width: MARKER_PX, height: MARKER_PX, class: `${className} marker` });
  return svg("circle", { cx: x, cy: y, r: half, class: `${className} marker` });
}

/** What a pointer over a day is told. @param {string} iso @param {Series[]} series @param {number} n @param {{ x: number, width: number, format: (value: number) => string }} box */
function hint(iso, series, n, { x, width, format }) {
  const told = series.map(({ name, values }) => `${name} ${values[n] === null || values[n] === undefined ? "–" : format(values[n])}`);
  return svg("rect", { x, y: 0, width, height: HEIGHT - MARGIN.bottom, class: "hint" }, svg("title", {}, `${dayInWords(iso)}: ${told.join(", ")}`));
}
