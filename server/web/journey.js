/**
 * Where this tab is in its conversation: which one it is, and up to where its events were seen. Knows how the protocol resumes;
 * has no socket. The id outlives a reload of the tab; what was said does not need to, since the server gives it again.
 */

/** @typedef {import("./realtime.js").ServerEvent} ServerEvent */
/** @typedef {import("./tab.js").TabMemory} TabMemory */

const KEY = "flueman.conversation";
const RADIX = 36;

/** Ids that no other load of the page will give. @param {string} prefix */
export function newId(prefix) {
  return prefix + crypto.getRandomValues(new Uint32Array(4)).reduce((id, part) => id + part.toString(RADIX), "");
}

export class Journey {
  #tab;
  #conversationId;
  #lastSequence = 0;
  #helloId = "";
  #isResumable;
  #isGreeted = false;
  #isRebuilding = false;

  /** @param {TabMemory} tab */
  constructor(tab) {
    this.#tab = tab;
    this.#conversationId = String(tab.recall(KEY) ?? "");
    this.#isResumable = this.#conversationId !== "";
  }

  /** A new connection begins; what its address must say to go on where the last one ended. @returns {Record<string, string>} */
  depart() {
    this.#isGreeted = this.#isRebuilding = false;
    if (!this.#isResumable) return {};
    return { conversation_id: this.#conversationId, starting_after: String(this.#lastSequence) };
  }

  /** The conversation is gone: the next connection begins another. */
  forget() {
    this.#conversationId = "";
    this.#isResumable = false;
    this.#lastSequence = 0;
    this.#tab.keep(KEY, undefined);
  }

  /** The first thing to say on a connection. Its answer comes after all that was missed, and so tells that it has come. */
  hello() {
    this.#helloId = newId("page_");
    return {
      type: "session.update",
      event_id: this.#helloId,
      session: {
        type: "realtime",
        output_modalities: ["text"],
        resumption: { enabled: true },
        // Asks for no more than to be told of ratings that were given elsewhere.
        avatar: {},
        // Echoed by session.updated, which has no other way to say what it answers; one of an earlier connection may be missed too.
        tracing: { group_id: this.#helloId },
      },
    };
  }

  /** True unless the event was seen before. Called once with each event, in the order they come. @param {ServerEvent} event */
  accept(event) {
    if (!this.#isGreeted) {
      this.#isGreeted = true;
      if (event.type === "session.created") this.#greeted(event.session, event.sequence_number);
      return true;
    }
    // Across a gap the numbers go back: to the last one with every item, then to the beginning of the answer in progress.
    // They count only once all has come: a connection lost before that must find the gap again.
    if (!this.#isRebuilding && event.sequence_number !== undefined) {
      if (event.sequence_number <= this.#lastSequence) return false;
      this.#lastSequence = event.sequence_number;
    }
    return true;
  }

  /** Whether the event answers `hello`: all that was missed has come. @param {ServerEvent} event */
  arrives(event) {
    // Refused: then it stays a conversation that ends with its connection.
    if (event.type === "error" && event.error.event_id === this.#helloId) return true;
    if (event.type !== "session.updated" || event.session.tracing?.group_id !== this.#helloId) return false;
    this.#isRebuilding = false;
    this.#lastSequence = event.sequence_number ?? this.#lastSequence;
    this.#isResumable = true;
    this.#tab.keep(KEY, this.#conversationId);
    return true;
  }

  /** @param {import("./realtime.js").WireSession} session @param {number | undefined} sequence */
  #greeted({ id, resumption }, sequence) {
    const conversationId = id.replace(/^sess_/, "conv_");
    this.#isRebuilding = resumption?.gap === true;
    if (conversationId === this.#conversationId) return;
    this.#conversationId = conversationId;
    // The first event of a session is its number 1, though nobody has asked for numbers yet.
    this.#lastSequence = sequence ?? 1;
  }
}
