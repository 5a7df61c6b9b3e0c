/** The page of those who are not signed in. A token is given to the account and kept by nothing here. */

import { h } from "./dom.js";

/** @typedef {import("./account.js").Account} Account */

// The server decides; these are where it can be in development at all, since it gives its tokens to its own machine only.
const HERE = new Set(["localhost", "127.0.0.1", "[::1]"]);

/** @param {Account} account @returns {import("./app.js").Page} */
export function signInPage(account) {
  const token = h("input", {
    id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true, "aria-describedby": "token-why sign-in-error",
  });
  const form = h(
    "form",
    { class: "sign-in", autocomplete: "off", onsubmit },
    h("h1", { tabindex: -1 }, "Sign in"),
    h("p", { id: "token-why" }, "Paste an access token of the role support or admin. It is kept in this tab only, and gone when you close it."),
    h("label", { for: "token" }, "Access token"),
    token,
    h("p", { class: "error", id: "sign-in-error", role: "alert" }, account.why),
    h("button", { type: "submit", class: "primary" }, "Sign in"),
  );
  if (HERE.has(location.hostname)) form.append(development(account));

  /** @param {Event} event */
  function onsubmit(event) {
    event.preventDefault();
    const value = token.value.trim();
    token.value = "";
    // What went wrong is said by the page that the account's change brings.
    account.signIn(value).catch(() => document.getElementById("token")?.focus());
  }

  return { title: "Sign in", node: h("div", { class: "door" }, form) };
}

/** @param {Account} account */
function development(account) {
  return h(
    "div",
    { class: "development" },
    h("p", {}, "On the server's own machine, in development:"),
    h("button", { type: "button", class: "quiet", onclick: () => void account.signInForDevelopment() }, "Sign in as support"),
  );
}
