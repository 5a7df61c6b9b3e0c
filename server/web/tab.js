/** What this tab remembers over a reload, as far as the browser lets it: full or forbidden storage only means a shorter memory. */

export class TabMemory {
  /** What was kept under `key`; undefined if nothing. @param {string} key @returns {any} */
  recall(key) {
    try {
      return JSON.parse(sessionStorage.getItem(key) ?? "") ?? undefined;
    } catch {
      return undefined;
    }
  }

  /** @param {string} key @param {unknown} value undefined: nothing */
  keep(key, value) {
    try {
      if (value === undefined) sessionStorage.removeItem(key);
      else sessionStorage.setItem(key, JSON.stringify(value));
    } catch {
      // It is kept in this page's objects still.
    }
  }
}
