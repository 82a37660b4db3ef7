/** The operator's desk as a page sees it: asked again while an order waits, so that its outcome shows by itself. */

import { type AdminState, api, ApiError, type OrderRequest, type OrderRow } from "../../lib/api";
import { isWaiting, withOrder } from "./orders";

const WHILE_WAITING_MS = 700;
const OTHERWISE_MS = 5000;

/** When to ask next: soon while an order waits for the rounds. */
export const nextMs = (orders: readonly OrderRow[]): number => (orders.some(isWaiting) ? WHILE_WAITING_MS : OTHERWISE_MS);

export class Operator {
  pending = $state.raw<AdminState["pending"]>([]);
  orders = $state.raw<readonly OrderRow[]>([]);
  /** Whether the desk has answered once. */
  isKnown = $state(false);
  /** Why it did not answer. */
  failure: ApiError | null = $state.raw(null);
  #timer: ReturnType<typeof setTimeout> | undefined;
  #isOn = false;

  /** Ask now and again; what is returned ends that. */
  start(): () => void {
    this.#isOn = true;
    void this.refresh();
    return () => {
      this.#isOn = false;
      clearTimeout(this.#timer);
    };
  }

  async refresh(): Promise<void> {
    clearTimeout(this.#timer);
    try {
      this.#take(await api.admin());
    } catch (error) {
      this.failure = error instanceof ApiError ? error : new ApiError(0, "unreadable", String(error));
    }
    clearTimeout(this.#timer);
    if (this.#isOn) this.#timer = setTimeout(() => void this.refresh(), nextMs(this.orders));
  }

  /** Give an order; throws the refusal. */
  async give(order: Partial<OrderRequest> & Pick<OrderRequest, "kind">): Promise<OrderRow> {
    const given = await api.order(order);
    this.orders = withOrder(this.orders, given);
    void this.refresh();
    return given;
  }

  /** Let a worker in; throws the refusal. */
  async approve(worker: string): Promise<void> {
    this.#take(await api.approve(worker));
  }

  #take(state: AdminState): void {
    [this.pending, this.orders, this.isKnown, this.failure] = [state.pending, state.orders, true, null];
  }
}
