// The conversations, the one that is open, and what is done with it.

import { element } from "./elements.js";
import { looks, rival, served, wishes } from "./settings.js";
import * as store from "./store.js";
import { refresh, turn } from "./turns.js";
import { welcome } from "./welcome.js";
import { blank, isBusy, stop, write } from "./writing.js";

const MORE = 8; // tokens that “think more” thinks at least

const at = (id) => document.getElementById(id);
export const state = { conversations: store.load(), open: null };

// ---- what is shown --------------------------------------------------------------------------------------------------

export function show() {
  const messages = store.path(state.open);
  at("chats").replaceChildren(...state.conversations.map(entry));
  const turns = messages.map((message) => turn(state.open, message, act, looks()));
  at("log").replaceChildren(...(turns.length ? turns : [welcome((question) => ask(null, question))]));
  at("log").classList.toggle("wide", messages.some((message) => message.beside));
  at("log").scrollTop = at("log").scrollHeight;
}

function entry(conversation) {
  const made = element("button", { type: "button", textContent: store.titleOf(conversation) });
  if (conversation === state.open) made.setAttribute("aria-current", "true");
  made.onclick = () => open(conversation);
  return element("li", {}, made);
}

export function open(conversation) {
  stop();
  state.open = conversation;
  closeMenu();
  show();
  at("question").focus();
}

export function closeMenu() {
  at("side").classList.remove("open");
  at("menu").setAttribute("aria-expanded", "false");
}

export function say(text) {
  at("status").textContent = text;
}

export function keep() {
  const kept = state.conversations.filter((each) => Object.keys(each.messages).length);
  if (!store.save(kept)) say("This browser has no room for the conversations; export or delete some.");
}

// Draws messages at most once a frame, and keeps the end in sight of a reader who is there.
const stale = new Set();
function redraw(conversation, message) {
  if (!stale.size) requestAnimationFrame(() => draw(conversation));
  stale.add(message);
}

function draw(conversation) {
  const log = at("log");
  const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  for (const message of stale) {
    const article = document.querySelector(`[data-id="${message.id}"]`);
    if (article && conversation === state.open) refresh(article, conversation, message, act, looks());
  }
  stale.clear();
  if (follows) log.scrollTop = log.scrollHeight;
}

// ---- deeds ----------------------------------------------------------------------------------------------------------

export const act = {
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
  answerNow(message) {
    resume(message, { thinking_token_budget: 0 });
  },
  thinkMore(message) {
    const cut = { content: "", trace: message.trace && store.untilThought(message.trace) };
    if (act.isBeside(message)) return resume(Object.assign(message, cut), { min_thinking_tokens: MORE });
    stop(message);
    const { id: _, parent, beside: __, ...rest } = message;
    const more = store.add(state.open, parent, { ...rest, ...cut });
    more.spent = message.spent && { ...message.spent, answerSeconds: 0, answerTokens: 0 };
    resume(more, { min_thinking_tokens: MORE });
    show();
  },
  isBeside: (message) => message.parent === undefined,
  take(message) {
    const owner = Object.values(state.open.messages).find((each) => each.beside === message);
    store.swap(owner);
    keep();
    show();
  },
};

export function ask(parent, content) {
  answer(store.add(state.open, parent, { role: "user", content }).id);
}

function answer(parent) {
  stop();
  const other = rival();
  const message = store.add(state.open, parent, blank({ model: served() }));
  if (other) message.beside = blank({ id: store.uid(), model: other });
  show();
  put(message, parent, false, {});
  if (other) put(message.beside, parent, true, {});
}

// The turn of a message goes on where it was left, its thinking as `fields` say.
function resume(message, fields) {
  const owner = Object.values(state.open.messages).find((each) => each === message || each.beside === message);
  const begun = { role: "assistant", content: "", reasoning_content: message.thinking };
  put(message, owner.parent, owner !== message, { ...fields, continue_final_message: true }, begun);
}

async function put(message, parent, isBeside, fields, begun) {
  const conversation = state.open;
  const question = conversation.messages[parent].content;
  const messages = store.history(conversation, parent, isBeside);
  if (begun) messages.push(begun);
  const { thinking, thinking_token_budget, ...others } = wishes();
  const limits = begun ? {} : { ...(thinking && { thinking }), ...(thinking_token_budget !== undefined && { thinking_token_budget }) };
  const trace = looks() ? { trace: true } : {};
  const writing = write(message, question, { messages, ...others, ...limits, ...trace, ...fields }, () => {
    redraw(conversation, message);
    announce(message);
  });
  busy();
  await writing;
  keep();
  busy();
}

function announce(message) {
  if (message.state === "done") say(message.error ? `It failed: ${message.error}` : (message.note ?? ""));
  else say(message.state === "thinking" ? "Thinking" : "Answering");
}

function busy() {
  at("send").hidden = isBusy();
  at("stop").hidden = !isBusy();
  at("log").setAttribute("aria-busy", String(isBusy()));
}
