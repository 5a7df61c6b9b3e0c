/**
 * What happened when in a session: what the timeline marks and the list of moments names. Arithmetic over what the API told.
 *
 * @import { Detail } from "./session.js"
 *
 * @typedef {"turn" | "busy" | "bad" | "up" | "down" | "note" | "hole"} Kind
 * @typedef {{ kind: Kind, atMs: number, label: string, text: string }} Moment   `label` says what it is, `text` what was written
 * @typedef {{ startMs: number, endMs: number }} Span
 * @typedef {{ itemId: string, rating: "up" | "down", reason: string | null, comment: string | null, atMs: number,
 *   start?: number | null | undefined, end?: number | null | undefined }} Opinion
 */

const LONGEST_TEXT = 90;

/** @param {Detail} detail @returns {Moment[]} in order */
export function momentsOf(detail) {
  const { turns, answers, feedback, notes } = detail;
  const extent = extentOf(detail);
  const lastMs = extent.last_ms - extent.first_ms;
  /** @param {number} ms */
  const at = (ms) => Math.max(0, Math.min(ms - extent.first_ms, Math.max(lastMs, 0)));
  /** @type {Moment[]} */ const moments = [];
  for (const { number, text, created_ms: ms } of turns) moments.push({ kind: "turn", atMs: at(ms), label: `Turn ${number}`, text: shorten(text) });
  for (const { status, done_ms: ms, error } of answers) {
    if (ms === null) continue;
    if (status === "cancelled") moments.push({ kind: "busy", atMs: at(ms), label: "Interrupted", text: "" });
    if (status === "failed") moments.push({ kind: "bad", atMs: at(ms), label: "Failed", text: error ?? "" });
  }
  for (const { rating, role, rated_ms: ms, item_id: itemId, comment, reason } of feedback) {
    if (!rating) continue;
    const words = shorten([reason, comment].filter(Boolean).join(": "));
    const isUsers = role === "user";
    // A reviewer rates long after; the mark is where what was rated ends.
    const when = isUsers ? ms : (answers.find((answer) => itemOf(answer) === itemId)?.done_ms ?? ms);
    moments.push({ kind: rating, atMs: at(when), label: `Thumbs ${rating} by ${isUsers ? "the user" : "a reviewer"}`, text: words });
  }
  for (const { text, position_ms: ms } of notes) if (ms !== null) moments.push({ kind: "note", atMs: ms, label: "Note", text: shorten(text) });
  const perEvent = lastMs / Math.max(1, extent.last_sequence - extent.first_sequence);
  for (const { first, last, reason } of extent.holes) {
    const many = last - first + 1;
    // Nothing tells when they were: about there.
    moments.push({ kind: "hole", atMs: at(extent.first_ms + (first - extent.first_sequence) * perEvent), label: holeInWords(many, reason), text: "" });
  }
  return moments.sort((one, other) => one.atMs - other.atMs);
}

/** @param {number} many @param {string} reason */
export function holeInWords(many, reason) {
  const events = many === 1 ? "1 event" : `${many} events`;
  switch (reason) {
    case "lost":
      return `${events} lost before they could be archived`;
    case "damaged":
      return `${events} damaged in the archive`;
    default:
      return `${events} missing from the archive`;
  }
}

/** What users thought of answers, from when on: also what was rated past the connection, of which no event tells. @param {Detail} detail @returns {Opinion[]} */
export function opinionsOf(detail) {
  const { first_ms: firstMs } = extentOf(detail);
  return detail.feedback.flatMap(({ item_id: itemId, role, rating, reason, comment, start, end, rated_ms: ms }) =>
    role === "user" && rating ? [{ itemId, rating, reason, comment, start, end, atMs: ms - firstMs }] : [],
  );
}

/** When answers were being spoken. @param {Detail} detail @returns {Span[]} */
export function spansOf(detail) {
  const extent = extentOf(detail);
  return detail.answers
    .filter(({ done_ms: doneMs }) => doneMs !== null)
    .map(({ first_token_ms: first, created_ms: created, done_ms: done }) => ({
      startMs: (first ?? created) - extent.first_ms,
      endMs: (done ?? created) - extent.first_ms,
    }));
}

/** How far the session reaches; by what the tables know while its recording cannot be asked. @param {Detail} detail @returns {import("./session.js").Extent} */
export function extentOf({ extent, session }) {
  if (extent) return extent;
  const unknown = { first_sequence: 1, last_sequence: 1, num_events: 0, is_live: false, holes: [] };
  return { ...unknown, first_ms: session.created_ms, last_ms: session.ended_ms ?? session.updated_ms };
}

/** The message that an answer gave; empty when it gave none. @param {import("./session.js").AnswerFacts} answer @returns {string} */
export function itemOf({ output }) {
  return output?.find(({ type }) => type === "message")?.id ?? "";
}

/** @param {string} text */
function shorten(text) {
  return text.length > LONGEST_TEXT ? `${text.slice(0, LONGEST_TEXT).trimEnd()}…` : text;
}
