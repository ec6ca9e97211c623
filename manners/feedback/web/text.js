"use strict";
// Text of strangers -> nodes. Every character goes in through textContent; no markup of the text becomes an element, an attribute or
// an address, so nothing in it can run or be fetched: links and images are written out as words. Headings, lists, quotes, tables, code,
// bold, italic and struck text are understood, anything else stands as it is.

function el(tag, options, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(options || {})) {
    if (name === "text") node.textContent = value;
    else if (name === "class") node.className = value;
    else if (name === "on") for (const [event, heard] of Object.entries(value)) node.addEventListener(event, heard);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, String(value));
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

const TEXT = { longest: 60000, deepest: 8, tries: 8 };

function rendered(text, plain) {
  const box = el("div", { class: "text", dir: "auto" });
  if (plain || text.length > TEXT.longest) box.append(el("pre", { class: "asis", text }));
  else blocks(text.replace(/\r\n?/g, "\n").split("\n"), box, 0);
  if (!text.trim()) box.append(el("p", { class: "soft", text: "(empty)" }));
  return box;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+)(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const HEADING = /^ {0,3}(#{1,6}) +(.*?)[ #]*$/;
const DASHES = /^ *\|?( *:?-+:? *\|)* *:?-+:? *\|? *$/;

function blocks(lines, into, depth) {
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    let found;
    if (!line.trim()) at += 1;
    else if (depth > TEXT.deepest) return void into.append(el("p", { text: lines.slice(at).join("\n") }));
    else if ((found = FENCE.exec(line))) {
      let end = at + 1;
      while (end < lines.length && !lines[end].trim().startsWith(found[1])) end += 1;
      const code = el("pre", { tabindex: 0 }, el("code", { text: lines.slice(at + 1, end).join("\n") }));
      if (found[2]) code.setAttribute("aria-label", `code, ${found[2]}`.slice(0, 40));
      into.append(code);
      at = end + 1;
    } else if ((found = HEADING.exec(line))) {
      const heading = el("p", { class: "heading", role: "heading", "aria-level": Math.min(6, found[1].length + 2) });
      inline(found[2], heading, 0);
      into.append(heading);
      at += 1;
    } else if (RULE.test(line)) {
      into.append(el("hr"));
      at += 1;
    } else if (/^ {0,3}>/.test(line)) {
      const quoted = [];
      while (at < lines.length && /^ {0,3}>/.test(lines[at])) quoted.push(lines[at++].replace(/^ {0,3}> ?/, ""));
      const quote = el("blockquote");
      blocks(quoted, quote, depth + 1);
      into.append(quote);
    } else if (ITEM.test(line)) at = list(lines, at, into, depth);
    else if (isTable(line, lines[at + 1] || "")) at = table(lines, at, into);
    else {
      const paragraph = el("p");
      let first = true;
      do {
        if (!first) paragraph.append(el("br"));
        inline(lines[at++], paragraph, 0);
        first = false;
      } while (at < lines.length && lines[at].trim() && !FENCE.test(lines[at]) && !HEADING.test(lines[at]) && !ITEM.test(lines[at]) && !/^ {0,3}>/.test(lines[at]));
      into.append(paragraph);
    }
  }
}

function list(lines, at, into, depth) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const made = el(ordered ? "ol" : "ul");
  if (ordered) made.setAttribute("start", String(parseInt(mark, 10)));
  while (at < lines.length) {
    const found = ITEM.exec(lines[at]);
    if (!found || found[1].length !== indent.length || /\d/.test(found[2]) !== ordered) break;
    const inside = [found[4]];
    const width = found[1].length + found[2].length + 1;
    at += 1;
    while (at < lines.length) {
      const spaces = lines[at].length - lines[at].trimStart().length;
      if (!lines[at].trim()) {
        const next = lines[at + 1] || "";
        if (!next.trim() || next.length - next.trimStart().length < width) break;
      } else if (spaces <= indent.length) break;
      inside.push(lines[at].slice(Math.min(width, spaces)));
      at += 1;
    }
    const item = el("li");
    blocks(inside, item, depth + 1);
    made.append(item);
    // an empty line between two items of one list
    if (at + 1 < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1]) && ITEM.exec(lines[at + 1])[1].length === indent.length) at += 1;
  }
  into.append(made);
  return at;
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|");
}

function isTable(head, dashes) {
  return head.includes("|") && dashes.includes("-") && dashes.length < 2000 && DASHES.test(dashes) && cells(head).length <= 30;
}

function table(lines, at, into) {
  const row = (line, kind) => {
    const made = el("tr");
    for (const text of cells(line)) {
      const cell = el(kind);
      inline(text.trim(), cell, 0);
      made.append(cell);
    }
    return made;
  };
  const head = el("thead", {}, row(lines[at], "th"));
  const body = el("tbody");
  at += 2;
  while (at < lines.length && lines[at].includes("|") && lines[at].trim()) body.append(row(lines[at++], "td"));
  into.append(el("div", { class: "wide", tabindex: 0, role: "group", "aria-label": "table" }, el("table", {}, head, body)));
  return at;
}

const MARKS = [["**", "strong"], ["__", "strong"], ["~~", "s"], ["*", "em"], ["_", "em"]];

function inline(text, into, depth) {
  let start = 0, at = 0;
  const gone = new Set(); // marks that do not occur any further
  const flush = (end) => { if (end > start) into.append(document.createTextNode(text.slice(start, end))); };
  const find = (mark, from) => {
    if (gone.has(mark)) return -1;
    const found = text.indexOf(mark, from);
    if (found < 0) gone.add(mark);
    return found;
  };
  while (at < text.length) {
    const letter = text[at];
    if (letter === "\\" && /[\\`*_{}[\]()#+.!~|<>-]/.test(text[at + 1] || "")) {
      flush(at);
      start = at + 1;
      at += 2;
    } else if (letter === "`") {
      let size = 1;
      while (text[at + size] === "`") size += 1;
      const mark = "`".repeat(Math.min(size, 9));
      const end = find(mark, at + size);
      if (end < 0) { at += size; continue; }
      flush(at);
      into.append(el("code", { text: text.slice(at + size, end) }));
      start = at = end + size;
    } else if (letter === "[" || (letter === "!" && text[at + 1] === "[")) {
      const image = letter === "!";
      const close = find("](", at);
      const end = close < 0 || close - at > 1000 ? -1 : text.indexOf(")", close);
      if (end < 0 || end - close > 3000) { at += 1; continue; }
      flush(at);
      const label = text.slice(at + (image ? 2 : 1), close);
      into.append(el("span", { class: "link", text: image ? `image: ${label}` : label }), el("span", { class: "address", text: ` (${text.slice(close + 2, end)})` }));
      start = at = end + 1;
    } else {
      const mark = depth < TEXT.deepest && MARKS.find(([sign]) => text.startsWith(sign, at));
      const end = mark ? closing(text, at, mark[0], find) : -1;
      if (end < 0) { at += mark ? mark[0].length : 1; continue; }
      flush(at);
      const inner = el(mark[1]);
      inline(text.slice(at + mark[0].length, end), inner, depth + 1);
      into.append(inner);
      start = at = end + mark[0].length;
    }
  }
  flush(text.length);
}

function closing(text, at, mark, find) {
  const from = at + mark.length;
  if (/\s/.test(text[from] || " ")) return -1;
  if (mark[0] === "_" && /\w/.test(text[at - 1] || "")) return -1; // snake_case
  let end = from;
  for (let tries = 0; tries < TEXT.tries; tries += 1) {
    end = find(mark, end + 1);
    if (end < 0) return -1;
    const double = mark.length === 1 && (text[end + 1] === mark || text[end - 1] === mark);
    if (!double && !/\s/.test(text[end - 1]) && !(mark[0] === "_" && /\w/.test(text[end + mark.length] || ""))) return end;
  }
  return -1;
}
