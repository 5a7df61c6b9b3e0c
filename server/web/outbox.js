/**
 * What the person said or did that the server is not yet known to have: kept until its events show it, sent again after each
 * reconnect. Sending twice is harmless: a message has an id, and a cut is the same cut. Messages outlive a reload of the tab.
 */

import { newId } from "./journey.js";

/** @typedef {import("./answer.js").Answer} Answer */
/** @typedef {import("./answer.js").Said} Said */
/** @typedef {import("./realtime.js").RealtimeClient} RealtimeClient */
/** @typedef {import("./realtime.js").WireError} WireError */
/** @typedef {import("./tab.js").TabMemory} TabMemory */

const KEY = "flueman.unsent";
const DUPLICATE = "item_create_duplicate_item_id";

const encoder = new TextEncoder();

/** @param {{ id: string, text: string }} said */
function userMessage({ id, text }) {
  const item = { id, type: "message", role: "user", content: [{ type: "input_text", text }] };
  return { type: "conversation.item.create", event_id: id, item };
}

/** Bytes that `text` takes on the wire as one message, envelope and escapes included. @param {string} text */
export function messageBytes(text) {
  return encoder.encode(JSON.stringify(userMessage({ id: newId("item_"), text }))).length;
}

export class Outbox {
  #client;
  #tab;
  /** Waiting for their turn. @type {Said[]} */ #waiting = [];
  /** Sent, and not seen in the conversation yet. @type {Map<string, Said>} */ #sent = new Map();
  /** What was heard of stopped answers, until the server has noted it. @type {Map<string, { type: string, event_id: string }>} */
  #cuts = new Map();
  /** Said before the page was loaded again. @type {Said[]} */ #left;

  /** @param {RealtimeClient} client @param {TabMemory} tab */
  constructor(client, tab) {
    this.#client = client;
    this.#tab = tab;
    this.#left = tab.recall(KEY) ?? [];
  }

  /** Messages that wait to be taken, in order. */
  get waiting() {
    return this.#waiting;
  }

  /** @param {Said} said */
  add(said) {
    this.#waiting.push(said);
    this.#save();
  }

  /** All that wait, to be sent now. */
  take() {
    return this.#waiting.splice(0);
  }

  /** What was said before a reload and has not been seen since; it waits no more. */
  takeLeft() {
    return this.#left.splice(0);
  }

  /** The same, to be said before all that waits. True if there is any. */
  recallLeft() {
    const left = this.takeLeft();
    this.#waiting.unshift(...left);
    return left.length > 0;
  }

  /** Sends each message that the server is not known to have and that is not on its way. @param {Said[]} items */
  send(items) {
    for (const said of items) {
      if (said.isAdded || this.#sent.has(said.id)) continue;
      this.#sent.set(said.id, said);
      this.#client.send(userMessage(said));
    }
    this.#save();
  }

  /** Tells the server to remember only what is shown of the answer's message. @param {Answer} answer */
  cut(answer) {
    if (answer.cutItemId === answer.itemId) return;
    answer.cutItemId = answer.itemId;
    const coordinates = { item_id: answer.itemId, content_index: 0, char_end: answer.numShown };
    const event = { type: "avatar.item.truncate", event_id: newId("page_"), ...coordinates };
    this.#cuts.set(answer.itemId, event);
    this.#client.send(event);
  }

  /** Sends again what no event has shown. */
  resend() {
    for (const said of this.#sent.values()) this.#client.send(userMessage(said));
    for (const event of this.#cuts.values()) this.#client.send(event);
  }

  /** The message is in the conversation. @param {string} id */
  wasAdded(id) {
    const said = this.#sent.get(id);
    if (said) said.isAdded = true;
    this.#sent.delete(id);
    this.#left = this.#left.filter((left) => left.id !== id);
    this.#save();
  }

  /** The answer's message is cut. @param {string} itemId */
  wasCut(itemId) {
    this.#cuts.delete(itemId);
  }

  /** The server answers with an error, perhaps to something of this box: then it is not sent again. @param {WireError} error */
  wasRefused({ event_id: eventId, code }) {
    if (code === DUPLICATE) this.wasAdded(eventId ?? "");
    this.#sent.delete(eventId ?? "");
    for (const [itemId, event] of this.#cuts) if (event.event_id === eventId) this.#cuts.delete(itemId);
    this.#save();
  }

  /** The conversation is gone. These messages, and those that wait, are for the next one. @param {Said[]} again */
  startOver(again) {
    this.#sent.clear();
    this.#cuts.clear();
    this.#waiting.unshift(...again);
    for (const said of this.#waiting) said.isAdded = false;
    this.#save();
  }

  #save() {
    const unknown = [...this.#left, ...this.#sent.values(), ...this.#waiting];
    this.#tab.keep(KEY, unknown.length > 0 ? unknown : undefined);
  }
}
