/** What of the tree is shown and how: the address's words, what the reader opened and closed, where the focus is. */
import { untrack } from "svelte";
import { SvelteMap } from "svelte/reactivity";

import type { Node } from "../../lib/api";
import { divergingStep, roundUp, sequentialStep } from "../../lib/colour";
import { change, count, loss, nodeHref, nodeName, percent, workerName } from "../../lib/format";
import { live } from "../../lib/live.svelte";
import { markOf } from "../../lib/marks";
import { router } from "../../lib/router.svelte";
import * as tree from "../../lib/tree";

export const COLOURS = ["change", "loss", "steps", "state"] as const;
export type ColourBy = (typeof COLOURS)[number];
export const COLOUR_NAMES: Readonly<Record<ColourBy, string>> = {
  change: "loss change", loss: "loss", steps: "steps done", state: "state",
};
/** Most leaves of a tidy tree. */
export const TIDY_LEAVES = 64;

/** From and to of the present scale. */
export interface Scale {
  readonly by: ColourBy;
  readonly least: number;
  readonly most: number;
}

function numberOf(node: Node, by: ColourBy): number | null {
  if (by === "change") return node.change;
  if (by === "loss") return node.loss;
  return by === "steps" ? (node.kind === "leaf" ? node.n_steps : null) : null;
}

/** The class that colours a node. */
export function colourOf(node: Node, scale: Scale): string {
  if (scale.by === "state") return node.state === "router" ? "c-router" : `c-state-${node.state}`;
  const value = numberOf(node, scale.by);
  if (value === null) return node.state === "router" ? "c-router" : "c-unknown";
  if (scale.by === "change") return `c-div-${divergingStep(value, scale.most)}`;
  return `c-seq-${sequentialStep(value, scale.least, scale.most)}`;
}

/** What colours mean now: round ends around all the numbers. */
export function scaleOf(nodes: readonly Node[], by: ColourBy, leafSteps: number): Scale {
  const numbers = nodes.map((node) => numberOf(node, by)).filter((value) => value !== null);
  if (by === "change") return { by, least: 0, most: roundUp(Math.max(0.01, ...numbers.map(Math.abs))) };
  if (!numbers.length) return { by, least: 0, most: 1 };
  const [least, most] = [Math.min(...numbers), Math.max(...numbers)];
  const step = by === "steps" ? 1 : 0.1;
  return {
    by,
    least: by === "steps" ? 0 : Math.floor(least / step) * step,
    most: by === "steps" ? Math.max(leafSteps, most, 1) : Math.ceil(most / step) * step,
  };
}

/** The one that was, where the other says the same. */
function sameOr(one: tree.Cell | undefined, other: tree.Cell): tree.Cell {
  const isSame = one && one.x === other.x && one.y === other.y && one.width === other.width && one.height === other.height
    && one.hasMore === other.hasMore && one.isOpen === other.isOpen && one.isAbove === other.isAbove;
  return isSame ? one : other;
}

/** Names of those at a node, and what else is worth hearing of it. */
export function spoken(node: Node): string {
  const holders = node.holders.map((worker) => workerName(live.worker(worker) ?? { worker, name: "" }));
  return [
    `${node.kind === "leaf" ? "leaf" : "node"} ${nodeName(node.path)}`,
    markOf(node.state).text,
    holders.length ? `held by ${holders.join(", ")}` : "",
    node.loss === null ? "" : `loss ${loss(node.loss)}`,
    node.change === null ? "" : `change ${change(node.change)}`,
    node.mass === null ? "" : `mass ${percent(node.mass)}`,
    node.accuracy === null ? "" : `gate right ${percent(node.accuracy)}`,
  ].filter(Boolean).join(", ");
}

export class TreeView {
  /** Pixels of the picture. */
  width = $state.raw(0);
  /** Nodes seen at most, before those of little mass are closed. */
  limit = $state.raw(2000);
  /** Opened (true) and closed by hand. */
  said = new SvelteMap<string, boolean>();
  #focus = $state.raw("");
  #typed = "";
  #typed_ms = 0;

  readonly places: tree.Places = $derived.by(() => {
    void live.shape;
    const paths = live.paths;
    return untrack(() => new Map(paths.map((path) => [path, { path, mass: live.node(path)?.mass ?? null }])));
  });
  readonly nLeaves: number = $derived([...this.places.keys()].filter((path) => !this.hasMore(path)).length);
  readonly isTidyPossible: boolean = $derived(this.nLeaves <= TIDY_LEAVES);
  readonly kind: "icicle" | "tree" = $derived(
    this.isTidyPossible && router.get("view") === "tree" ? "tree" : "icicle",
  );
  readonly colourBy: ColourBy = $derived(router.choice("colour", COLOURS));
  readonly isEqual: boolean = $derived(router.get("width") === "equal");
  readonly top: string = $derived(this.#pathOf("zoom") ?? "");
  /** The node that is looked at; null for none. */
  readonly selected: string | null = $derived(this.#pathOf("node"));
  readonly open: Set<string> = $derived(tree.openNodes(this.places, this.top, this.limit, this.said));
  /** What is seen, in the order of the keys; the way down to the top first. */
  readonly seen: readonly string[] = $derived([
    ...tree.wayTo(this.top).slice(0, -1), ...tree.visible(this.places, this.top, this.open),
  ]);
  /** The one node that the Tab key reaches. */
  readonly focus: string = $derived(this.#nearest(this.seen.includes(this.#focus) ? this.#focus : (this.seen[0] ?? "")));

  /** Pixels of the picture from above to below, and whether it is a list instead. */
  height = $state.raw(0);
  isList = $state.raw(false);
  /** Cells of the icicle, of what of `seen` is wide enough to be drawn. */
  readonly #cells: ReadonlyMap<string, tree.Cell> = $derived.by(() => {
    const cells = tree.icicle(this.places, {
      width: this.width, height: this.height, top: this.top, open: this.open, isEqual: this.isEqual,
    });
    const before = this.#former;
    this.#former = new Map(cells.map((cell) => [cell.path, sameOr(before.get(cell.path), cell)]));
    return this.#former;
  });
  /** What they were, so that a cell whose place stays is the same object, and nothing of it is looked at again. */
  #former: ReadonlyMap<string, tree.Cell> = new Map();
  cellOf = (path: string): tree.Cell | undefined => this.#cells.get(path);
  /** What is kept in the document: all, where that is not too much, so that zooming moves cells instead of making them. */
  readonly kept: readonly string[] = $derived(this.places.size <= this.limit ? [...this.places.keys()] : this.seen);

  /** Its ends are round numbers that seldom change; a thousand cells hang on them, and not on every node. */
  scale: Scale = $state.raw({ by: "change", least: 0, most: 1 });

  constructor() {
    $effect.pre(() => {
      const scale = scaleOf(live.nodes, this.colourBy, live.run?.leaf_steps ?? 0);
      const { by, least, most } = untrack(() => this.scale);
      if (scale.by !== by || scale.least !== least || scale.most !== most) this.scale = scale;
    });
  }

  hasMore = (path: string): boolean => this.places.has(`${path}0`) || this.places.has(`${path}1`);
  isOpen = (path: string): boolean | null =>
    this.hasMore(path) ? this.open.has(path) || path.length < this.top.length : null;

  select = (path: string | null): void => {
    if (path !== null) this.#focus = path;
    router.set({ node: path === null ? null : path || "root" });
  };

  zoom = (path: string): void => router.set({ zoom: path || null }, { push: true });

  /** Zoom in on a node and select it; out to its parent where it fills the picture already. */
  enter = (path: string): void => {
    if (!this.hasMore(path)) return this.select(path);
    const top = path === this.top ? tree.parentOf(path) : path;
    this.#focus = path;
    router.set({ zoom: top || null, node: path || "root" }, { push: true });
  };

  /** Select a node, opened and zoomed so that it is seen. */
  reveal = (path: string): void => {
    for (const above of tree.wayTo(path).slice(0, -1)) if (!this.open.has(above)) this.said.set(above, true);
    const isThere = tree.isWithin(path, this.top) && this.#widthOf(path) >= 6;
    this.#focus = path;
    const top = isThere ? this.top : tree.zoomFor(this.places, path, 24, this.width || 800);
    router.set({ zoom: top || null, node: path || "root" });
  };

  #widthOf(path: string): number {
    const mass = (of: string): number => (this.isEqual ? null : this.places.get(of)?.mass) ?? 2 ** -of.length;
    return (mass(path) / (mass(this.top) || 1)) * (this.width || 800);
  }

  toggle = (path: string): void => {
    this.said.set(path, !this.open.has(path));
  };

  /** A key that was pressed on the tree; says whether it was for us. */
  key = (event: KeyboardEvent): boolean => {
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    const at = this.focus;
    const step = tree.stepOf(event.key, this.seen, at, this.isOpen);
    if (step?.kind === "go") this.#goTo(step.path);
    else if (step) this.said.set(step.path, step.kind === "open");
    else if (event.key === "Enter") router.go(nodeHref(at));
    else if (event.key === " ") this.enter(at);
    else if (event.key === "Escape" && this.top) this.zoom(tree.parentOf(this.top));
    else if (event.key === "0" || event.key === "1") this.#type(event.key);
    else return event.key.startsWith("Arrow");
    return true;
  };

  #goTo(path: string): void {
    if (this.#isDrawn(path)) this.select(path);
    else this.reveal(path);
  }

  #isDrawn(path: string): boolean {
    return this.isList || this.kind === "tree" || this.#cells.size === 0 || this.#cells.has(path);
  }

  /** The node itself, or the nearest above it that is wide enough to be drawn. */
  #nearest(path: string): string {
    return tree.wayTo(path).findLast((above) => this.#isDrawn(above)) ?? path;
  }

  #type(bit: string): void {
    const now = performance.now();
    this.#typed = now - this.#typed_ms > tree.TYPING_MS ? bit : this.#typed + bit;
    this.#typed_ms = now;
    const path = tree.typedPath(this.places, this.#typed);
    if (path !== null) this.reveal(path);
  }

  #pathOf(word: string): string | null {
    const said = router.get(word);
    const path = said === "root" ? "" : said;
    return said && this.places.has(path) ? path : null;
  }
}

/** What the legend says of the scale's ends. */
export function scaleWords({ by, least, most }: Scale): { low: string; middle: string; high: string } {
  if (by === "change") {
    return { low: `${change(-most, 2)} better`, middle: "0", high: `${change(most, 2)} worse` };
  }
  const write = by === "steps" ? count : (value: number): string => value.toFixed(1);
  return { low: write(least), middle: "", high: `${write(most)}${by === "steps" ? " steps" : " nats"}` };
}
