/** Keeps a `Live` current: the state first, then the stream of patches.
 *
 * After a break the stream goes on from where it was, so that nothing of the feed is missed; where that is refused, or
 * nobody answers, everything is loaded anew.
 *
 * A stream that says nothing may be a quiet run or a dead line, which an `EventSource` cannot tell apart; so after some
 * silence the state is asked for, which costs little while it is unchanged (ETag).
 */
import { ApiError, api, eventsUrl, fullPatch, type State } from "./api";
import type { Live } from "./live.svelte";

/** What of the browser is used; tests bring their own. */
export interface Surroundings {
  state: (signal: AbortSignal) => Promise<State>;
  open: (url: string) => EventSource;
  now_ms: () => number;
  later: (act: () => void, after_ms: number) => number;
  never: (timer: number) => void;
}

const SILENCE_MS = 20_000;
const LONGEST_WAIT_MS = 10_000;

/** Milliseconds to wait before attempt number `n` (from 0) to connect again. */
export const waitBefore_ms = (n: number): number => Math.min(LONGEST_WAIT_MS, 500 * 2 ** n);

export const browser: Surroundings = {
  state: (signal) => api.state(signal),
  open: (url) => new EventSource(url),
  now_ms: () => performance.now(),
  later: (act, after_ms) => window.setTimeout(act, after_ms),
  never: (timer) => window.clearTimeout(timer),
};

export class Follower {
  #live: Live;
  #around: Surroundings;
  #source: EventSource | null = null;
  #asking: AbortController | null = null;
  #timer: number | null = null;
  #nTries = 0;
  /** Whether the stream was heard since it was opened. */
  #wasHeard = false;

  constructor(live: Live, around: Surroundings = browser) {
    this.#live = live;
    this.#around = around;
  }

  /** Load the state, then follow. Also what is done when somebody wants it at once. */
  start = (): void => {
    this.stop();
    void this.#load();
  };

  stop = (): void => {
    this.#source?.close();
    this.#source = null;
    this.#asking?.abort();
    this.#asking = null;
    if (this.#timer !== null) this.#around.never(this.#timer);
    this.#timer = null;
  };

  /** Try at once, where the line is lost and the next attempt would wait. */
  hurry = (): void => {
    if (this.#live.connection === "lost") {
      this.#nTries = 0;
      this.start();
    }
  };

  async #load(): Promise<void> {
    const asking = new AbortController();
    this.#asking = asking;
    try {
      const state = await this.#around.state(asking.signal);
      if (asking.signal.aborted) return;
      this.#live.load(state, this.#around.now_ms());
      this.#open();
    } catch (error) {
      if (asking.signal.aborted) return;
      this.#lose(error instanceof ApiError ? error : new ApiError(0, "unreadable", String(error)));
    }
  }

  /** The stream once more, from where it broke off. */
  #goOn = (): void => {
    this.stop();
    this.#open();
    this.#wait(() => void this.#prove(), SILENCE_MS);
  };

  #open(): void {
    this.#wasHeard = false;
    const source = this.#around.open(eventsUrl(this.#live.position));
    this.#source = source;
    source.addEventListener("open", () => this.#heard());
    source.addEventListener("patch", (event) => this.#take((event as MessageEvent<string>).data));
    source.addEventListener("alive", () => this.#heard()); // nothing is new, and the line stands
    source.addEventListener("reset", () => this.start());
    source.addEventListener("error", () => this.#lose(null));
  }

  #take(data: string): void {
    let verdict: "next" | "old" | "gap";
    try {
      verdict = this.#live.apply(fullPatch(JSON.parse(data)), this.#around.now_ms());
    } catch {
      verdict = "gap"; // half a message is as good as a missing one
    }
    if (verdict === "gap") this.start();
    else this.#heard();
  }

  #heard(): void {
    this.#nTries = 0;
    this.#wasHeard = true;
    this.#live.connection = "live";
    this.#live.heard_ms = this.#around.now_ms();
    this.#wait(() => void this.#prove(), SILENCE_MS);
  }

  /** After a silence: is anybody there, and did we miss something? */
  async #prove(): Promise<void> {
    const asking = new AbortController();
    this.#asking = asking;
    this.#wait(() => asking.abort("silence"), SILENCE_MS / 2);
    try {
      const state = await this.#around.state(asking.signal);
      if (this.#asking !== asking) return;
      if (state.position === this.#live.position) this.#heard();
      else this.start();
    } catch {
      if (this.#asking === asking) this.#lose(null);
    }
  }

  #lose(failure: ApiError | null): void {
    this.stop();
    this.#live.connection = "lost";
    if (failure) this.#live.failure = failure;
    this.#wait(this.#wasHeard ? this.#goOn : this.start, waitBefore_ms(this.#nTries));
    this.#wasHeard = false;
    this.#nTries += 1;
  }

  #wait(act: () => void, after_ms: number): void {
    if (this.#timer !== null) this.#around.never(this.#timer);
    this.#timer = this.#around.later(act, after_ms);
  }
}
