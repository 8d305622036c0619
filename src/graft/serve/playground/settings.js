// Sampling settings: what stands in the form, in the API's names.

const field = id => document.getElementById(id);
const number = (id, fallback) => (field(id).value === "" ? fallback : Number(field(id).value));

/** Whether messages go through the chat template. */
export const chatting = () => field("form").value === "chat";

/** The system prompt, or "". */
export const systemPrompt = () => (chatting() ? field("system").value.trim() : "");

/** The first field whose value cannot be, told to the reader; or null. */
export function wrong() {
  const found = [...document.querySelectorAll("#settings input")].find(each => !each.checkValidity());
  if (!found) return null;
  field("settings").open = true;
  found.reportValidity();
  return found;
}

/** A request's sampling; what is at its neutral value is left out. */
export function sampling() {
  const found = { temperature: number("temperature", 0), max_tokens: number("max-tokens", 256) };
  if (number("top-p", 1) < 1) found.top_p = number("top-p", 1);
  if (number("top-k", 0) > 0) found.top_k = number("top-k", 0);
  if (field("seed").value !== "") found.seed = number("seed", 0);
  if (field("stop").value !== "") found.stop = [field("stop").value];
  return found;
}

function summary() {
  const { temperature, max_tokens: most, top_p: p, top_k: k, seed, stop } = sampling();
  return [
    temperature ? `temperature ${temperature}` : "greedy",
    p && `top-p ${p}`,
    k && `top-k ${k}`,
    `up to ${most} tokens`,
    seed !== undefined && `seed ${seed}`,
    stop && `stop ${JSON.stringify(stop[0])}`,
    chatting() ? systemPrompt() && "system prompt" : "plain text",
  ].filter(Boolean).join(", ");
}

/** Keep the line that sums the settings up, and choose the kind of prompt that the base has. */
export function watchSettings(hasTemplate) {
  if (!hasTemplate) field("form").value = "plain";
  const show = () => {
    field("summary").textContent = summary();
    field("system").disabled = !chatting();
  };
  field("settings").addEventListener("input", show);
  show();
}
