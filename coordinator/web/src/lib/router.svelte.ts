/** Addresses: which page is shown, and what of its state stands in the query. Links are ordinary links. */

export type PageName =
  | "Overview" | "Node" | "Workers" | "Worker" | "Timeline" | "Routing" | "Artifacts" | "Join" | "Admin" | "NotFound";

export interface Match {
  readonly page: PageName;
  readonly params: Readonly<Record<string, string>>;
  readonly title: string;
}

const FIXED: Readonly<Record<string, PageName>> = {
  "/": "Overview",
  "/workers": "Workers",
  "/timeline": "Timeline",
  "/routing": "Routing",
  "/artifacts": "Artifacts",
  "/join": "Join",
  "/admin": "Admin",
};

/** The page at a path. */
export function match(path: string): Match {
  const fixed = FIXED[path];
  if (fixed) return { page: fixed, params: {}, title: fixed };
  const node = /^\/node\/(root|[01]{1,32})$/.exec(path)?.[1];
  if (node) return { page: "Node", params: { path: node === "root" ? "" : node }, title: `Node ${node}` };
  const worker = /^\/worker\/([A-Za-z0-9_-]{1,64})$/.exec(path)?.[1];
  if (worker) return { page: "Worker", params: { worker }, title: "Worker" };
  return { page: "NotFound", params: {}, title: "Not found" };
}

class Router {
  path = $state.raw(location.pathname);
  #query = $state.raw(new URLSearchParams(location.search));
  /** Overrides the page's title, such as by a worker's name; the page that sets it clears it. */
  title = $state.raw("");

  readonly match: Match = $derived(match(this.path));

  /** A word of the query; `fallback` where it is not there. */
  get = (name: string, fallback = ""): string => this.#query.get(name) ?? fallback;

  /** One of some words of the query; the first where it is none of them. */
  choice = <Word extends string>(name: string, words: readonly [Word, ...Word[]]): Word => {
    const said = this.#query.get(name);
    return words.find((word) => word === said) ?? words[0];
  };

  /** The present address with other words in its query; what is null or empty is left out. */
  href = (changes: Record<string, string | null>, path = this.path): string => {
    const query = new URLSearchParams(this.#query);
    for (const [name, word] of Object.entries(changes)) {
      if (word) query.set(name, word);
      else query.delete(name);
    }
    const text = query.toString();
    return text ? `${path}?${text}` : path;
  };

  /** Change words of the query; `push` makes it a step that "back" undoes. */
  set = (changes: Record<string, string | null>, { push = false } = {}): void => {
    const href = this.href(changes);
    if (href === location.pathname + location.search) return;
    if (push) history.pushState(null, "", href);
    else history.replaceState(null, "", href);
    this.#read();
  };

  /** Go to a page of ours. */
  go = (href: string): void => {
    const isSame = new URL(href, location.href).pathname === location.pathname;
    history.pushState(null, "", href);
    this.#read();
    if (!isSame) scrollTo(0, 0);
  };

  #read = (): void => {
    this.path = location.pathname;
    this.#query = new URLSearchParams(location.search);
  };

  /** Take over links and the browser's buttons; returns what ends that. */
  start = (): (() => void) => {
    const click = (event: MouseEvent): void => {
      const link = (event.target as Element | null)?.closest?.("a[href]") as HTMLAnchorElement | null;
      if (link && isOurs(link, event)) {
        event.preventDefault();
        this.go(link.pathname + link.search);
      }
    };
    document.addEventListener("click", click);
    addEventListener("popstate", this.#read);
    return () => {
      document.removeEventListener("click", click);
      removeEventListener("popstate", this.#read);
    };
  };
}

/** Whether a click on a link stays within the page. */
function isOurs(link: HTMLAnchorElement, event: MouseEvent): boolean {
  if (event.defaultPrevented || event.button !== 0) return false;
  if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return false;
  if (link.target || link.hasAttribute("download") || link.origin !== location.origin || link.hash) return false;
  return match(link.pathname).page !== "NotFound";
}

export const router = new Router();
