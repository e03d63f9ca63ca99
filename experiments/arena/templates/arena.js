// The pages work without this script; it saves a round trip for each question and adds keyboard shortcuts.
"use strict";
const form = document.getElementById("answer");
if (form) {
  const questions = [...form.querySelectorAll("fieldset")];
  const given = (set) => set.querySelector("[aria-pressed=true]");
  let sent = false;

  const mark = () => {
    const current = questions.find((set) => !given(set));
    questions.forEach((set) => set.classList.toggle("current", set === current && questions.length > 1));
    return current;
  };

  const send = (button) => {
    if (sent) return;  // a second click, or a key held down
    sent = true;
    form.requestSubmit(button);
  };

  const choose = (button) => {
    const set = button.closest("fieldset");
    set.querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
    let field = form.querySelector(`input[name="${set.dataset.name}"]`);
    if (!field) {
      field = document.createElement("input");
      field.type = "hidden";
      field.name = set.dataset.name;
      form.append(field);
    }
    field.value = button.value;
    const next = mark();
    if (next) {
      if (set.contains(document.activeElement)) next.querySelector("button").focus({preventScroll: true});
      next.scrollIntoView({block: "nearest"});
    } else if (!sent) {
      sent = true;
      form.submit();
    }
  };

  form.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button || button.id === "keys") return;
    event.preventDefault();
    if (button.closest("fieldset")) choose(button); else send(button);
  });
  // The browser's Back button shows this page as it was left.
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

  let keys = localStorage.getItem("keys") !== "off";
  const toggle = document.getElementById("keys");
  const label = () => { toggle.textContent = keys ? "Keys: on" : "Keys: off"; };
  toggle.hidden = false;
  toggle.addEventListener("click", () => { keys = !keys; localStorage.setItem("keys", keys ? "on" : "off"); label(); });
  label();
  document.addEventListener("keydown", (event) => {
    if (!keys || sent || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key === "t" ? "0" : event.key.toLowerCase();
    const other = form.querySelector(`.others [data-key="${CSS.escape(key)}"]`);
    const set = mark();
    const button = other || (set && set.querySelector(`[data-key="${CSS.escape(key)}"]`));
    if (!button || button.disabled) return;
    event.preventDefault();
    if (other) send(button); else choose(button);
  });
  mark();
}

// The results page updates as answers come in.
const results = document.querySelector("main[data-answers]");
if (results) {
  const address = location.pathname.replace(/\/$/, "");
  let shown = results.dataset.answers;
  const look = async () => {
    try {
      const found = await (await fetch(`${address}/count`)).json();
      if (String(found.answers) !== shown) {
        const page = new DOMParser().parseFromString(await (await fetch(address)).text(), "text/html");
        const fresh = page.querySelector("main[data-answers]");
        const open = results.querySelector("details[open]");
        if (fresh && !results.contains(document.activeElement) && !open) {
          results.replaceChildren(...fresh.childNodes);
          shown = fresh.dataset.answers;
        }
      }
    } catch { /* the server is away: what is shown stays */ }
    setTimeout(look, 4000);
  };
  setTimeout(look, 4000);
}
