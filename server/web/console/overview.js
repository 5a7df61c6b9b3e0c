/**
 * How it goes, by model and day: thumbs, first tokens, interruptions and errors. The range is in the address. Days are those of UTC, as the
 * server counts them.
 *
 * @typedef {object} Day
 * @property {string} day
 * @property {string} model
 * @property {number} num_sessions
 * @property {number} num_answers
 * @property {number} num_up
 * @property {number} num_down
 * @property {number} num_errors
 * @property {number} num_interruptions
 * @property {number | null} first_token_p50_ms
 * @property {number | null} first_token_p99_ms
 */

import { address } from "./api.js";
import { chart, dayInWords } from "./chart.js";
import { h } from "./dom.js";
import { failure, waiting } from "./states.js";
import { count, duration, number, said } from "./text.js";

const DAY_MS = 86_400_000;
const RANGES = [7, 30, 90];
const DAY = /^\d{4}-\d{2}-\d{2}$/;

/** @typedef {{ from: string, to: string, model: string, client: string }} Range */

/** @param {number} ms */
const isoDay = (ms) => new Date(ms).toISOString().slice(0, 10);
/** @param {string} iso */
const midnight = (iso) => Date.parse(`${iso}T00:00:00Z`);

/** @param {URLSearchParams} query @returns {Range} */
function readRange(query) {
  const today = isoDay(Date.now());
  /** @param {string} name @param {string} otherwise */
  const read = (name, otherwise) => (DAY.test(query.get(name) ?? "") ? (query.get(name) ?? otherwise) : otherwise);
  const to = read("to", today);
  return { from: read("from", isoDay(midnight(to) - 29 * DAY_MS)), to, model: query.get("model") ?? "", client: query.get("client") ?? "" };
}

/** @param {import("./app.js").House} house @param {URL} url @returns {import("./app.js").Page} */
export function overviewPage(house, url) {
  const body = h("div", { class: "overview-body" });
  const abort = new AbortController();
  const form = rangeForm(house.go);
  const node = h("div", { class: "sheet overview" }, h("h1", { tabindex: -1 }, "Overview"), form.node, body);
  let current = abort;

  /** @param {URL} to */
  function accept(to) {
    if (to.pathname !== "/console/overview") return false;
    const range = readRange(to.searchParams);
    form.fill(range);
    current.abort();
    current = new AbortController();
    void load(house, range, body, current.signal);
    return true;
  }
  accept(url);
  return { title: "Overview", node, accept, leave: () => current.abort() };
}

/** @param {import("./app.js").House} house @param {Range} range @param {HTMLElement} body @param {AbortSignal} signal */
async function load(house, range, body, signal) {
  body.replaceChildren(waiting("Counting"));
  const { from, to, model, client } = range;
  try {
    const { days } = await house.api.get("/v1/overview", { from_ms: midnight(from), to_ms: midnight(to) + DAY_MS - 1, model, client }, signal);
    body.replaceChildren(...drawn(days, range));
    house.say("Overview drawn.");
  } catch (error) {
    if (!signal.aborted) body.replaceChildren(failure(error, () => void load(house, range, body, signal)));
  }
}

/** @param {(path: string) => void} go */
function rangeForm(go) {
  /** @param {keyof Range} name @param {string} type */
  const input = (name, type) => h("input", { id: `range-${name}`, name, type, spellcheck: "false" });
  const inputs = { from: input("from", "date"), to: input("to", "date"), model: input("model", "text"), client: input("client", "text") };
  /** @param {keyof Range} name @param {string} label */
  const field = (name, label) => h("div", { class: "field" }, h("label", { for: `range-${name}` }, label), inputs[name]);
  const presets = RANGES.map((days) => ({ days, link: h("a", { class: "quiet preset" }, `${days} days`) }));
  /** @param {SubmitEvent} event */
  function onsubmit(event) {
    event.preventDefault();
    const data = new FormData(/** @type {HTMLFormElement} */ (event.currentTarget));
    go(address("/console/overview", Object.fromEntries([...data].map(([name, value]) => [name, String(value).trim()]))));
  }

  /** The same form, so that the focus stays in it. @param {Range} range */
  function fill(range) {
    const { from, to, model, client } = range;
    for (const name of /** @type {Array<keyof Range>} */ (Object.keys(inputs))) inputs[name].value = range[name];
    const today = isoDay(Date.now());
    for (const { days, link } of presets) {
      const start = isoDay(midnight(today) - (days - 1) * DAY_MS);
      link.href = address("/console/overview", { from: start, to: today, model, client });
      if (start === from && to === today) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  const node = h(
    "form",
    { class: "range", "aria-label": "Range", autocomplete: "off", onsubmit },
    h("p", { class: "presets" }, "Last ", ...presets.map(({ link }) => link)),
    h("div", { class: "fields" }, field("from", "From"), field("to", "To"), field("model", "Model"), field("client", "Digital human"), h("button", { type: "submit", class: "again" }, "Show")),
    h("p", { class: "fine" }, "Days are counted in UTC."),
  );
  return { node, fill };
}

/** @param {Day[]} days @param {Range} range */
function drawn(days, { from, to }) {
  if (days.length === 0) return [h("p", { class: "nothing" }, "Nothing was answered in these days.")];
  /** @type {string[]} */ const calendar = [];
  for (let ms = midnight(from); ms <= midnight(to); ms += DAY_MS) calendar.push(isoDay(ms));
  const models = [...new Set(days.map(({ model }) => model))].sort();
  const most = {
    up: Math.max(4, ...days.map((day) => day.num_up)),
    down: Math.max(1, ...days.map((day) => day.num_down)),
    ms: Math.max(100, ...days.map((day) => day.first_token_p99_ms ?? 0)),
    trouble: Math.max(4, ...days.map((day) => Math.max(day.num_errors, day.num_interruptions))),
  };
  return models.map((model) => section(model, days.filter((day) => day.model === model), calendar, most));
}

/** @param {string} model @param {Day[]} days @param {string[]} calendar @param {Record<"up" | "down" | "ms" | "trouble", number>} most */
function section(model, days, calendar, most) {
  const byDay = new Map(days.map((day) => [day.day, day]));
  /** @param {(day: Day) => number | null} pick @param {number | null} nothing */
  const values = (pick, nothing) => calendar.map((iso) => (byDay.has(iso) ? pick(/** @type {Day} */ (byDay.get(iso))) : nothing));
  /** @param {(day: Day) => number} pick */
  const total = (pick) => days.reduce((sum, day) => sum + pick(day), 0);
  const [up, down] = [total((day) => day.num_up), total((day) => day.num_down)];
  const [answers, interruptions, errors] = [total((day) => day.num_answers), total((day) => day.num_interruptions), total((day) => day.num_errors)];
  const slowest = Math.max(0, ...days.map((day) => day.first_token_p99_ms ?? 0));
  const figures = h(
    "dl",
    { class: "totals" },
    figure("Answers", number(answers), count(total((day) => day.num_sessions), "session")),
    figure("Thumbs up", up + down > 0 ? percent(up, up + down) : "–", `${number(up)} up, ${number(down)} down`),
    figure("Interrupted", percent(interruptions, answers), count(interruptions, "answer")),
    figure("Errors", percent(errors, answers), count(errors, "answer")),
  );
  const charts = h(
    "div",
    { class: "charts" },
    chart({
      title: "Ratings", summary: `${number(up)} up, ${number(down)} down.`, days: calendar, top: most.up, bottom: most.down, format: number,
      series: [{ name: "up", className: "of-up", mark: "bar", values: values((day) => day.num_up, 0) }, { name: "down", className: "of-down", mark: "below", values: values((day) => day.num_down, 0) }],
    }),
    chart({
      title: "First token", summary: `The slowest day's 99th percentile was ${duration(slowest)}.`, days: calendar, top: most.ms, format: duration,
      series: [{ name: "p99", className: "of-p99", mark: "dashed", values: values((day) => day.first_token_p99_ms, null) }, { name: "p50", className: "of-p50", mark: "line", values: values((day) => day.first_token_p50_ms, null) }],
    }),
    chart({
      title: "Interruptions and errors", summary: `${count(interruptions, "interruption")}, ${count(errors, "error")}.`, days: calendar, top: most.trouble, format: number,
      series: [{ name: "interruptions", className: "of-interruptions", mark: "bar", values: values((day) => day.num_interruptions, 0) }, { name: "errors", className: "of-errors", mark: "bar", values: values((day) => day.num_errors, 0) }],
    }),
  );
  return h("section", { class: "model" }, h("h2", {}, said(model)), figures, charts, table(model, days));
}

/** @param {string} name @param {string} value @param {string} more */
function figure(name, value, more) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, h("b", {}, value), " ", h("span", { class: "fine" }, more)));
}

/** @param {number} part @param {number} whole */
function percent(part, whole) {
  if (whole === 0) return "–";
  return `${((part / whole) * 100).toFixed(1)} %`;
}

/** @param {string} model @param {Day[]} days */
function table(model, days) {
  const names = ["Day", "Sessions", "Answers", "Up", "Down", "Errors", "Interruptions", "First token p50", "p99"];
  const head = h("tr", {}, ...names.map((name, n) => h("th", { scope: "col", class: n > 0 ? "amount" : null }, name)));
  const rows = [...days].sort((a, b) => b.day.localeCompare(a.day)).map((day) => {
    const amounts = [day.num_sessions, day.num_answers, day.num_up, day.num_down, day.num_errors, day.num_interruptions].map(number);
    const times = [day.first_token_p50_ms, day.first_token_p99_ms].map((ms) => (ms === null ? "–" : duration(ms)));
    return h("tr", {}, h("th", { scope: "row" }, dayInWords(day.day)), ...[...amounts, ...times].map((text) => h("td", { class: "amount" }, text)));
  });
  const whole = h("table", { class: "rows" }, h("caption", { class: "unseen" }, said(model), " by day"), h("thead", {}, head), h("tbody", {}, ...rows));
  return h("details", {}, h("summary", {}, "As a table"), h("div", { class: "wide-table", tabindex: 0, role: "region", "aria-label": "Table by day" }, whole));
}
