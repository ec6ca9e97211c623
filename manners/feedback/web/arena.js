// The page of `manners arena`: a question, two answers in a stream, a vote.

const now = { about: null, item: null, busy: false, plain: false, since: 0 };
const NAMES = ["A", "B"];

async function begin() {
  const told = await ask("/api/next");
  now.about = told.about;
  me.name = told.name;
  $("who").textContent = told.name;
  $("title").textContent = document.title = now.about.title;
  $("guide-open").hidden = !now.about.guidelines;
  $("guide-text").replaceChildren(rendered(now.about.guidelines || ""));
  if (now.about.guidelines && innerWidth >= 1200) guide(true);
  helpRows([["Ctrl ⏎", "ask"], ["Esc", "leave the question, so that the other keys work"], ["← a", "A is better"], ["→ b", "B is better"], ["t =", "a tie"],
    ["s", "do not vote on these"], ["u", "take the last vote back"], ["m", "text as it stands, without formatting"], ["?", "this help"]]);
  show("work");
  take(told);
}

function take(told) {
  now.item = told.item;
  now.busy = false;
  $("count").textContent = `${told.progress.done} vote${told.progress.done === 1 ? "" : "s"}`;
  $("undo").disabled = !told.progress.can_undo;
  if (now.item) {
    pair(now.item.prompt[now.item.prompt.length - 1].content, now.item.answers);
    vote();
    now.since = performance.now();
  } else question();
}

function question(text = "") {
  $("main").replaceChildren(el("p", { class: "soft", text: "Ask whatever you would ask a helpful assistant. Two models answer; you choose." }));
  const area = el("textarea", { id: "ask", rows: 3, maxlength: now.about.longest, "aria-label": "Your question", placeholder: "Your question" });
  area.value = text;
  const sent = button("Ask", "Ctrl ⏎", () => put(area.value), { class: "main", "aria-keyshortcuts": "Control+Enter" });
  $("actions").replaceChildren(el("div", { class: "asking" }, area, sent));
  area.focus({ preventScroll: true });
}

function pair(prompt, answers) {
  const boxes = answers.map((text, place) => el("article", { class: "answer", "aria-label": `Answer ${NAMES[place]}` },
    el("h2", { class: "label" }, el("b", { text: NAMES[place] })), el("div", { class: "here" }, rendered(text || " ", now.plain))));
  $("main").replaceChildren(el("section", { class: "turn asked", "aria-label": "Your question" }, el("h2", { class: "label", text: "Your question" }), rendered(prompt, now.plain)),
    el("div", { class: "answers n2" }, ...boxes));
  return boxes;
}

function vote() {
  $("actions").replaceChildren(button("A is better", "←", () => send({ choice: 0 }), { class: "main", "aria-keyshortcuts": "ArrowLeft" }),
    button("Tie", "t", () => send({ choice: "tie" })), button("B is better", "→", () => send({ choice: 1 }), { class: "main", "aria-keyshortcuts": "ArrowRight" }),
    button("Skip", "s", () => send({ skip: true }), { class: "quiet skip" }));
  $("main").focus({ preventScroll: true });
}

async function put(text) {
  if (now.busy || !text.trim()) return;
  now.busy = true;
  const boxes = pair(text, ["", ""]), said = ["", ""];
  boxes.forEach((box) => { box.classList.add("streaming"); box.querySelector(".here").replaceChildren(el("div", { class: "text" }, el("p", { class: "soft", text: "…" }))); });
  $("actions").replaceChildren(el("span", { class: "told", text: "Both are answering." }));
  say("Both are answering.");
  try {
    const heard = await fetch("/api/ask", { method: "POST", headers: { authorization: `Bearer ${me.session}`, "content-type": "application/json" }, body: JSON.stringify({ prompt: text }) });
    if (!heard.ok) throw new Failure(heard.status, (await heard.json().catch(() => ({}))).error || `The server answered ${heard.status}.`);
    let done = null;
    for await (const [name, told] of events(heard.body)) {
      if (name === "failed") throw new Failure(0, told.error);
      if (name === "done") { done = told; continue; }
      const place = name === "left" ? 0 : 1;
      said[place] += told.text;
      boxes[place].querySelector(".here").replaceChildren(rendered(said[place], now.plain));
    }
    if (!done) throw new Failure(0, "The answers broke off.");
    warn("");
    say("Both have answered. Which is better?");
    take(done);
  } catch (failure) {
    warn(failure.message || "The answers broke off.");
    now.busy = false;
    question(text);
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const [name, data] = held.slice(0, end).split("\n");
      held = held.slice(end + 2);
      yield [name.slice("event: ".length), JSON.parse(data.slice("data: ".length))];
    }
  }
}

async function send(verdict) {
  if (now.busy || !now.item) return;
  now.busy = true;
  try {
    take(await askSurely("/api/vote", { item: now.item.item, key: newKey(), verdict, seconds: Math.min(86400, Math.round((performance.now() - now.since) / 10) / 100) }));
    say("Saved.");
  } catch (failure) {
    warn(failure.message);
    now.busy = false;
  }
}

async function undo() {
  if (now.busy || $("undo").disabled) return;
  now.busy = true;
  try { take(await askSurely("/api/undo", { key: newKey() })); } catch (failure) { warn(failure.message); now.busy = false; }
}

function guide(open) {
  $("guide").hidden = !open;
  $("guide-open").setAttribute("aria-expanded", String(open));
  document.body.classList.toggle("guided", open);
}

document.addEventListener("keydown", (event) => {
  if (document.body.dataset.part !== "work" || $("help").open || event.isComposing) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && $("ask")) { event.preventDefault(); return put($("ask").value); }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key === "Escape") return document.activeElement?.blur();
  if (typing()) return;
  const choices = { ArrowLeft: 0, a: 0, ArrowRight: 1, b: 1, t: "tie", "=": "tie" };
  const tools = { u: undo, g: () => !$("guide-open").hidden && guide($("guide").hidden), "?": () => $("help").showModal(), s: () => now.item && send({ skip: true }),
    m: () => { now.plain = !now.plain; if (now.item) pair(now.item.prompt[now.item.prompt.length - 1].content, now.item.answers); } };
  if (now.item && event.key in choices) { event.preventDefault(); send({ choice: choices[event.key] }); }
  else if (event.key in tools) { event.preventDefault(); tools[event.key](); }
});

$("undo").addEventListener("click", undo);
$("guide-open").addEventListener("click", () => guide($("guide").hidden));
$("guide-close").addEventListener("click", () => guide(false));
dialogs();
comeIn(begin);
