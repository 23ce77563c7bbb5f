// The buttons of a walk. Commands go to Python as {command, text}; what is shown are the traits of the widget (buttons.py).

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function render({ model, el }) {
  let waiting = false;
  const controls = [];
  const send = (command, text = "") => {
    waiting = true;
    showState();
    model.send({ command, text });
  };
  const button = (label, title, command, text = () => "") => {
    const node = make("button", { type: "button", textContent: label, title, onclick: () => send(command, text()) });
    node.dataset.command = command;
    controls.push(node);
    return node;
  };

  const target = make("input", { type: "text", placeholder: "tensor, such as visual.merger", spellcheck: false, ariaLabel: "Tensor to go to" });
  const list = make("datalist", { id: `minivl-names-${Math.random().toString(36).slice(2)}` });
  target.setAttribute("list", list.id);
  list.append(...model.get("names").map((name) => make("option", { value: name })));
  target.addEventListener("keydown", (event) => { if (event.key === "Enter" && target.value) send("until", target.value); });

  const level = make("select", { ariaLabel: "Where the walk stops", onchange: () => send("level", level.value) });
  level.append(...model.get("levels").map((name) => make("option", { value: name, textContent: `every ${name}` })));

  const what = make("select", { ariaLabel: "Change of this tensor" });
  what.append(...model.get("changes").map(([name, usage]) => make("option", { value: name, textContent: usage })));
  const words = make("input", { type: "text", spellcheck: false, ariaLabel: "Arguments of the change" });
  const meaning = make("span", { className: "soft" });
  const describe = () => {
    const [name, usage, text] = model.get("changes").find(([name]) => name === what.value);
    words.placeholder = usage.slice(name.length + 1);
    words.hidden = !words.placeholder;
    meaning.textContent = text;
  };
  what.addEventListener("change", () => { words.value = ""; describe(); });
  const apply = make("button", { type: "button", textContent: "Apply", title: "Replace this tensor; the run goes on with it", onclick: () => send(what.value, words.hidden ? "" : words.value) });
  apply.dataset.command = "change";
  words.addEventListener("keydown", (event) => { if (event.key === "Enter") apply.click(); });
  controls.push(target, level, what, words, apply);

  const row = make("div", { className: "row" },
    button("◀ Back", "Run again to the stop before; changes up to there are kept", "back"),
    button("Next ▶", "Run to the next stop", "next"),
    button("Next stage", "Run past blocks and layers", "stage"),
    button("Finish", "Run to the answer", "finish"),
    target, list, button("Go", "Run until this tensor", "until", () => target.value), level);
  const edit = make("div", { className: "row" }, "Change it:", what, words, apply, meaning);
  const message = make("p", { className: "message", role: "alert" }), step = make("div", { className: "step" });
  const explanation = make("p"), details = make("details", {}, make("summary", { textContent: "Explain" }), explanation);
  el.classList.add("minivl-walk");
  el.append(row, edit, message, step, details);

  function showState() {
    const ended = model.get("ended"), none = !model.get("explanation"); // none: before the first step, and at the end
    for (const control of controls) control.disabled = waiting;
    for (const [command, off] of [["next", ended], ["stage", ended], ["finish", ended], ["until", ended], ["back", model.get("stops").length < (none && ended ? 1 : 2)]]) {
      const node = row.querySelector(`[data-command=${command}]`);
      node.disabled ||= off;
    }
    edit.hidden = details.hidden = none;
    level.value = model.get("level");
    step.innerHTML = model.get("html"); // written by minivl, which escapes every text in it
    explanation.textContent = model.get("explanation");
    message.textContent = model.get("message");
    message.hidden = !message.textContent;
    step.classList.toggle("waiting", waiting);
  }

  const done = () => { waiting = false; showState(); };
  const listeners = [["change:count", done]];
  for (const name of ["html", "message", "ended", "level", "stops", "explanation"]) listeners.push([`change:${name}`, showState]);
  for (const [event, listener] of listeners) model.on(event, listener);
  describe();
  showState();
  return () => { for (const [event, listener] of listeners) model.off(event, listener); };
}

export default { render };
