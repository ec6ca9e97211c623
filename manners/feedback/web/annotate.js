// The page of `manners annotate`: one item at a time, one of six ways to judge it.

const now = { about: null, item: null, busy: true, draft: null, plain: false, since: 0, away: 0, hidden: null };
const LETTERS = ["A", "B"];
const STEPS = [[0, 3, "much"], [0, 2, "clearly"], [0, 1, "slightly"], ["tie", null, "a tie"], [1, 1, "slightly"], [1, 2, "clearly"], [1, 3, "much"]];

async function begin() {
  const told = await ask("/api/next");
  now.about = told.about;
  me.name = told.name;
  $("who").textContent = told.name;
  $("title").textContent = now.about.title;
  document.title = now.about.title;
  document.body.dataset.mode = now.about.mode;
  $("guide-open").hidden = !now.about.guidelines;
  $("guide-text").replaceChildren(rendered(now.about.guidelines || ""));
  if (now.about.guidelines && innerWidth >= 1200) guide(true);
  helpRows([...MODES[now.about.mode].help(), ["s", "skip: you cannot or would not say"], ["u", "take the last one back"], ["n", "add a note"],
    ["m", "text as it stands, without formatting"], ["g", "guidelines"], ["?", "this help"]]);
  take(told);
}

function take(told) {
  now.item = told.item;
  now.busy = false;
  const { done, left } = told.progress;
  $("count").textContent = `${done} of ${done + left}`;
  $("progress").setAttribute("aria-valuemax", String(done + left));
  $("progress").setAttribute("aria-valuenow", String(done));
  $("progress").firstElementChild.style.width = `${done + left ? (100 * done) / (done + left) : 100}%`;
  $("undo").disabled = $("end-undo").disabled = !told.progress.can_undo;
  if (!now.item) {
    show("end");
    $("end-told").textContent = `You judged ${done}. Thank you. If others leave something unjudged, it may come to you later: load the page again.`;
    return;
  }
  show("work");
  now.draft = MODES[now.about.mode].start(now.item);
  now.since = performance.now();
  now.away = 0;
  now.hidden = document.hidden ? now.since : null;
  draw();
  scrollTo(0, 0);
  if (!$("help").open) $("main").focus({ preventScroll: true });
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) now.hidden = performance.now();
  else if (now.hidden !== null) {
    now.away += performance.now() - now.hidden;
    now.hidden = null;
  }
});

function draw() {
  const mode = MODES[now.about.mode];
  const speaker = { user: "Prompt", assistant: "Answer before", system: "System", tool: "Tool" };
  const turns = now.item.prompt.map((turn) => el("section", { class: `turn ${turn.role === "user" ? "asked" : ""}`, "aria-label": speaker[turn.role] || turn.role },
    el("h2", { class: "label", text: speaker[turn.role] || turn.role }), rendered(turn.content, now.plain)));
  $("main").replaceChildren(...turns, mode.body(now.item, now.draft));
  const note = el("textarea", { id: "note", rows: 2, maxlength: 2000, placeholder: "A note on this one", "aria-label": "Note", hidden: !now.note });
  $("actions").replaceChildren(...mode.actions(now.item, now.draft), button("Skip", "s", () => send({ skip: true }), { class: "quiet skip" }), note);
  now.note = false;
}

function card(place, head, ...below) {
  return el("article", { class: "answer", "data-place": place, "aria-label": `Answer ${nameOf(place)}` },
    el("h2", { class: "label" }, el("b", { text: now.item.answers.length > 1 ? nameOf(place) : "Answer" }), head), rendered(now.item.answers[place], now.plain), ...below);
}

const nameOf = (place) => (now.about.mode === "choose" ? LETTERS[place] : String(place + 1));
const cards = (make, extra = "") => el("div", { class: `answers n${now.item.answers.length} ${extra}` }, ...now.item.answers.map((_, place) => make(place)));

async function send(verdict) {
  if (now.busy || !now.item) return;
  now.busy = true;
  const seconds = Math.min(86400, (performance.now() - now.since - now.away) / 1000);
  const note = $("note")?.value.trim();
  if (note) verdict = { ...verdict, note };
  document.body.classList.add("sending");
  try {
    const told = await askSurely("/api/vote", { item: now.item.item, key: newKey(), verdict, seconds: Math.round(seconds * 100) / 100 });
    keep(draftKey(), null);
    say(told.item ? `Saved. ${told.progress.done} done.` : "Saved. Nothing is left.");
    take(told);
  } catch (failure) {
    warn(failure.message);
    if (failure.status === 409) begin().catch((again) => warn(again.message));
    now.busy = false;
  } finally {
    document.body.classList.remove("sending");
  }
}

async function undo() {
  if (now.busy || $("undo").disabled) return;
  now.busy = true;
  try {
    take(await askSurely("/api/undo", { key: newKey() }));
    say("Taken back.");
  } catch (failure) {
    warn(failure.message);
    now.busy = false;
  }
}

const draftKey = () => `manners-draft-${me.name}-${now.item.item}`;

// --- the six modes: what a draft starts as, what is drawn, which keys there are ---------------------------------------------------

const MODES = {
  choose: {
    start: () => ({}),
    body: () => cards((place) => card(place)),
    actions: () => {
      const heads = ["A is better", "Tie", "B is better"];
      if (now.about.strength) {
        const step = (index) => button(STEPS[index][2], String(index + 1), () => MODES.choose.pick(index), { "aria-label": STEPS[index][0] === "tie" ? "a tie" : `${LETTERS[STEPS[index][0]]} is ${STEPS[index][2]} better` });
        const side = (label, ...places) => el("div", { class: "side", role: "group", "aria-label": label }, el("span", { class: "soft", text: label }), el("div", { class: "steps" }, ...places.map(step)));
        return [el("div", { class: "scale" }, side(heads[0], 0, 1, 2), side("Equal", 3), side(heads[2], 4, 5, 6))];
      }
      return [button(heads[0], "←", () => send({ choice: 0 }), { class: "main", "aria-keyshortcuts": "ArrowLeft" }),
        button("Tie", "t", () => send({ choice: "tie" })),
        button(heads[2], "→", () => send({ choice: 1 }), { class: "main", "aria-keyshortcuts": "ArrowRight" })];
    },
    pick: (index) => send(STEPS[index][1] ? { choice: STEPS[index][0], strength: STEPS[index][1] } : { choice: STEPS[index][0] }),
    key: (key) => {
      if (now.about.strength) return /^[1-7]$/.test(key) ? (MODES.choose.pick(Number(key) - 1), true) : key === "t" ? (MODES.choose.pick(3), true) : false;
      const choice = { ArrowLeft: 0, a: 0, 1: 0, ArrowRight: 1, b: 1, 2: 1, t: "tie", "=": "tie" }[key];
      return choice === undefined ? false : (send({ choice }), true);
    },
    help: () => (now.about.strength ? [["1 2 3", "A is much, clearly, slightly better"], ["4 t", "a tie"], ["5 6 7", "B is slightly, clearly, much better"]]
      : [["← a", "A is better"], ["→ b", "B is better"], ["t =", "a tie"]]),
  },
  rank: {
    start: (item) => ({ ranks: item.answers.map(() => 0), order: [] }),
    body: (item, draft) => cards((place) => {
      const rank = draft.ranks[place];
      const told = rank ? `rank ${rank}` : "not ranked yet";
      const made = card(place, button(rank ? `Rank ${rank}` : "Rank next", nameOf(place), () => MODES.rank.add(place), { class: rank ? "chosen" : "", "aria-pressed": String(Boolean(rank)), "aria-label": `Answer ${nameOf(place)}: ${told}` }));
      if (rank) made.classList.add("picked");
      return made;
    }),
    actions: (item, draft) => {
      const whole = draft.ranks.every(Boolean);
      const told = draft.order.map((tier) => tier.map(nameOf).join(" = ")).join("  >  ");
      return [el("span", { class: "told", text: told || "Rank the best answer first, or press the numbers in order." }),
        button("Tie", "=", MODES.rank.tie, { "aria-label": "The next one ties with the last", "aria-pressed": String(Boolean(draft.tie)), disabled: !draft.order.length || whole }),
        button("Back", "⌫", MODES.rank.back, { disabled: !draft.order.length, "aria-keyshortcuts": "Backspace" }),
        button("Save", "⏎", MODES.rank.save, { class: "main", disabled: !whole, "aria-keyshortcuts": "Enter" })];
    },
    add: (place) => {
      const draft = now.draft;
      if (draft.ranks[place]) return;
      if (draft.tie && draft.order.length) draft.order[draft.order.length - 1].push(place);
      else draft.order.push([place]);
      draft.tie = false;
      MODES.rank.number();
    },
    tie: () => { now.draft.tie = !now.draft.tie; draw(); },
    back: () => {
      const order = now.draft.order;
      if (order.length && order[order.length - 1].pop() !== undefined && !order[order.length - 1].length) order.pop();
      now.draft.tie = false;
      MODES.rank.number();
    },
    number: () => {
      now.draft.ranks.fill(0);
      now.draft.order.forEach((tier, index) => tier.forEach((place) => { now.draft.ranks[place] = index + 1; }));
      redraw();
    },
    save: () => { if (now.draft.ranks.every(Boolean)) send({ ranks: now.draft.ranks }); },
    key: (key) => {
      if (/^[1-9]$/.test(key) && Number(key) <= now.item.answers.length) MODES.rank.add(Number(key) - 1);
      else if (key === "=") MODES.rank.tie();
      else if (key === "Backspace") MODES.rank.back();
      else if (key === "Enter") MODES.rank.save();
      else return false;
      return true;
    },
    help: () => [["1 … 9", "rank that answer next, the best first"], ["=", "the next one ties with the last"], ["⌫", "take the last rank away"], ["⏎", "save"]],
  },
  best: {
    start: () => ({}),
    body: () => cards((place) => card(place, button("The best", nameOf(place), () => send({ best: place }), { class: "main", "aria-label": `Answer ${nameOf(place)} is the best` }))),
    actions: () => [el("span", { class: "told short", text: "Choose the best answer, or press its number." })],
    key: (key) => (/^[1-9]$/.test(key) && Number(key) <= now.item.answers.length ? (send({ best: Number(key) - 1 }), true) : false),
    help: () => [["1 … 9", "that answer is the best"]],
  },
  rate: {
    start: (item) => ({ ratings: item.answers.map(() => ({})), row: 0 }),
    rows: () => now.item.answers.flatMap((_, place) => now.about.aspects.map((aspect) => [place, aspect])),
    body: (item, draft) => cards((place) => card(place, null, el("div", { class: "aspects" }, ...now.about.aspects.map((aspect) => MODES.rate.line(place, aspect, draft)))), "rated"),
    line: (place, aspect, draft) => {
      const index = MODES.rate.rows().findIndex(([p, a]) => p === place && a === aspect);
      const [low, high] = now.about.scale;
      const values = [...Array(high - low + 1).keys()].map((step) => low + step);
      const option = (value, label, text) => {
        const input = el("input", { type: "radio", name: `r${index}`, value: String(value), "aria-label": label });
        input.checked = draft.ratings[place][aspect] === value;
        input.addEventListener("click", () => MODES.rate.set(index, value, false));
        return el("label", {}, input, el("span", { text }));
      };
      const ends = { [low]: ", the least", [high]: ", the most" };
      return el("fieldset", { class: index === draft.row ? "aspect here" : "aspect", "data-row": index }, el("legend", { text: aspect }),
        el("div", { class: "options" }, ...values.map((value) => option(value, `${aspect}: ${value}${ends[value] || ""}`, String(value))), option(null, `${aspect}: cannot be said`, "–")));
    },
    actions: (item, draft) => {
      const all = MODES.rate.rows();
      const given = all.filter(([place, aspect]) => aspect in draft.ratings[place]).length;
      const [low, high] = now.about.scale;
      return [el("span", { class: "told", text: `${given} of ${all.length} rated; ${low} is the least, ${high} the most, – cannot be said.` }),
        button("Save", "⏎", MODES.rate.save, { class: "main", disabled: given < all.length, "aria-keyshortcuts": "Enter" })];
    },
    set: (index, value, onward) => {
      const rows = MODES.rate.rows();
      const [place, aspect] = rows[index];
      now.draft.ratings[place][aspect] = value;
      now.draft.row = onward ? Math.min(rows.length - 1, index + 1) : index;
      redraw();
      const row = document.querySelector(`[data-row="${now.draft.row}"]`);
      if (!onward) row.querySelector("input:checked")?.focus({ preventScroll: true });
      else row.scrollIntoView({ block: "nearest" });
    },
    save: () => {
      if (MODES.rate.rows().every(([place, aspect]) => aspect in now.draft.ratings[place])) send({ ratings: now.draft.ratings });
    },
    key: (key) => {
      const [low, high] = now.about.scale;
      const last = MODES.rate.rows().length - 1;
      if (/^\d$/.test(key) && Number(key) >= low && Number(key) <= high) MODES.rate.set(now.draft.row, Number(key), true);
      else if (key === "-" || key === "x") MODES.rate.set(now.draft.row, null, true);
      else if (key === "ArrowDown" || key === "ArrowUp") {
        now.draft.row = Math.max(0, Math.min(last, now.draft.row + (key === "ArrowDown" ? 1 : -1)));
        redraw();
        document.querySelector(`[data-row="${now.draft.row}"]`).scrollIntoView({ block: "nearest" });
      } else if (key === "Enter") MODES.rate.save();
      else return false;
      return true;
    },
    help: () => [[`${now.about.scale[0]} … ${now.about.scale[1]}`, "rate the marked aspect and go on"], ["- x", "it cannot be said"], ["↑ ↓", "another aspect"], ["⏎", "save"]],
  },
  accept: {
    start: () => ({}),
    body: () => cards((place) => card(place)),
    actions: () => [button("Reject", "r", () => send({ accept: false }), { class: "bad" }), button("Accept", "a", () => send({ accept: true }), { class: "good" })],
    key: (key) => {
      const accept = { a: true, y: true, ArrowRight: true, r: false, n: undefined, ArrowLeft: false }[key];
      return accept === undefined ? false : (send({ accept }), true);
    },
    help: () => [["a y →", "accept"], ["r ←", "reject"]],
  },
  write: {
    start: (item) => ({ text: kept(`manners-draft-${me.name}-${item.item}`) ?? item.answers[0] ?? "" }),
    body: (item, draft) => {
      const area = el("textarea", { id: "text", rows: 9, maxlength: 60000, "aria-label": "Your answer", placeholder: "Write the answer that should be given." });
      const view = el("div", { class: "preview" });
      const count = el("span", { class: "soft" });
      const update = () => {
        draft.text = area.value;
        keep(draftKey(), area.value);
        const words = area.value.trim() ? area.value.trim().split(/\s+/).length : 0;
        count.textContent = `${words} word${words === 1 ? "" : "s"}`;
        view.replaceChildren(rendered(area.value, now.plain));
        $("save")?.toggleAttribute("disabled", !words);
      };
      area.value = draft.text;
      area.addEventListener("input", update);
      queueMicrotask(() => { update(); area.focus({ preventScroll: true }); });
      return el("div", { class: "writing" },
        el("section", { class: "answer" }, el("h2", { class: "label" }, el("b", { text: item.answers.length ? "Edit the answer" : "Your answer" }), count), area),
        el("section", { class: "answer" }, el("h2", { class: "label" }, el("b", { text: "How it will look" })), view));
    },
    actions: () => [button("Save", "Ctrl ⏎", MODES.write.save, { class: "main", id: "save", "aria-keyshortcuts": "Control+Enter" })],
    save: () => { if (now.draft.text.trim()) send({ text: now.draft.text }); },
    key: () => false,
    help: () => [["Ctrl ⏎", "save"], ["Esc", "leave the text, so that the other keys work"]],
  },
};

// Draw again what changed, and leave the reader where they are.
function redraw() {
  const note = $("note")?.value;
  const held = document.activeElement?.closest(".answer")?.dataset.place;
  now.note = Boolean(note);
  draw();
  if (note) $("note").value = note;
  if (held !== undefined && now.about.mode === "rank") document.querySelector(`.answer[data-place="${held}"] button`)?.focus({ preventScroll: true });
}

function guide(open) {
  $("guide").hidden = !open;
  $("guide-open").setAttribute("aria-expanded", String(open));
  document.body.classList.toggle("guided", open);
}

document.addEventListener("keydown", (event) => {
  if (document.body.dataset.part === "door" || $("help").open || event.isComposing) return;
  const mode = now.about && MODES[now.about.mode];
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && mode?.save) { event.preventDefault(); return mode.save(); }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key === "Escape") { document.activeElement?.blur(); if (innerWidth < 1000) guide(false); return; }
  if (typing()) return;
  const onButton = document.activeElement?.tagName === "BUTTON" && (event.key === "Enter" || event.key === " ");
  if (onButton) return;
  const tools = { s: () => now.item && send({ skip: true }), u: undo, g: () => !$("guide-open").hidden && guide($("guide").hidden), "?": () => $("help").showModal(),
    m: () => { now.plain = !now.plain; redraw(); }, n: () => { $("note").hidden = false; $("note").focus(); } };
  if (document.body.dataset.part === "work" && mode?.key(event.key)) event.preventDefault();
  else if (event.key in tools) { event.preventDefault(); tools[event.key](); }
});

$("undo").addEventListener("click", undo);
$("end-undo").addEventListener("click", undo);
$("guide-open").addEventListener("click", () => guide($("guide").hidden));
$("guide-close").addEventListener("click", () => guide(false));
dialogs();
comeIn(begin);
