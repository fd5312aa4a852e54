// The inside view of one answer: its tokens shaded by how sure the model was, what became of MTP drafts, the experts that
// each token went to, and what the key-value cache takes.

import { element, svg } from "./elements.js";

const LEVELS = 7; // shades beside none
const MOST_ENTROPY = 2.5; // nats that get the darkest shade
const scales = {
  probability: { name: "Probability", ends: ["certain", "unlikely"], of: (token) => 1 - token.probability },
  entropy: { name: "Entropy", ends: ["decided", "open"], of: (token) => token.entropy / MOST_ENTROPY },
};
let scale = "probability";

// A section that shows the trace of a message; `show` takes what has come since.
export function inside(message) {
  const section = element("section", { className: "inside" });
  section.setAttribute("aria-label", "Inside view");
  const flow = element("div", { className: "tokens", tabIndex: 0 });
  flow.setAttribute("role", "listbox");
  flow.setAttribute("aria-label", "Tokens; arrow keys choose one");
  const facts = element("p", { className: "facts" });
  const strip = element("div", { className: "experts" });
  const cache = element("div", { className: "cache" });
  section.append(controls(message, repaint), flow, facts, strip, cache);
  const trace = message.trace;
  let chosen = 0;
  let picked = false; // by the reader; until then it is the token that surprised the model most

  function choose(place) {
    if (!trace.tokens.length) return;
    flow.children[chosen]?.setAttribute("aria-selected", "false");
    chosen = Math.max(0, Math.min(place, trace.tokens.length - 1));
    flow.children[chosen].setAttribute("aria-selected", "true");
    flow.setAttribute("aria-activedescendant", flow.children[chosen].id);
    facts.replaceChildren(...factsOf(trace.tokens[chosen]));
    strip.replaceChildren(...expertsOf(trace, trace.tokens[chosen]));
  }
  function repaint() {
    for (const [place, token] of trace.tokens.entries()) flow.children[place].dataset.level = level(token);
  }
  function show() {
    const known = flow.children.length;
    flow.append(...trace.tokens.slice(known).map((token, place) => chip(message, token, known + place)));
    if (known < trace.tokens.length) choose(picked ? chosen : leastLikely(trace.tokens));
    section.classList.toggle("drafted", trace.tokens.some((token) => token.draft));
    cache.replaceChildren(...cacheOf(trace));
  }
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  flow.onkeydown = (event) => {
    const to = { Home: 0, End: trace.tokens.length - 1 }[event.key] ?? (steps[event.key] && chosen + steps[event.key]);
    if (to === undefined) return;
    event.preventDefault();
    picked = true;
    choose(to);
    flow.children[chosen].scrollIntoView({ block: "nearest" });
  };
  flow.onclick = flow.onpointerover = (event) => {
    if (!event.target.dataset.place) return;
    picked = true;
    choose(Number(event.target.dataset.place));
  };
  show();
  return { section, show };
}

function leastLikely(tokens) {
  return tokens.reduce((least, token, place) => (token.probability < tokens[least].probability ? place : least), 0);
}

function controls(message, repaint) {
  const legend = element("span", { className: "legend" });
  const label = () => legend.replaceChildren(scales[scale].ends[0], ramp(), scales[scale].ends[1], drafts());
  const radios = Object.entries(scales).map(([key, { name }]) => {
    const radio = element("input", { type: "radio", name: `scale-${message.id}`, checked: key === scale });
    radio.onchange = () => {
      scale = key;
      label();
      repaint();
    };
    return element("label", {}, radio, name);
  });
  label();
  const group = element("fieldset", { className: "scales" }, element("legend", { className: "hidden", textContent: "Shade" }));
  group.append(...radios, legend);
  return group;
}

function ramp() {
  const made = element("span", { className: "ramp" });
  for (let each = 0; each <= LEVELS; each++) made.append(swatch(each));
  made.setAttribute("aria-hidden", "true");
  return made;
}

function swatch(each) {
  const made = element("i");
  made.dataset.level = each;
  return made;
}

function drafts() {
  const made = element("span", { className: "draft-legend" });
  const words = { accepted: "draft kept", rejected: "draft refused" };
  for (const [draft, text] of Object.entries(words)) {
    const sample = element("span", { textContent: text });
    sample.dataset.draft = draft;
    made.append(sample);
  }
  return made;
}

// The root sets small doubts apart from none.
const level = (token) => Math.round(Math.sqrt(Math.min(1, Math.max(0, scales[scale].of(token)))) * LEVELS);

function chip(message, token, place) {
  const made = element("span", { className: "token", id: `token-${message.id}-${place}` });
  made.setAttribute("role", "option");
  made.setAttribute("aria-selected", "false");
  made.textContent = token.text.replaceAll("\n", "⏎\n") || "·";
  made.dataset.place = place;
  made.dataset.level = level(token);
  if (token.draft) made.dataset.draft = token.draft;
  if (/^<.*>$/.test(token.text)) made.classList.add("special");
  return made;
}

function factsOf(token) {
  const facts = [
    ["Token", token.text.trim() ? token.text : JSON.stringify(token.text)],
    ["Probability", percent(token.probability)],
    ["Entropy", `${token.entropy.toFixed(2)} nats`],
    ["Draft", { accepted: "kept", rejected: "refused" }[token.draft] ?? "none"],
  ];
  return facts.map(([name, value]) => element("span", {}, `${name} `, element("b", { textContent: value })));
}

const percent = (share) => `${(100 * share).toFixed(share > 0.1 ? 1 : 3)} %`;

// A row for each layer and a cell for each expert: tinted by how often the answer used it, filled where the token did.
function expertsOf(trace, token) {
  const layers = token.experts.length;
  if (!layers || !trace.experts) return [];
  const cell = Math.max(2, Math.min(26, 640 / trace.experts));
  const height = Math.max(3, Math.min(16, 220 / layers));
  const share = usage(trace, layers);
  const drawing = svg("svg", {
    viewBox: `0 0 ${trace.experts * cell} ${layers * height}`,
    width: trace.experts * cell,
    role: "img",
    "aria-label": `Experts of ${trace.experts} in each layer: ${token.experts.map((e) => e.join(" and ")).join("; ")}`,
  });
  for (let layer = 0; layer < layers; layer++) {
    for (let expert = 0; expert < trace.experts; expert++) {
      const box = { x: expert * cell + 0.5, y: layer * height + 0.5, width: cell - 1, height: height - 1, rx: 1.5 };
      const chosen = token.experts[layer].includes(expert);
      const tint = chosen ? 1 : (0.06 + 0.4 * share[layer][expert]).toFixed(3);
      drawing.append(svg("rect", { ...box, class: chosen ? "chosen" : "expert", "fill-opacity": tint }));
    }
  }
  const noun = layers === 1 ? "1 layer" : `${layers} layers`;
  const about = `Experts of this token, ${token.experts[0].length} of ${trace.experts} in ${noun}; in grey, how often the answer used each`;
  return [element("p", { textContent: about }), drawing];
}

function usage(trace, layers) {
  const counts = Array.from({ length: layers }, () => new Float64Array(trace.experts));
  for (const token of trace.tokens) {
    token.experts.forEach((chosen, layer) => chosen.forEach((expert) => counts[layer][expert]++));
  }
  return counts.map((row) => row.map((count) => count / trace.tokens.length));
}

function cacheOf(trace) {
  if (!trace.cache) return [];
  const { bytes_per_token: here, mha_bytes_per_token: whole } = trace.cache;
  const less = whole > here ? `, ${(whole / here).toFixed(1)} times less than the same heads in multi-head attention` : "";
  const rows = [["here", here, "chosen"], ["MHA", whole, "whole"]].map(([name, size, kind]) => bar(name, size, kind, Math.max(here, whole)));
  return [element("p", { textContent: `Key-value cache of a token${less}` }), ...rows];
}

function bar(name, size, kind, most) {
  const drawing = svg("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" });
  drawing.append(svg("rect", { height: 8, width: (100 * size) / most, class: kind }));
  return element("div", { className: "bar" }, element("span", { textContent: name }), drawing, element("b", { textContent: bytes(size) }));
}

function bytes(count) {
  return count < 10_000 ? `${count.toLocaleString("en")} B` : `${(count / 1024).toFixed(1)} KiB`;
}
