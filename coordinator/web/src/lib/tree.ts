/** The tree's geometry and the ways through it by keys: pure, told of paths and masses, nothing of the DOM. */
import { hierarchy, partition, tree as tidyLayout, type HierarchyNode } from "d3-hierarchy";

/** What of a node its place hangs on. */
export interface Place {
  readonly path: string;
  /** Share of all text that comes here; null where nobody knows. */
  readonly mass: number | null;
}

export type Places = ReadonlyMap<string, Place>;

export const parentOf = (path: string): string => path.slice(0, -1);

export const childrenOf = (places: Places, path: string): string[] =>
  [`${path}0`, `${path}1`].filter((child) => places.has(child));

/** All nodes on the way from the root to a path, both included. */
export const wayTo = (path: string): string[] => Array.from({ length: path.length + 1 }, (_, i) => path.slice(0, i));

/** Whether `path` lies in the subtree of `top`, itself included. */
export const isWithin = (path: string, top: string): boolean => path.startsWith(top);

/**
 * Which inner nodes are open when only so many nodes may be seen: those of the most mass.
 *
 * The reader's own word (`said`) comes first; it does not count towards the limit.
 */
export function openNodes(
  places: Places,
  top: string,
  limit: number,
  said: ReadonlyMap<string, boolean> = new Map(),
): Set<string> {
  const open = new Set<string>();
  const waiting: string[] = places.has(top) ? [top] : [];
  let nSeen = waiting.length;
  const mass = (path: string): number => places.get(path)?.mass ?? 2 ** -path.length;
  while (waiting.length) {
    let best = 0;
    if (places.size > limit) {
      for (let i = 1; i < waiting.length; i++) if (mass(waiting[i]!) > mass(waiting[best]!)) best = i;
    }
    const path = waiting[best]!;
    waiting[best] = waiting.at(-1)!;
    waiting.pop();
    const children = childrenOf(places, path);
    const word = said.get(path);
    if (!children.length || word === false || (word === undefined && nSeen + children.length > limit)) continue;
    open.add(path);
    nSeen += children.length;
    waiting.push(...children);
  }
  return open;
}

/** Nodes that are seen, each before those below it, left before right. */
export function visible(places: Places, top: string, open: ReadonlySet<string>): string[] {
  if (!places.has(top)) return [];
  const found: string[] = [];
  const waiting = [top];
  while (waiting.length) {
    const path = waiting.pop()!;
    found.push(path);
    if (open.has(path)) waiting.push(...childrenOf(places, path).reverse());
  }
  return found;
}

interface Datum {
  readonly path: string;
  readonly children: Datum[];
}

function datum(places: Places, path: string, open: ReadonlySet<string>): Datum {
  const children = open.has(path) ? childrenOf(places, path).map((child) => datum(places, child, open)) : [];
  return { path, children };
}

export interface Cell {
  readonly path: string;
  /** Pixels, from the left and the top of the picture. */
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
  /** It has nodes below it; whether they are seen. */
  readonly hasMore: boolean;
  readonly isOpen: boolean;
  /** Above the node that fills the picture. */
  readonly isAbove: boolean;
}

export interface IcicleOptions {
  readonly width: number;
  readonly height: number;
  /** The node that fills the width. */
  readonly top: string;
  readonly open: ReadonlySet<string>;
  /** All leaves of one width, whatever their mass. */
  readonly isEqual?: boolean;
}

/** Least width of a leaf in pixels, as long as all such floors take no more than `FLOOR_SHARE` of the picture. */
export const FLOOR = 18;
const FLOOR_SHARE = 0.35;
const ABOVE_HEIGHT = 22;
const LEAF_HEIGHT = 112;

/**
 * Cells of an icicle: as wide as their mass, the leaves reaching down to the bottom.
 *
 * What is narrower than half a pixel is left out; zooming in brings it.
 */
export function icicle(places: Places, options: IcicleOptions): Cell[] {
  const { width, height, top, open, isEqual = false } = options;
  if (!places.has(top) || width <= 0) return [];
  const root = hierarchy(datum(places, top, open), (item) => item.children);
  const ends = root.leaves();
  const total = places.get(top)?.mass ?? null;
  const isKnown = !isEqual && total !== null && total > 0 && ends.every((end) => places.get(end.data.path)?.mass !== null);
  const floor = Math.min(FLOOR / width, FLOOR_SHARE / ends.length);
  const weight = (path: string): number => (isKnown ? Math.max((places.get(path)!.mass ?? 0) / total!, floor) : 1);
  root.sum((item) => (item.children.length ? 0 : weight(item.path)));
  const laid = partition<Datum>().size([width, 1])(root);

  const above = wayTo(top).slice(0, -1);
  const from = above.length * ABOVE_HEIGHT;
  const rows = root.height;
  const row = rows ? Math.min(40, Math.max(18, (height - from - LEAF_HEIGHT) / rows)) : 0;
  const cells: Cell[] = above.map((path, i) => ({
    path, x: 0, y: i * ABOVE_HEIGHT, width, height: ABOVE_HEIGHT, hasMore: true, isOpen: true, isAbove: true,
  }));
  laid.each((item) => {
    const { path, children } = item.data;
    const [x, end] = [Math.round(item.x0), Math.round(item.x1)]; // whole pixels: edges stay sharp, nothing overlaps
    if (end === x) return;
    const y = from + item.depth * row;
    cells.push({
      path, x, y, width: end - x,
      height: children.length ? row : Math.max(row, height - y),
      hasMore: childrenOf(places, path).length > 0,
      isOpen: children.length > 0,
      isAbove: false,
    });
  });
  return cells.sort((a, b) => (a.path < b.path ? -1 : 1));
}

export interface Dot {
  readonly path: string;
  readonly x: number;
  readonly y: number;
  readonly hasMore: boolean;
  readonly isOpen: boolean;
}

export interface TidyTree {
  readonly dots: readonly Dot[];
  /** Pixels between two neighbouring leaves. */
  readonly step: number;
}

/** A tidy tree: the root above, all that is alike on one level. */
export function tidy(places: Places, options: IcicleOptions & { readonly margin: number }): TidyTree {
  const { width, height, top, open, margin } = options;
  if (!places.has(top) || width <= 0) return { dots: [], step: 0 };
  const root: HierarchyNode<Datum> = hierarchy(datum(places, top, open), (item) => item.children);
  const nEnds = root.leaves().length;
  const step = width / nEnds;
  const laid = tidyLayout<Datum>().separation(() => 1).size([width, 1])(root);
  const level = root.height ? (height - margin * 2) / root.height : 0;
  const dots: Dot[] = [];
  laid.each((item) =>
    dots.push({
      path: item.data.path,
      x: item.x,
      y: root.height ? margin + item.depth * level : height / 2,
      hasMore: childrenOf(places, item.data.path).length > 0,
      isOpen: item.data.children.length > 0,
    }),
  );
  return { dots: dots.sort((a, b) => (a.path < b.path ? -1 : 1)), step };
}

/** What a key asks for in a tree; null where it asks for nothing. */
export type Step =
  | { readonly kind: "go"; readonly path: string }
  | { readonly kind: "open"; readonly path: string }
  | { readonly kind: "close"; readonly path: string };

/**
 * The WAI-ARIA pattern of a tree view.
 *
 * @param seen Paths that are seen, in order.
 * @param at Where the focus is; one of `seen`.
 * @param isOpen Whether a node is open, closed, or (null) has nothing below.
 */
export function stepOf(
  key: string,
  seen: readonly string[],
  at: string,
  isOpen: (path: string) => boolean | null,
): Step | null {
  const i = seen.indexOf(at);
  const go = (path: string | undefined): Step | null => (path === undefined || path === at ? null : { kind: "go", path });
  switch (key) {
    case "ArrowDown":
      return go(seen[i + 1]);
    case "ArrowUp":
      return go(i > 0 ? seen[i - 1] : undefined);
    case "Home":
      return go(seen[0]);
    case "End":
      return go(seen.at(-1));
    case "ArrowRight":
      if (isOpen(at) === false) return { kind: "open", path: at };
      return isOpen(at) ? go(seen.find((path) => path.length === at.length + 1 && isWithin(path, at))) : null;
    case "ArrowLeft":
      if (isOpen(at)) return { kind: "close", path: at };
      return at ? go(nearestAbove(seen, at)) : null;
    default:
      return null;
  }
}

const nearestAbove = (seen: readonly string[], path: string): string | undefined =>
  wayTo(parentOf(path)).reverse().find((above) => seen.includes(above));

/** What is typed within this time belongs together. */
export const TYPING_MS = 800;

/** The node that typed bits mean: the path itself, else the first that begins with it; null for other characters. */
export function typedPath(places: Places, typed: string): string | null {
  if (!/^[01]+$/.test(typed)) return null;
  for (let path = typed; path; path = parentOf(path)) if (places.has(path)) return path;
  return places.has("") ? "" : null;
}

export interface Found {
  readonly path: string;
  /** Why: the holder's name, or nothing where the path matched. */
  readonly by: string;
}

/** Nodes by path or by the name or id of who holds them, at most so many. */
export function search(
  nodes: Iterable<{ readonly path: string; readonly holders: readonly string[] }>,
  nameOf: (worker: string) => string,
  asked: string,
  limit = 8,
): Found[] {
  const text = asked.trim().toLowerCase();
  if (!text) return [];
  const found: Found[] = [];
  for (const node of nodes) {
    if (text === "root" ? node.path === "" : /^[01]+$/.test(text) && isWithin(node.path, text)) {
      found.push({ path: node.path, by: "" });
    } else {
      const holder = node.holders.find(
        (worker) => nameOf(worker).toLowerCase().includes(text) || worker.toLowerCase().includes(text),
      );
      if (holder !== undefined) found.push({ path: node.path, by: nameOf(holder) });
    }
    if (found.length >= limit) break;
  }
  return found;
}

/** The nearest node above (or at) a path to fill the picture with, so that it is drawn at least so wide. */
export function zoomFor(places: Places, path: string, least: number, width: number): string {
  const mass = (of: string): number => places.get(of)?.mass ?? 2 ** -of.length;
  for (const top of wayTo(path).slice(0, -1)) {
    if (mass(top) > 0 && (mass(path) / mass(top)) * width >= least) return top;
  }
  return path ? parentOf(path) : "";
}
