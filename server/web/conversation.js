/**
 * What was said and what is being answered, over one `RealtimeClient`, through any number of connections: every message reaches
 * the dialogue once, and an answer goes on where it was. Knows the protocol's events and a clock; knows nothing of the page.
 *
 * @typedef {object} Listeners
 * @property {(id: string, text: string, isPending: boolean) => void} asked  a message of the person's; again once it is no longer pending
 * @property {(answer: Answer) => void} began      asked for, and again when the server has begun it
 * @property {(answer: Answer, delta: string) => void} streamed
 * @property {(answer: Answer) => void} ended
 * @property {(answer: Answer) => void} withdrawn  it will be asked for anew
 * @property {(answer: Answer, numUnits: number) => void} cut  the dialogue keeps only so much of it
 * @property {(message: string) => void} noticed
 * @property {(text: string) => void} returned     it was said, and has nowhere to go
 * @property {() => void} rebuilt     what is not pending is given anew, and something may be missing
 * @property {() => void} restarted   a new, empty dialogue has taken the place of one that is gone
 */

import { lengthen, newAnswer, startItem } from "./answer.js";
import { inWords, isExpected } from "./errors.js";
import { newId } from "./journey.js";

/** @import { Answer, Said, Status } from "./answer.js" */
/** @import { Outbox } from "./outbox.js" */
/** @import { RealtimeClient, ServerEvent, WireError, WireItem, WireResponse, WireSession } from "./realtime.js" */

const PARAGRAPH = "\n\n";
const REQUEST = "request";
export class Conversation {
  #client;
  #outbox;
  #on;
  #now;
  #sessionId = "";
  #isLost = false;
  #numTurns = 0;
  /** Asked for, and not begun by the server yet. @type {Answer | null} */ #asked = null;
  /** What the server answers now. @type {Answer | null} */ #answer = null;
  /** @type {Map<string, Answer>} */ #byItem = new Map();
  /** Seen since the last answer began. @type {string[]} */ #questions = [];

  /** @param {RealtimeClient} client @param {Outbox} outbox @param {Listeners} listeners @param {() => number} now milliseconds */
  constructor(client, outbox, listeners, now = () => performance.now()) {
    this.#client = client;
    this.#outbox = outbox;
    this.#on = listeners;
    this.#now = now;
    client.on("event", (event) => this.#receive(event));
    client.on("lost", () => (this.#isLost = true));
    client.on("connection", ({ state }) => {
      if (state === "connected") this.#connected();
      else if (this.#asked) this.#asked.isSent = false;
    });
  }

  /** The answer being waited for or streamed, if any. */
  get answer() {
    return this.#answer ?? this.#asked;
  }

  get #isLive() {
    return this.#client.connection.state === "connected";
  }

  /** Says `text`: now, or once the answer still streaming has been stopped, or once the connection is back. @param {string} text */
  say(text) {
    const said = { id: newId("item_"), text, isAdded: false };
    this.#outbox.add(said);
    this.#on.asked(said.id, text, true);
    if (this.answer) this.#stop(this.answer, { isSuperseded: true });
    this.#goOn();
  }

  /** Stops the current answer; the dialogue remembers what is shown of it. */
  stop() {
    if (this.answer) this.#stop(this.answer, { isSuperseded: false });
  }

  /** Asks again for an answer that failed or was cut off. @param {Answer} answer */
  retry(answer) {
    if (this.answer || !this.#isLive) return;
    if (answer.sessionId !== this.#sessionId) this.say(answer.question);
    else this.#ask(answer.items.filter(({ isAdded }) => !isAdded), answer.question);
  }

  // To the server

  /** Sends what waits, in order, as far as the connection and the answer in progress allow. */
  #goOn() {
    if (!this.#isLive || this.#answer) return;
    if (this.#asked?.isStopping && !this.#asked.isSent) this.#end(this.#asked, "cancelled");
    if (this.#asked) return this.#request(this.#asked);
    const items = this.#outbox.take();
    if (items.length > 0) this.#ask(items, items.map(({ text }) => text).join(PARAGRAPH));
  }

  /** @param {Said[]} items @param {string} question */
  #ask(items, question) {
    this.#asked = this.#begin({ items, question, requestId: newId("page_"), askedAtMs: this.#now() });
    this.#request(this.#asked);
  }

  /** @param {Answer} answer */
  #request(answer) {
    if (answer.isSent) return;
    answer.isSent = true;
    this.#outbox.send(answer.items);
    const metadata = { [REQUEST]: answer.requestId };
    this.#client.send({ type: "response.create", event_id: answer.requestId, response: { metadata } });
  }

  /** All that was missed has come: what it did not show is sent again. */
  #connected() {
    if (this.#answer?.isStopping) this.#cancel(this.#answer);
    this.#outbox.resend();
    if (this.#outbox.recallLeft()) this.#showWaiting();
    this.#goOn();
  }

  /** @param {Answer} answer @param {{ isSuperseded: boolean }} why */
  #stop(answer, { isSuperseded }) {
    answer.isSuperseded ||= isSuperseded;
    if (answer.isStopping) return;
    answer.isStopping = true;
    this.#cancel(answer);
    if (answer.itemId) this.#outbox.cut(answer);
  }

  /** @param {Answer} answer */
  #cancel(answer) {
    const target = answer.responseId ? { response_id: answer.responseId } : {};
    this.#client.send({ type: "response.cancel", event_id: newId("page_"), ...target });
  }

  /** @param {Partial<Answer>} known @returns {Answer} */
  #begin(known) {
    this.#numTurns += 1;
    this.#questions = [];
    const answer = newAnswer({ sessionId: this.#sessionId, isTimed: this.#isLive, ...known });
    this.#on.began(answer);
    return answer;
  }

  /** @param {Answer} answer @param {Status} status @param {string} detail */
  #end(answer, status, detail = "") {
    if (answer === this.#answer) this.#answer = null;
    if (answer === this.#asked) this.#asked = null;
    answer.status = status;
    answer.detail = detail;
    this.#on.ended(answer);
  }

  // From the server

  /** @param {ServerEvent} event */
  #receive(event) {
    switch (event.type) {
      case "session.created":
        return this.#greeted(event.session);
      case "conversation.item.added":
        return this.#added(event.item);
      case "response.created":
        return this.#began(event.response);
      case "response.output_text.delta":
        return this.#streamed(event.response_id, event.item_id, event.delta);
      case "response.done":
        return this.#done(event.response);
      case "avatar.item.truncated":
        return this.#truncated(event.item_id, event.char_end);
      case "error":
        return this.#refused(event.error);
    }
  }

  /** @param {WireSession} session */
  #greeted({ id, resumption }) {
    const isAnother = id !== this.#sessionId;
    this.#sessionId = id;
    if (isAnother && (this.#isLost || this.#numTurns > 0)) this.#startOver();
    else if (resumption?.gap) this.#rebuild();
    this.#isLost = false;
  }

  /** The old dialogue ends here; what it was not seen to have begun to answer is said in the new one. */
  #startOver() {
    if (this.#answer) this.#end(this.#answer, "interrupted", "conversation_lost");
    const asked = this.#asked;
    const isWanted = asked !== null && (!asked.isStopping || asked.isSuperseded);
    if (asked && isWanted) this.#on.withdrawn(asked);
    else if (asked) this.#end(asked, "cancelled");
    this.#asked = null;
    this.#numTurns = 0;
    this.#byItem.clear();
    this.#on.restarted();
    this.#outbox.startOver(asked && isWanted ? asked.items : []);
    this.#showWaiting();
    const left = this.#outbox.takeLeft();
    // Said by whoever sat here before the page was loaded again, to a dialogue that is no more: the person decides.
    if (left.length > 0) this.#on.returned(left.map(({ text }) => text).join(PARAGRAPH));
  }

  #showWaiting() {
    for (const { id, text } of this.#outbox.waiting) this.#on.asked(id, text, true);
  }

  #rebuild() {
    for (const said of this.#asked?.items ?? []) said.isAdded = false;
    this.#answer = null;
    this.#byItem.clear();
    this.#on.rebuilt();
  }

  /** @param {WireItem} item */
  #added({ id, type, role, status, content }) {
    if (type !== "message") return;
    const text = (content ?? []).map((part) => part.text ?? "").join("");
    if (role === "user") {
      this.#outbox.wasAdded(id);
      for (const said of this.#asked?.items ?? []) said.isAdded ||= said.id === id;
      this.#questions.push(text);
      this.#on.asked(id, text, false);
    } else if (role === "assistant" && status !== "in_progress" && text) {
      this.#recall(id, text, status === "completed" ? "completed" : "incomplete");
    }
  }

  /** An answer that is known by its item only. @param {string} itemId @param {string} text @param {Status} status */
  #recall(itemId, text, status) {
    const asked = this.#asked;
    if (asked && asked.items.length > 0 && asked.items.every(({ isAdded }) => isAdded)) {
      this.#asked = null; // this is its answer
      this.#on.withdrawn(asked);
    }
    const answer = this.#begin({ question: this.#questions.join(PARAGRAPH), responseId: itemId, itemId });
    this.#byItem.set(itemId, answer);
    this.#on.streamed(answer, text);
    this.#end(answer, status);
  }

  /** @param {WireResponse} response */
  #began({ id, conversation_id: conversationId, metadata }) {
    if (conversationId === null) return;
    const requestId = metadata?.[REQUEST] ?? "";
    if (this.#asked && this.#asked.requestId === requestId) {
      this.#answer = this.#asked;
      this.#asked = null;
      this.#answer.responseId = id;
      this.#questions = [];
      this.#on.began(this.#answer);
    } else {
      this.#answer = this.#begin({ question: this.#questions.join(PARAGRAPH), requestId, responseId: id });
    }
  }

  /** @param {string} responseId @param {string} itemId @param {string} delta */
  #streamed(responseId, itemId, delta) {
    const answer = this.#answer;
    if (!answer || answer.responseId !== responseId) return;
    if (answer.itemId !== itemId) {
      startItem(answer, itemId);
      this.#byItem.set(itemId, answer);
    }
    if (answer.isStopping) {
      answer.hasUnheard = true;
      return;
    }
    if (!this.#isLive) answer.isTimed = false;
    lengthen(answer, delta, this.#now());
    this.#on.streamed(answer, delta);
  }

  /** @param {WireResponse} response */
  #done({ id, status, status_details: details, usage }) {
    const answer = this.#answer;
    if (!answer || answer.responseId !== id || status === "in_progress") return;
    answer.numTokens = usage?.output_tokens ?? 0;
    if (answer.hasUnheard) this.#outbox.cut(answer);
    const detail = details?.error?.message || details?.error?.code || details?.reason || "";
    this.#end(answer, answer.hasUnheard ? "cancelled" : status, detail);
    this.#goOn();
  }

  /** @param {string} itemId @param {number} charEnd */
  #truncated(itemId, charEnd) {
    this.#outbox.wasCut(itemId);
    const answer = this.#byItem.get(itemId);
    if (answer?.itemId === itemId) this.#on.cut(answer, answer.itemStart + charEnd);
  }

  /** @param {WireError} error */
  #refused(error) {
    this.#outbox.wasRefused(error);
    if (isExpected(error)) return;
    if (this.#asked && error.event_id === this.#asked.requestId) {
      this.#end(this.#asked, "failed", inWords(error));
      this.#goOn();
    } else if (this.#isLive) {
      this.#on.noticed(inWords(error));
    }
  }
}
