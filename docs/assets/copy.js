// The copy button of a session on a console copies what is typed, and neither the prompt nor what was printed.
document.addEventListener(
  "click",
  (event) => {
    const button = event.target.closest?.("[data-clipboard-target]");
    const code = button?.closest(".highlight")?.querySelector("code");
    if (!code?.querySelector(".gp")) return; // no prompt: it is no session
    const typed = code.textContent.split("\n").filter((line) => line.startsWith("$ "));
    if (typed.length) button.setAttribute("data-clipboard-text", typed.map((line) => line.slice(2)).join("\n"));
  },
  true, // before the theme's own listener, which takes this text if there is one
);
