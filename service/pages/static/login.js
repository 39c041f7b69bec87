// Who comes by a link of another site has sent no cookie (SameSite=Strict). Asked from here it is
// sent, and who is known goes on.

const answer = await fetch(location.href, { credentials: "same-origin", redirect: "manual" });
if (answer.type === "opaqueredirect") location.replace(location.href);
