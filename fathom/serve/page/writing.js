// One answer being written: from the request to the finished message, with its times and tokens.

import { complete, grade } from "./stream.js";

const running = new Map(); // the control of each message that is being written, by its id

export const isBusy = () => running.size > 0;

export function stop(message) {
  if (message) running.get(message.id)?.abort();
  else for (const control of running.values()) control.abort();
}

export function blank(fields) {
  return { role: "assistant", content: "", thinking: "", state: "thinking", ...fields };
}

// Let the server write on at `message`; `changed` is called after every part and at the end.
export async function write(message, question, body, changed) {
  stop(message);
  const control = new AbortController();
  running.set(message.id, control);
  Object.assign(message, { state: message.content ? "answering" : "thinking", error: undefined, note: undefined });
  announce(message, question, changed);
  try {
    await receive(message, body, control.signal, changed);
  } catch (error) {
    if (error.name === "AbortError") message.note = "stopped";
    else message.error = error.message;
  }
  if (running.get(message.id) !== control) return; // somebody else writes on
  running.delete(message.id);
  message.state = "done";
  await judge(message, question);
  changed();
}

async function receive(message, body, signal, changed) {
  const counted = stopwatch(message);
  for await (const part of complete({ ...body, model: message.model }, signal)) {
    if (signal.aborted) return;
    message.thinking += part.thinking;
    message.content += part.answer;
    if (part.trace) follow(message, part.trace);
    if (part.answer) message.state = "answering";
    counted(part.usage);
    if (part.finish === "length") message.error = cutOff(part.reason);
    changed();
  }
}

// Adds up seconds and tokens of thinking and of answer, behind those of an earlier part of the same message. Tokens come
// several at once: the time since those before is shared out by how many of them were thought.
function stopwatch(message) {
  const before = message.spent ?? { thinkingSeconds: 0, answerSeconds: 0, thinkingTokens: 0, answerTokens: 0 };
  const spent = (message.spent = { ...before });
  let last = performance.now();
  return (usage) => {
    if (!usage) return;
    const now = performance.now();
    const thought = before.thinkingTokens + (usage.completion_tokens_details?.reasoning_tokens ?? 0);
    const said = before.answerTokens + usage.completion_tokens - (thought - before.thinkingTokens);
    const [newThought, newSaid] = [thought - spent.thinkingTokens, said - spent.answerTokens];
    const share = newThought + newSaid > 0 ? newThought / (newThought + newSaid) : Number(message.state === "thinking");
    spent.thinkingSeconds += (share * (now - last)) / 1000;
    spent.answerSeconds += ((1 - share) * (now - last)) / 1000;
    Object.assign(spent, { thinkingTokens: thought, answerTokens: said });
    last = now;
  };
}

function follow(message, trace) {
  message.trace ??= { tokens: [] };
  message.trace.tokens.push(...trace.tokens);
  if (trace.cache) Object.assign(message.trace, { cache: trace.cache, experts: trace.n_routed_experts });
}

function cutOff(reason) {
  return reason === "thinking_unfinished"
    ? "It was cut off while it thought, so there is no answer yet. “Answer now” asks for one; more tokens let it think on."
    : "It was cut off; allow more tokens.";
}

// Say early that there will be a verdict.
async function announce(message, question, changed) {
  message.verdict = undefined;
  const verdict = await grade(question, "").catch(() => null);
  if (!verdict?.task || message.state === "done") return;
  message.verdict = { task: verdict.task, score: null };
  changed();
}

async function judge(message, question) {
  const verdict = message.content ? await grade(question, message.content).catch(() => null) : null;
  message.verdict = verdict?.task ? { task: verdict.task, score: verdict.score } : undefined;
}
