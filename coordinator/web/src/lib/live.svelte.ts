/** The run as this page knows it: one state, kept current by the server's patches.
 *
 * Each node and each worker is a cell of its own, so that what shows one of them is drawn anew when that one changes,
 * and at no other time. How patches arrive is `follow.ts`'s matter.
 */
import { untrack } from "svelte";
import { SvelteMap } from "svelte/reactivity";

import type { ApiError, FeedItem, Node, Patch, Run, State, Worker } from "./api";

/** Masses drift with every probe. What hangs on them moves only for this much of a share, which is less than a pixel… */
const DRIFT = 0.0005;
/** …and not more often than after so many milliseconds. */
const REST_MS = 2_000;

/** So many items of the feed are kept. */
export const FEED_LENGTH = 200;

class Cell<T> {
  now: T = $state.raw() as T;
  constructor(now: T) {
    this.now = now;
  }
}

/** Things by name: a change of one is seen by its readers alone, a change of their number by `keys`'s. */
class Cells<T> {
  #cells = new Map<string, Cell<T>>();
  keys: readonly string[] = $state.raw([]);
  /** Grows with every change, so that whoever reads all of them hangs on this and not on a thousand cells. */
  #n_changes = $state.raw(0);

  get(key: string): T | undefined {
    const cell = this.#cells.get(key);
    if (cell) return cell.now;
    void this.keys; // it may come into being
    return undefined;
  }

  /** Take what is new or changed, and forget what is gone. */
  put(items: Iterable<readonly [string, T]>, gone: readonly string[] = []): void {
    let isOther = false;
    let isAny = gone.length > 0;
    for (const [key, item] of items) {
      isAny = true;
      const cell = this.#cells.get(key);
      if (cell) cell.now = item;
      else {
        this.#cells.set(key, new Cell(item));
        isOther = true;
      }
    }
    for (const key of gone) isOther = this.#cells.delete(key) || isOther;
    if (isOther) this.keys = [...this.#cells.keys()].sort(byText);
    if (isAny) this.#n_changes += 1;
  }

  /** Exactly these, nothing else. */
  replace(items: readonly (readonly [string, T])[]): void {
    const names = new Set(items.map(([key]) => key));
    this.put(items, [...this.#cells.keys()].filter((key) => !names.has(key)));
  }

  get all(): T[] {
    void this.#n_changes;
    const keys = this.keys;
    return untrack(() => keys.map((key) => this.#cells.get(key)!.now));
  }
}

/** By path or id, the shorter first where one begins with the other. */
const byText = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

/** How a patch fits to what is known: `next` follows on, `old` is known already, after a `gap` something is missing. */
export function fit(known: string, patch: Pick<Patch, "before" | "position">): "next" | "old" | "gap" {
  if (patch.before === known) return "next";
  const [ours, theirs] = [placeOf(known), placeOf(patch.position)];
  return ours && theirs && ours.epoch === theirs.epoch && theirs.sequence <= ours.sequence ? "old" : "gap";
}

function placeOf(position: string): { epoch: string; sequence: number } | null {
  const cut = position.lastIndexOf("-");
  const sequence = Number(position.slice(cut + 1));
  return cut < 0 || !Number.isSafeInteger(sequence) ? null : { epoch: position.slice(0, cut), sequence };
}

/** The feed with what is new at its end, each number once, bounded. */
export function feedWith(known: readonly FeedItem[], more: readonly FeedItem[]): readonly FeedItem[] {
  if (!more.length) return known;
  const last = known.at(-1)?.number ?? -1;
  const first = more[0]!.number;
  if (first > last) return [...known, ...more].slice(-FEED_LENGTH);
  const byNumber = new Map([...known, ...more].map((item) => [item.number, item]));
  return [...byNumber.values()].sort((a, b) => a.number - b.number).slice(-FEED_LENGTH);
}

export type Connection = "connecting" | "live" | "lost";

export class Live {
  run: Run | null = $state.raw(null);
  feed: readonly FeedItem[] = $state.raw([]);
  /** How the stream stands. */
  connection: Connection = $state.raw("connecting");
  /** Why nothing is known; nothing once the state has come. */
  failure: ApiError | null = $state.raw(null);
  /** When the server was last heard, in milliseconds of `now_ms`. */
  heard_ms = $state.raw(0);
  /** The present, moved on once a second: what shows an age reads it. */
  now_ms = $state.raw(0);
  /** Grows with what the tree's layout hangs on: its nodes and their kinds at once, masses when they moved enough. */
  shape = $state.raw(0);

  /** Where the stream goes on. */
  position = "";

  #nodes = new Cells<Node>();
  #workers = new Cells<Worker>();
  #listeners = new Set<(patch: Patch | null) => void>();
  #loads = new SvelteMap<string, number>();

  /** A node; undefined where the tree has none of that path. */
  node = (path: string): Node | undefined => this.#nodes.get(path);
  /** A worker by its id. */
  worker = (worker: string): Worker | undefined => this.#workers.get(worker);
  /** Paths of all nodes, sorted. */
  get paths(): readonly string[] {
    return this.#nodes.keys;
  }
  /** All nodes, by path. Whoever reads this is drawn anew with every change of any of them. */
  get nodes(): Node[] {
    return this.#nodes.all;
  }
  get workerIds(): readonly string[] {
    return this.#workers.keys;
  }
  /** All workers, by id. Whoever reads this is drawn anew with every change of any of them. */
  get workers(): Worker[] {
    return this.#workers.all;
  }
  /** How many states have been loaded, for those who must begin anew then. */
  get loads(): number {
    return this.#loads.get("state") ?? 0;
  }

  /** The run's clock now, in its seconds: it goes on between the patches. */
  get clock_s(): number {
    const run = this.run;
    if (!run) return 0;
    const isRunning = run.phase !== "finished" && run.phase !== "stopping" && this.connection === "live";
    const speed = run.is_replay ? run.replay_speed : 1;
    return run.clock_s + (isRunning ? (Math.max(0, this.now_ms - this.#run_ms) / 1000) * speed : 0);
  }
  #run_ms = 0;

  /** Seconds since the server was heard. */
  get age_s(): number {
    return Math.max(0, (this.now_ms - this.heard_ms) / 1000);
  }

  /** Everything anew. */
  load(state: State, now_ms: number): void {
    const isOther = state.run.run !== this.run?.run || (state.feed.at(-1)?.number ?? 0) < (this.feed.at(-1)?.number ?? 0);
    this.#nodes.replace(state.nodes.map((node) => [node.path, node]));
    this.#workers.replace(state.workers.map((worker) => [worker.worker, worker]));
    this.feed = feedWith(isOther ? [] : this.feed, state.feed);
    this.#hear(state.run, state.position, now_ms);
    this.#reshape(now_ms);
    this.failure = null;
    this.#loads.set("state", this.loads + 1);
    this.#tell(null);
  }

  /** What has changed; says how it fits, and takes nothing of what does not follow on. */
  apply(patch: Patch, now_ms: number): "next" | "old" | "gap" {
    const verdict = fit(this.position, patch);
    if (verdict !== "next") return verdict;
    const isOther = patch.gone.length > 0 || patch.nodes.some((node) => this.#nodes.get(node.path)?.kind !== node.kind);
    this.#hasMoved ||= patch.nodes.some((node) => this.#isElsewhere(node));
    this.#nodes.put(patch.nodes.map((node) => [node.path, node] as const), patch.gone);
    this.#workers.put(patch.workers.map((worker) => [worker.worker, worker] as const));
    this.feed = feedWith(this.feed, patch.feed);
    this.#hear(patch.run, patch.position, now_ms);
    if (isOther) this.#reshape(now_ms);
    else this.tick(now_ms);
    this.#tell(patch);
    return verdict;
  }

  /** Be called with every patch; with null when everything was loaded anew. Returns what ends that. */
  listen(listener: (patch: Patch | null) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** The present moves on; what waited for it is done. */
  tick(now_ms: number): void {
    this.now_ms = Math.max(this.now_ms, now_ms);
    if (this.#hasMoved && now_ms >= this.#shaped_ms + REST_MS) this.#reshape(now_ms);
  }

  /** Masses at the time of the latest `shape`. */
  #masses = new Map<string, number | null>();
  #shaped_ms = 0;
  #hasMoved = false;

  #isElsewhere({ path, mass }: Node): boolean {
    const then = this.#masses.get(path) ?? null;
    return then === null || mass === null ? then !== mass : Math.abs(then - mass) > DRIFT;
  }

  #reshape(now_ms: number): void {
    this.#masses = new Map(this.#nodes.all.map((node) => [node.path, node.mass]));
    this.#shaped_ms = now_ms;
    this.#hasMoved = false;
    this.shape += 1;
  }

  #hear(run: Run, position: string, now_ms: number): void {
    this.run = run;
    this.position = position;
    this.#run_ms = now_ms;
    this.heard_ms = now_ms;
    this.now_ms = Math.max(this.now_ms, now_ms);
  }

  #tell(patch: Patch | null): void {
    for (const listener of this.#listeners) listener(patch);
  }
}

export const live = new Live();
