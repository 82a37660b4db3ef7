/**
 * Gives the focus a place when what had it goes away: who works by keys goes on where they were, not at the page's top.
 *
 * Rows move and vanish while a run goes on, buttons become others or are disabled by what they did. The browser then
 * drops the focus. What only moved, or was disabled for a moment, gets it back; else the heading around it has it.
 */

const AROUND = "section, dialog, form, main";

const isUsable = (at: Element): boolean => at.isConnected && !at.matches(":disabled") && at.getClientRects().length > 0;

/** The heading of the innermost of some places that is still there and has one. */
export function headingOf(places: readonly Element[]): HTMLElement | null {
  for (const place of places) {
    const heading = place.isConnected ? place.querySelector<HTMLElement>("h1, h2, h3") : null;
    if (heading) return heading;
  }
  return null;
}

/** Put the focus on something that is no control. */
export function focusOn(at: HTMLElement, options?: FocusOptions): void {
  if (!at.hasAttribute("tabindex")) at.setAttribute("tabindex", "-1");
  at.focus(options);
}

/** The places around an element, the innermost first. */
export function placesAround(at: Element): Element[] {
  const found: Element[] = [];
  for (let place = at.parentElement?.closest(AROUND); place; place = place.parentElement?.closest(AROUND)) found.push(place);
  return found;
}

/** Begin; returns what ends it. */
export function keepFocus(): () => void {
  let last: HTMLElement | null = null;
  let around: readonly Element[] = [];
  /** Has the focus in the place of `last`. */
  let instead: HTMLElement | null = null;

  function note(event: FocusEvent): void {
    if (event.target === instead || !(event.target instanceof HTMLElement)) return;
    [last, around, instead] = [event.target, placesAround(event.target), null];
  }

  /** A press beside everything takes the focus away, and that is meant. */
  function press(): void {
    last = instead = null;
  }

  function look(changes: MutationRecord[]): void {
    const at = document.activeElement;
    if (!last || (at && at !== document.body && at !== instead && at !== last)) return;
    if (isUsable(last)) {
      const hasMoved = changes.some((change) => [...change.removedNodes].some((node) => node.contains(last)));
      if (at !== last && (hasMoved || (instead && at === instead))) last.focus({ preventScroll: true });
    } else if (!instead?.isConnected) {
      instead = headingOf(around);
      if (instead) focusOn(instead, { preventScroll: true });
    }
  }

  const observer = new MutationObserver(look);
  observer.observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["disabled", "hidden"] });
  document.addEventListener("focusin", note);
  document.addEventListener("pointerdown", press, true);
  return () => {
    observer.disconnect();
    document.removeEventListener("focusin", note);
    document.removeEventListener("pointerdown", press, true);
  };
}
