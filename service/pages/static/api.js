// What the service answers, or its problem as an Error.

export class Problem extends Error {
  constructor(status, content) {
    super(content.detail || `the service answered ${status}`);
    this.status = status;
    this.errors = content.errors || [];
  }
}

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer; try again.");
  }
  if (answer.ok) return answer.json();
  if (answer.status === 401) toLogin();
  const content = await answer.json().catch(() => ({}));
  throw new Problem(answer.status, content);
}

export function send(method, path, body) {
  const options = { method };
  if (body !== undefined) {
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  return ask(path, options);
}

export function toLogin() {
  const wanted = location.pathname + location.search;
  location.assign(`/ui/login?next=${encodeURIComponent(wanted)}`);
}
