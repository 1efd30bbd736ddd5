let known = null;
async function refresh() {
  try {
    const answer = await fetch(location.pathname, { cache: "no-cache" });
    const text = await answer.text();
    if (answer.ok && known !== null && text !== known) {
      const page = new DOMParser().parseFromString(text, "text/html");
      const open = Array.from(document.querySelectorAll("details"), (each) => each.open);
      const at = [scrollX, scrollY];
      document.querySelector("main").replaceWith(page.querySelector("main"));
      document.querySelector("nav").replaceWith(page.querySelector("nav"));
      document.title = page.title;
      document.querySelectorAll("details").forEach((each, place) => {
        each.open = open[place] ?? false;
      });
      prepare();
      scrollTo({ left: at[0], top: at[1], behavior: "instant" });
    }
    if (answer.ok) known = text;
  } catch { /* The server has ended; the page stays as it is. */ }
}
refresh();
setInterval(refresh, 3000);
