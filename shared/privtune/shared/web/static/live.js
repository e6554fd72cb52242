// Keeps an open page up to date: asks again every few seconds, and puts what has changed in its place.
"use strict";

function wait() {
  const poll = document.getElementById("poll");
  if (poll && poll.dataset.address) setTimeout(ask, 1000 * poll.dataset.everyS, poll.dataset.address);
}

async function ask(address) {
  try {
    const answer = await fetch(address, { headers: { "x-part": "1" }, signal: AbortSignal.timeout(10000) });
    const elsewhere = answer.headers.get("x-go");
    if (elsewhere) return location.assign(elsewhere);
    if (answer.ok) {
      const found = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of [...found.body.children]) put(part, document.getElementById(part.id));
    }
  } catch {
    // No answer: the next one may come. The page says so itself after a while.
  }
  wait();
}

function put(part, old) {
  if (part.id === "poll") old.replaceWith(part);
  else old.replaceChildren(...part.childNodes); // the element stays: screen readers follow it
}

wait();
