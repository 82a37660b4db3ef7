/** Every question the page asks of the server. Answers come whole (`documents.ts`); refusals are `ApiError`. */
import * as doc from "./documents";
import type { Failure, Metric, OrderRequest, Sparse, TokenRequest } from "./documents";

export * from "./documents";

const ROOT = "/api/v1";

/** A refusal of the server, or no answer from it at all (`status` 0). */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    /** A word for programs. */
    readonly error: string,
    /** One sentence for people. */
    reason: string,
  ) {
    super(reason);
    this.name = "ApiError";
  }
}

type Method = "GET" | "POST" | "DELETE";
type Query = Record<string, string | number | null | undefined>;

const NO_ANSWER = "The coordinator does not answer. It may be restarting, or this machine is offline.";

/** What to say of an answer that is not as it should be. */
export function refusal(status: number, body: unknown): ApiError {
  const known = (body ?? {}) as Partial<Failure>;
  const reason = typeof known.reason === "string" ? known.reason : `The server answered with status ${status}.`;
  return new ApiError(status, typeof known.error === "string" ? known.error : `status_${status}`, reason);
}

async function ask<T>(method: Method, path: string, body?: unknown, signal?: AbortSignal): Promise<Sparse<T>> {
  const headers: Record<string, string> = { accept: "application/json" };
  if (body !== undefined) headers["content-type"] = "application/json";
  let answer: Response;
  try {
    answer = await fetch(ROOT + path, {
      method,
      headers,
      body: body === undefined ? null : JSON.stringify(body),
      credentials: "same-origin",
      signal: signal ?? null,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, "no_answer", NO_ANSWER);
  }
  const content: unknown = await answer.json().catch(() => null);
  if (!answer.ok) throw refusal(answer.status, content);
  if (content === null) throw new ApiError(answer.status, "no_json", "The server answered with something unknown.");
  return content as Sparse<T>;
}

/** `?a=1&b=2` of what is set; nothing of what is null. */
export function queryOf(query: Query): string {
  const parts = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return parts.length ? `?${new URLSearchParams(parts.map(([key, value]) => [key, String(value)]))}` : "";
}

/** A node's path as addresses spell it. */
export const spelled = (path: string): string => path || "root";

export interface SeriesQuery {
  metric: Metric;
  /** Path of a node; undefined: of the run. */
  node?: string | undefined;
  start_s?: number | undefined;
  end_s?: number | undefined;
  points?: number | undefined;
}

export interface TimelineQuery {
  start_s?: number | undefined;
  end_s?: number | undefined;
  offset?: number | undefined;
  limit?: number | undefined;
}

export const api = {
  state: async (signal?: AbortSignal) => doc.fullState(await ask<doc.State>("GET", "/state", undefined, signal)),
  node: async (path: string, signal?: AbortSignal) =>
    doc.fullNodeDetail(await ask<doc.NodeDetail>("GET", `/nodes/${spelled(path)}`, undefined, signal)),
  workers: async (signal?: AbortSignal) =>
    doc.fullWorkerList(await ask<doc.WorkerList>("GET", "/workers", undefined, signal)),
  worker: async (worker: string, signal?: AbortSignal) =>
    doc.fullWorkerDetail(
      await ask<doc.WorkerDetail>("GET", `/workers/${encodeURIComponent(worker)}`, undefined, signal),
    ),
  series: async ({ node, ...rest }: SeriesQuery, signal?: AbortSignal) => {
    const query = queryOf({ ...rest, node: node === undefined ? undefined : spelled(node) });
    return doc.fullSeries(await ask<doc.Series>("GET", `/series${query}`, undefined, signal));
  },
  timeline: async (query: TimelineQuery = {}, signal?: AbortSignal) =>
    doc.fullTimeline(await ask<doc.Timeline>("GET", `/timeline${queryOf({ ...query })}`, undefined, signal)),
  routing: async (signal?: AbortSignal) =>
    doc.fullRouting(await ask<doc.Routing>("GET", "/routing", undefined, signal)),
  lookUp: async (text: string, signal?: AbortSignal) =>
    doc.fullLookup(await ask<doc.Lookup>("POST", "/routing/lookup", { text }, signal)),
  artifacts: async (signal?: AbortSignal) =>
    doc.fullArtifacts(await ask<doc.Artifacts>("GET", "/artifacts", undefined, signal)),
  makeBundle: async () => doc.fullArtifacts(await ask<doc.Artifacts>("POST", "/artifacts", {})),
  join: async (signal?: AbortSignal) => doc.fullJoin(await ask<doc.JoinInfo>("GET", "/join", undefined, signal)),
  session: async (signal?: AbortSignal) =>
    doc.fullSession(await ask<doc.Session>("GET", "/session", undefined, signal)),
  signIn: async (token: string) => doc.fullSession(await ask<doc.Session>("POST", "/session", { token })),
  signOut: async () => doc.fullSession(await ask<doc.Session>("DELETE", "/session")),
  admin: async (signal?: AbortSignal) => doc.fullAdmin(await ask<doc.AdminState>("GET", "/admin", undefined, signal)),
  order: async (order: Partial<OrderRequest> & Pick<OrderRequest, "kind">) =>
    doc.fullOrder(await ask<doc.OrderRow>("POST", "/admin/orders", order)),
  approve: async (worker: string) =>
    doc.fullAdmin(await ask<doc.AdminState>("POST", `/admin/workers/${encodeURIComponent(worker)}/approve`, {})),
  tokens: async (signal?: AbortSignal) =>
    doc.fullTokens(await ask<doc.TokenList>("GET", "/admin/tokens", undefined, signal)),
  makeToken: async (asked: Partial<TokenRequest>) =>
    (await ask<doc.NewToken>("POST", "/admin/tokens", asked)) as doc.NewToken,
  revokeToken: async (tokenId: string) =>
    doc.fullTokens(await ask<doc.TokenList>("DELETE", `/admin/tokens/${encodeURIComponent(tokenId)}`)),
};

/** Where the stream of changes since a position is read. */
export const eventsUrl = (since: string): string => `${ROOT}/events${queryOf({ since })}`;
/** Where a leaf's adapter is downloaded. */
export const leafUrl = (path: string): string => `${ROOT}/leaves/${spelled(path)}`;
