// Conversations, kept in this browser alone. Each is a tree: an edited question or a repeated answer is a sibling of
// the one before it, and `chosen` says which child of a message is shown.

const KEY = "fathom.conversations";

export const uid = () => crypto.getRandomValues(new Uint32Array(2)).join("-");

export function load() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY));
    return Array.isArray(found) ? found : [];
  } catch {
    return [];
  }
}

// Whether there was room to keep them.
export function save(conversations) {
  try {
    localStorage.setItem(KEY, JSON.stringify(conversations));
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
