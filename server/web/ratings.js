/**
 * What the person thinks of each answer, from the tap to the server's word that it is kept. Per answer the latest choice holds,
 * wherever it was made; one that is not acknowledged outlives a reload and is sent again, which is harmless: the server keeps one
 * rating per answer, and the time of each choice. Knows the wire and a clock; knows nothing of the page.
 *
 * @typedef {"up" | "down"} Thumb
 * @typedef {{ rating: Thumb | null, reason: string | null, comment: string | null }} Opinion   rating null: none
 * @typedef {Opinion & { atMs: number }} Choice   when it was made
 * @typedef {Choice & { id: string }} Saved
 * @typedef {"" | "waiting" | "delayed" | "sending" | "saved" | "withdrawn" | "refused"} Progress
 *   `waiting`: for the connection; `delayed`: the server cannot take it now, and is asked again
 *
 * @typedef {object} Entry
 * @property {string} itemId
 * @property {string} sessionId
 * @property {Saved | null} saved     as the server last told
 * @property {Choice | null} wanted   not known to be kept
 * @property {Choice | null} unsure   sent, and not answered: the server may have it
 * @property {{ eventId: string, choice: Choice } | null} flight   on its way now; `eventId` empty: not by the socket
 * @property {boolean} isUnknown      the socket's conversation does not have it
 * @property {boolean} isDelayed
 * @property {boolean} wasWithdrawn
 * @property {string} complaint       why the last choice was refused
 */

import { newId } from "./journey.js";
import { Backoff } from "./reconnect.js";

/** @import { FeedbackPost, WireFeedback } from "./feedback.js" */
/** @import { RealtimeClient, ServerEvent, WireError } from "./realtime.js" */
/** @import { TabMemory } from "./tab.js" */

const KEY = "flueman.ratings";
const EVENT_PREFIX = "rating_";
const UNKNOWN_ITEM = "feedback_invalid_item_id";
const UNKNOWN_RATING = "feedback_invalid_feedback_id";
/** @type {Opinion} */ const NONE = { rating: null, reason: null, comment: null };

/** Whether an error with this id answers a rating, which says so where it was given. @param {string | null | undefined} eventId */
export function isOfRating(eventId) {
  return eventId?.startsWith(EVENT_PREFIX) === true;
}

/** @param {Opinion | null} one @param {Opinion | null} other */
function areSame(one, other) {
  const [a, b] = [one ?? NONE, other ?? NONE];
  return a.rating === b.rating && a.reason === b.reason && a.comment === b.comment;
}

export class Ratings {
  #client;
  #post;
  #tab;
  #onChange;
  #now;
  #sessionId = "";
  #backoff = new Backoff();
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #retry;
  /** @type {Map<string, Entry>} */ #entries = new Map();

  /** @param {RealtimeClient} client @param {FeedbackPost} post @param {TabMemory} tab @param {(itemId: string) => void} onChange
   * @param {() => number} now epoch milliseconds */
  constructor(client, post, tab, onChange, now = () => Date.now()) {
    this.#client = client;
    this.#post = post;
    this.#tab = tab;
    this.#onChange = onChange;
    this.#now = now;
    for (const kept of tab.recall(KEY) ?? []) Object.assign(this.#entry(kept.itemId, kept.sessionId), kept);
    client.on("event", (event) => this.#receive(event));
    client.on("connection", ({ state }) => {
      this.#noteConnection(state === "connected");
      for (const entry of this.#entries.values()) this.#goOn(entry);
    });
  }

  /** What the person thinks of that answer, kept already or not. @param {string} itemId @returns {Opinion} */
  opinion(itemId) {
    const entry = this.#entries.get(itemId);
    return entry?.wanted ?? entry?.saved ?? NONE;
  }

  /** How far that opinion has come. @param {string} itemId @returns {Progress} */
  progress(itemId) {
    const entry = this.#entries.get(itemId);
    if (!entry) return "";
    if (entry.complaint) return "refused";
    if (!entry.wanted) return entry.saved ? "saved" : entry.wasWithdrawn ? "withdrawn" : "";
    if (entry.flight) return "sending";
    // Chosen and taken back with no connection in between.
    if (!entry.unsure && areSame(entry.wanted, entry.saved)) return entry.saved ? "saved" : "";
    return entry.isDelayed ? "delayed" : "waiting";
  }

  /** Why the last choice was not taken. @param {string} itemId */
  complaint(itemId) {
    return this.#entries.get(itemId)?.complaint ?? "";
  }

  /** The person thinks this of an answer of that session. @param {string} itemId @param {string} sessionId @param {Opinion} opinion */
  rate(itemId, sessionId, opinion) {
    const entry = this.#entry(itemId, sessionId);
    // Later than any choice this page knows of, however wrong its clock is: what a person sees and changes is changed.
    const atMs = Math.max(this.#now(), (entry.saved?.atMs ?? 0) + 1, (entry.wanted?.atMs ?? 0) + 1);
    entry.wanted = { ...opinion, atMs };
    entry.complaint = "";
    entry.wasWithdrawn = false;
    this.#save();
    this.#goOn(entry);
    this.#onChange(itemId);
  }

  // To the server

  /** @param {Entry} entry @returns {"socket" | "post" | "none"} */
  #way({ sessionId, isUnknown, isDelayed }) {
    const { state } = this.#client.connection;
    if (isDelayed) return "none";
    // Before the first connection nobody knows which conversation the socket will lead to.
    const isElsewhere = isUnknown || (this.#sessionId !== "" && sessionId !== this.#sessionId);
    if (isElsewhere || state === "taken" || state === "stopped") return "post";
    return state === "connected" ? "socket" : "none";
  }

  /** Sends what is wanted, if nothing of that answer is on its way. @param {Entry} entry */
  #goOn(entry) {
    const { wanted, flight, saved, unsure } = entry;
    const way = this.#way(entry);
    if (!wanted || flight || way === "none") return;
    if ((!unsure || (!saved && !unsure.rating)) && areSame(wanted, saved)) {
      entry.wanted = null;
      this.#save();
      return this.#onChange(entry.itemId);
    }
    // A rating is withdrawn by its id, which only the answer to it tells: what may have arrived is sent once more.
    const choice = wanted.rating === null && !saved && unsure ? unsure : wanted;
    entry.unsure = choice;
    entry.flight = { eventId: way === "socket" ? newId(EVENT_PREFIX) : "", choice };
    this.#save();
    this.#onChange(entry.itemId);
    if (way === "post") void this.#sendByPost(entry, entry.flight);
    else this.#client.send({ event_id: entry.flight.eventId, ...asEvent(entry, choice) });
  }

  /** @param {Entry} entry @param {NonNullable<Entry["flight"]>} flight */
  async #sendByPost(entry, flight) {
    const { itemId, sessionId, saved } = entry;
    const { choice } = flight;
    const reply =
      choice.rating === null
        ? await this.#post.withdraw(sessionId, itemId, saved?.id ?? "", choice.atMs)
        : await this.#post.save(sessionId, itemId, asFeedback(choice));
    // The socket may have told of it before, and another choice be on its way.
    if (entry.flight !== flight) return;
    if (reply.status === "kept") this.#answered(entry, reply.feedback && asSaved(reply.feedback));
    else if (reply.status === "refused") this.#refused(entry, reply.message);
    else this.#delay(entry);
  }

  /** The server has nothing against it, but cannot take it now. @param {Entry} entry */
  #delay(entry) {
    entry.flight = null;
    entry.isDelayed = true;
    this.#backoff.hesitate();
    this.#retry ??= setTimeout(() => this.#tryAgain(), this.#backoff.next());
    this.#onChange(entry.itemId);
  }

  #tryAgain() {
    this.#retry = undefined;
    for (const entry of this.#entries.values()) {
      entry.isDelayed = false;
      this.#goOn(entry);
    }
  }

  // From the server

  /** @param {ServerEvent} event */
  #receive(event) {
    switch (event.type) {
      case "session.created":
        return this.#greeted(event.session.id, event.session.resumption?.gap === true);
      case "avatar.feedback.created":
        return this.#told(event.feedback.item_id, asSaved(event.feedback));
      case "avatar.feedback.deleted":
        return this.#told(event.item_id, null);
      case "error":
        return this.#complained(event.error);
    }
  }

  /** @param {string} sessionId @param {boolean} isGap */
  #greeted(sessionId, isGap) {
    // All ratings of the conversation will be told, so those that are not are no more; but one that is to be withdrawn may be in the
    // tables alone, and is known by its id there.
    if (isGap || !this.#sessionId) for (const entry of this.#of(sessionId)) if (entry.wanted?.rating !== null) entry.saved = null;
    this.#sessionId = sessionId;
  }

  /** @param {boolean} isLive */
  #noteConnection(isLive) {
    for (const entry of this.#of(this.#sessionId)) {
      if (entry.flight?.eventId) entry.flight = null;
      // All that was missed has come: what of a choice had arrived has been told.
      if (isLive) entry.unsure = null;
      this.#onChange(entry.itemId);
    }
  }

  /** What holds for that answer now. @param {string} itemId @param {Saved | null} saved */
  #told(itemId, saved) {
    const entry = this.#entry(itemId, this.#sessionId);
    const { flight } = entry;
    // Someone else's choice may come first; one that is later than ours is the answer to ours.
    const isAnswer = flight && (areSame(flight.choice, saved) || !saved || saved.atMs >= flight.choice.atMs);
    if (isAnswer) return this.#answered(entry, saved);
    entry.saved = saved;
    entry.wasWithdrawn = false;
    this.#onChange(itemId);
  }

  /** @param {Entry} entry @param {Saved | null} saved */
  #answered(entry, saved) {
    entry.saved = saved;
    entry.wasWithdrawn = !saved;
    this.#backoff.reset();
    this.#landed(entry);
  }

  /** @param {WireError} error */
  #complained({ event_id: eventId, code, type, message }) {
    const entry = [...this.#entries.values()].find(({ flight }) => flight && flight.eventId === eventId);
    if (!entry?.flight || !eventId) return;
    // Given past the socket, perhaps, whose conversation was not told of it: only the tables know.
    if (code === UNKNOWN_RATING) {
      entry.flight.eventId = "";
      return void this.#sendByPost(entry, entry.flight);
    }
    if (type !== "invalid_request_error") return this.#delay(entry);
    if (code !== UNKNOWN_ITEM) return this.#refused(entry, message || code || "");
    entry.isUnknown = true;
    entry.flight = null;
    this.#goOn(entry);
  }

  /** @param {Entry} entry @param {string} why */
  #refused(entry, why) {
    if (entry.wanted === entry.flight?.choice) entry.complaint = why || "The server refused it.";
    this.#landed(entry);
  }

  /** What was on its way has been answered. @param {Entry} entry */
  #landed(entry) {
    if (entry.wanted === entry.flight?.choice) entry.wanted = null;
    entry.flight = entry.unsure = null;
    this.#save();
    this.#goOn(entry);
    this.#onChange(entry.itemId);
  }

  // What there is

  /** @param {string} itemId @param {string} sessionId */
  #entry(itemId, sessionId) {
    const known = this.#entries.get(itemId);
    if (known) return known;
    const empty = { saved: null, wanted: null, unsure: null, flight: null, complaint: "" };
    const entry = { itemId, sessionId, ...empty, isUnknown: false, isDelayed: false, wasWithdrawn: false };
    this.#entries.set(itemId, entry);
    return entry;
  }

  /** @param {string} sessionId */
  #of(sessionId) {
    return [...this.#entries.values()].filter((entry) => entry.sessionId === sessionId);
  }

  #save() {
    const left = [...this.#entries.values()].filter(({ wanted }) => wanted);
    const kept = left.map(({ itemId, sessionId, saved, wanted, unsure }) => ({ itemId, sessionId, saved, wanted, unsure }));
    this.#tab.keep(KEY, kept.length > 0 ? kept : undefined);
  }
}

/** @param {Choice} choice */
function asFeedback({ rating, reason, comment, atMs }) {
  return { rating, ...(reason && { reason }), ...(comment && { comment }), rated_at_ms: atMs };
}

/** @param {Entry} entry @param {Choice} choice */
function asEvent({ itemId, saved }, choice) {
  if (choice.rating === null) return { type: "avatar.feedback.delete", feedback_id: saved?.id, rated_at_ms: choice.atMs };
  return { type: "avatar.feedback.create", item_id: itemId, feedback: asFeedback(choice) };
}

/** @param {WireFeedback} feedback @returns {Saved | null} */
function asSaved({ id, rating, reason, comment, rated_at_ms: atMs }) {
  return rating && { id, rating, reason: reason ?? null, comment: comment ?? null, atMs: atMs ?? 0 };
}
