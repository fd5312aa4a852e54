// One message as the reader sees it, or two answers beside one another.

import { button, element } from "./elements.js";
import { inside } from "./inside.js";
import { render } from "./render.js";
import { siblings } from "./store.js";

const unfolded = new Set(); // ids of messages whose thinking the reader has opened
const views = new Map(); // inside views that are shown, by their messages' ids

// What shows `message`; `act` has the deeds, `looks` says whether inside views are wanted.
export function turn(conversation, message, act, looks) {
  const made = article(message);
  refresh(made, conversation, message, act, looks);
  if (!message.beside) return made;
  const other = article(message.beside);
  refresh(other, conversation, message.beside, act, looks);
  return element("div", { className: "pair" }, made, other);
}

function article(message) {
  const made = element("article", { className: `turn ${message.role}` });
  made.dataset.id = message.id;
  made.setAttribute("aria-label", message.role === "user" ? "You" : "Model");
  views.delete(message.id);
  if (message.role === "assistant") {
    made.append(element("p", { className: "by" }), element("details", { className: "thinking", hidden: true }));
  }
  made.append(element("div", { className: "body" }));
  made.append(element("div", { className: "within" }), element("div", { className: "tools" }));
  return made;
}

// Show what a message has become.
export function refresh(made, conversation, message, act, looks) {
  const body = made.querySelector(".body");
  if (message.role === "user") body.textContent = message.content;
  else showAnswer(made, body, message, looks);
  const tools = made.querySelector(".tools");
  const key = JSON.stringify([message.state, message.verdict, siblings(conversation, message).length, message.note]);
  if (tools.dataset.key !== key || message.state === "done") {
    const focused = tools.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
    tools.dataset.key = key;
    tools.replaceChildren(...toolsOf(conversation, message, act));
    if (focused) tools.querySelector(`[aria-label="${focused}"]`)?.focus();
  }
}

function showAnswer(made, body, message, looks) {
  made.classList.toggle("writing", message.state !== "done");
  const by = made.querySelector(".by");
  by.textContent = message.model ?? "";
  by.hidden = !message.model;
  body.replaceChildren(render(message.content));
  showThinking(made.querySelector(".thinking"), message);
  if (message.error) body.append(element("p", { className: "wrong", textContent: message.error }));
  const within = made.querySelector(".within");
  if (!looks || !message.trace) {
    views.delete(message.id);
    within.replaceChildren();
  } else if (views.has(message.id)) views.get(message.id).show();
  else {
    views.set(message.id, inside(message));
    within.replaceChildren(views.get(message.id).section);
  }
}

function showThinking(fold, message) {
  fold.hidden = !message.thinking;
  if (!message.thinking) return;
  if (!fold.firstChild) {
    fold.append(element("summary"), element("div", { className: "text" }));
    fold.open = unfolded.has(message.id);
    fold.ontoggle = () => (fold.open ? unfolded.add(message.id) : unfolded.delete(message.id));
  }
  const thinks = message.state === "thinking";
  const { thinkingSeconds: seconds = 0, thinkingTokens: tokens = 0 } = message.spent ?? {};
  fold.classList.toggle("busy", thinks);
  const summary = `${thinks ? "Thinking" : "Thought"} · ${tokens} tokens · ${duration(seconds)}`;
  fold.querySelector("summary").textContent = summary;
  fold.querySelector(".text").textContent = message.thinking;
}

function toolsOf(conversation, message, act) {
  const made = [];
  if (message.role === "assistant" && message.verdict) made.push(badge(message.verdict));
  const all = siblings(conversation, message);
  if (all.length > 1) {
    const at = all.indexOf(message);
    const step = (by) => () => act.choose(all[(at + by + all.length) % all.length]);
    made.push(button("‹", "Previous version", step(-1), "step"));
    made.push(element("span", { textContent: `${at + 1} / ${all.length}` }));
    made.push(button("›", "Next version", step(1), "step"));
  }
  made.push(...(message.role === "user" ? asked(message, act) : said(message, act)));
  const note = message.role === "assistant" && message.state === "done" && noteOf(message);
  if (note) made.push(element("span", { className: "note", textContent: note }));
  return made;
}

function asked(message, act) {
  return [
    button("Edit", "Edit this question", () => act.edit(message)),
    button("Branch", "Go on from here in a new chat", () => act.branch(message)),
    button("Copy", "Copy this message", () => act.copy(message)),
  ];
}

function said(message, act) {
  const made = [];
  const done = message.state === "done";
  if (!message.content) {
    made.push(button("Answer now", "Close the thinking and answer now", () => act.answerNow(message), "steer"));
  } else if (message.thinking) {
    made.push(button("Think more", "Go on thinking before the answer", () => act.thinkMore(message), "steer"));
  }
  if (!done) return made;
  if (act.isBeside(message)) made.push(button("Take this one", "Go on with this answer", () => act.take(message)));
  else {
    made.push(button("Retry", "Ask for another answer", () => act.retry(message)));
    made.push(button("Branch", "Go on from here in a new chat", () => act.branch(message)));
  }
  made.push(button("Copy", "Copy this message", () => act.copy(message)));
  return made;
}

function noteOf(message) {
  const { answerTokens = 0, answerSeconds = 0 } = message.spent ?? {};
  const spent = message.content ? `answer ${answerTokens} tokens · ${duration(answerSeconds)}` : "";
  return [message.note, spent].filter(Boolean).join(" · ");
}

const duration = (seconds) => (seconds < 0.95 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`);

function badge({ task, score }) {
  const [word, kind] = score === null ? ["to be checked", "open"] : score >= 1 ? ["✓ right", "right"] : ["✗ wrong", "no"];
  const made = element("span", { className: `badge ${kind}`, textContent: word });
  made.title = `${task}: checked by the rule that training rewards`;
  return made;
}
