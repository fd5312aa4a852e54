// What an empty conversation shows: problems to try, drawn from what the model was trained for.

import { element } from "./elements.js";
import { problems } from "./stream.js";

const WORDS = {
  countdown: "Countdown: reach the number behind the colon with all the numbers in front of it.",
  arithmetic: "Arithmetic, one step after the other.",
};

export function welcome(ask) {
  const list = element("div", { className: "tries" });
  const about = element("p", { textContent: "Ask something, and unfold its thinking while it comes." });
  const offer = (question) => element("button", { type: "button", textContent: question, onclick: () => ask(question) });
  const made = element("div", { className: "welcome" }, element("h2", { textContent: "Watch it think" }), about, list);
  problems().then(
    ({ task, questions }) => {
      if (!questions.length) return;
      about.textContent = WORDS[task] ?? "Ask something, or try a problem of the kind it was trained on.";
      list.replaceChildren(...questions.map(offer));
    },
    () => {}, // the page does without
  );
  return made;
}
