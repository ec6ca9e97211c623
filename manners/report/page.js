// What a page does beyond lying there: models shown or hidden everywhere at once, charts that answer the pointer, the sample browser, and
// on a live page the run's progress. Text of models only ever goes where it came from: into text nodes.
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const made = (tag, text = "", name = "") => {
    const node = document.createElement(tag);
    node.textContent = text;
    if (name) node.className = name;
    return node;
  };

  // --- models -------------------------------------------------------------------------------------------------------------------------
  const off = new Set(); // keys of hidden models, as data-model holds them
  const chips = all("[data-chip]");
  const bar = document.getElementById("models");
  const hiddenIn = (run, model) => chips.some((chip) => off.has(chip.dataset.chip) && chip.dataset.name === model && (!run || chip.dataset.run === run));
  const showModels = () => {
    for (const node of all("[data-model]")) node.classList.toggle("off", off.has(node.dataset.model));
    for (const chip of chips) chip.setAttribute("aria-pressed", String(!off.has(chip.dataset.chip)));
    for (const chart of all(".chart")) if (chart.shown) run(chart);
    browse();
  };
  for (const chip of chips) {
    chip.title = "show or hide; with Alt or a double click this one alone";
    const alone = () => {
      const only = chips.every((other) => other === chip || off.has(other.dataset.chip));
      off.clear();
      if (!only) for (const other of chips) if (other !== chip) off.add(other.dataset.chip);
      showModels();
    };
    chip.addEventListener("click", (event) => {
      if (event.altKey) return alone();
      if (!off.delete(chip.dataset.chip)) off.add(chip.dataset.chip);
      showModels();
    });
    chip.addEventListener("dblclick", alone);
  }
  if (bar) bar.hidden = false;

  // --- charts -------------------------------------------------------------------------------------------------------------------------
  const tip = made("div", "", "tip");
  document.body.append(tip);
  const said = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value));
  const tooltip = (handler, event, item, value) => {
    if (!value || typeof value !== "object") return void (tip.style.display = "none");
    tip.replaceChildren(
      ...Object.entries(value).filter(([, held]) => held !== null && typeof held !== "object").slice(0, 10).map(([name, held]) => {
        const line = made("div");
        line.append(made("b", name.replaceAll("_", " ")), said(held));
        return line;
      }),
    );
    tip.style.display = "block";
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = Math.max(4, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)) + "px";
  };
  const views = (spec) => [spec, ...["layer", "hconcat", "vconcat", "concat"].flatMap((key) => (spec[key] || []).flatMap(views)), ...(spec.spec ? views(spec.spec) : [])];
  const kept = (rows) => rows.filter((row) => !("model" in row) || !hiddenIn(row.run, row.model));
  const numeric = (channel) => channel && channel.type === "quantitative";
  let zooms = 0;
  const prepared = (spec) => {
    const copy = structuredClone(spec);
    for (const view of views(copy)) {
      if (view.data && Array.isArray(view.data.values)) view.data.values = kept(view.data.values);
    }
    for (const name of Object.keys(copy.datasets || {})) copy.datasets[name] = kept(copy.datasets[name]);
    copy.config = { ...copy.config, mark: { ...(copy.config || {}).mark, tooltip: { content: "data" } } };
    // zoom: one selection for each panel of two continuous axes, on a layer that has both
    const panels = [copy, ...["hconcat", "vconcat", "concat"].flatMap((key) => copy[key] || [])];
    let zoomed = false;
    for (const panel of panels) {
      const unit = views(panel).find((view) => view.mark && view.encoding && numeric(view.encoding.x) && numeric(view.encoding.y) && !view.encoding.yOffset && !view.encoding.row);
      if (!unit || copy.facet || panel.hconcat || panel.vconcat || panel.concat) continue;
      unit.params = [...(unit.params || []), { name: `zoom${++zooms}`, select: { type: "interval", zoom: "wheel![event.shiftKey]" }, bind: "scales" }];
      zoomed = true;
    }
    return { spec: copy, zoomed };
  };
  const run = async (chart) => {
    const wide = matchMedia("(min-width: 701px)").matches || matchMedia("print").matches;
    const { spec, zoomed } = prepared(chart.specs[wide ? "wide" : "narrow"]);
    const place = chart.place || made("div", "", "run-here");
    const asked = (chart.asked = (chart.asked || 0) + 1);
    const fresh = made("div");
    try {
      await window.vegaEmbed(fresh, spec, { ast: true, renderer: "svg", actions: false, defaultStyle: false, tooltip: (...told) => tooltip(...told) });
    } catch (error) {
      return; // the drawing stays
    }
    if (asked !== chart.asked) return;
    place.replaceChildren(fresh);
    if (zoomed && wide) place.append(made("div", "Shift and wheel zooms, dragging moves, a double click goes back.", "hint"));
    if (!chart.place) {
      chart.place = place;
      for (const still of all(":scope > .wide, :scope > .narrow", chart)) still.classList.add("off");
      chart.append(place);
    }
    const drawing = place.querySelector("svg");
    const still = chart.querySelector(":scope > .wide svg");
    if (drawing && still) {
      drawing.setAttribute("role", "img");
      drawing.setAttribute("aria-label", still.getAttribute("aria-label"));
    }
  };
  if (window.vegaEmbed) {
    const watcher = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          if (!entry.isIntersecting || entry.target.shown) continue;
          entry.target.shown = true;
          run(entry.target);
        }
      },
      { rootMargin: "200px" },
    );
    for (const chart of all(".chart")) {
      const held = chart.querySelector("script[type='application/json']");
      if (!held) continue;
      chart.specs = JSON.parse(held.textContent);
      watcher.observe(chart);
    }
    matchMedia("(min-width: 701px)").addEventListener("change", () => all(".chart").filter((chart) => chart.shown).forEach(run));
    addEventListener("scroll", () => (tip.style.display = "none"), { passive: true });
  }

  // --- tables that are sorted and searched -----------------------------------------------------------------------------------------------
  const table = document.getElementById("ledger-table");
  if (table) {
    const rows = all("tbody tr", table);
    all("thead th", table).forEach((head, column) => {
      const button = made("button");
      button.type = "button";
      button.title = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => row.cells[column].dataset.sort;
        const sorted = [...rows].sort((a, b) => {
          if (column === 0) return a.cells[0].textContent.localeCompare(b.cells[0].textContent) * (down ? 1 : -1);
          if (!value(a) || !value(b)) return (value(a) ? 0 : 1) - (value(b) ? 0 : 1); // what is absent is last both ways
          return (Number(value(b)) - Number(value(a))) * (down ? 1 : -1);
        });
        table.tBodies[0].append(...sorted);
      });
    });
    for (const find of all("[data-find]")) {
      find.hidden = false;
      find.querySelector("input").addEventListener("input", (event) => {
        const wanted = event.target.value.toLowerCase();
        for (const row of rows) row.hidden = !row.dataset.model.toLowerCase().includes(wanted);
      });
    }
  }

  // --- samples ------------------------------------------------------------------------------------------------------------------------
  const form = document.getElementById("browse");
  const list = document.getElementById("cards");
  const cards = list ? all(":scope > .sample", list) : [];
  const LONGEST = 1200; // words, spaces and signs of an answer that are compared
  const words = (text) => (text.match(/[\p{L}\p{N}'’]+|\s+|[^\p{L}\p{N}\s]/gu) || []).slice(0, LONGEST);
  // which words of a and of b stand in a longest common subsequence
  const common = (a, b) => {
    const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--) length[i][j] = a[i] === b[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    const inA = new Set(), inB = new Set();
    for (let i = 0, j = 0; i < a.length && j < b.length; ) {
      if (a[i] === b[j]) inA.add(i++), inB.add(j++);
      else if (length[i + 1][j] >= length[i][j + 1]) i++;
      else j++;
    }
    return [inA, inB];
  };
  const plain = (said) => (said.original ??= said.textContent);
  const marked = (said, held, tag) => {
    const nodes = words(plain(said)).map((word, at) => (held.has(at) || !word.trim() ? document.createTextNode(word) : made(tag, word)));
    const rest = plain(said).slice(words(plain(said)).join("").length);
    said.replaceChildren(...nodes, rest);
  };
  const answer = (card, model) => all(".answer", card).find((node) => node.dataset.model === model);
  const compare = (card, a, b) => {
    for (const said of all(".said", card)) if (said.original !== undefined && said.children.length) said.replaceChildren(said.original);
    const [left, right] = [answer(card, a), answer(card, b)].map((node) => node && node.querySelector(".said"));
    if (!left || !right || left === right) return;
    const [inLeft, inRight] = common(words(plain(left)), words(plain(right)));
    marked(left, inLeft, "del");
    marked(right, inRight, "ins");
  };
  const texts = new Map();
  function browse() {
    if (!form) return;
    const wanted = Object.fromEntries(["text", "set", "cluster", "a", "b", "order"].map((name) => [name, form.elements[name].value]));
    const needle = wanted.text.toLowerCase();
    const pair = [wanted.a, wanted.b].filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      if (!texts.has(card)) texts.set(card, card.textContent.toLowerCase());
      const fits = (!wanted.set || card.dataset.set === wanted.set) && (!wanted.cluster || card.dataset.cluster === wanted.cluster) && texts.get(card).includes(needle);
      card.hidden = !fits;
      shown += fits;
      for (const node of all(".answer", card)) node.classList.toggle("off", pair.length ? !pair.includes(node.dataset.model) : off.has(node.dataset.model));
      if (card.open) compare(card, wanted.a, wanted.b);
    }
    const gain = (card) => {
      const [a, b] = [answer(card, wanted.a), answer(card, wanted.b)];
      return a && b ? Number(b.dataset.score) - Number(a.dataset.score) : 0;
    };
    const sign = { gain: -1, loss: 1 }[wanted.order];
    list.append(...(sign && pair.length === 2 ? [...cards].sort((x, y) => sign * (gain(x) - gain(y))) : cards));
    const told = sign && pair.length < 2 ? "; choose two models to order by what was gained" : "";
    form.querySelector("output").textContent = `${shown} of ${cards.length} prompts${told}`;
  }
  if (form) {
    form.hidden = false;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", browse);
    for (const card of cards) card.addEventListener("toggle", () => card.open && compare(card, form.elements.a.value, form.elements.b.value));
    browse();
  }

  // --- a link into a closed part opens it --------------------------------------------------------------------------------------------------
  const open = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", open);
  open();

  // --- live ---------------------------------------------------------------------------------------------------------------------------
  if (document.body.dataset.live) {
    let version = null, wait = 1500;
    const line = document.getElementById("live-said");
    const tell = (state) => {
      line.textContent = state.said;
      document.getElementById("live-stages").replaceChildren(
        ...state.stages.map((stage) => {
          const item = made("li", stage.name + " ");
          if (stage.share !== null) {
            const progress = made("progress");
            progress.max = 1;
            progress.value = stage.share;
            item.append(progress, " ");
          }
          item.append(stage.said);
          return item;
        }),
      );
    };
    const ask = async () => {
      try {
        const answer = await fetch("/state", { cache: "no-store" });
        if (!answer.ok) throw new Error(String(answer.status));
        const state = await answer.json();
        wait = 1500;
        tell(state);
        if (version !== null && state.version !== version && !(document.activeElement && document.activeElement.closest("form"))) location.reload();
        else version ??= state.version;
      } catch {
        line.textContent = "The server does not answer; the page shows what it knew last.";
        wait = Math.min(30000, wait * 2);
      }
      setTimeout(ask, wait);
    };
    ask();
  }
})();
