// The server's API: what models there are, and answers as streams of server-sent events.

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function request(path, key, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it still running?", 0);
  }
  if (!response.ok) throw new ServerError(sentence(await response.text(), response), response.status);
  return response;
}

function sentence(body, response) {
  try {
    const found = JSON.parse(body);
    if (typeof found.error?.message === "string") return found.error.message;
  } catch { /* an error page of something between us and the server */ }
  return `The server answered ${response.status} ${response.statusText}`.trim() + ".";
}

/** The models of GET v1/models, the base first. */
export async function models(key) {
  const { data } = await (await request("v1/models", key)).json();
  return data.sort((a, b) => Boolean(a.parent) - Boolean(b.parent) || a.id.localeCompare(b.id));
}

/** The JSON of each event of a stream, to its end. Blank lines part events; `data: [DONE]` is the last. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (held + value).split(/\r?\n/);
    held = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

/**
 * Ask for an answer and tell of it as it comes: tell({text, tokens, reason, usage}), with the text that is new.
 * `tokens` counts those that came so far: as the server says, or else one for each event with text.
 */
export async function answer(path, body, key, signal, tell) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
  const response = await request(path, key, { method: "POST", body: JSON.stringify(asked), signal });
  let tokens = 0;
  let ended = false;
  try {
    for await (const event of events(response)) {
      if (event.error) throw new ServerError(event.error.message, 0);
      const choice = event.choices?.[0];
      const text = choice?.delta?.content ?? choice?.text ?? "";
      tokens = event.usage?.completion_tokens ?? tokens + (text ? 1 : 0);
      ended ||= Boolean(choice?.finish_reason);
      tell({ text, tokens, reason: choice?.finish_reason ?? "", usage: event.usage });
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ServerError) throw error;
    throw new ServerError("The connection broke before the answer was complete.", 0);
  }
  if (!ended) throw new ServerError("The connection ended before the answer was complete.", 0);
}
