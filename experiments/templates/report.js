// The list of jokes. Lines reach the page only as textContent, so a model's text is never parsed as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const themes = ["auto", "light", "dark"];
  at("theme").addEventListener("click", () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme || "auto") + 1) % themes.length];
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    at("theme").textContent = "Theme: " + next;
  });

  if (!at("rows")) return; // no lines were saved
  const PAGE = 50;
  const make = (tag, text, class_) => {
    const found = document.createElement(tag);
    if (text !== undefined) found.textContent = text;
    if (class_) found.className = class_;
    return found;
  };
  const fixed = (n) => (n === null || n === undefined ? "–" : n.toFixed(2));
  const signed = (n) => (n > 0 ? "+" : n < 0 ? "−" : "±") + Math.abs(n).toFixed(2);

  const rows = data.rows.map((row, order) => {
    const [stage, text, score] = row.l[row.m];
    const words = [row.p, ...row.l.map((line) => line[1])].join("\n").toLowerCase();
    return { ...row, order, stage, text, score, words, f: row.f || [] };
  });

  const fill = (id, options) => {
    const select = at(id);
    if (!select) return;
    for (const [value, label] of options) {
      const option = make("option", label);
      option.value = value;
      select.append(option);
    }
  };
  const counted = (pick) => {
    const found = new Map();
    for (const row of rows) for (const value of pick(row)) found.set(value, (found.get(value) || 0) + 1);
    return [...found];
  };
  const kinds = counted((row) => [row.k]);
  fill("kind", [...kinds.map(([k, n]) => [k, `${k} (${n})`]), ["", `all (${rows.length})`]]);
  const some = rows.filter((row) => row.f.length).length;
  const flags = counted((row) => row.f).sort((a, b) => b[1] - a[1]);
  fill("flag", [["", "any or none"], ["*", `flagged (${some})`], ...flags.map(([f, n]) => [f, `${f.replaceAll("_", " ")} (${n})`])]);
  fill("run", [["", "all"], ...data.runs.map((name, index) => [String(index), name])]);
  fill("seed", [["", "all"], ...counted((row) => [row.s]).map(([s]) => [s, s])]);

  // Rows without the sorted value come last in either direction.
  const by = (value, sign) => (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === undefined || x === null) return y === undefined || y === null ? a.order - b.order : 1;
    if (y === undefined || y === null) return -1;
    return sign * (x - y) || a.order - b.order;
  };
  const orders = {
    order: (a, b) => a.order - b.order,
    "score-up": by((row) => row.score, 1),
    "score-down": by((row) => row.score, -1),
    "change-up": by((row) => row.c, 1),
    "change-down": by((row) => row.c, -1),
    apart: by((row) => row.d, -1),
    long: by((row) => row.text.length, -1),
  };

  let shown = [];
  let reached = 0;

  const entry = (row) => {
    const item = make("li");
    const details = make("details");
    const summary = make("summary");
    const number = make("span", undefined, "number");
    number.append(make("span", fixed(row.score), "score"));
    if (row.c !== undefined) number.append(make("span", signed(row.c), row.c < 0 ? "change bad" : "change"));
    summary.append(number, make("span", row.p, "prompt"));
    const line = make("span");
    for (const flag of row.f) line.append(make("span", flag.replaceAll("_", " "), "flag"));
    line.append(document.createTextNode(row.text || "(nothing written)"));
    summary.append(line);
    details.append(summary);
    details.addEventListener("toggle", () => { if (details.open && details.children.length === 1) details.append(inside(row)); });
    item.append(details);
    return item;
  };

  const inside = (row) => {
    const list = make("dl");
    for (const [stage, text, score, reason, parts, others] of row.l) {
      list.append(make("dt", stage));
      const entry = make("dd");
      const written = make("p");
      written.append(make("span", fixed(score), "score"), document.createTextNode(" " + (text || "(nothing written)")));
      entry.append(written);
      const names = Object.entries(parts).map(([name, value]) => `${name} ${fixed(value)}`);
      if (reason) entry.append(make("p", reason, "muted"));
      if (names.length) entry.append(make("p", names.join(" · "), "muted"));
      const more = Object.entries(others).map(([name, value]) => `${name} says ${fixed(value)}`);
      if (more.length) entry.append(make("p", more.join(" · "), "muted"));
      list.append(entry);
    }
    const whole = make("div", undefined, "inside");
    whole.append(list);
    if (row.w) whole.append(make("p", "Flagged: " + row.w, "bad"));
    whole.append(make("p", [data.runs[row.r], row.s, row.t ? `step ${row.t}` : row.k].join(" · "), "muted"));
    return whole;
  };

  const more = () => {
    const batch = document.createDocumentFragment();
    for (const row of shown.slice(reached, reached + PAGE)) batch.append(entry(row));
    at("rows").append(batch);
    reached = Math.min(shown.length, reached + PAGE);
    at("more").hidden = reached >= shown.length;
    at("count").textContent = shown.length ? `${shown.length} of ${rows.length} lines, ${reached} shown` : "No line matches.";
  };

  const value = (id) => (at(id) ? at(id).value : "");
  const update = () => {
    const words = value("find").toLowerCase().trim();
    const [kind, flag, run, seed] = ["kind", "flag", "run", "seed"].map(value);
    const low = value("from") === "" ? -Infinity : Number(value("from"));
    const high = value("to") === "" ? Infinity : Number(value("to"));
    const bounded = low > -Infinity || high < Infinity;
    shown = rows.filter((row) =>
      (!kind || row.k === kind) && (!run || String(row.r) === run) && (!seed || row.s === seed) &&
      (!flag || (flag === "*" ? row.f.length > 0 : row.f.includes(flag))) &&
      (!bounded || (row.score !== null && row.score >= low && row.score <= high)) &&
      (!words || row.words.includes(words)));
    shown.sort(orders[value("sort")] || orders.order);
    at("rows").replaceChildren();
    reached = 0;
    more();
  };

  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("controls").addEventListener("input", update);
  at("more").addEventListener("click", () => {
    const first = reached;
    more();
    const next = at("rows").children[first];
    if (next) next.querySelector("summary").focus();
  });
  update();
})();
