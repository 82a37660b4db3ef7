/** The API's documents as the page knows them: every field is there, whatever the server left out as its default. */
import type { components } from "./schema";

type Schemas = components["schemas"];

/** A document with nothing left out. */
export type Full<T> = T extends readonly (infer Item)[]
  ? readonly Full<Item>[]
  : T extends object
    ? { readonly [Key in keyof T]-?: Full<Exclude<T[Key], undefined>> }
    : T;

export type Run = Full<Schemas["Run"]>;
export type Node = Full<Schemas["Node"]>;
export type Worker = Full<Schemas["Worker"]>;
export type UnitNow = Full<Schemas["UnitNow"]>;
export type FeedItem = Full<Schemas["FeedItem"]>;
export type State = Full<Schemas["State"]>;
export type Patch = Full<Schemas["Patch"]>;
export type UpdateRow = Full<Schemas["UpdateRow"]>;
export type VersionRow = Full<Schemas["VersionRow"]>;
export type Step = Full<Schemas["Step"]>;
export type NodeDetail = Full<Schemas["NodeDetail"]>;
export type Span = Full<Schemas["Span"]>;
export type Lane = Full<Schemas["Lane"]>;
export type Mark = Full<Schemas["Mark"]>;
export type Timeline = Full<Schemas["Timeline"]>;
export type StateSpan = Full<Schemas["StateSpan"]>;
export type WorkerDetail = Full<Schemas["WorkerDetail"]>;
export type WorkerList = Full<Schemas["WorkerList"]>;
export type Series = Full<Schemas["Series"]>;
export type Metric = Series["metric"];
export type LeafShare = Full<Schemas["LeafShare"]>;
export type GateRow = Full<Schemas["GateRow"]>;
export type RouterRow = Full<Schemas["RouterRow"]>;
export type Routing = Full<Schemas["Routing"]>;
export type Lookup = Full<Schemas["Lookup"]>;
export type BundleRow = Full<Schemas["BundleRow"]>;
export type LeafFile = Full<Schemas["LeafFile"]>;
export type Artifacts = Full<Schemas["Artifacts"]>;
export type JoinInfo = Full<Schemas["JoinInfo"]>;
export type Session = Full<Schemas["Session"]>;
export type TokenRow = Full<Schemas["TokenRow"]>;
export type TokenList = Full<Schemas["TokenList"]>;
export type NewToken = Full<Schemas["NewToken"]>;
export type PendingWorker = Full<Schemas["PendingWorker"]>;
export type OrderRow = Full<Schemas["OrderRow"]>;
export type AdminState = Full<Schemas["AdminState"]>;
export type OrderRequest = Schemas["OrderRequest"];
export type TokenRequest = Schemas["TokenRequest"];
export type Failure = Full<Schemas["Failure"]>;

/** A document from the wire, where fields at their default may be missing. */
export type Sparse<T> = T extends readonly (infer Item)[]
  ? readonly Sparse<Item>[]
  : T extends object
    ? { readonly [Key in keyof T]?: Sparse<T[Key]> }
    : T;

const RUN: Run = {
  run: "", phase: "waiting", finished: "", clock_s: 0, base_id: "", adapter: "", rank: 0, depth: 0, leaf_steps: 0,
  n_events: 0, topology_version: 0, router_version: 0, n_leaves: 0, progress: 0, eta_s: null, eta_low_s: null,
  eta_high_s: null, n_workers: 0, n_online: 0, n_working: 0, n_accepted: 0, n_rejected: 0, n_expired: 0, tokens: 0,
  tokens_per_s: 0, bytes_sent: 0, bytes_received: 0, loss: null, is_replay: false, replay_speed: 0,
};
const NODE: Node = {
  path: "", kind: "inner", state: "router", holders: [], mass: null, loss: null, change: null, version: 0, n_steps: 0,
  accuracy: null,
};
const UNIT: UnitNow = { unit_id: "", kind: "", node: "", leased_s: 0, deadline_s: 0, n_steps: 0, step: null };
const WORKER: Worker = {
  worker: "", name: "", state: "starting", reason: "", detail: "", resumes_in_s: null, node: null, unit: null, gpu: "",
  memory_bytes: 0, tokens_per_s: null, heard_s: null, joined_s: 0, last_accepted_s: null, n_accepted: 0, n_rejected: 0,
  n_expired: 0, n_lost: 0, tokens: 0, seconds: 0, bytes_sent: 0, bytes_received: 0, tags: [], data_note: "",
};
const FEED_ITEM: FeedItem = { number: 0, at_s: 0, kind: "", text: "", tone: "plain", node: null, worker: "" };
const UPDATE: UpdateRow = {
  unit_id: "", worker: "", node: "", kind: "", state: "leased", leased_s: 0, closed_s: null, reason: "", n_steps: 0,
  tokens: 0, seconds: 0, heldout_before: null, heldout_after: null, bytes_received: 0,
};
const VERSION: VersionRow = { version: 0, at_s: 0, n_steps: 0, contributors: [], mismatch: null };
const STEP: Step = { path: "", mass: null, accuracy: null, tau: null };
const SPAN: Span = { worker: "", start_s: 0, end_s: null, outcome: "working", n_units: 1 };
const MARK: Mark = { at_s: 0, kind: "router", text: "", count: 1 };
const STATE_SPAN: StateSpan = { state: "working", reason: "", start_s: 0, end_s: null };
const LEAF_SHARE: LeafShare = { path: "", mass: 0, data_notes: [] };
const GATE: GateRow = { path: "", right: null, accuracy: null, tau: null };
const ROUTER: RouterRow = { version: 0, at_s: 0, drift: 0, n_contributors: 0, reason: "", entropy_bits: null };
const BUNDLE: BundleRow = {
  sha256: "", bytes: 0, n_events: 0, log_sha256: "", router_version: 0, at_s: 0, is_published: false,
  is_recorded: false, url: "",
};
const LEAF_FILE: LeafFile = { path: "", version: 0, n_steps: 0, url: "" };
const TOKEN: TokenRow = {
  token_id: "", state: "open", expires_unix_s: 0, max_workers: 0, n_workers: 0, needs_approval: false, tags: [],
};
const PENDING: PendingWorker = { worker: "", name: "", token_id: "", tags: [], since_unix_s: 0 };
const ORDER: OrderRow = {
  order_id: "", kind: "", worker: "", reason: "", given_unix_s: 0, outcome: null,
};

const fill = <T extends object>(blank: T, known: Sparse<T> | undefined): T => ({ ...blank, ...(known as Partial<T>) });
const fillAll = <T extends object>(blank: T, known: readonly Sparse<T>[] | undefined): T[] =>
  (known ?? []).map((item) => fill(blank, item));

export const fullRun = (run?: Sparse<Run>): Run => fill(RUN, run);
export const fullNode = (node?: Sparse<Node>): Node => fill(NODE, node);
export const fullFeed = (feed?: readonly Sparse<FeedItem>[]): FeedItem[] => fillAll(FEED_ITEM, feed);
export const fullUpdates = (rows?: readonly Sparse<UpdateRow>[]): UpdateRow[] => fillAll(UPDATE, rows);

export function fullWorker(known?: Sparse<Worker>): Worker {
  const worker = fill(WORKER, known);
  return worker.unit ? { ...worker, unit: fill(UNIT, worker.unit) } : worker;
}

export const fullState = (known: Sparse<State>): State => ({
  position: known.position ?? "",
  run: fullRun(known.run),
  nodes: (known.nodes ?? []).map(fullNode),
  workers: (known.workers ?? []).map(fullWorker),
  feed: fullFeed(known.feed),
});

export const fullPatch = (known: Sparse<Patch>): Patch => ({
  before: known.before ?? "",
  position: known.position ?? "",
  run: fullRun(known.run),
  nodes: (known.nodes ?? []).map(fullNode),
  gone: known.gone ?? [],
  workers: (known.workers ?? []).map(fullWorker),
  feed: fullFeed(known.feed),
});

export const fullNodeDetail = (known: Sparse<NodeDetail>): NodeDetail => ({
  node: fullNode(known.node),
  way: fillAll(STEP, known.way),
  holders: (known.holders ?? []).map(fullWorker),
  updates: fullUpdates(known.updates),
  versions: fillAll(VERSION, known.versions),
});

export const fullWorkerDetail = (known: Sparse<WorkerDetail>): WorkerDetail => ({
  worker: fullWorker(known.worker),
  states: fillAll(STATE_SPAN, known.states),
  updates: fullUpdates(known.updates),
  limits: (known.limits ?? {}) as Record<string, string>,
  log: (known.log ?? []) as WorkerDetail["log"],
});

export const fullWorkerList = (known: Sparse<WorkerList>): WorkerList => ({
  position: known.position ?? "",
  workers: (known.workers ?? []).map(fullWorker),
});

export const fullTimeline = (known: Sparse<Timeline>): Timeline => ({
  start_s: known.start_s ?? 0,
  end_s: known.end_s ?? 0,
  lanes: (known.lanes ?? []).map((lane) => ({ path: lane.path ?? "", spans: fillAll(SPAN, lane.spans) })),
  n_lanes: known.n_lanes ?? 0,
  offset: known.offset ?? 0,
  marks: fillAll(MARK, known.marks),
});

export const fullSeries = (known: Sparse<Series>): Series => ({
  metric: known.metric ?? "loss",
  node: known.node ?? null,
  bucket_s: known.bucket_s ?? 0,
  t: known.t ?? [],
  mean: known.mean ?? [],
  low: known.low ?? known.mean ?? [],
  high: known.high ?? known.mean ?? [],
});

export const fullRouting = (known: Sparse<Routing>): Routing => ({
  source: known.source ?? "none",
  leaves: fillAll(LEAF_SHARE, known.leaves),
  gates: fillAll(GATE, known.gates),
  versions: fillAll(ROUTER, known.versions),
  entropy_bits: known.entropy_bits ?? null,
  max_entropy_bits: known.max_entropy_bits ?? 0,
  n_dead: known.n_dead ?? 0,
  can_look_up: known.can_look_up ?? false,
  why_not: known.why_not ?? "",
});

export const fullLookup = (known: Sparse<Lookup>): Lookup => ({
  path: known.path ?? "",
  n_tokens: known.n_tokens ?? 0,
  gates: (known.gates ?? []) as Lookup["gates"],
  leaves: (known.leaves ?? []).map((leaf) => ({
    path: leaf.path ?? "",
    posterior: leaf.posterior ?? 0,
    data_notes: leaf.data_notes ?? [],
  })),
  router_version: known.router_version ?? 0,
});

export const fullArtifacts = (known: Sparse<Artifacts>): Artifacts => ({
  bundles: fillAll(BUNDLE, known.bundles),
  is_making: known.is_making ?? false,
  making_error: known.making_error ?? "",
  leaves: fillAll(LEAF_FILE, known.leaves),
  can_make: known.can_make ?? false,
});

export const fullJoin = (known: Sparse<JoinInfo>): JoinInfo => ({
  run: known.run ?? "",
  address: known.address ?? "",
  command: known.command ?? "",
  base_id: known.base_id ?? "",
  min_sequences: known.min_sequences ?? 0,
  sent: known.sent ?? [],
  never_sent: known.never_sent ?? [],
  code: known.code ?? "",
  needs_approval: known.needs_approval ?? false,
  is_open: known.is_open ?? true,
});

export const fullSession = (known: Sparse<Session>): Session => ({
  role: known.role ?? "nobody",
  is_local: known.is_local ?? false,
  expires_s: known.expires_s ?? null,
  needs_token: known.needs_token ?? false,
});

export const fullOrder = (known: Sparse<OrderRow>): OrderRow => fill(ORDER, known);

export const fullAdmin = (known: Sparse<AdminState>): AdminState => ({
  pending: fillAll(PENDING, known.pending),
  orders: fillAll(ORDER, known.orders),
});

export const fullTokens = (known: Sparse<TokenList>): TokenList => ({ tokens: fillAll(TOKEN, known.tokens) });
