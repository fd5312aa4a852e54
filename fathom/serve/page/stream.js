// What the server says: chat completions as they come (server-sent events), its models, problems and verdicts.

// Yields {thinking, answer, finish, reason, usage, trace} parts. Throws an Error with the server's words where it refuses.
export async function* complete(body, signal) {
  const options = { include_usage: true, continuous_usage_stats: true };
  const reply = await post("/v1/chat/completions", { ...body, stream: true, stream_options: options }, signal);
  for await (const event of events(reply.body)) {
    if (event.error) throw new Error(event.error.message);
    const [choice] = event.choices;
    yield {
      thinking: choice?.delta.reasoning_content ?? choice?.delta.reasoning ?? "",
      answer: choice?.delta.content ?? "",
      finish: choice?.finish_reason ?? null,
      reason: choice?.stop_reason ?? null,
      usage: event.usage ?? null,
      trace: event.trace ?? null,
    };
  }
}

// Ids of the models, the served one first.
export async function models() {
  return (await get("/v1/models")).data.map((model) => model.id);
}

// The task the model was trained for, and questions of it, drawn anew: {task, questions}.
export async function problems() {
  return get("/problems");
}

// Whether an answer is right; `task` is null where the question is none that the server can judge.
export async function grade(question, answer) {
  return (await post("/grade", { question, answer })).json();
}

async function get(path) {
  const reply = await fetch(path);
  if (!reply.ok) throw new Error(await refusal(reply));
  return reply.json();
}

async function post(path, body, signal) {
  const headers = { "content-type": "application/json" };
  const reply = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!reply.ok) throw new Error(await refusal(reply));
  return reply;
}

async function refusal(reply) {
  try {
    return (await reply.json()).error.message;
  } catch {
    return `the server answered ${reply.status}`;
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the stream broke off; ask again");
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue; // a comment that keeps the line alive
      if (part === "data: [DONE]") return;
      yield JSON.parse(part.slice("data: ".length));
    }
  }
}
