// Markdown with code and maths, made safe: what a model writes is never trusted.

const { markdownit, hljs, katex, DOMPurify } = window;

const markdown = markdownit({ html: false, linkify: true, highlight });
markdown.disable("image"); // nothing is fetched for an answer
markdown.inline.ruler.before("escape", "maths", readMaths);
markdown.renderer.rules.maths = (tokens, at) => writeMaths(tokens[at].content, tokens[at].meta.display);

const BRACKETS = [
  ["$$", "$$", true],
  ["\\[", "\\]", true],
  ["\\(", "\\)", false],
  ["$", "$", false],
];

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer");
  }
});

// A fragment that shows `text`.
export function render(text) {
  const plain = text.replace(/<answer>([^`]*?)<\/answer>/g, "`$1`");
  return DOMPurify.sanitize(markdown.render(plain), {
    USE_PROFILES: { html: true, mathMl: true },
    FORBID_TAGS: ["style", "form", "input", "button", "img", "svg", "video", "audio"],
    FORBID_ATTR: ["style", "id", "name"],
    RETURN_DOM_FRAGMENT: true,
  });
}

function highlight(code, language) {
  if (!language || !hljs.getLanguage(language)) return "";
  return hljs.highlight(code, { language, ignoreIllegals: true }).value;
}

function readMaths(state, silent) {
  const from = state.src.slice(state.pos);
  for (const [open, close, display] of BRACKETS) {
    if (!from.startsWith(open)) continue;
    const end = from.indexOf(close, open.length);
    if (end < 0) continue;
    const inner = from.slice(open.length, end);
    // "$5 and $6" is money: a lone dollar hugs its formula and no digit follows it
    if (open === "$" && (/^\s|\s$|^$/.test(inner) || /\d/.test(from[end + 1] ?? ""))) continue;
    if (!silent) {
      const token = state.push("maths", "math", 0);
      token.content = inner;
      token.meta = { display };
    }
    state.pos += end + close.length;
    return true;
  }
  return false;
}

// MathML without its TeX annotation: browsers draw it with neither style sheet nor inline styles.
function writeMaths(tex, displayMode) {
  try {
    const written = katex.renderToString(tex, { displayMode, output: "mathml", throwOnError: true, trust: false });
    return written.replace(/<annotation[^>]*>[\s\S]*?<\/annotation>/g, "").replace(/<\/?semantics>/g, "");
  } catch {
    return `<code>${markdown.utils.escapeHtml(tex)}</code>`;
  }
}
