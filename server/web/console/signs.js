/** Small signs that say something at a glance, each by a shape and by words, never by colour alone. */

import { h, icon } from "./dom.js";
import { number } from "./text.js";

/** Drawn here, on 24 × 24. */
export const SHAPES = {
  up: "M7 10.5v9M7 10.5H4v9h3M7 10.5 11.2 4c1.6 0 2.6 1.2 2.3 2.8L12.9 10h5.3c1.3 0 2.2 1.2 1.9 2.4l-1.4 5.5c-.2.9-1 1.6-2 1.6H7",
  down: "M17 13.5v-9M17 13.5h3v-9h-3M17 13.5 12.8 20c-1.6 0-2.6-1.2-2.3-2.8l.6-3.2H5.8c-1.3 0-2.2-1.2-1.9-2.4l1.4-5.5c.2-.9 1-1.6 2-1.6H17",
  live: "M12 9.5a2.5 2.5 0 1 1 0 5 2.5 2.5 0 0 1 0-5M6.5 6.5a7.8 7.8 0 0 0 0 11M17.5 6.5a7.8 7.8 0 0 1 0 11",
  slow: "M12 4a8 8 0 1 1 0 16 8 8 0 0 1 0-16M12 8v4.5l3 2",
  bad: "M12 4.5 21 19.5H3ZM12 10.5v4M12 17v.2",
  busy: "M5 8h9a4 4 0 0 1 0 8H9M9 5 5.5 8 9 11M12 13l-3 3 3 3",
  note: "M5 4.5h14v11l-4.5 4.5H5ZM14.5 20v-4.5H19M8.5 9h7M8.5 12.5h4",
  hole: "M4 6l4 3-3 3 4 3-3 4M20 6l-4 3 3 3-4 3 3 4",
  turn: "M5 5h14v10h-8l-4 4v-4H5Z",
  answer: "M12 4v16",
};

/** @typedef {"plain" | "live" | "slow" | "bad" | "busy" | "good"} Tone */

/** @param {string} text @param {Tone} tone */
export function badge(text, tone) {
  const shape = tone in SHAPES ? SHAPES[/** @type {keyof typeof SHAPES} */ (tone)] : "";
  return h("span", { class: `badge ${tone}` }, shape ? icon(shape) : null, text);
}

/** @param {"up" | "down"} rating @param {number} many */
export function thumbs(rating, many) {
  return h("span", { class: `badge thumb-${rating}` }, icon(SHAPES[rating]), h("span", { class: "unseen" }, `thumbs ${rating}: `), number(many));
}
