// What the reader has chosen: models, how answers are drawn, theme, inside view. Theme and view are remembered.

import { element } from "./elements.js";

const at = (id) => document.getElementById(id);

export const looks = () => at("inside").getAttribute("aria-pressed") === "true";
export const served = () => at("model").value || undefined;
export const rival = () => at("rival").value || undefined;

// Fields of a request, as the form has them.
export function wishes() {
  const form = new FormData(at("sampling"));
  const body = {};
  for (const [name, value] of form) if (name !== "think" && value !== "") body[name] = Number(value);
  if (!form.has("think")) body.thinking = { type: "disabled" };
  return body;
}

export function offer(ids) {
  at("model").replaceChildren(...ids.map((id) => new Option(id, id)));
  at("rival").replaceChildren(new Option("off", ""), ...ids.map((id) => new Option(id, id)));
  at("model").disabled = ids.length < 2;
  at("beside").hidden = ids.length < 2;
}

// `changed` is called when the inside view is wanted or no longer.
export function begin(changed) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  dress(localStorage.getItem("fathom.theme") ?? dark);
  at("theme").onclick = () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    localStorage.setItem("fathom.theme", theme);
    dress(theme);
  };
  at("inside").setAttribute("aria-pressed", localStorage.getItem("fathom.inside") ?? "false");
  at("inside").onclick = () => {
    const wanted = String(!looks());
    localStorage.setItem("fathom.inside", wanted);
    at("inside").setAttribute("aria-pressed", wanted);
    changed();
  };
}

function dress(theme) {
  document.documentElement.dataset.theme = theme;
  at("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

export function download(content, name) {
  const file = new Blob([JSON.stringify(content, null, 2)], { type: "application/json" });
  const link = element("a", { href: URL.createObjectURL(file), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}
