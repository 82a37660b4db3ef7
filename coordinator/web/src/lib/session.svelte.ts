/** Who the server takes the reader for, and the dialog to sign in. */
import { ApiError, api, type Session } from "./api";

class SessionStore {
  now: Session | null = $state.raw(null);
  /** Whether the dialog is open. */
  isAsking = $state(false);
  /** Called when the role changed. */
  onChange: () => void = () => {};

  get isAdmin(): boolean {
    return this.now?.role === "admin";
  }

  /** Whether nothing can be seen without a token. */
  get isLockedOut(): boolean {
    return this.now !== null && this.now.needs_token && this.now.role === "nobody";
  }

  load = async (): Promise<void> => {
    try {
      this.#take(await api.session());
    } catch (error) {
      if (!(error instanceof ApiError)) throw error; // no answer: asked again when the line is back
    }
  };

  ask = (): void => {
    this.isAsking = true;
  };

  /** Sign in; throws `ApiError` where the token is refused. */
  signIn = async (token: string): Promise<void> => {
    this.#take(await api.signIn(token));
    this.isAsking = false;
  };

  signOut = async (): Promise<void> => {
    this.#take(await api.signOut());
  };

  #take(session: Session): void {
    const isOther = this.now !== null && this.now.role !== session.role;
    this.now = session;
    if (isOther) this.onChange();
  }
}

export const session = new SessionStore();
