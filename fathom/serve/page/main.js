// The page's controls, and how it begins.

import { act, ask, closeMenu, keep, open, say, show, state } from "./session.js";
import { begin, download, offer } from "./settings.js";
import * as store from "./store.js";
import { models } from "./stream.js";
import { isBusy, stop } from "./writing.js";

const at = (id) => document.getElementById(id);

at("ask").onsubmit = (event) => {
  event.preventDefault();
  const content = at("question").value.trim();
  if (!content || isBusy()) return;
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

at("stop").onclick = () => stop();
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
at("export").onclick = () => download(state.open, `chat-${state.open.id}.json`);
at("menu").onclick = () => {
  const is = at("side").classList.toggle("open");
  at("menu").setAttribute("aria-expanded", String(is));
};

begin(() => {
  show();
  const untraced = store.path(state.open).some((message) => message.role === "assistant" && !message.trace);
  if (untraced) say("Answers from now on are shown from inside; retry one to see its inside.");
});
if (!state.conversations.length) state.conversations.push(store.begin());
open(state.conversations[0]);
models().then(offer, (error) => say(error.message));
