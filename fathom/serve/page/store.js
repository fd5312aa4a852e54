// Conversations, kept in this browser alone. Each is a tree: an edited question or a repeated answer is a sibling of
// the one before it, and `chosen` says which child of a message is shown.

const KEY = "fathom.conversations";

export const uid = () => crypto.getRandomValues(new Uint32Array(2)).join("-");

export function load() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY));
    return Array.isArray(found) ? found.map(settle) : [];
  } catch {
    return [];
  }
}

// What was being written when the page was left is over.
function settle(conversation) {
  for (const message of Object.values(conversation.messages)) {
    for (const each of [message, message.beside]) if (each?.state) each.state = "done";
  }
  return conversation;
}

// Whether there was room to keep them. Traces, which are large, last as long as the page.
export function save(conversations) {
  try {
    localStorage.setItem(KEY, JSON.stringify(conversations, (name, value) => (name === "trace" ? undefined : value)));
    return true;
  } catch {
    return false;
  }
}

export function begin() {
  return { id: uid(), created: new Date().toISOString(), messages: {}, chosen: {} };
}

export function titleOf(conversation) {
  const first = Object.values(conversation.messages).find((message) => message.parent === null);
  return first ? first.content.slice(0, 60) : "New chat";
}

// Put a message below `parent` (null: the first) and show it.
export function add(conversation, parent, message) {
  const added = { id: uid(), parent, ...message };
  conversation.messages[added.id] = added;
  conversation.chosen[parent ?? "root"] = added.id;
  return added;
}

export function siblings(conversation, message) {
  return Object.values(conversation.messages).filter((other) => other.parent === message.parent);
}

export function choose(conversation, message) {
  conversation.chosen[message.parent ?? "root"] = message.id;
}

// The messages that are shown, first to last.
export function path(conversation) {
  const shown = [];
  for (let id = conversation.chosen.root; id; id = conversation.chosen[id]) shown.push(conversation.messages[id]);
  return shown;
}

// The messages above and with `id`, as the server takes them; with `isBeside` those of the answers beside the shown ones.
export function history(conversation, id, isBeside) {
  const shown = [];
  for (let each = conversation.messages[id]; each; each = conversation.messages[each.parent]) {
    const side = (isBeside && each.beside) || each;
    const said = { role: side.role, content: side.content };
    if (side.thinking) said.reasoning_content = side.thinking;
    shown.unshift(said);
  }
  return shown;
}

// Let the answer beside a message take its place, and the other way round.
export function swap(message) {
  const { id, parent, beside, ...own } = message;
  const { id: otherId, ...other } = beside;
  for (const name of Object.keys(own)) delete message[name];
  Object.assign(message, other, { beside: { ...own, id: otherId } });
}

// A trace up to the token that closes the thinking.
export function untilThought(trace) {
  const end = trace.tokens.findIndex((token) => token.text.includes("</think>"));
  return { ...trace, tokens: trace.tokens.slice(0, end < 0 ? undefined : end) };
}

// A conversation of its own that ends with `message`.
export function branch(conversation, message) {
  const copy = begin();
  let parent = null;
  for (const each of path(conversation)) {
    const { id, parent: _, ...rest } = each;
    parent = add(copy, parent, rest).id;
    if (each === message) break;
  }
  return copy;
}
