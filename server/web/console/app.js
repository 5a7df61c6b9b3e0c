/**
 * The console's frame: who is signed in, which page an address means, and where the focus goes when it changes. Each page is made by its
 * own module and knows nothing of the others.
 *
 * @typedef {object} Page
 * @property {string} title
 * @property {HTMLElement} node
 * @property {() => void} [leave]                 it is no longer shown
 * @property {(url: URL) => boolean} [accept]     shows another address itself; false: it cannot
 *
 * @typedef {object} House                        what a page is given
 * @property {import("./api.js").Api} api
 * @property {import("./account.js").Me} me
 * @property {(path: string) => void} go          to another address, as a link does
 * @property {(path: string) => void} rename      this page's address from now on
 * @property {(title: string) => void} entitle
 * @property {(text: string) => void} say         to those who do not see it
 * @property {Map<string, Draft>} drafts          what they typed and have not sent yet, by what it is for
 *
 * @typedef {{ text: string, rating?: "up" | "down" | null, reason?: string }} Draft
 */

import { Account } from "./account.js";
import { auditPage } from "./audit.js";
import { find, h } from "./dom.js";
import { findPage } from "./find.js";
import { overviewPage } from "./overview.js";
import { sessionPage } from "./session.js";
import { signInPage } from "./sign_in.js";
import { said } from "./text.js";

const ROOT = "/console";
const SESSION = /^\/console\/sessions\/([^/]+)$/;

const main = find("page", HTMLElement);
/** @type {Page | null} */
let page = null;
/** By whose they are: they outlive being signed out, and nobody else is given them. @type {Map<string, Map<string, Draft>>} */
const drafts = new Map();
const account = new Account(() => {
  // Nothing stays of what another was shown.
  page?.leave?.();
  page = null;
  show();
});

/** @param {URL} url @returns {Page} */
function pageOf(url) {
  const { api, me } = account;
  if (!api || !me) return signInPage(account);
  /** @type {House} */
  const house = { api, me, go, rename: (path) => history.replaceState(null, "", path), entitle, say, drafts: draftsOf(me.subject) };
  const path = url.pathname.replace(/\/+$/, "");
  const session = SESSION.exec(path)?.[1];
  if (path === ROOT || path === `${ROOT}/sessions`) return findPage(house, url);
  if (session) return sessionPage(house, decoded(session), url);
  if (path === `${ROOT}/overview`) return overviewPage(house, url);
  if (path === `${ROOT}/audit` && me.role === "admin") return auditPage(house, url);
  return nothingHere();
}

/** @param {string} subject */
function draftsOf(subject) {
  const own = drafts.get(subject) ?? new Map();
  drafts.set(subject, own);
  return own;
}

/** @param {string} part of an address */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** @returns {Page} */
function nothingHere() {
  const way = h("p", {}, "There is no such page, or it is not for you. ", h("a", { href: ROOT }, "Find a session"));
  return { title: "Not found", node: h("div", { class: "sheet" }, h("h1", { tabindex: -1 }, "Not found"), way) };
}

function show() {
  const url = new URL(location.href);
  showAccount(url);
  if (page?.accept?.(url)) return;
  page?.leave?.();
  page = pageOf(url);
  main.replaceChildren(page.node);
  entitle(page.title);
}

/** @param {URL} url */
function showAccount(url) {
  const { me } = account;
  find("places", HTMLElement).hidden = find("account", HTMLElement).hidden = me === null;
  find("audit-place", HTMLElement).hidden = me?.role !== "admin";
  find("who", HTMLElement).replaceChildren(said(me?.subject), h("span", { class: "role" }, me?.role ?? ""));
  for (const link of document.querySelectorAll("#places a")) {
    const path = new URL(/** @type {HTMLAnchorElement} */ (link).href).pathname;
    const isHere = path === url.pathname || (path === ROOT && url.pathname.startsWith(`${ROOT}/sessions`));
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

/** @param {string} path */
function go(path) {
  history.pushState(null, "", path);
  arrive();
  scrollTo(0, 0);
}

/** Shows the address there is now; whoever reads by ear starts at its heading. */
function arrive() {
  const before = page;
  show();
  if (page !== before) main.querySelector("h1")?.focus({ preventScroll: true });
}

/** @param {string} title */
function entitle(title) {
  document.title = `${title} · Flueman console`;
}

/** @param {string} text */
function say(text) {
  find("said", HTMLElement).textContent = text;
}

document.addEventListener("click", (event) => {
  const link = event.target instanceof Element ? event.target.closest("a") : null;
  const isPlain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
  if (!link || !isPlain || event.defaultPrevented || link.hasAttribute("download") || link.target) return;
  const url = new URL(link.href);
  if (url.origin !== location.origin || !`${url.pathname}/`.startsWith(`${ROOT}/`) || url.hash) return;
  event.preventDefault();
  go(url.pathname + url.search);
});

addEventListener("popstate", arrive);
find("sign-out", HTMLButtonElement).addEventListener("click", () => {
  // Who leaves by choice leaves nothing behind.
  drafts.delete(account.me?.subject ?? "");
  account.signOut();
  main.querySelector("input")?.focus();
});

await account.resume();
if (!page) show();
