// What both pages share: who one is, asking the server, dialogs, messages.

const $ = (id) => document.getElementById(id);
const KEY = "manners-session";
const me = { session: null, secret: null, name: "" };

class Failure extends Error {
  constructor(status, text) { super(text); this.status = status; }
}

async function ask(path, body) {
  let heard;
  try {
    const headers = me.session ? { authorization: `Bearer ${me.session}` } : {};
    if (body) headers["content-type"] = "application/json";
    heard = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Failure(0, "The server does not answer.");
  }
  const told = await heard.json().catch(() => ({}));
  if (!heard.ok) throw new Failure(heard.status, told.error || `The server answered ${heard.status}.`);
  return told;
}

// A request that is sent until it is heard: its key makes the same again the same.
async function askSurely(path, body) {
  for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
    try {
      const told = await ask(path, body);
      warn("");
      return told;
    } catch (failure) {
      if (failure.status !== 0 && failure.status < 500) throw failure;
      warn(`Not saved yet: ${failure.message} Trying again.`);
      await new Promise((done) => setTimeout(done, wait));
    }
  }
}

function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function say(text) { $("say").textContent = text; }

function warn(text) {
  $("warning").textContent = text;
  $("warning").hidden = !text;
}

function kept(name) {
  try { return localStorage.getItem(name); } catch { return null; }
}

function keep(name, value) {
  try { value === null ? localStorage.removeItem(name) : localStorage.setItem(name, value); } catch { /* a private window */ }
}

// Come in: by the link's secret, by what this browser kept, or by a name. `begin` is called once one is in.
async function comeIn(begin) {
  const secret = decodeURIComponent(location.hash.slice(1));
  if (secret) history.replaceState(null, "", location.pathname); // so that it is in no screenshot
  let hello;
  try {
    hello = await ask("/api/hello");
  } catch (failure) {
    return warn(`${failure.message} Load the page again.`);
  }
  if (hello.title) document.title = hello.title;
  if (secret && hello.personal) me.session = secret;
  else me.session = kept(KEY);
  if (secret && !hello.personal) me.secret = secret;
  if (me.session) {
    try {
      await begin();
      return keep(KEY, me.session);
    } catch (failure) {
      if (failure.status !== 401) return warn(failure.message);
      me.session = null;
      keep(KEY, null);
    }
  }
  show("door");
  if (hello.personal) {
    $("door-form").hidden = true;
    $("door-note").textContent = "Open the link that was made for you: it holds who you are.";
    return;
  }
  $("door-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const told = await ask("/api/enter", { name: $("name").value, secret: me.secret });
      me.session = told.session;
      await begin();
      keep(KEY, me.session);
    } catch (failure) {
      me.session = null;
      $("door-note").textContent = failure.message;
    }
  });
  $("name").focus();
}

function leave() {
  keep(KEY, null);
  location.reload();
}

function show(id) {
  for (const part of ["door", "work", "end"]) if ($(part)) $(part).hidden = part !== id;
  document.body.dataset.part = id;
}

const typing = () => /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName || "") && document.activeElement.type !== "radio";

function kbd(text) { return el("kbd", { text, "aria-hidden": "true" }); }

function button(label, key, heard, options = {}) {
  return el("button", { type: "button", ...options, "aria-keyshortcuts": key ? options["aria-keyshortcuts"] || key : null, on: { click: heard } },
    typeof label === "string" ? el("span", { text: label }) : label, key ? kbd(key) : null);
}

function helpRows(rows) {
  $("help-rows").replaceChildren(...rows.flatMap(([keys, what]) => [
    el("dt", {}, ...keys.split(" ").map((key) => el("kbd", { text: key }))), el("dd", { text: what })]));
}

function dialogs() {
  $("help-open").addEventListener("click", () => $("help").showModal());
  $("help-close").addEventListener("click", () => $("help").close());
  $("leave").addEventListener("click", leave);
}
