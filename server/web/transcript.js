/**
 * The conversation as it reads on the page. Writes text nodes only. What a screen reader hears is cut into sentences: words
 * still arriving sit in a hidden tail, and move to the readable text when their sentence is complete.
 */

/** @typedef {import("./conversation.js").Answer} Answer */
/** @typedef {import("./conversation.js").Pace} Pace */

const SHORTEST_CHUNK = 48;
const LONGEST_CHUNK = 240;
const SENTENCE_END = /[.!?…:;](?=\s)|[。！？]|\n/g;
const NEAR_END_PX = 80;

/** How many characters at the start of `tail` make a chunk worth announcing; 0 if none yet. @param {string} tail */
export function announceable(tail) {
  if (tail.length < SHORTEST_CHUNK) return 0;
  let end = 0;
  for (const match of tail.matchAll(SENTENCE_END)) end = match.index + match[0].length;
  if (end >= SHORTEST_CHUNK) return end;
  return tail.length > LONGEST_CHUNK ? tail.lastIndexOf(" ") + 1 : 0;
}

/** @param {string} tag @param {string} className @param {string} text */
function element(tag, className, text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

/** The pace in words, for reading: "First token 212 ms · 48 tokens/s · 120 tokens". @param {Pace} pace */
function paceInWords({ firstTokenMs, tokensPerS, numTokens }) {
  const parts = [];
  if (firstTokenMs !== null) parts.push(`First token ${formatMs(firstTokenMs)}`);
  if (tokensPerS !== null) parts.push(formatRate(tokensPerS));
  if (numTokens > 0) parts.push(numTokens === 1 ? "1 token" : `${numTokens} tokens`);
  return parts.join(" · ");
}

/** @param {number} ms */
export function formatMs(ms) {
  return ms < 10_000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

/** @param {number} tokensPerS */
export function formatRate(tokensPerS) {
  return `${tokensPerS < 10 ? tokensPerS.toFixed(1) : Math.round(tokensPerS)} tokens/s`;
}

/** What became of an answer, for a person; empty when it simply ended. @param {Answer} answer */
function outcome(answer) {
  switch (answer.status) {
    case "cancelled":
      return answer.isSuperseded ? "Interrupted by your next message." : "You stopped this answer.";
    case "incomplete":
      if (answer.detail === "max_output_tokens") return "Cut short: the answer reached its length limit.";
      if (answer.detail === "content_filter") return "Cut short by the content filter.";
      return "Cut short.";
    case "failed":
      return `This answer failed. ${answer.detail}`.trim();
    case "interrupted":
      if (answer.detail === "never_sent") return "The connection was lost before your message was sent.";
      return answer.firstTokenAtMs
        ? "The connection was lost here. The rest of this answer did not arrive."
        : "The connection was lost before an answer arrived.";
    default:
      return "";
  }
}

export class Transcript {
  #log;
  #latest;
  #onRetry;
  #isFollowing = true;
  /** @type {{ article: HTMLElement, body: HTMLElement, tail: HTMLElement, meta: HTMLElement } | null} */ #open = null;

  /** @param {HTMLElement} log @param {HTMLElement} latest the button that jumps to the end @param {(answer: Answer) => void} onRetry */
  constructor(log, latest, onRetry) {
    this.#log = log;
    this.#latest = latest;
    this.#onRetry = onRetry;
    log.addEventListener("scroll", () => this.#noteScroll(), { passive: true });
    latest.addEventListener("click", () => {
      this.follow();
      log.focus({ preventScroll: true });
    });
    new ResizeObserver(() => this.#keepUp()).observe(log);
  }

  /** @param {string} text */
  ask(text) {
    const article = this.#message("question", "You");
    article.append(this.#words(text));
    this.follow();
  }

  begin() {
    for (const stale of this.#log.querySelectorAll(".again")) stale.remove();
    const article = this.#message("answer", "Flueman");
    const body = this.#words("");
    const tail = element("span", "tail");
    tail.setAttribute("aria-hidden", "true");
    body.append(tail);
    const meta = element("footer", "meta");
    meta.setAttribute("aria-live", "off");
    article.dataset["status"] = "waiting";
    article.append(body, meta);
    this.#open = { article, body, tail, meta };
    this.#keepUp();
  }

  /** @param {string} delta */
  stream(delta) {
    if (!this.#open) return;
    const { article, tail } = this.#open;
    article.dataset["status"] = "streaming";
    tail.append(delta);
    tail.normalize();
    this.#settle(announceable(tail.textContent ?? ""));
    this.#keepUp();
  }

  /** @param {Answer} answer @param {Pace} pace */
  end(answer, pace) {
    if (!this.#open) return;
    const { article, tail, meta } = this.#open;
    this.#settle(tail.textContent?.length ?? 0);
    tail.remove();
    article.dataset["status"] = answer.status;
    const what = outcome(answer);
    if (what) article.insertBefore(element("p", "outcome", what), meta);
    meta.textContent = paceInWords(pace);
    if (answer.status === "failed" || answer.status === "interrupted") this.#offerRetry(article, answer);
    this.#open = null;
    this.#keepUp();
  }

  /** A line across the log: what is below starts without knowing what is above. */
  divide() {
    const divider = element("div", "divider");
    divider.append(element("p", "", "New conversation"), element("p", "why", "What was said above is no longer remembered."));
    this.#log.append(divider);
    this.#keepUp();
  }

  /** Scrolls to the end, and stays there as more arrives. */
  follow() {
    this.#isFollowing = true;
    this.#keepUp();
  }

  /** @param {string} kind @param {string} speaker */
  #message(kind, speaker) {
    const article = element("article", `message ${kind}`);
    article.append(element("h2", "unseen", speaker));
    this.#log.append(article);
    return article;
  }

  /** @param {string} text */
  #words(text) {
    const words = element("p", "words", text);
    words.dir = "auto";
    return words;
  }

  /** Moves the first `length` characters of the tail to the readable text. @param {number} length */
  #settle(length) {
    if (!this.#open || length === 0) return;
    const { body, tail } = this.#open;
    const text = tail.textContent ?? "";
    body.insertBefore(element("span", "", text.slice(0, length)), tail);
    tail.textContent = text.slice(length);
  }

  /** @param {HTMLElement} article @param {Answer} answer */
  #offerRetry(article, answer) {
    const again = /** @type {HTMLButtonElement} */ (element("button", "again", "Ask again"));
    again.type = "button";
    again.addEventListener("click", () => this.#onRetry(answer));
    article.append(again);
  }

  #noteScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.#log;
    this.#isFollowing = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    this.#latest.hidden = this.#isFollowing;
  }

  #keepUp() {
    if (this.#isFollowing) this.#log.scrollTop = this.#log.scrollHeight;
    else this.#latest.hidden = false;
  }
}
