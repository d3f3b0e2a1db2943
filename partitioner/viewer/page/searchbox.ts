// The search field with its list of results (a combobox, after the ARIA practices).

import type { Scene } from "./data";
import { byId, element } from "./dom";
import type { Result } from "./search";
import { search } from "./search";
import type { Selection } from "./state";

export function setUpSearch(scene: Scene, choose: (selection: Selection) => void): { open(): void } {
  const input = byId<HTMLInputElement>("search");
  const list = byId<HTMLUListElement>("results");
  let results: Result[] = [];
  let active = 0;

  const close = (): void => {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  };
  const mark = (to: number): void => {
    active = Math.max(0, Math.min(results.length - 1, to));
    [...list.querySelectorAll("[role=option]")].forEach((item, at) => {
      item.setAttribute("aria-selected", `${at === active}`);
      if (at !== active) return;
      input.setAttribute("aria-activedescendant", item.id);
      item.scrollIntoView({ block: "nearest" });
    });
  };
  const pick = (at: number): void => {
    const result = results[at];
    if (!result) return;
    close();
    input.blur();
    choose(result.selection);
  };
  const show = (): void => {
    const found = search(scene, input.value);
    results = found.results;
    const items: HTMLElement[] = results.map((result, at) => {
      const kind = result.kind === null ? "wafer" : `kind-${scene.kinds[result.kind]!.replace(/_/g, "-")}`;
      const item = element(
        "li",
        { role: "option", id: `result-${at}`, "aria-selected": "false" },
        element("i", { class: `swatch ${kind}`, "aria-hidden": "true" }),
        element("span", { class: "title" }, result.title),
        element("span", { class: "note" }, result.note),
      );
      item.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        pick(at);
      });
      return item;
    });
    const more = found.total - results.length;
    if (input.value.trim() && !results.length) items.push(element("li", { class: "none" }, "Nothing found"));
    if (more > 0) items.push(element("li", { class: "none" }, `and ${more} more`));
    list.replaceChildren(...items);
    list.hidden = !items.length;
    input.setAttribute("aria-expanded", `${items.length > 0}`);
    mark(0);
  };

  input.addEventListener("input", show);
  input.addEventListener("focus", show);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const moves: Record<string, number> = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 };
    const move = moves[event.key];
    if (move !== undefined) {
      event.preventDefault();
      mark(active + move);
    } else if (event.key === "Enter") pick(active);
    else if (event.key === "Escape") {
      event.preventDefault();
      event.stopPropagation();
      if (input.value) {
        input.value = "";
        close();
      } else input.blur();
    }
  });
  return {
    open: () => {
      input.focus();
      input.select();
    },
  };
}
