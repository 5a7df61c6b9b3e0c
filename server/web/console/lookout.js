/**
 * Looks again for what was not there yet: soon, then ever less often, until nothing is missing or it was looked for often enough; says so
 * meanwhile. Knows nothing of what is missing.
 */

import { Refusal } from "./api.js";
import { h } from "./dom.js";

// The writer stores an answer a little after its last event.
const LOOK_AFTER_MS = [2000, 3000, 5000, 10_000, 20_000, 40_000, 60_000, 60_000];
const MISSING = "Not all of this session is stored yet; its answers appear here a little later.";
const GIVEN_UP = "Not all of this session is here even now. ";

export class Lookout {
  #look;
  /** How often since there was a reason to. */ #numLooks = 0;
  #isLooking = false;
  #isClosed = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #waiting;
  node = h("div", { class: "lookout fine", role: "status", tabindex: -1 });

  /** @param {() => Promise<boolean>} look false: something is still missing */
  constructor(look) {
    this.#look = look;
  }

  /** Something is missing from now on, as one may expect. */
  wake() {
    const isSoon = this.#waiting !== undefined && this.#numLooks === 0;
    this.#numLooks = 0;
    if (!isSoon && !this.#isLooking) this.#wait();
  }

  /** The same, which nobody expects. */
  warn() {
    this.#tell(MISSING);
    this.wake();
  }

  close() {
    this.#isClosed = true;
    clearTimeout(this.#waiting);
  }

  #wait() {
    clearTimeout(this.#waiting);
    const ms = LOOK_AFTER_MS[this.#numLooks];
    if (ms === undefined) this.#giveUp();
    else this.#waiting = setTimeout(() => void this.#go(), ms);
  }

  async #go() {
    this.#waiting = undefined;
    this.#isLooking = true;
    this.#numLooks += 1;
    let isAllThere = false;
    let text = MISSING;
    try {
      isAllThere = await this.#look();
    } catch (error) {
      text = `What is new cannot be shown: ${error instanceof Refusal ? error.message : "this page met an error."} It is tried again.`;
    }
    this.#isLooking = false;
    if (this.#isClosed) return;
    if (isAllThere) text = this.node === document.activeElement ? "All of it is here now." : "";
    this.#tell(text);
    if (!isAllThere || this.#numLooks === 0) this.#wait();
  }

  #giveUp() {
    this.#tell(GIVEN_UP, h("button", { type: "button", class: "again", onclick: () => this.#again() }, "Look again"));
  }

  #again() {
    this.#numLooks = 0;
    this.#tell(MISSING);
    // The button that had the focus is gone.
    this.node.focus();
    void this.#go();
  }

  /** @param {string} text @param {HTMLElement[]} more */
  #tell(text, ...more) {
    if (this.node.textContent !== text || more.length > 0) this.node.replaceChildren(text, ...more);
  }
}
