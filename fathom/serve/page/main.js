// The page: conversations, the one that is open, and the answer that is being written.

import * as store from "./store.js";
import { complete, models } from "./stream.js";
import { element, refresh, turn } from "./turns.js";

const at = (id) => document.getElementById(id);
const state = { conversations: store.load(), open: null, writing: null };

// ---- what is shown --------------------------------------------------------------------------------------------------

function show() {
  at("chats").replaceChildren(...state.conversations.map(entry));
  at("log").replaceChildren(...store.path(state.open).map((message) => turn(state.open, message, act)));
  at("log").scrollTop = at("log").scrollHeight;
}

function entry(conversation) {
  const chosen = conversation === state.open;
  const button = element("button", { type: "button", textContent: store.titleOf(conversation) });
  if (chosen) button.setAttribute("aria-current", "true");
  button.onclick = () => open(conversation);
  return element("li", {}, button);
}

function open(conversation) {
  stop();
  state.open = conversation;
  closeMenu();
  show();
  at("question").focus();
}

function say(text) {
  at("status").textContent = text;
}

function keep() {
  const kept = state.conversations.filter((each) => Object.keys(each.messages).length);
  if (!store.save(kept)) say("This browser has no room for the conversations; export or delete some.");
}

// ---- deeds ----------------------------------------------------------------------------------------------------------

const act = {
  choose(message) {
    store.choose(state.open, message);
    keep();
    show();
  },
  edit(message) {
    const article = document.querySelector(`[data-id="${message.id}"]`);
    const box = element("textarea", { className: "edit", value: message.content, rows: 3 });
    box.setAttribute("aria-label", "Edit the question; Enter sends it, Escape leaves it");
    box.onkeydown = (event) => {
      if (event.key === "Escape") show();
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing && box.value.trim()) {
        event.preventDefault();
        ask(message.parent, box.value.trim());
      }
    };
    article.querySelector(".body").replaceWith(box);
    box.focus();
  },
  retry(message) {
    answer(message.parent);
  },
  branch(message) {
    const copy = store.branch(state.open, message);
    state.conversations.unshift(copy);
    keep();
    open(copy);
    say("A new chat goes on from there.");
  },
  async copy(message) {
    if (!navigator.clipboard) return say("Browsers copy for pages of this machine or over HTTPS alone.");
    await navigator.clipboard.writeText(message.content);
    say("Copied.");
  },
};

function ask(parent, content) {
  const question = store.add(state.open, parent, { role: "user", content });
  answer(question.id);
}

// The messages above and with `id`, as the server takes them.
function history(id) {
  const shown = [];
  for (let each = state.open.messages[id]; each; each = state.open.messages[each.parent]) {
    const said = { role: each.role, content: each.content };
    if (each.thinking) said.reasoning_content = each.thinking;
    shown.unshift(said);
  }
  return shown;
}

function wishes() {
  const form = new FormData(at("sampling"));
  const body = {};
  for (const [name, value] of form) if (name !== "think" && value !== "") body[name] = Number(value);
  if (!form.has("think")) body.thinking = { type: "disabled" };
  return body;
}

async function answer(parent) {
  stop();
  const conversation = state.open;
  const message = store.add(conversation, parent, { role: "assistant", content: "", thinking: "", state: "thinking" });
  const writing = { control: new AbortController(), message };
  state.writing = writing;
  show();
  busy(true);
  try {
    await receive(conversation, message, { messages: history(parent), ...wishes() }, writing.control.signal);
  } catch (error) {
    if (error.name === "AbortError") message.note = "stopped";
    else message.error = error.message;
  }
  message.state = "done";
  keep();
  if (state.writing === writing) {
    state.writing = null;
    busy(false);
    say(message.error ? `It failed: ${message.error}` : message.note);
  }
  if (state.open === conversation) show();
}

async function receive(conversation, message, body, signal) {
  const began = performance.now();
  const seconds = () => (performance.now() - began) / 1000;
  let drawn = false;
  const draw = () => {
    drawn = false;
    const article = document.querySelector(`[data-id="${message.id}"]`);
    const log = at("log");
    const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    if (article && message.state !== "done") refresh(article, conversation, message);
    if (follows) log.scrollTop = log.scrollHeight;
  };
  for await (const part of complete(body, signal)) {
    message.thinking += part.thinking;
    message.content += part.answer;
    if (part.thinking && message.state === "thinking") say("Thinking");
    if (part.answer && message.state === "thinking") {
      message.state = "answering";
      message.thinkingSeconds = seconds();
      say("Answering");
    }
    if (part.usage) count(message, part.usage, seconds());
    if (part.finish === "length") message.error = cutOff(part.reason);
    if (!drawn) requestAnimationFrame(draw);
    drawn = true;
  }
}

function count(message, usage, seconds) {
  message.thinkingSeconds ??= seconds;
  message.reasoningTokens = usage.completion_tokens_details?.reasoning_tokens ?? 0;
  message.note = `${usage.completion_tokens} tokens, ${seconds.toFixed(1)} s`;
}

function cutOff(reason) {
  return reason === "thinking_unfinished"
    ? "It was cut off while it thought, so there is no answer. Allow more tokens, or fewer for thinking."
    : "It was cut off; allow more tokens.";
}

function stop() {
  state.writing?.control.abort();
}

function busy(is) {
  at("send").hidden = is;
  at("stop").hidden = !is;
  at("log").setAttribute("aria-busy", String(is));
}

// ---- controls -------------------------------------------------------------------------------------------------------

at("ask").onsubmit = (event) => {
  event.preventDefault();
  const content = at("question").value.trim();
  if (!content || state.writing) return;
  if (!at("sampling").reportValidity()) return;
  at("question").value = "";
  ask(store.path(state.open).at(-1)?.id ?? null, content);
};

at("question").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
  const questions = store.path(state.open).filter((message) => message.role === "user");
  if (event.key === "ArrowUp" && !at("question").value && questions.length) {
    event.preventDefault();
    act.edit(questions.at(-1));
  }
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    stop();
    closeMenu();
  }
});

at("stop").onclick = stop;
at("new").onclick = () => {
  const empty = state.conversations.find((each) => !Object.keys(each.messages).length);
  if (!empty) state.conversations.unshift(store.begin());
  open(empty ?? state.conversations[0]);
};
at("delete").onclick = () => {
  stop();
  state.conversations = state.conversations.filter((each) => each !== state.open);
  if (!state.conversations.length) state.conversations.push(store.begin());
  keep();
  open(state.conversations[0]);
};
at("export").onclick = () => {
  const file = new Blob([JSON.stringify(state.open, null, 2)], { type: "application/json" });
  const link = element("a", { href: URL.createObjectURL(file), download: `chat-${state.open.id}.json` });
  link.click();
  URL.revokeObjectURL(link.href);
};

function closeMenu() {
  at("side").classList.remove("open");
  at("menu").setAttribute("aria-expanded", "false");
}
at("menu").onclick = () => {
  const is = at("side").classList.toggle("open");
  at("menu").setAttribute("aria-expanded", String(is));
};

function dress(theme) {
  document.documentElement.dataset.theme = theme;
  at("theme").textContent = theme === "dark" ? "Light" : "Dark";
}
at("theme").onclick = () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("fathom.theme", theme);
  dress(theme);
};

// ---- the beginning --------------------------------------------------------------------------------------------------

dress(localStorage.getItem("fathom.theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
if (!state.conversations.length) state.conversations.push(store.begin());
open(state.conversations[0]);
models().then(
  ([model]) => {
    at("model").textContent = model.id;
  },
  (error) => say(error.message),
);
