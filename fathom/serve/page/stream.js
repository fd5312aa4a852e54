// Chat completions as they come: server-sent events of /v1/chat/completions.

// Yields {thinking, answer, finish, usage} parts. Throws an Error with the server's words where it refuses.
export async function* complete(body, signal) {
  const reply = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!reply.ok) throw new Error(await refusal(reply));
  for await (const event of events(reply.body)) {
    if (event.error) throw new Error(event.error.message);
    const [choice] = event.choices;
    yield {
      thinking: choice?.delta.reasoning_content ?? choice?.delta.reasoning ?? "",
      answer: choice?.delta.content ?? "",
      finish: choice?.finish_reason ?? null,
      reason: choice?.stop_reason ?? null,
      usage: event.usage ?? null,
    };
  }
}

export async function models() {
  const reply = await fetch("/v1/models");
  if (!reply.ok) throw new Error(await refusal(reply));
  return (await reply.json()).data;
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
