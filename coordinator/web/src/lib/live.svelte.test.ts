import { flushSync } from "svelte";
import { beforeEach, describe, expect, it, vi } from "vitest";

import { ApiError, fullFeed, fullNode, fullPatch, fullState, fullWorker, type State } from "./api";
import { Follower, waitBefore_ms, type Surroundings } from "./follow";
import { feedWith, FEED_LENGTH, fit, Live } from "./live.svelte";

const state = (sequence: number, epoch = "a"): State =>
  fullState({
    position: `${epoch}-${sequence}`,
    run: { run: "r", clock_s: sequence },
    nodes: [{ path: "", kind: "inner", mass: 1 }, { path: "0", kind: "leaf", loss: 2 }, { path: "1", kind: "leaf", loss: 3 }],
    workers: [{ worker: "w-1", state: "working" }],
    feed: [{ number: sequence, text: `number ${sequence}` }],
  });
const patch = (before: number, after: number, more: object = {}) =>
  fullPatch({ before: `a-${before}`, position: `a-${after}`, run: { run: "r", clock_s: after }, ...more });

describe("how a patch fits", () => {
  it("tells what follows on, what is old, and what leaves a gap", () => {
    expect(fit("a-5", { before: "a-5", position: "a-9" })).toBe("next");
    expect(fit("a-9", { before: "a-5", position: "a-9" })).toBe("old");
    expect(fit("a-5", { before: "a-7", position: "a-9" })).toBe("gap");
    expect(fit("a-5", { before: "b-4", position: "b-5" })).toBe("gap");
    expect(fit("", { before: "a-4", position: "a-5" })).toBe("gap");
  });
});

describe("the feed", () => {
  const items = (...numbers: number[]) => fullFeed(numbers.map((number) => ({ number })));
  const numbers = (feed: readonly { number: number }[]): number[] => feed.map((item) => item.number);

  it("takes each number once, in order", () => {
    expect(numbers(feedWith(items(1, 2, 3), items(4)))).toEqual([1, 2, 3, 4]);
    expect(numbers(feedWith(items(1, 3), items(2, 3, 4)))).toEqual([1, 2, 3, 4]);
  });

  it("is bounded", () => {
    let feed = items();
    for (let i = 0; i < 3 * FEED_LENGTH; i++) feed = [...feedWith(feed, items(i))];
    expect(feed).toHaveLength(FEED_LENGTH);
    expect(feed.at(-1)?.number).toBe(3 * FEED_LENGTH - 1);
  });
});

describe("the live state", () => {
  it("draws anew what shows a changed node, and nothing else", () => {
    const live = new Live();
    live.load(state(1), 0);
    const drawn: string[] = [];
    const end = $effect.root(() => {
      for (const path of ["0", "1"]) $effect(() => void drawn.push(`${path}: ${live.node(path)?.loss}`));
      $effect(() => void drawn.push(`shape ${live.shape}`));
      $effect(() => void drawn.push(`paths ${live.paths.length}`));
    });
    flushSync();
    expect(drawn.splice(0)).toEqual(["0: 2", "1: 3", "shape 1", "paths 3"]);

    live.apply(patch(1, 2, { nodes: [fullNode({ path: "1", kind: "leaf", loss: 2.5 })] }), 10);
    flushSync();
    expect(drawn.splice(0)).toEqual(["1: 2.5"]);

    live.apply(patch(2, 3, { nodes: [fullNode({ path: "1", kind: "inner" }), fullNode({ path: "10", kind: "leaf" })] }), 20);
    flushSync();
    expect(drawn.splice(0)).toEqual(["1: null", "shape 2", "paths 4"]);

    live.apply(patch(3, 4, { gone: ["10"] }), 30);
    flushSync();
    expect(drawn.splice(0)).toEqual(["shape 3", "paths 3"]);
    end();
  });

  it("moves the picture when masses moved enough, and not all the time", () => {
    const live = new Live();
    const masses = (before: number, mass: number, now_ms: number): number => {
      live.apply(patch(before, before + 1, { nodes: [fullNode({ path: "0", kind: "leaf", mass })] }), now_ms);
      return live.shape;
    };
    live.load(state(1), 0);
    const shapes = [
      live.shape, masses(1, 0.3, 100), masses(2, 0.31, 2000), masses(3, 0.3104, 5000), masses(4, 0.32, 5100),
    ];
    expect(shapes).toEqual([1, 1, 2, 2, 3]);
    expect(masses(5, 0.4, 5200)).toBe(3);
    live.tick(7100);
    expect(live.shape).toBe(4);
  });

  it("shows a node that comes into being to who waited for it", () => {
    const live = new Live();
    live.load(state(1), 0);
    const seen: (number | null | undefined)[] = [];
    const end = $effect.root(() => {
      $effect(() => void seen.push(live.node("00")?.loss));
    });
    flushSync();
    live.apply(patch(1, 2, { nodes: [fullNode({ path: "00", kind: "leaf", loss: 1 })] }), 10);
    flushSync();
    expect(seen).toEqual([undefined, 1]);
    end();
  });

  it("takes nothing of a patch that does not follow on", () => {
    const live = new Live();
    live.load(state(5), 0);
    expect(live.apply(patch(7, 8, { workers: [fullWorker({ worker: "w-2", state: "lost" })] }), 1)).toBe("gap");
    expect(live.apply(patch(2, 4, { gone: ["0"] }), 1)).toBe("old");
    expect([live.position, live.workerIds, live.paths]).toEqual(["a-5", ["w-1"], ["", "0", "1"]]);
  });

  it("forgets what a new state does not have", () => {
    const live = new Live();
    live.load(state(1), 0);
    live.load({ ...state(2), nodes: [fullNode({ path: "" })], workers: [] }, 1);
    expect([live.paths, live.workerIds, live.node("0")]).toEqual([[""], [], undefined]);
    expect(live.feed.map((item) => item.number)).toEqual([1, 2]);
  });

  it("begins the feed anew when the run does", () => {
    const live = new Live();
    live.load(state(50), 0);
    live.load(state(3, "b"), 1);
    expect(live.feed.map((item) => item.number)).toEqual([3]);
  });
});

/** A browser that does only what the test says. */
class Stage implements Surroundings {
  answers: (State | ApiError)[] = [];
  opened: string[] = [];
  source!: EventTarget & { close: () => void };
  now = 0;
  timers = new Map<number, { act: () => void; after_ms: number }>();
  #next = 1;
  isClosed = vi.fn();

  state = async (): Promise<State> => {
    const answer = this.answers.shift();
    if (!answer || answer instanceof ApiError) throw answer ?? new ApiError(0, "no_answer", "");
    return answer;
  };
  open = (url: string): EventSource => {
    this.opened.push(url);
    this.source = Object.assign(new EventTarget(), { close: this.isClosed });
    return this.source as unknown as EventSource;
  };
  now_ms = (): number => this.now;
  later = (act: () => void, after_ms: number): number => {
    this.timers.set(this.#next, { act, after_ms });
    return this.#next++;
  };
  never = (timer: number): void => void this.timers.delete(timer);

  say(type: string, data = ""): void {
    this.source.dispatchEvent(new MessageEvent(type, { data }));
  }
  /** The one thing that waits, and how long; then it is done. */
  pass(): number {
    expect(this.timers.size).toBe(1);
    const [[timer, { act, after_ms }]] = [...this.timers] as [[number, { act: () => void; after_ms: number }]];
    this.timers.delete(timer);
    this.now += after_ms;
    act();
    return after_ms;
  }
}

describe("following", () => {
  let live: Live;
  let stage: Stage;
  let follower: Follower;
  const settled = async (): Promise<void> => void (await new Promise((done) => setTimeout(done)));

  beforeEach(async () => {
    live = new Live();
    stage = new Stage();
    follower = new Follower(live, stage);
    stage.answers = [state(1)];
    follower.start();
    await settled();
    stage.say("open");
  });

  it("asks for the state, then for what changed since", () => {
    expect(stage.opened).toEqual(["/api/v1/events?since=a-1"]);
    stage.say("patch", JSON.stringify(patch(1, 2, { nodes: [fullNode({ path: "0", kind: "leaf", loss: 1 })] })));
    expect([live.position, live.node("0")?.loss, live.connection]).toEqual(["a-2", 1, "live"]);
  });

  it.each([["a gap", "patch", JSON.stringify(patch(4, 5))], ["a reset", "reset", ""], ["half a message", "patch", '{"bef']])(
    "begins anew after %s",
    async (_, type, data) => {
      stage.answers = [state(9)];
      stage.say(type, data);
      await settled();
      expect(stage.isClosed).toHaveBeenCalled();
      expect(stage.opened.at(-1)).toBe("/api/v1/events?since=a-9");
      expect(live.position).toBe("a-9");
    },
  );

  it("leaves alone what it has already", () => {
    stage.say("patch", JSON.stringify(patch(0, 1)));
    expect(stage.opened).toHaveLength(1);
  });

  it("waits longer and longer for a coordinator that is away, and recovers by itself", async () => {
    stage.say("error");
    expect(live.connection).toBe("lost");
    const waits: number[] = [stage.pass()];
    stage.say("error"); // of the stream that was to go on
    for (let i = 1; i < 7; i++) {
      waits.push(stage.pass());
      await settled();
    }
    expect(waits).toEqual([500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
    expect(waits).toEqual(waits.map((_, n) => waitBefore_ms(n)));
    expect(live.node("0")).toBeDefined(); // what was known is still shown

    stage.answers = [state(20, "b")];
    stage.pass();
    await settled();
    stage.say("open");
    expect([live.connection, live.position]).toEqual(["live", "b-20"]);
    stage.say("error");
    expect(stage.pass()).toBe(500);
  });

  it("goes on after a break from where it was, without loading anything", async () => {
    stage.say("patch", JSON.stringify(patch(1, 4)));
    stage.say("error");
    expect(stage.pass()).toBe(500);
    await settled();
    expect(stage.opened).toEqual(["/api/v1/events?since=a-1", "/api/v1/events?since=a-4"]);
    stage.say("open");
    stage.say("patch", JSON.stringify(patch(4, 6)));
    expect([live.connection, live.position]).toEqual(["live", "a-6"]);
  });

  it("asks after a silence where a stream that was to go on is never heard", async () => {
    stage.say("error");
    stage.pass();
    stage.answers = [state(8), state(8)];
    expect(stage.pass()).toBe(20_000);
    await settled();
    expect([live.position, stage.opened.length]).toEqual(["a-8", 3]);
  });

  it("does not wait when it is told to hurry", async () => {
    stage.say("error");
    stage.answers = [state(3)];
    follower.hurry();
    await settled();
    expect(live.position).toBe("a-3");
  });

  it("asks after a silence whether anybody is there", async () => {
    stage.answers = [state(1)];
    expect(stage.pass()).toBe(20_000);
    await settled();
    expect([live.connection, stage.opened.length]).toEqual(["live", 1]);

    stage.pass();
    await settled();
    expect(live.connection).toBe("lost");
  });

  it("notices after a silence that it missed something", async () => {
    stage.answers = [state(6), state(6)];
    stage.pass();
    await settled();
    expect([live.position, stage.opened.length]).toEqual(["a-6", 2]);
  });

  it("says why nothing can be seen", async () => {
    const other = new Live();
    stage.answers = [new ApiError(401, "no_token", "Sign in first.")];
    const lone = new Follower(other, stage);
    lone.start();
    await settled();
    expect([other.failure?.status, other.connection]).toEqual([401, "lost"]);
    lone.stop();
  });
});
