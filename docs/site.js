// What the theme makes in the browser gets names and a place in the order of the Tab key.
document$.subscribe(() => {
  const search = document.querySelector(".md-search");
  if (search) search.setAttribute("aria-label", "Search");
  document.querySelectorAll(".md-code__nav").forEach((nav, at) => nav.setAttribute("aria-label", `Code ${at + 1}`));
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((table) => { table.tabIndex = 0; });
  // Those that are wider than the page can be scrolled with the arrow keys.
  document.querySelectorAll("pre > code").forEach((code) => { code.tabIndex = 0; });
});
