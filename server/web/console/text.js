/**
 * What people and models wrote, as text nodes that cannot lie: characters that hide, or that turn the reading order around, are
 * shown by name, and each piece keeps its direction to itself. Also numbers, times and durations in words.
 */

import { h } from "./dom.js";

// Controls but tab and line feed, invisible and bidirectional formatting, tags, lone surrogates. The joiners stay: emoji and scripts need them.
const HIDDEN =
  /[\u0000-\u0008\u000B-\u001F\u007F-\u009F\u00AD\u061C\u180E\u200B\u200E\u200F\u2028-\u202E\u2060-\u206F\uFEFF\uFFF9-\uFFFB\u{E0000}-\u{E0FFF}\uD800-\uDFFF]/gu;
const CONTROL_PICTURES = 0x2400;
const DELETE = 0x7f;
const DELETE_PICTURE = 0x2421;
const ESCAPED = /[.*+?^${}()|[\]\\]/g;

/** @param {string} character */
function nameOf(character) {
  const code = character.codePointAt(0) ?? 0;
  if (code < 0x20) return String.fromCharCode(CONTROL_PICTURES + code);
  if (code === DELETE) return String.fromCharCode(DELETE_PICTURE);
  return `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
}

/** The text with what hides made visible, for places that hold no elements: titles, labels. @param {string} text */
export function plain(text) {
  return text.replace(HIDDEN, nameOf);
}

/** Fills `node` with what was written. @template {HTMLElement} T @param {T} node @param {string} text */
export function write(node, text) {
  let end = 0;
  for (const match of text.matchAll(HIDDEN)) {
    if (match.index > end) node.append(text.slice(end, match.index));
    const code = (match[0].codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0");
    node.append(h("span", { class: "hidden-character", title: `U+${code}` }, nameOf(match[0])));
    end = match.index + match[0].length;
  }
  if (end < text.length) node.append(text.slice(end));
  return node;
}

/** Something that was written, within a line. @param {string | null | undefined} text */
export function said(text) {
  return write(h("bdi"), text ?? "");
}

/** The same with the words that were looked for marked. @param {string} text @param {string} query */
export function found(text, query) {
  const words = query.split(/\s+/).filter(Boolean).map((word) => word.replace(ESCAPED, "\\$&"));
  if (words.length === 0) return said(text);
  const node = h("bdi");
  // Split by a group: what matched comes at every second place.
  text.split(new RegExp(`(${words.join("|")})`, "gi")).forEach((piece, n) => write(n % 2 ? node.appendChild(h("mark")) : node, piece));
  return node;
}

/** A whole text, its lines kept. @param {string} text @param {string} className */
export function passage(text, className = "passage") {
  return write(h("p", { class: className, dir: "auto" }), text);
}

/**
 * The piece of a text that a rating is about; nothing where it is about all of it.
 * @param {string} text @param {number | null | undefined} start @param {number | null | undefined} end both in UTF-16 units
 */
export function piece(text, start, end) {
  if (typeof start !== "number" || typeof end !== "number") return null;
  const words = text.slice(start, end);
  return h("p", { class: "piece" }, "About ", words ? h("q", {}, said(words)) : `the characters ${number(start + 1)} to ${number(end)}`);
}

const moments = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const short = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
const numbers = new Intl.NumberFormat(undefined);

/** When it was, for eyes and machines. @param {number} ms since the epoch @param {Intl.DateTimeFormat} format */
export function when(ms, format = moments) {
  const at = new Date(ms);
  return h("time", { datetime: at.toISOString(), title: moments.format(at) }, format.format(at));
}

/** Day and minute. @param {number} ms since the epoch */
export function shortly(ms) {
  return when(ms, short);
}

/** A place in a recording: 0:07, 12:05, 1:02:03. @param {number} ms */
export function clock(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  const [hours, minutes, seconds] = [Math.floor(s / 3600), Math.floor(s / 60) % 60, String(s % 60).padStart(2, "0")];
  return hours > 0 ? `${hours}:${String(minutes).padStart(2, "0")}:${seconds}` : `${minutes}:${seconds}`;
}

/** The same to be heard: "1 minute 5 seconds". @param {number} ms */
export function clockInWords(ms) {
  const s = Math.max(0, Math.floor(ms / 1000));
  const parts = [count(Math.floor(s / 3600), "hour"), count(Math.floor(s / 60) % 60, "minute"), count(s % 60, "second")];
  return parts.filter((part) => !part.startsWith("0 ")).join(" ") || "the start";
}

/** "1 turn", "2,034 turns". @param {number} many @param {string} what @param {string} plural */
export function count(many, what, plural = `${what}s`) {
  return `${numbers.format(many)} ${many === 1 ? what : plural}`;
}

/** How long: "340 ms", "2.41 s", "3 min 20 s". @param {number} ms */
export function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  const s = Math.round(ms / 1000);
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
}

/** @param {number} many */
export function number(many) {
  return numbers.format(many);
}
