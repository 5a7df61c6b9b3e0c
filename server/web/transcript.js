/**
 * The conversation as it reads on the page. Writes text nodes only. What a screen reader hears is cut into sentences: words
 * still arriving sit in a hidden tail, and move to the readable text when their sentence is complete.
 */

import { element, textButton } from "./elements.js";

/** @import { Answer, Pace } from "./answer.js" */

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
      if (answer.isSuperseded) return "Interrupted by your next message.";
      return answer.isStopping ? "You stopped this answer." : "This answer was stopped.";
    case "incomplete":
      if (answer.detail === "max_output_tokens") return "Cut short: the answer reached its length limit.";
      if (answer.detail === "content_filter") return "Cut short by the content filter.";
      return "Cut short.";
    case "failed":
      return `This answer failed. ${answer.detail}`.trim();
    case "interrupted":
      return "This conversation was lost here. The rest of this answer did not arrive.";
    default:
      return "";
  }
}

/** @typedef {{ article: HTMLElement, body: HTMLElement, tail: HTMLElement, foot: HTMLElement, meta: HTMLElement }} Bubble */

export class Transcript {
  #log;
  #latest;
  #onRetry;
  #isFollowing = true;
  #isScrolling = false;
  /** Where the log stood when that was last looked at, and where it would have ended. */
  #top = 0;
  #end = 0;
  /** @type {Map<string, HTMLElement>} */ #questions = new Map();
  /** @type {WeakMap<Answer, Bubble>} */ #bubbles = new WeakMap();

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

  get isEmpty() {
    return this.#log.querySelector(".message") === null;
  }

  /** While many come at once, a screen reader is spared the reading. @param {boolean} isBusy */
  set isBusy(isBusy) {
    this.#log.setAttribute("aria-busy", String(isBusy));
  }

  /** A message of the person's; what is pending stays below all that is not. @param {string} id @param {string} text @param {boolean} isPending */
  ask(id, text, isPending) {
    const article = this.#questions.get(id) ?? this.#question(id, text);
    if (!isPending) article.querySelector(".waiting")?.remove();
    this.#place(article, isPending);
    if (isPending) this.follow();
  }

  /** An answer's bubble: pending, until it has a response. @param {Answer} answer */
  begin(answer) {
    const bubble = this.#bubbles.get(answer) ?? this.#bubble(answer);
    this.#place(bubble.article, answer.responseId === "");
    this.#keepUp();
  }

  /** @param {Answer} answer @param {string} delta */
  stream(answer, delta) {
    const bubble = this.#bubbles.get(answer);
    if (!bubble) return;
    bubble.article.dataset["status"] = "streaming";
    bubble.tail.append(delta);
    bubble.tail.normalize();
    settle(bubble, announceable(bubble.tail.textContent ?? ""));
    this.#keepUp();
  }

  /** The place under an answer. @param {Answer} answer */
  foot(answer) {
    return this.#bubbles.get(answer)?.foot;
  }

  /** @param {Answer} answer @param {Pace} pace */
  end(answer, pace) {
    const bubble = this.#bubbles.get(answer);
    if (!bubble) return;
    const { article, tail, foot, meta } = bubble;
    settle(bubble, tail.textContent?.length ?? 0);
    tail.remove();
    article.dataset["status"] = answer.status;
    this.#place(article, false);
    const what = outcome(answer);
    if (what) article.insertBefore(element("p", "outcome", what), foot);
    meta.textContent = paceInWords(pace);
    if (deservesRetry(answer)) this.#offerRetry(article, answer);
    this.#keepUp();
  }

  /** Leaves only the first `numUnits` of an answer's text. @param {Answer} answer @param {number} numUnits */
  cut(answer, numUnits) {
    const bubble = this.#bubbles.get(answer);
    const text = bubble?.body.textContent ?? "";
    if (bubble && text.length > numUnits) bubble.body.replaceChildren(element("span", "", text.slice(0, numUnits)));
    this.#keepUp();
  }

  /** Takes an answer's bubble away. @param {Answer} answer */
  withdraw(answer) {
    this.#bubbles.get(answer)?.article.remove();
    this.#bubbles.delete(answer);
    this.#keepUp();
  }

  /** A line across the log: what is below starts without knowing what is above. */
  divide() {
    const divider = element("div", "divider");
    divider.append(element("p", "", "New conversation"), element("p", "why", "What was said above is no longer remembered."));
    for (const message of this.#log.querySelectorAll(".message:not([data-pending])")) message.classList.add("earlier");
    this.#log.append(divider);
    this.#keepUp();
  }

  /** Clears what the server will now give anew, and says that it may not be all. */
  rebuild() {
    for (const node of this.#log.querySelectorAll(".gap, .message:not(.earlier, [data-pending])")) node.remove();
    for (const [id, article] of this.#questions) if (!article.isConnected) this.#questions.delete(id);
    const gap = element("p", "gap", "Something may be missing here: this is what Flueman still remembers of the conversation.");
    this.#log.insertBefore(gap, this.#firstPending());
    this.#keepUp();
  }

  /** Scrolls to the end, and stays there as more arrives. */
  follow() {
    this.#isFollowing = true;
    this.#keepUp();
  }

  /** @param {string} id @param {string} text */
  #question(id, text) {
    const article = message("question", "You");
    article.append(words(text), element("p", "waiting", "Waiting for the connection"));
    this.#questions.set(id, article);
    return article;
  }

  /** @param {Answer} answer */
  #bubble(answer) {
    for (const stale of this.#log.querySelectorAll(".again")) stale.remove();
    const article = message("answer", "Flueman");
    const body = words("");
    const tail = element("span", "tail");
    tail.setAttribute("aria-hidden", "true");
    body.append(tail);
    const foot = element("footer", "foot");
    const meta = element("p", "meta");
    foot.setAttribute("aria-live", "off");
    foot.append(meta);
    article.dataset["status"] = "waiting";
    article.append(body, foot);
    const bubble = { article, body, tail, foot, meta };
    this.#bubbles.set(answer, bubble);
    return bubble;
  }

  /** @returns {HTMLElement | null} */
  #firstPending() {
    return this.#log.querySelector("[data-pending]");
  }

  /** @param {HTMLElement} article @param {boolean} isPending */
  #place(article, isPending) {
    article.toggleAttribute("data-pending", isPending);
    if (isPending) {
      article.classList.remove("earlier");
      if (article !== this.#log.lastElementChild) this.#log.append(article);
      return;
    }
    // What was pending stays where it is: inserted again, it would be read aloud again.
    if (!article.isConnected) this.#log.insertBefore(article, this.#firstPending());
  }

  /** @param {HTMLElement} article @param {Answer} answer */
  #offerRetry(article, answer) {
    const again = textButton("again", "Ask again");
    again.addEventListener("click", () => this.#onRetry(answer));
    article.append(again);
  }

  /** Told a frame late: the end may have moved away since. Who goes up leaves it, unless it is what shrank, or a box that grew, that did. */
  #noteScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.#log;
    const end = scrollHeight - clientHeight;
    if (scrollTop < this.#top - 1 && end >= this.#end) this.#isFollowing = false;
    else if (end - scrollTop < NEAR_END_PX) this.#isFollowing = true;
    this.#top = Math.min(scrollTop, end);
    this.#end = end;
    this.#latest.hidden = this.#isFollowing;
  }

  /** At most once a frame: a whole conversation may come in one go. */
  #keepUp() {
    if (this.#isScrolling) return;
    this.#isScrolling = true;
    requestAnimationFrame(() => {
      this.#isScrolling = false;
      if (!this.#isFollowing) {
        this.#latest.hidden = false;
        return;
      }
      this.#log.scrollTop = this.#log.scrollHeight;
      this.#top = this.#log.scrollTop;
      this.#end = this.#log.scrollHeight - this.#log.clientHeight;
    });
  }
}

/** @param {string} kind @param {string} speaker */
function message(kind, speaker) {
  const article = element("article", `message ${kind}`);
  article.append(element("h2", "unseen", speaker));
  return article;
}

/** @param {string} text */
function words(text) {
  const node = element("p", "words", text);
  node.dir = "auto";
  return node;
}

/** Moves the first `length` characters of the tail to the readable text. @param {Bubble} bubble @param {number} length */
function settle({ body, tail }, length) {
  if (length === 0) return;
  const text = tail.textContent ?? "";
  body.insertBefore(element("span", "", text.slice(0, length)), tail);
  tail.textContent = text.slice(length);
}

/** Whether the person did not get the answer, and did not want it so. @param {Answer} answer */
function deservesRetry({ status, isStopping }) {
  return status === "failed" || status === "interrupted" || (status === "cancelled" && !isStopping);
}
