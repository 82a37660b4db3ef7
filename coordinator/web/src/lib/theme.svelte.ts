/** Light or dark: the system's, or the reader's choice, which is remembered. */

export type Choice = "auto" | "light" | "dark";

const KEY = "tinylora-theme";
const CHOICES: readonly Choice[] = ["auto", "light", "dark"];

function remembered(): Choice {
  try {
    return CHOICES.find((choice) => choice === localStorage.getItem(KEY)) ?? "auto";
  } catch {
    return "auto"; // storage is forbidden
  }
}

class Theme {
  choice: Choice = $state.raw(remembered());
  #system = matchMedia("(prefers-color-scheme: dark)");
  #isSystemDark = $state.raw(this.#system.matches);
  /** Whether it is dark now; charts redraw with it. */
  readonly isDark: boolean = $derived(this.choice === "auto" ? this.#isSystemDark : this.choice === "dark");

  constructor() {
    this.#system.addEventListener("change", (event) => (this.#isSystemDark = event.matches));
    this.#show();
  }

  /** The other one of light and dark; back to the system's when that is what it would be. */
  toggle = (): void => {
    const isDark = !this.isDark;
    this.choice = isDark === this.#isSystemDark ? "auto" : isDark ? "dark" : "light";
    this.#show();
    try {
      if (this.choice === "auto") localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, this.choice);
    } catch {
      // not remembered, then
    }
  };

  #show(): void {
    if (this.choice === "auto") delete document.documentElement.dataset["theme"];
    else document.documentElement.dataset["theme"] = this.choice;
  }
}

export const theme = new Theme();
