// Keeps "5 min ago" right while a page is open. The steps are those of moments.py.

function ago(then) {
  const seconds = (Date.now() - then) / 1000;
  if (seconds < 45) return "now";
  if (seconds < 90 * 60) return `${Math.max(1, Math.round(seconds / 60))} min ago`;
  if (seconds < 36 * 3600) return `${Math.round(seconds / 3600)} h ago`;
  const days = Math.round(seconds / 86400);
  return days < 60 ? `${days} d ago` : new Date(then).toISOString().slice(0, 10);
}

export function refreshTimes() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const text = ago(Date.parse(time.dateTime));
    if (time.textContent !== text) time.textContent = text;
  }
}

export function watchTimes() {
  setInterval(refreshTimes, 15000);
}
