// One message as the reader sees it.

import { render } from "./render.js";
import { siblings } from "./store.js";

export function element(tag, fields = {}, ...children) {
  const made = Object.assign(document.createElement(tag), fields);
  made.append(...children);
  return made;
}

const unfolded = new Set(); // ids of messages whose thinking the reader has opened

const button = (text, label, onclick) => {
  const made = element("button", { type: "button", textContent: text, onclick });
  made.setAttribute("aria-label", label);
  return made;
};

// An article for `message`; `act` has the deeds: edit, retry, branch, choose, copy.
export function turn(conversation, message, act) {
  const article = element("article", { className: `turn ${message.role}` });
  article.dataset.id = message.id;
  article.setAttribute("aria-label", message.role === "user" ? "You" : "Model");
  if (message.role === "assistant") article.append(element("details", { className: "thinking", hidden: true }));
  article.append(element("div", { className: "body" }), element("div", { className: "tools" }));
  refresh(article, conversation, message, act);
  return article;
}

// Show what a message has become.
export function refresh(article, conversation, message, act) {
  const body = article.querySelector(".body");
  if (message.role === "user") body.textContent = message.content;
  else body.replaceChildren(render(message.content));
  if (message.role === "assistant") showThinking(article.querySelector(".thinking"), message);
  if (message.error) body.append(element("p", { className: "wrong", textContent: message.error }));
  if (act) article.querySelector(".tools").replaceChildren(...tools(conversation, message, act));
}

function showThinking(fold, message) {
  fold.hidden = !message.thinking;
  if (!message.thinking) return;
  if (!fold.firstChild) {
    fold.append(element("summary"), element("div", { className: "text" }));
    fold.open = unfolded.has(message.id);
    fold.ontoggle = () => (fold.open ? unfolded.add(message.id) : unfolded.delete(message.id));
  }
  const seconds = message.thinkingSeconds === undefined ? "" : `, ${message.thinkingSeconds.toFixed(1)} s`;
  const tokens = message.reasoningTokens === undefined ? "" : `, ${message.reasoningTokens} tokens`;
  fold.classList.toggle("busy", message.state === "thinking");
  fold.querySelector("summary").textContent = message.state === "thinking" ? "Thinking" : `Thought${seconds}${tokens}`;
  fold.querySelector(".text").textContent = message.thinking;
}

function tools(conversation, message, act) {
  const made = [];
  const all = siblings(conversation, message);
  if (all.length > 1) {
    const at = all.indexOf(message);
    const step = (by) => () => act.choose(all[(at + by + all.length) % all.length]);
    made.push(button("‹", "Previous version", step(-1)));
    made.push(element("span", { textContent: `${at + 1} / ${all.length}` }));
    made.push(button("›", "Next version", step(1)));
  }
  if (message.role === "user") made.push(button("Edit", "Edit this question", () => act.edit(message)));
  else made.push(button("Retry", "Ask for another answer", () => act.retry(message)));
  made.push(button("Branch", "Go on from here in a new chat", () => act.branch(message)));
  made.push(button("Copy", "Copy this message", () => act.copy(message)));
  if (message.role === "assistant" && message.note) made.push(element("span", { textContent: message.note }));
  return made;
}
