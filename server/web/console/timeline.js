/**
 * The scrubber: a slider over the whole session, above it marks that lead to each moment. The marks are one stop of the tab key; the
 * arrow keys go from mark to mark.
 *
 * @import { Moment, Span } from "./moments.js"
 */

import { h, icon, place } from "./dom.js";
import { SHAPES } from "./signs.js";
import { clock, clockInWords, plain } from "./text.js";

const STEP_MS = 100;
// Marks closer than this would cover each other: they go into lanes, one above the other.
const MARK_PX = 22;
const MOST_LANES = 4;
// A live session grows: the lanes are kept until it is so much longer.
const LANES_GOOD_FOR = 1.03;

export class Timeline {
  #slider;
  #marks = h("div", { class: "marks", role: "group", "aria-label": "Moments; arrow keys go from one to the next" });
  #spans = h("div", { class: "spans", "aria-hidden": "true" });
  #onSeek;
  #onVisit;
  #isHeld = false;
  #durationMs = 0;
  #lanesFor = 0;

  /** @param {(positionMs: number) => void} onSeek @param {(momentMs: number) => void} onVisit */
  constructor(onSeek, onVisit) {
    this.#onSeek = onSeek;
    this.#onVisit = onVisit;
    this.#slider = h("input", { type: "range", min: 0, max: 0, step: STEP_MS, value: 0, "aria-label": "Position", class: "scrubber", oninput: () => this.#seek() });
    this.#slider.addEventListener("pointerdown", () => (this.#isHeld = true));
    for (const end of ["pointerup", "pointercancel", "change"]) this.#slider.addEventListener(end, () => (this.#isHeld = false));
    this.#marks.addEventListener("keydown", (event) => this.#walk(event));
    new ResizeObserver(() => this.#layOut()).observe(this.#marks);
    this.node = h("div", { class: "timeline" }, this.#marks, h("div", { class: "rail" }, this.#spans, this.#slider));
  }

  /** @param {Moment[]} moments @param {Span[]} spans */
  fill(moments, spans) {
    const held = [...this.#marks.children].indexOf(/** @type {Element} */ (document.activeElement));
    this.#marks.replaceChildren(...moments.map((moment) => this.#mark(moment)));
    this.#spans.replaceChildren(...spans.map(bar));
    const first = this.#marks.children[Math.max(0, held)];
    first?.setAttribute("tabindex", "0");
    if (held >= 0 && first instanceof HTMLElement) first.focus();
    this.#layOut();
  }

  /** @param {number} positionMs @param {number} durationMs */
  move(positionMs, durationMs) {
    const duration = Math.max(durationMs, STEP_MS);
    place(this.node, "--duration", String(Math.round(duration)));
    place(this.node, "--position", String(Math.round(positionMs)));
    this.#slider.max = String(Math.ceil(duration / STEP_MS) * STEP_MS);
    this.#durationMs = duration;
    if (duration > this.#lanesFor * LANES_GOOD_FOR || duration < this.#lanesFor) this.#layOut();
    if (this.#isHeld) return;
    this.#slider.value = String(positionMs);
    // A slider in hand is not talked over by the replay's own pace.
    if (document.activeElement !== this.#slider) this.tell(positionMs);
  }

  /** Each mark where it belongs, in the lowest lane that has room for it. */
  #layOut() {
    this.#lanesFor = this.#durationMs;
    const pxPerMs = this.#marks.clientWidth / this.#durationMs;
    /** Where each lane ends, in pixels. @type {number[]} */ const ends = [];
    for (const mark of /** @type {HTMLElement[]} */ ([...this.#marks.children])) {
      const at = Number(mark.dataset["at"]) * pxPerMs;
      const free = ends.findIndex((end) => end <= at);
      const lane = free >= 0 ? free : Math.min(ends.length, MOST_LANES - 1);
      ends[lane] = at + MARK_PX;
      place(mark, "--lane", String(lane));
    }
    place(this.#marks, "--num-lanes", String(Math.max(1, ends.length)));
  }

  /** In the words that a screen reader says of the slider. @param {number} positionMs */
  tell(positionMs) {
    const text = `${clockInWords(positionMs)} of ${clockInWords(this.#durationMs)}`;
    if (this.#slider.getAttribute("aria-valuetext") !== text) this.#slider.setAttribute("aria-valuetext", text);
  }

  #seek() {
    this.#onSeek(Number(this.#slider.value));
  }

  /** @param {Moment} moment */
  #mark({ kind, atMs, label, text }) {
    const name = `${clock(atMs)} ${label}${text ? `: ${plain(text)}` : ""}`;
    const button = h(
      "button",
      { type: "button", class: `mark mark-${kind}`, tabindex: -1, "data-at": Math.round(atMs), "aria-label": name, title: name, onclick: () => this.#onVisit(atMs) },
      icon(SHAPES[kind]),
    );
    place(button, "--at", String(Math.round(atMs)));
    return button;
  }

  /** @param {KeyboardEvent} event */
  #walk(event) {
    const all = /** @type {HTMLElement[]} */ ([...this.#marks.children]);
    const here = all.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1, Home: -all.length, End: all.length }[event.key];
    if (!step || here < 0) return;
    event.preventDefault();
    event.stopPropagation();
    const next = all[Math.max(0, Math.min(all.length - 1, here + step))];
    all[here]?.setAttribute("tabindex", "-1");
    next?.setAttribute("tabindex", "0");
    next?.focus();
  }
}

/** @param {Span} span */
function bar({ startMs, endMs }) {
  const node = h("span");
  place(node, "--at", String(Math.round(startMs)));
  place(node, "--for", String(Math.round(Math.max(0, endMs - startMs))));
  return node;
}
